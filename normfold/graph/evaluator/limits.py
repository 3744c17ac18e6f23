"""What running a graph may cost: memory that is there, processors that are free, and work that ends."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from normfold.errors import CannotJudgeError

# Operator runs of one evaluation, those in loops counted every time: about a minute of the smallest ones.
MOST_RUNS = 1_000_000
# Elements that one evaluation may write: minutes of the simplest operators.
MOST_ELEMENTS = 1 << 37
# What is left to the rest of the process and of the machine.
MARGIN = 256 << 20

_WIDTH = 8
# Allocations below this are not looked at one by one, only their sum.
_SMALL = 64 << 20


@dataclass(slots=True)
class Meter:
    """Counts what one evaluation does, and ends it before memory or patience does."""

    runs: int = 0
    elements: int = 0
    unchecked: int = 0

    def run(self, label: str) -> None:
        """One more operator is about to run."""
        self.runs += 1
        if self.runs > MOST_RUNS:
            raise CannotJudgeError(
                f"{label}: the graph runs more than {MOST_RUNS:,} operators for one input (loops count every time); "
                "normfold stops there. Give smaller inputs (--input), or do without a verdict (`fold --no-verify`)"
            )

    def wrote(self, elements: int, label: str) -> None:
        """An operator has written so many numbers."""
        self.elements += elements
        if self.elements > MOST_ELEMENTS:
            raise CannotJudgeError(
                f"{label}: the graph computes more than {MOST_ELEMENTS:,} numbers for one input; normfold stops there. "
                "Give smaller inputs (--input), or do without a verdict (`fold --no-verify`)"
            )

    def reserve(self, sizes: Sequence[int], label: str) -> None:
        """A tensor of this shape is about to be made. Raises CannotJudgeError where it would not fit."""
        elements = math.prod(max(int(size), 0) for size in sizes)
        if elements > MOST_ELEMENTS:
            self.wrote(elements, label)
        self.unchecked += _WIDTH * elements
        if self.unchecked < _SMALL:
            return
        self.unchecked = 0
        free = available_memory()
        if free is not None and _WIDTH * elements + MARGIN > free:
            raise CannotJudgeError(
                f"{label}: a tensor of {list(sizes)} takes {_WIDTH * elements / 1e9:.1f} GB in float64, and "
                f"{free / 1e9:.1f} GB of memory are free. Give smaller inputs (--input), or do without a verdict "
                "(`fold --no-verify`)"
            )


@contextmanager
def free_processors() -> Iterator[None]:
    """Let torch use as many threads as the machine has idle processors; one at least.

    The threads of its matrix products wait for each other without sleeping: where one of them has no processor of its
    own, all of them take several times as long as one alone.
    """
    before = torch.get_num_threads()
    busy = int(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    torch.set_num_threads(max(min(before, (os.cpu_count() or 1) - busy), 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_memory() -> int | None:
    """Bytes that this process may still take: the machine's, or what its control group leaves; None if unknown."""
    found = [size for size in (_of_machine(), _of_control_group()) if size is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    try:
        line = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
        if line is not None:
            return int(line[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None  # this system does not say


def _of_control_group() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        return max(int(limit) - int(used), 0)
    except (OSError, ValueError):
        return None  # no control group, or one without a limit
