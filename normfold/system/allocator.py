"""How memory and processors are used by a run that works on large tensors."""

from __future__ import annotations

import ctypes
import os
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def expect_large_tensors() -> None:
    """Configure threads and malloc for large tensors. Call before numpy and torch are imported.

    Threads sleep while they wait: those that numpy's products leave spinning (1/40 s each time) take a processor from
    onnxruntime. glibc keeps up to 256 MB of freed memory: giving pages back and asking for them again with every tensor
    costs a tenth of a run.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The logarithm of how many clock cycles a thread waits before it sleeps: the least that OpenBLAS takes.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, size in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 256 << 20)):
            mallopt(option, size)
