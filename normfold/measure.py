"""Running a graph on the truth's cases, and how far from the truth it comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normfold.cases import Array
from normfold.errors import GraphError
from normfold.figures import FAILED, Figures, figures
from normfold.reference import float_weights, rounded_anew
from normfold.runtime import Runtime, check_memory, one_line, open_session, ort_values
from normfold.truth import Tick, Truth, nothing

# Runs of the original on neighbouring inputs: of six equal throws, one exceeds twice the other five next to never.
NEIGHBOURS = 5
# With many samples their number does the same: this many runs are enough.
THROWS = 56


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


def moved_runs(truth: Truth) -> int:
    """How many runs on neighbouring inputs each case needs, next to its own and to that of the module, if any."""
    others = 1 if truth.narrow is None else 2
    return max(0, min(NEIGHBOURS, math.ceil(THROWS / len(truth.cases)) - others))


def measure(
    truth: Truth, path: Path, runtime: Runtime, *, moved: int = 0, rtol: float = 0.0, tick: Tick = nothing
) -> Measured:
    """Run the graph at `path` in onnxruntime on the truth's cases and take its errors.

    moved: how many more runs to make per case, on inputs moved by one ULP. rtol: see `Figures.beyond`. Raises
    GraphError when onnxruntime does not accept the graph; a run that fails counts as an infinite error.
    """
    session = open_session(path, runtime)
    names = tuple(output.name for output in session.get_outputs())
    if len(names) != len(truth.outputs[0]):
        raise GraphError(f"{path}: the graph has {len(names)} outputs and its source has {len(truth.outputs[0])}")
    samples, own, failures, ulps = [], [], {}, [0.0] * len(names)
    feed_names = [feed.name for feed in session.get_inputs()]
    for number, (case, expected) in enumerate(zip(truth.cases, truth.outputs, strict=True)):
        rows = []
        for run in range(moved + 1):
            try:
                values = session.run(None, case.moved(run).fed_to(feed_names))
            except Exception as error:  # onnxruntime's own classes share no base but this
                check_memory(error, f"{path} at {case} on {runtime}")
                failures[number] = one_line(error)
                rows.append((FAILED,) * len(names))
                break
            finally:
                tick()
            rows.append(tuple(figures(value, true, rtol=rtol) for value, true in zip(values, expected, strict=True)))
            ulps = [_ulp(value) for value in values]
        samples.append(rows[0])
        own.append(rows)
    return Measured(names, tuple(ulps), tuple(samples), _largest(own, len(names)), failures)


def thrown(truth: Truth, path: Path, runtime: Runtime, *, throws: int, tick: Tick = nothing) -> Own:
    """The largest errors of `throws` more runs, each with other inputs and weights within rounding.

    Every float of the inputs moves to a neighbour, and as many of the weights as rounding them anew would move: a
    network that amplifies rounding amplifies that of its weights, and one that reads integers has no other.
    """
    weights = float_weights(path)
    rows: list[list[tuple[Figures, ...]]] = [[] for _ in truth.cases]
    for number in range(1, throws + 1):
        initializers = ort_values(rounded_anew(weights, seed=number))
        session = open_session(path, runtime, initializers)
        feed_names = [feed.name for feed in session.get_inputs()]
        for kept, case, expected in zip(rows, truth.cases, truth.outputs, strict=True):
            values = session.run(None, case.moved(number).fed_to(feed_names))
            row = tuple(figures(value, true) for value, true in zip(values, expected, strict=True))
            if all(math.isfinite(found.max_abs) for found in row):  # no bound is to be infinite
                kept.append(row)
            tick()
    return _largest(rows, len(truth.outputs[0]))


def _largest(rows: Sequence[Sequence[Sequence[Figures]]], outputs: int) -> Own:
    """Of the figures of rows[case][run][output]; 0 where there are none."""
    each = range(outputs)
    return Own(
        tuple(max((run[output].max_abs for runs in rows for run in runs), default=0.0) for output in each),
        tuple(tuple(max((run[output].rms for run in runs), default=0.0) for output in each) for runs in rows),
    )


def _ulp(value: Array) -> float:
    return float(np.finfo(value.dtype).eps) if value.dtype.kind == "f" else 0.0
