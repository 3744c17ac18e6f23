"""How much memory a process holds, and has held, above what it held before the model was read."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, Protocol

from normfold.bench import nvidia
from normfold.bench.job import Job

_STATUS = Path("/proc/self/status")


class Meter(Protocol):
    """Bytes above the moment it was made; None where this system does not tell."""

    def now(self) -> int | None: ...

    def peak(self) -> int | None: ...

    def reserved(self) -> int | None: ...

    def state(self) -> dict[str, float]: ...


def meter(job: Job) -> Meter:
    """A meter for the device of `job`, set to zero."""
    if job.device == "cpu":
        return _Resident()
    return _TorchCuda() if job.runtime == "torch" else _Driver()


def above(later: int | None, earlier: int | None) -> int | None:
    """The growth, None where either is not known; memory given back in between counts as none."""
    return None if later is None or earlier is None else max(0, later - earlier)


class _Resident:
    """The resident set of this process (Linux)."""

    def __init__(self) -> None:
        # Where this is allowed, the high-water mark starts anew; otherwise that of the imports hides smaller ones.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.idle = _status("VmRSS")

    def now(self) -> int | None:
        return above(_status("VmRSS"), self.idle)

    def peak(self) -> int | None:
        return above(_status("VmHWM"), self.idle)

    def reserved(self) -> int | None:
        return None

    def state(self) -> dict[str, float]:
        return {}


def _status(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
    return int(found[1]) * 1024 if found else None


class _Driver:
    """Memory of the device as its driver counts it, for a runtime that does not tell; the arena never shrinks."""

    def __init__(self) -> None:
        _make_context()
        self.idle = nvidia.memory_used()

    def now(self) -> int | None:
        return above(nvidia.memory_used(), self.idle)

    def peak(self) -> int | None:
        return self.now()

    def reserved(self) -> int | None:
        return None

    def state(self) -> dict[str, float]:
        return nvidia.state()


def _make_context() -> None:
    """The CUDA context and its libraries, which are there whatever the model is."""
    import onnxruntime as ort

    ort.preload_dlls()
    ort.OrtValue.ortvalue_from_shape_and_type([1], "float32", "cuda", 0)


class _TorchCuda:
    """torch's own allocator on the device: what tensors took, and what it holds for them."""

    def __init__(self) -> None:
        import torch

        self.cuda: Any = torch.cuda
        self.cuda.init()
        self.cuda.reset_peak_memory_stats()

    def now(self) -> int | None:
        return int(self.cuda.memory_allocated())

    def peak(self) -> int | None:
        return int(self.cuda.max_memory_allocated())

    def reserved(self) -> int | None:
        return int(self.cuda.max_memory_reserved())

    def state(self) -> dict[str, float]:
        return nvidia.state()
