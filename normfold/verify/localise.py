"""Where a model that failed begins to be wrong: over the tensors it shares with the original, and over folded norms.

Tensors: both graphs run on the largest sample that failed, the original in float64 as well, and every tensor that both
have is held to the yardstick of the outputs. A tensor inside a folded region is stored in another scale and shift per
channel (docs/math.md): it counts as wrong only if no such map explains the difference. Outputs have to agree as they
are.

Norms: the original is folded again, with the first k of the norms that the manifest lists, by a normfold in another
process; the judge itself knows nothing of folding. The least k that fails names the norm.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper

from normfold.errors import NormfoldError
from normfold.graph.float64 import graph_tensors, read_again
from normfold.graph.scopes import SCOPES
from normfold.inputs.cases import Array, Case
from normfold.system.failures import one_line
from normfold.system.subprocess_copy import fresh
from normfold.system.text import first_few, listed
from normfold.verify.judge import FLOOR_ULPS, FOLD_FACTOR, Edge
from normfold.verify.metrics import difference
from normfold.verify.tensors import rms, runtime_tensors, written_names
from normfold.verify.verdict import Fault
from normfold.verify.yardstick import Yardstick

# The command that folds, in another process.
FOLD_COMMAND = (*fresh("normfold"), "fold")

# Runs on moved inputs by which a tensor of the original shows its own error.
_MOVED = 5
# A map with two numbers per channel explains anything unless each channel has many more.
_FEWEST = 4


def localise(
    yardstick: Yardstick,
    model: Path,
    edge: Edge,
    sites: Sequence[str],
    folder: Path,
    source: Path | None = None,
    options: Sequence[str] = (),
) -> Fault:
    """Find out where `model` begins to be wrong; `edge`, its comparison with the original, failed.

    sites: the norms that were folded, in order, by name. folder: for what has to be written on the way. source: the
    graph to fold again, where it is not that of the yardstick, and options to fold it with.
    """
    worst = max(edge.outputs, key=lambda output: output.excess)
    tolerance = max(worst.relative)
    failed = [case for case, need in zip(yardstick.truth.cases, worst.needs, strict=True) if need > 1.0]
    failed = failed or [yardstick.truth.cases[worst.worst]]  # a bound of the user's own
    # The more numbers a channel has, the fewer differences a map of the channel explains.
    largest = max(failed, key=lambda case: sum(value.size for value in case.feeds.values()))
    fault = first_tensor(yardstick, model, largest, tolerance, folder)
    site, note = first_site(yardstick, model, sites, folder, source, options) if sites else (None, "")
    return Fault(tolerance, fault.tensor, fault.after, fault.relative, fault.bound, site, note)


def first_tensor(yardstick: Yardstick, model: Path, case: Case, tolerance: float, folder: Path) -> Fault:
    """The first tensor, in the order of the original, that `model` has too and that is past its bound at `case`."""
    ours = set(written_names(model))
    names = [name for name in written_names(yardstick.path) if name in ours]
    found: dict[str, _Error] = {}
    try:
        runs = [
            runtime_tensors(yardstick.path, names, case.moved(run, eps=yardstick.body.eps), folder)
            for run in range(_MOVED + 1)
        ]
        candidate = runtime_tensors(model, names, case, folder)

        def keep(name: str, true: Array) -> None:
            if name in candidate and candidate[name].dtype.kind == "f":
                found[name] = _error([run[name] for run in runs], candidate[name], true, yardstick.body.eps)

        graph_tensors(read_again(yardstick.path), case, keep)
    except (NormfoldError, RuntimeError, MemoryError, ValueError):
        # The verdict stands; only where the fault lies stays unknown.
        return Fault(tolerance)
    after = None
    for name in (name for name in names if name in found):
        error = found[name]
        if error.relative <= error.bound:
            after = name
        elif name in yardstick.outputs or not error.explained:
            place = f"{name} ({_operator(yardstick.path, name)})"
            return Fault(tolerance, place, after, error.relative, error.bound)
    return Fault(tolerance, after=after)


@dataclass(frozen=True, slots=True)
class _Error:
    """How far a tensor is from its float64 value, what would pass, and whether a map per channel explains it."""

    relative: float
    bound: float
    explained: bool


def _error(runs: Sequence[Array], value: Array, true: Array, eps: float) -> _Error:
    scale = rms(true)
    bound = FOLD_FACTOR * max(difference(run, true) for run in runs) / scale
    bound += FLOOR_ULPS * max(float(np.finfo(runs[0].dtype).eps), eps)
    relative = difference(value, true) / scale
    return _Error(relative, bound, relative > bound and _explained(value, true, bound * scale))


def first_site(
    yardstick: Yardstick,
    model: Path,
    sites: Sequence[str],
    folder: Path,
    source: Path | None = None,
    options: Sequence[str] = (),
) -> tuple[str | None, str]:
    """The first norm whose folding, with all before it, is past the bound; and what to say if there is none."""

    def folded(count: int) -> Path:
        return refold(source or yardstick.path, sites[:count], folder, options)

    def fails(count: int) -> bool:
        return not yardstick.fold_edge(yardstick.measure(folded(count))).passed

    try:
        if not fails(len(sites)):
            return None, _changed(folded(len(sites)), model)
        # The least count that fails: fewer pass, as far as was looked.
        low, high = 0, len(sites)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fails(middle) else (middle, high)
    # ValueError: a name that no command line can hold.
    except (NormfoldError, subprocess.SubprocessError, OSError, ValueError) as error:
        return None, f"Which norm it is cannot be said: folding it again failed ({one_line(error)})."
    return sites[high - 1], ""


def refold(original: Path, sites: Sequence[str], folder: Path, options: Sequence[str] = ()) -> Path:
    """`original` with these norms folded and no other, by another process. Raises SubprocessError."""
    place = folder / f"first-{len(sites)}.onnx"
    if not place.exists():
        only = [word for site in sites for word in ("--only", site)]
        command = [*FOLD_COMMAND, str(original), "--output", str(place), "--no-verify", "--force", *options, *only]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise subprocess.SubprocessError(done.stderr.strip() or f"exit code {done.returncode}")
    return place


def _operator(path: Path, tensor: str) -> str:
    """What writes a tensor, and in which module, where the exporter left its path."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    node = next(node for node in nodes if tensor in node.output)
    scopes = next((prop.value for prop in node.metadata_props if prop.key == SCOPES), None)
    # The last scope is the operator, the one before it the module that called it.
    module = listed(scopes)[-2:-1]
    return f"{node.op_type} in {module[0]}" if module and module[0] else node.op_type


