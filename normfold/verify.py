"""The judge: whether an export and a folded graph compute what the checkpoint computes. It knows nothing of folding.

Three comparisons, called edges, are made apart, because each has failed without the others in tools people use:

    checkpoint -> export        the exported graph against the module, at several sizes of every dynamic axis
    original -> folded          the folded graph against the unfolded one, both in an unoptimised runtime
    unoptimised -> optimised    the folded graph as the runtime will really run it (fusions have been silently wrong)

All errors are taken against the truth: the original in float64 (truth.py). Per output, pooled over all cases,

    relative error = max |value - truth| / RMS(truth)
    passes when    relative error <= factor * (the original's own relative error) + FLOOR_ULPS * ULP(1) of the dtype

so a fold is right when it is no worse than the float32 that the user already accepted, and an absolute or a relative
tolerance alone never decides. Integers and booleans count as the share of entries that differ, without a floor.

One float32 run is one throw of the dice: in a network that amplifies rounding, the largest error of one run and of the
next, on inputs that differ in the last bit, are a factor of five apart. The original's own error is therefore the
largest of several runs: in torch, where there is a module, and in the runtime, on the inputs and on their float32
neighbours.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from normfold.errors import CheckpointError, GraphError, InternalError, VerificationError
from normfold.inputs import InputSpec
from normfold.truth import MASK, Truth, establish

if TYPE_CHECKING:
    from torch import nn

EXPORT_EDGE = "checkpoint -> export"
FOLD_EDGE = "original -> folded"
RUNTIME_EDGE = "unoptimised -> optimised"

# The contract of a fold: at most twice the error that the original itself makes.
FOLD_FACTOR = 2.0
# torch and onnxruntime have different kernels (erf, exp, sums in another order): a wrong export is wrong by far more.
EXPORT_FACTOR = 10.0
# Where the module cannot give a float64 truth, the export is held against its float32 outputs.
EXPORT_BOUND = 1e-3
# An original that happens to be exact on small graphs must not demand the same of a fold.
FLOOR_ULPS = 8.0
# The optimised original excuses the optimised fold up to here; beyond, it shows a bug of the runtime, not rounding.
RUNTIME_EXCUSE = 8.0

# Runs of the original on neighbouring inputs: of six equal throws, one exceeds twice the other five next to never.
NEIGHBOURS = 5

_THREADS = 4


@dataclass(frozen=True, slots=True)
class Edge:
    """One comparison: the figures of its worst output.

    max_abs: largest absolute error. relative: that, divided by the output's RMS. bound: the largest `relative` that
    would have passed. detail: what it is compared with, or what is wrong and where.
    """

    name: str
    max_abs: float
    relative: float
    bound: float
    passed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """Errors of one way of running the model: errors[case][output], absolute (inf: wrong shape, NaN, or it failed).

    names, ulps: per output, its name and the distance from 1 to the next number in its dtype (0 for integers).
    failures: what a run that ended in an error said, per case number.
    """

    names: tuple[str, ...]
    ulps: tuple[float, ...]
    errors: tuple[tuple[float, ...], ...]
    failures: dict[int, str]

    def worst(self, output: int) -> float:
        """The largest error of one output."""
        return max((row[output] for row in self.errors), default=0.0)


def check_export(module: nn.Module, graph_path: Path, specs: Sequence[InputSpec], *, seed: int = 0) -> Edge:
    """Compare the exported graph with the module at every size that `inputs.axis_sizes` names."""
    return compare_export(graph_path, establish(module, graph_path, specs, seed=seed))


def compare_export(graph_path: Path, truth: Truth) -> Edge:
    """`check_export` with a truth that is already known. The detail of a failure lists the sizes that disagree."""
    narrow = truth.narrow
    if narrow is None:
        raise InternalError("an export is compared with a module, and this truth knows of none")
    if truth.from_module:
        own, floor = _own_of_module(truth), 0.0
    else:
        truth = replace(truth, outputs=narrow, method="torch in its own precision")
        own, floor = [0.0] * len(narrow[0]), EXPORT_BOUND
    export = measure(truth, graph_path, optimised=False)
    bounds = [
        EXPORT_FACTOR * error / truth.scale(output) + max(floor, FLOOR_ULPS * export.ulps[output])
        for output, error in enumerate(own)
    ]
    return _with_sizes(_judge(EXPORT_EDGE, truth, export, bounds, _own_error(truth, own)), truth, export, bounds)


def check_fold(truth: Truth, original_path: Path, folded_path: Path) -> Edge:
    """Compare the folded graph with the original, graph optimisations off in both."""
    return _fold_edge(truth, _measure_original(truth, original_path), _measure_folded(truth, folded_path))


def check_runtime(truth: Truth, original_path: Path, folded_path: Path) -> Edge:
    """Compare the folded graph in the optimised runtime with itself in the unoptimised one."""
    return compare_folded(truth, original_path, folded_path)[1]


def compare_folded(truth: Truth, original_path: Path, folded_path: Path) -> tuple[Edge, Edge]:
    """`check_fold` and `check_runtime` together: each graph runs once per runtime."""
    original = _measure_original(truth, original_path)
    folded = _measure_folded(truth, folded_path)
    original_fast = measure(truth, original_path, optimised=True)
    folded_fast = _measure_folded(truth, folded_path, optimised=True)
    return _fold_edge(truth, original, folded), _runtime_edge(truth, original, original_fast, folded, folded_fast)


def _fold_edge(truth: Truth, original: Measured, folded: Measured) -> Edge:
    own = _own(truth, original)
    return _judge(FOLD_EDGE, truth, folded, _bounds(truth, original, own), _own_error(truth, own))


def _runtime_edge(
    truth: Truth, original: Measured, original_fast: Measured, folded: Measured, folded_fast: Measured
) -> Edge:
    own = []
    for output, error in enumerate(_own(truth, original)):
        plain = max(folded.worst(output), error)
        # The runtime may add in another order, in the original as in the fold: that much is no bug.
        own.append(max(plain, min(original_fast.worst(output), RUNTIME_EXCUSE * plain)))
    return _judge(RUNTIME_EDGE, truth, folded_fast, _bounds(truth, original, own), _own_error(truth, own))


def _own(truth: Truth, original: Measured) -> list[float]:
    """The original's own error per output: the largest of all its runs."""
    module = _own_of_module(truth) or [0.0] * len(original.names)
    return [max(original.worst(output), module[output]) for output in range(len(original.names))]


