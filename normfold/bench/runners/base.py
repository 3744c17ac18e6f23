"""The record of a runtime to measure: what it can do, and the few things that the benchmark asks of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from normfold.bench.job import Job
    from normfold.bench.memory import Meter

# TF32 multiplies with 10 bits of mantissa: with it, "float32" would name two things.
TF32 = False

Call = Callable[[], None]
Feeds = Mapping[str, "np.ndarray[Any, Any]"]


def fed_to(names: Sequence[str], feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs under a graph's own names: by name or, where the graph has other names, in their order."""
    if set(names) <= set(feeds):
        return {name: feeds[name] for name in names}
    return dict(zip(names, feeds.values(), strict=True))


class Lacks(Protocol):
    """What is lacking to run a runtime on a device or, there, in a mode or a dtype: a clause; empty where nothing is.

    Drivers are looked at elsewhere (machine.py).
    """

    def __call__(self, device: str, mode: str = "", dtype: str = "") -> str: ...


def not_installed(library: str, extra: str) -> str:
    """What is lacking where a module cannot be found, in words that say how to install it; empty where it is there."""
    package = library.partition(".")[0]
    found = package in sys.modules or find_spec(package) is not None
    return "" if found else f"{package} is not installed; pip install 'normfold[{extra}]' brings it"


@dataclass(frozen=True, slots=True)
class Runner:
    """One runtime.

    Its library is imported by its functions and not with its module: every worker reads the table, runs one runtime,
    and is to hold no other.

    name: what --runtime takes. title: what that is, in words. library: the module to import. packages: the
    distributions that bring it; of several that are installed, the last one counts.
    modes: what it is measured with, by device; on the CPU the first where nothing is asked for. glosses: what a mode
    is, where its name does not say it. dtypes: what it computes in. target: what ONNX files are exported for
    (export/targets.py). runs_modules: its models are pickled torch modules of our own writing; otherwise ONNX files.

    prepare: by dtype, what makes the job's scratch file of its model where the runtime does not take that as it is;
    `open` and `inspect` are given a job with the result. fixed_sizes: such a file holds one size of the inputs.

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
    target: str = "onnxruntime"
    prepare: Mapping[str, Callable[[Job], None]] = field(default_factory=dict)
    fixed_sizes: bool = False
    runs_modules: bool = False

    def version(self, versions: Mapping[str, str]) -> str:
        """Its version, given those of the installed packages."""
        return next((versions[package] for package in reversed(self.packages) if package in versions), "")
