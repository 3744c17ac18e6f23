"""Running a graph on the truth's cases, and how far from the truth it comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normfold.cases import Array
from normfold.errors import GraphError
from normfold.figures import FAILED, Figures, figures
from normfold.runtime import Runtime, check_memory, one_line, open_session
from normfold.truth import Tick, Truth, nothing

# Runs of the original on neighbouring inputs: of six equal throws, one exceeds twice the other five next to never.
NEIGHBOURS = 5
# With many samples their number does the same: this many runs are enough.
THROWS = 56


@dataclass(frozen=True, slots=True)
class Measured:
    """Errors of one way of running a graph: samples[case][output].

    names, ulps: per output, its name and the distance from 1 to the next number in its dtype (0 for integers).
    worst: per output, the largest error of all runs, those on neighbouring inputs included. failures: what a run that
    ended in an error said, per case number.
    """

    names: tuple[str, ...]
    ulps: tuple[float, ...]
    samples: tuple[tuple[Figures, ...], ...]
    worst: tuple[float, ...]
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
    samples, failures, ulps, largest = [], {}, [0.0] * len(names), [0.0] * len(names)
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
        largest = [max(error, *(row[output].max_abs for row in rows)) for output, error in enumerate(largest)]
    return Measured(names, tuple(ulps), tuple(samples), tuple(largest), failures)


def _ulp(value: Array) -> float:
    return float(np.finfo(value.dtype).eps) if value.dtype.kind == "f" else 0.0
