"""The record of a runtime to measure: what it can do, and the four things that the benchmark asks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from normfold.bench.job import Job
    from normfold.bench.memory import Meter

# TF32 multiplies with 10 bits of mantissa: with it, "float32" would name two things.
TF32 = False

Call = Callable[[], None]
Feeds = Mapping[str, "np.ndarray[Any, Any]"]


class Lacks(Protocol):
    """What this machine lacks to run a runtime on a device or, there, in a mode: a clause; empty where it has all.

    Drivers are looked at elsewhere (machine.py).
    """

    def __call__(self, device: str, mode: str = "") -> str: ...


@dataclass(frozen=True, slots=True)
class Runner:
    """One runtime.

    Its library is imported by its functions and not with its module: every worker reads the table, runs one runtime,
    and is to hold no other.

    name: what --runtime takes. title: what that is, in words. library: the module to import. packages: the
    distributions that bring it; of several that are installed, the last one counts.
    modes: what it is measured with, by device; on the CPU the first where nothing is asked for. glosses: what a mode
    is, where its name does not say it. dtypes: of weights and inputs. runs_modules: its models are pickled torch
    modules of our own writing; otherwise ONNX files.

    open: the model of a job with its inputs on its device; the result runs it once and waits for the end. Whatever is
    raised means that the runtime does not take the model. meter: what measures the memory that this process holds on a
    device, set to zero now. inspect: the operators that really run, the most frequent first (none where the runtime
    does not tell), and the bytes of their constants; it may write the job's scratch file, and removes it. lacks: see
    `Lacks`.
    """

    name: str
    title: str
    library: str
    packages: tuple[str, ...]
    modes: Mapping[str, tuple[str, ...]]
    open: Callable[[Job, Feeds], Call]
    meter: Callable[[str], Meter]
    inspect: Callable[[Job], tuple[Mapping[str, int], int]]
    lacks: Lacks
    glosses: Mapping[str, str] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("float32", "float16")
    runs_modules: bool = False

    def version(self, versions: Mapping[str, str]) -> str:
        """Its version, given those of the installed packages."""
        return next((versions[package] for package in reversed(self.packages) if package in versions), "")
