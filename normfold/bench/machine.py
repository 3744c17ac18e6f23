"""The machine that figures were taken on, and whether it has what was asked for."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from normfold.bench import nvidia
from normfold.bench.runners import RUNNERS
from normfold.bench.runners.base import TF32, Runner
from normfold.errors import CannotJudgeError

_PACKAGES = ("normfold", *(package for runner in RUNNERS.values() for package in runner.packages), "numpy")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: str, threads: int) -> dict[str, Any]:
    """Processor, GPU and driver, versions, threads, and the load at the start: plain data, no host name."""
    found: dict[str, Any] = {
        "cpu": _processor(),
        "processors": processors(),
        "threads": threads,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    return found | nvidia.describe() | {"tf32": TF32} if device == "cuda" else found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.M) if info.exists() else None
    return named[1].strip() if named else platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_device(device: str, runner: Runner) -> None:
    """Raise CannotJudgeError naming the package or the driver that `device` needs and this machine has not."""
    missing = list(filter(None, [runner.lacks(device)]))
    if device == "cpu":
        if missing:
            raise CannotJudgeError(f"--runtime {runner.name}: {missing[0]}. Nothing was measured")
        return
    if not _driver_loads():
        missing.append("there is no NVIDIA driver (libcuda cannot be loaded)")
    if missing:
        raise CannotJudgeError(
            f"--device cuda: {'; '.join(missing)}. Nothing was measured; --device cpu measures the CPU"
        )


def _driver_loads() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True