def _explained(value: Array, true: Array, allowed: float) -> bool:
    """Whether a scale and a shift per channel, for some choice of channel axes, leave no more difference than allowed.

    So they may where some axis, taken for the channels, leaves too few numbers in a channel to tell.
    """
    if value.shape != true.shape or not np.isfinite(value).all():
        return False
    value = value.astype(np.float64)
    for channels in (*itertools.combinations(range(true.ndim), 1), *itertools.combinations(range(true.ndim), 2)):
        rest = tuple(axis for axis in range(true.ndim) if axis not in channels)
        if np.prod([true.shape[axis] for axis in rest]) < _FEWEST:
            if len(channels) == 1:
                return True
            continue
        a, b = (array - array.mean(rest, keepdims=True) for array in (value, true))
        variance = np.square(a).sum(rest, keepdims=True)
        scale = (a * b).sum(rest, keepdims=True) / np.where(variance > 0.0, variance, 1.0)
        if np.max(np.abs(scale * a - b), initial=0.0) <= allowed:
            return True
    return False


def _changed(refolded: Path, model: Path) -> str:
    """In which constants a model differs from what folding gives today."""
    ours, theirs = ({t.name: t for t in onnx.load(path).graph.initializer} for path in (model, refolded))
    names = [name for name in ours if name not in theirs or not _same(ours[name], theirs[name])]
    shown = f" It differs in {first_few(names)}." if names else ""
    return f"Folded again, the same norms pass: {model.name} was changed since, or folded by another version.{shown}"


def _same(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    a, b = onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other)
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
