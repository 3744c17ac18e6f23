"""Running a graph on the truth's cases, and how far from the truth it comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx
import onnx.numpy_helper

from normfold.errors import GraphError
from normfold.graph.float64 import flat, flat_names
from normfold.inputs.cases import Array
from normfold.system.clock import Tick, nothing
from normfold.system.failures import check_memory, one_line
from normfold.verify.metrics import FAILED, Figures, figures, settled
from normfold.verify.module import run_double, run_module
from normfold.verify.runtime import Runtime, open_session, ort_values, run_session
from normfold.verify.truth import Truth

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

# Runs of the original on neighbouring inputs: of six equal runs, one hardly ever errs more than twice as much as the
# other five.
NEIGHBOURS = 5
# With many samples their number does the same: so many runs of the original are enough, those of the module included.
RUNS = 56


@dataclass(frozen=True, slots=True)
class Own:
    """How far a graph comes out from the truth by itself, over several runs.

    worst: per output, the largest absolute error. samples: per case and output, the largest RMS error.
    """

    worst: tuple[float, ...]
    samples: tuple[tuple[float, ...], ...]

    def or_larger(self, other: Own) -> Own:
        """The larger of both, in every place."""
        return self._with(other, max)

    def at_most(self, other: Own, factor: float) -> Own:
        """The smaller of this and `factor` times the other, in every place."""
        return self._with(other, lambda ours, theirs: min(ours, factor * theirs))

    def _with(self, other: Own, pick: Callable[[float, float], float]) -> Own:
        # An optimisation level can be measured on the first samples alone.
        return Own(
            tuple(map(pick, self.worst, other.worst)),
            tuple(tuple(map(pick, *rows)) for rows in zip(self.samples, other.samples, strict=False)),
        )

    def only(self, pieces: Sequence[int]) -> Own:
        """The errors of these pieces only."""
        return Own(_chosen(self.worst, pieces), tuple(_chosen(row, pieces) for row in self.samples))

    def at(self, numbers: Sequence[int], found: Own) -> Own:
        """This, or `found` where that is larger; `found` is about the cases `numbers` alone."""
        samples = list(self.samples)
        for number, row in zip(numbers, found.samples, strict=True):
            samples[number] = tuple(map(max, samples[number], row))
        return Own(tuple(map(max, self.worst, found.worst)), tuple(samples))


@dataclass(frozen=True, slots=True)
class Measured:
    """Errors of one way of running a graph: samples[case][output].

    names, ulps: per output, its name and the distance from 1 to the next number in its dtype (0 for integers).
    own: the largest errors of all runs, those on neighbouring inputs included. failures: what a run that ended in an
    error said, per case number.
    """

    names: tuple[str, ...]
    ulps: tuple[float, ...]
    samples: tuple[tuple[Figures, ...], ...]
    own: Own
    failures: dict[int, str]

    def only(self, pieces: Sequence[int]) -> Measured:
        """The errors of these pieces only."""
        samples = tuple(_chosen(row, pieces) for row in self.samples)
        names, ulps = _chosen(self.names, pieces), _chosen(self.ulps, pieces)
        return Measured(names, ulps, samples, self.own.only(pieces), self.failures)


def _chosen(row: Sequence[T], pieces: Sequence[int]) -> tuple[T, ...]:
    return tuple(row[piece] for piece in pieces)


def moved_runs(truth: Truth) -> tuple[int, ...]:
    """How many runs on neighbouring inputs each case needs, next to its own and to that of the module, if any.

    What does not go round is left to the smallest cases.
    """
    count, others = len(truth.cases), 1 if truth.narrow is None else 2
    each, left = divmod(min(NEIGHBOURS * count, max(RUNS - others * count, 0)), count)
    smallest = sorted(range(count), key=lambda number: truth.cases[number].elements)
    return tuple(each + (number in smallest[:left]) for number in range(count))


class RenamedError(GraphError):
    """A graph lacks an output that it should have."""


def measure(
    truth: Truth,
    path: Path,
    runtime: Runtime,
    *,
    outputs: Sequence[str] | None = None,
    moved: Sequence[int] = (),
    eps: float = 0.0,
    rtol: float = 0.0,
    tick: Tick = nothing,
) -> Measured:
    """Run the graph at `path` in onnxruntime on the truth's cases and take its errors.

    outputs: the names of those to compare, in the order of the truth; by default all, as they come. moved: case by
    case, how many more runs to make on inputs moved by one ULP; none by default. eps: of the type that the graph
    computes in, where that is coarser than its inputs. rtol: see `Figures.beyond`. Raises GraphError when onnxruntime
    does not accept the graph, RenamedError when it lacks an output; a run that fails counts as an infinite error.
    """
    session = open_session(path, runtime)
    own = [output.name for output in session.get_outputs()]
    wanted = own if outputs is None else list(outputs)
    if missing := [name for name in wanted if name not in own]:
        raise RenamedError(
            f"{path} has no output {missing[0]!r}, which its source has; it was renamed or dropped: its outputs "
            f"are {', '.join(own)}"
        )
    count = len(truth.outputs[0]) + len(truth.parts)
    samples, runs, failures = [], [], {}
    names, ulps = tuple(wanted), [0.0] * count
    feed_names = [feed.name for feed in session.get_inputs()]
    for number, case in enumerate(truth.cases):
        rows = []
        for run in range(1 + (moved[number] if moved else 0)):
            try:
                values = run_session(session, wanted, case.moved(run, eps=eps).fed_to(feed_names))
            except Exception as error:  # onnxruntime's own classes share no base but this
                check_memory(error, f"{path} at {case} on {runtime}")
                failures[number] = one_line(error)
                rows.append((FAILED,) * count)
                break
            finally:
                tick()
            arrays = flat(values)
            if len(arrays) != len(truth.outputs[0]):
                raise GraphError(f"{path}: its outputs are not of the kinds that its source has")
            names = truth.names(flat_names(wanted, values))
            rows.append(_row(truth, number, arrays, rtol=rtol, errors_alone=run > 0))
            ulps = [_ulp(value, eps) for value in truth.pieces(arrays)]
        samples.append(rows[0])
        runs.append(rows)
    return Measured(names, tuple(ulps), tuple(samples), _largest(runs, count), failures)


def measure_module(truth: Truth, module: nn.Module, *, like: Measured, tick: Tick = nothing) -> Measured:
    """The errors of a torch module, run as the source was for the truth. Raises what the module raises.

    like: the errors of the original; it has the same outputs.
    """
    run = run_double if truth.from_module else run_module
    rows = [_row(truth, number, values) for number, values in enumerate(run(module, truth.cases, tick=tick))]
    return Measured(like.names, like.ulps, tuple(rows), _largest([[row] for row in rows], len(like.names)), {})


def _row(
    truth: Truth, number: int, arrays: Sequence[Array], *, rtol: float = 0.0, errors_alone: bool = False
) -> tuple[Figures, ...]:
    """The figures of every piece of one case; errors_alone: see `figures`. Some channels of an output are no vector."""
    pieces = zip(truth.pieces(arrays), truth.pieces(truth.outputs[number]), truth.masks(number), strict=True)
    return tuple(
        figures(settled(value, true, mask), true, rtol=rtol, errors_alone=errors_alone or index >= len(arrays))
        for index, (value, true, mask) in enumerate(pieces)
    )


def rerun(
    truth: Truth,
    path: Path,
    runtime: Runtime,
    *,
    runs: int,
    outputs: Sequence[str] | None = None,
    eps: float = 0.0,
    tick: Tick = nothing,
) -> Own:
    """The largest errors of `runs` more runs, each with other inputs and weights within rounding.

    Every float of the inputs moves to a neighbour, and as many of the weights as rounding them anew would move: a
    network that amplifies rounding amplifies that of its weights, and one that reads integers has no other.
    """
    weights = float_weights(path)
    rows: list[list[tuple[Figures, ...]]] = [[] for _ in truth.cases]
    for number in range(1, runs + 1):
        initializers = ort_values(rounded_anew(weights, seed=number))
        session = open_session(path, runtime, initializers)
        feed_names = [feed.name for feed in session.get_inputs()]
        for at, (kept, case) in enumerate(zip(rows, truth.cases, strict=True)):
            values = run_session(session, outputs, case.moved(number, eps=eps).fed_to(feed_names))
            row = _row(truth, at, flat(values), errors_alone=True)
            if all(math.isfinite(found.max_abs) for found in row):  # no bound is to be infinite
                kept.append(row)
            tick()
    return _largest(rows, len(truth.outputs[0]) + len(truth.parts))


def _largest(rows: Sequence[Sequence[Sequence[Figures]]], outputs: int) -> Own:
    """Of the figures of rows[case][run][output]; 0 where there are none."""
    each = range(outputs)
    return Own(
        tuple(max((run[output].max_abs for runs in rows for run in runs), default=0.0) for output in each),
        tuple(tuple(max((run[output].rms for run in runs), default=0.0) for output in each) for runs in rows),
    )


def _ulp(value: Array, eps: float) -> float:
    return max(float(np.finfo(value.dtype).eps), eps) if value.dtype.kind == "f" else 0.0


def float_weights(path: Path) -> dict[str, Array]:
    """The initializers in float16 and float32 of the graph at `path`, by name."""
    tensors = onnx.load(path).graph.initializer
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors if tensor.data_type in kinds}


def rounded_anew(weights: Mapping[str, Array], *, seed: int) -> dict[str, Array]:
    """Copies of `weights` with one entry in twelve moved to a neighbouring number; 0, 1 and the largest (masks) stay.

    The variance of that is the variance of rounding, a twelfth of a unit in the last place squared.
    """
    rng = np.random.default_rng(seed)
    moved = {}
    for name, array in weights.items():
        result = array.copy().reshape(-1)
        at = rng.integers(0, result.size, result.size // 12) if result.size else np.zeros(0, int)
        before = result[at]
        after = np.nextafter(before, rng.choice(np.array([-np.inf, np.inf], array.dtype), at.shape))
        kept = (before == 0) | (np.abs(before) == 1) | ~np.isfinite(after)
        result[at] = np.where(kept, before, after)
        moved[name] = result.reshape(array.shape)
    return moved
