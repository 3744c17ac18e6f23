"""What the NVIDIA driver tells of the GPU, through nvidia-smi, which comes with it; nothing where that is not there."""

from __future__ import annotations

import os
import subprocess

_SECONDS = 20.0


def ask(*fields: str) -> dict[str, str]:
    """The fields of `nvidia-smi --query-gpu` that the driver knows, of the first GPU that this process may use."""
    lines = _lines(f"--query-gpu={','.join(fields)}", f"--id={_first_gpu()}")
    values = [word.strip() for word in lines[0].split(",")] if lines else []
    if len(values) != len(fields):
        return {}
    return {field: value for field, value in zip(fields, values, strict=True) if not value.startswith("[")}


def describe() -> dict[str, object]:
    """Name, driver and memory in bytes of the GPU."""
    found = ask("name", "driver_version", "memory.total")
    total = _number(found.get("memory.total"))
    return {
        "gpu": found.get("name"),
        "driver": found.get("driver_version"),
        "gpu_memory": None if total is None else int(total) << 20,
    }


def state() -> dict[str, float]:
    """Clocks, temperature and power now: what a throttled measurement shows."""
    names = {
        "clocks.sm": "sm_clock_mhz",
        "clocks.mem": "memory_clock_mhz",
        "temperature.gpu": "temperature_c",
        "power.draw": "power_w",
    }
    found = ((name, _number(value)) for field, value in ask(*names).items() if (name := names[field]))
    return {name: value for name, value in found if value is not None}


def memory_used() -> int | None:
    """Bytes on the device, to the MiB: of this process where the driver can tell it from others, otherwise of all.

    In a container the driver sees other process numbers.
    """
    for line in _lines("--query-compute-apps=pid,used_memory", f"--id={_first_gpu()}"):
        process, _, used = (word.strip() for word in line.partition(","))
        own = _number(used) if process == str(os.getpid()) else None
        if own is not None:
            return int(own) << 20
    whole = _number(ask("memory.used").get("memory.used"))
    return None if whole is None else int(whole) << 20


def _first_gpu() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def _lines(*options: str) -> list[str]:
    command = ["nvidia-smi", *options, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