def _own_of_module(truth: Truth) -> list[float]:
    if truth.narrow is None:
        return []
    rows = [
        [difference(value, true) for value, true in zip(values, expected, strict=True)]
        for values, expected in zip(truth.narrow, truth.outputs, strict=True)
    ]
    worst = [max(column) for column in zip(*rows, strict=True)]
    if not np.isfinite(worst).all():
        raise CheckpointError("the source itself yields numbers that are not finite in its own precision")
    return worst


def _bounds(truth: Truth, original: Measured, own: Sequence[float]) -> list[float]:
    return [
        FOLD_FACTOR * error / truth.scale(output) + FLOOR_ULPS * original.ulps[output]
        for output, error in enumerate(own)
    ]


def _own_error(truth: Truth, own: Sequence[float]) -> str:
    largest = max((error / truth.scale(output) for output, error in enumerate(own)), default=0.0)
    return f"against {truth.method}; the original's own relative error is {largest:.1e}"


def measure(truth: Truth, path: Path, *, optimised: bool, neighbours: int = 0) -> Measured:
    """Run the graph at `path` in onnxruntime on the truth's cases and take its errors.

    neighbours: how many more runs to make per case, on inputs moved by one ULP; the largest error counts. Raises
    GraphError when onnxruntime does not accept the graph; a run that fails counts as an infinite error.
    """
    session = open_session(path, optimised=optimised)
    names = tuple(output.name for output in session.get_outputs())
    if len(names) != len(truth.outputs[0]):
        raise GraphError(f"{path}: the graph has {len(names)} outputs and its source has {len(truth.outputs[0])}")
    errors, failures, ulps = [], {}, [0.0] * len(names)
    feed_names = [feed.name for feed in session.get_inputs()]
    for number, (case, expected) in enumerate(zip(truth.cases, truth.outputs, strict=True)):
        rows = []
        for run in range(neighbours + 1):
            try:
                values = session.run(None, case.moved(run).fed_to(feed_names))
            except Exception as error:  # onnxruntime's own classes share no base but this
                failures[number] = _one_line(error)
                rows.append([float("inf")] * len(names))
                break
            rows.append([difference(value, true) for value, true in zip(values, expected, strict=True)])
            ulps = [_ulp(value) for value in values]
        errors.append(tuple(max(column) for column in zip(*rows, strict=True)))
    return Measured(names, tuple(ulps), tuple(errors), failures)


