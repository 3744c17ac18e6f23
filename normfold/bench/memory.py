"""How much memory a process holds, and has held, above what it held before the model was read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from normfold.bench import nvidia

_STATUS = Path("/proc/self/status")


class Meter(Protocol):
    """Bytes above the moment it was made; None where this system does not tell."""

    def now(self) -> int | None: ...

    def peak(self) -> int | None:
        """The most since it was made or last began anew."""
        ...

    def begin_anew(self) -> bool:
        """Let `peak` forget what was until now; False where this system does not."""
        ...

    def reserved(self) -> int | None: ...

    def state(self) -> dict[str, float]: ...


def above(later: int | None, earlier: int | None) -> int | None:
    """The growth, None where either is not known; memory given back in between counts as none."""
    return None if later is None or earlier is None else max(0, later - earlier)


class Resident:
    """The resident set of this process (Linux)."""

    def __init__(self) -> None:
        # Where this is not allowed, the high-water mark of the imports hides smaller ones.
        self.begin_anew()
        self.idle = _status("VmRSS")

    def now(self) -> int | None:
        return above(_status("VmRSS"), self.idle)

    def peak(self) -> int | None:
        return above(_status("VmHWM"), self.idle)

    def begin_anew(self) -> bool:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return False
        return True

    def reserved(self) -> int | None:
        return None

    def state(self) -> dict[str, float]:
        return {}


def _status(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
    return int(found[1]) * 1024 if found else None


class Driver:
    """Memory of the device as its driver counts it, above what is held now."""

    def __init__(self) -> None:
        self.idle = nvidia.memory_used()

    def now(self) -> int | None:
        return above(nvidia.memory_used(), self.idle)

    def peak(self) -> int | None:
        return self.now()

    def begin_anew(self) -> bool:
        return True

    def reserved(self) -> int | None:
        return None

    def state(self) -> dict[str, float]:
        return nvidia.state()