def open_session(path: Path, *, optimised: bool) -> Any:
    """An onnxruntime session on the CPU, quiet, with every graph optimisation or none. Raises GraphError."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = min(_THREADS, os.cpu_count() or 1)
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base but this
        raise GraphError(f"{path}: onnxruntime does not accept this graph: {_one_line(error)}") from error


def difference(value: npt.NDArray[Any], true: npt.NDArray[Any]) -> float:
    """Largest absolute error of floats; share of entries that differ of anything else; inf for a wrong shape or NaN.

    Infinities and mask values (beyond `truth.MASK`) have to be where they are in `true`, with their sign.
    """
    value = np.asarray(value)
    if value.shape != true.shape:
        return float("inf")
    if true.dtype.kind != "f":
        return float(np.mean(value != true)) if true.size else 0.0
    value = value.astype(np.float64)
    masked = np.abs(true) >= MASK
    if np.isnan(value).any() or (np.abs(value[masked]) < MASK).any() or (value[masked] * true[masked] < 0).any():
        return float("inf")
    return float(np.max(np.abs(value[~masked] - true[~masked]), initial=0.0))


def _ulp(value: npt.NDArray[Any]) -> float:
    return float(np.finfo(value.dtype).eps) if value.dtype.kind == "f" else 0.0


def _measure_original(truth: Truth, path: Path) -> Measured:
    """Measure the graph that errors are judged by: it has to be finite itself."""
    original = measure(truth, path, optimised=False, neighbours=NEIGHBOURS)
    for number, row in enumerate(original.errors):
        if not np.isfinite(row).all():
            said = original.failures.get(
                number, "its outputs are not finite, or have another shape, in its own precision"
            )
            raise CheckpointError(f"the unfolded model itself fails at {truth.cases[number]}: {said}")
    return original


def _measure_folded(truth: Truth, path: Path, *, optimised: bool = False) -> Measured:
    try:
        return measure(truth, path, optimised=optimised)
    except GraphError as error:
        raise VerificationError(str(error)) from error


def _judge(name: str, truth: Truth, candidate: Measured, bounds: Sequence[float], comparison: str) -> Edge:
    """The edge of the output that is furthest past its bound, or closest to it."""

    def excess(output: int) -> float:
        relative = candidate.worst(output) / truth.scale(output)
        return relative / bounds[output] if bounds[output] > 0.0 else (float("inf") if relative > 0.0 else 0.0)

    if not candidate.names:
        raise GraphError("the graph has no outputs: there is nothing to verify")
    output = max(range(len(candidate.names)), key=excess)
    max_abs = candidate.worst(output)
    relative = max_abs / truth.scale(output)
    passed = all(candidate.worst(i) / truth.scale(i) <= bounds[i] for i in range(len(candidate.names)))
    detail = comparison if passed else f"{_where(truth, candidate, output)}; {comparison}"
    return Edge(name, max_abs, relative, bounds[output], passed, detail)


def _where(truth: Truth, candidate: Measured, output: int) -> str:
    number = max(range(len(candidate.errors)), key=lambda case: candidate.errors[case][output])
    said = candidate.failures.get(number)
    return f"output {candidate.names[output]!r} is worst at {truth.cases[number]}" + (f": {said}" if said else "")


def _with_sizes(edge: Edge, truth: Truth, export: Measured, bounds: Sequence[float]) -> Edge:
    """Say at which sizes of the dynamic axes an export is wrong: it may well be right at the traced ones."""
    if edge.passed:
        return edge
    good: list[str] = []
    bad: list[str] = []
    for case, row in zip(truth.cases, export.errors, strict=True):
        agrees = all(error / truth.scale(i) <= bounds[i] for i, error in enumerate(row))
        (good if agrees else bad).append(case.axes)
    sizes = f"disagrees at {'; '.join(dict.fromkeys(bad))}"
    sizes += f" and agrees at {'; '.join(dict.fromkeys(good))}" if good else ", at no size does it agree"
    return Edge(edge.name, edge.max_abs, edge.relative, edge.bound, edge.passed, f"{sizes}. {edge.detail}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
