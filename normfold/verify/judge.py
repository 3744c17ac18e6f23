"""The judge: whether a graph computes what its source computes. It knows nothing of folding.

Three comparisons, called edges, are made apart, because each has failed without the others in tools people use:

    checkpoint -> export        the exported graph against the module, at several sizes of every dynamic axis
    original -> folded          the folded graph against the unfolded one, both in an unoptimised runtime
    unoptimised -> optimised    the folded graph as the runtime will really run it (fusions have been silently wrong)

All errors are taken against the truth: the original in float64 (truth.py). Per output, pooled over all cases,

    relative error = max |value - truth| / RMS(truth)
    passes when    relative error <= factor * (the original's own relative error) + FLOOR_ULPS * ULP(1) of the dtype
                                     + PEAK_ULPS * ULP(1) * max |truth| / RMS(truth)

so a fold is right when it is no worse than the float32 that the user already accepted, and an absolute or a relative
tolerance alone never decides. Where one sample amplifies rounding the largest error is that sample's, and a fault that
shows in the others would hide behind it; so every sample is held to its own error too, as root mean squares, of which
one run is much like another:

    RMS(value - truth) <= sample factor * (the original's own) + SAMPLE_FLOOR_ULPS * ULP(1) * RMS(truth)

Integers and booleans count as the share of entries that differ, pooled, without a floor.

One float32 run is one sample: in a network that amplifies rounding, the largest errors of two runs, on inputs that
differ in the last bit, are a factor of five apart. The original's own error is therefore the largest of several runs:
in torch, where there is a module, and in the runtime, on the inputs and on their float32 neighbours.

That bound has a ceiling: where the original itself is farther from the truth than rounding can put it, the truth and
the runtime do not compute the same, or the model amplifies rounding beyond use, and there is no verdict (yardstick.py).
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from normfold.errors import UsageError
from normfold.inputs.cases import Case, told_by_values
from normfold.verify.metrics import Figures
from normfold.verify.runtime import Runtime

if TYPE_CHECKING:
    from normfold.verify.measure import Measured
    from normfold.verify.truth import Truth

_log = logging.getLogger(__name__)

EXPORT_EDGE = "checkpoint -> export"
POWERS_EDGE = "float32 -> powers of two"
HALF_EDGE = "float32 -> float16"
FOLD_EDGE = "original -> folded"
RUNTIME_EDGE = "unoptimised -> optimised"

# The contract of a fold: at most twice the error that the original itself makes.
FOLD_FACTOR = 2.0
# torch and onnxruntime have different kernels (erf, exp, sums in another order): a wrong export is wrong by far more.
EXPORT_FACTOR = 10.0
# Small channels that are judged apart are few entries, and what rounding makes of them differs more from one graph to
# another than that of a whole output: of 200 right folds one needed 2.05 times. They get so much more than an output.
SMALL_FACTOR = 2.0
# Where the module cannot give a float64 truth, the export is held against its float32 outputs.
EXPORT_BOUND = 1e-3
# An original that happens to be exact on small graphs must not demand the same of a fold.
FLOOR_ULPS = 8.0
# One rounding of the largest entry: a saturated softmax has entries of 1 and hardly any scale.
PEAK_ULPS = 2.0
# What a sample may make of its own RMS error. Over the samples of five right folds it was 2.6 times that of one run at
# most; of every mutant that was wrong by more than its bound, one sample was at 5 or more (docs/verification.md).
SAMPLE_FACTOR = 3.0
SAMPLE_FLOOR_ULPS = 2.0
# A failure this close to its bound may come of an original that happened to run with a small error: it is run again, so
# many times.
NEAR = 4.0
RERUNS = 16
# Small channels are judged apart up to this own error, relative to their RMS: four times that is allowed, and doubling
# them still fails. Beyond, rounding in the large ones has left nothing of them to judge.
LOST = 0.125
# How far from 0 a Sigmoid in float32 may leave what it has pressed against it: its steps are half a unit of 1.
SQUASHED_ULPS = 4.0
# The optimised original excuses the optimised fold up to here; beyond, it shows a bug of the runtime, not rounding.
RUNTIME_EXCUSE = 8.0

# Samples for the levels between none and all: what they break shows at all, where every sample runs.
FEW = 4

PLAIN = Runtime()
OPTIMISED = Runtime(level="all")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A bound of the user's own, on top of the yardstick: |value - truth| <= atol + rtol * |truth|, for every entry."""

    rtol: float = 0.0
    atol: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not (math.isfinite(value) and value >= 0.0):
                raise UsageError(f"--{name} {value:g}: a tolerance is a finite number, 0 or more")


@dataclass(frozen=True, slots=True)
class Judged:
    """One output on one edge.

    samples: its figures, case by case. scale: RMS of the truth over all cases. ulp: distance from 1 to the next number
    of its dtype. bound: the largest max_abs / scale that passes. allowed: case by case the largest RMS error that
    passes, None where samples are not judged one by one. atol: the user's own bound on Figures.beyond.
    """

    name: str
    samples: tuple[Figures, ...]
    scale: float
    ulp: float
    bound: float
    allowed: tuple[float, ...] | None = None
    atol: float | None = None

    @property
    def relative(self) -> tuple[float, ...]:
        """Relative error of every sample."""
        return tuple(sample.max_abs / self.scale for sample in self.samples)

    @property
    def worst(self) -> int:
        """Number of the sample with the largest error."""
        return max(range(len(self.samples)), key=lambda number: self.samples[number].max_abs)

    @property
    def median(self) -> float:
        """Median relative error of the samples."""
        return statistics.median(self.relative)

    @property
    def needs(self) -> tuple[float, ...]:
        """How much of its bounds every sample needs: more than 1 fails."""
        allowed = self.allowed or (math.inf,) * len(self.samples)
        return tuple(
            max(_ratio(relative, self.bound), _ratio(sample.rms, most))
            for relative, sample, most in zip(self.relative, self.samples, allowed, strict=True)
        )

    @property
    def beyond(self) -> float:
        """The absolute tolerance that every sample keeps, next to the relative one that was asked for."""
        return max(sample.beyond for sample in self.samples)

    @property
    def passed(self) -> bool:
        """Whether every bound is kept."""
        return self.excess <= 1.0

    @property
    def excess(self) -> float:
        """How much of its bounds an output needs: more than 1 fails."""
        return max(*self.needs, 0.0 if self.atol is None else _ratio(self.beyond, self.atol))


@dataclass(frozen=True, slots=True)
class Edge:
    """One comparison: the figures of its worst output.

    max_abs: largest absolute error. relative: that, divided by the output's RMS. bound: the largest `relative` that
    would have passed. detail: what it is compared with, or what is wrong and where. outputs: all that was measured.
    """

    name: str
    max_abs: float
    relative: float
    bound: float
    passed: bool
    detail: str = ""
    outputs: tuple[Judged, ...] = ()


def judged(
    measured: Measured, scales: Sequence[float], bounds: Sequence[float], atol: float | None
) -> tuple[Judged, ...]:
    """Every piece of the outputs beside its scale and the largest relative error that passes."""
    return tuple(
        Judged(name, tuple(row[i] for row in measured.samples), scales[i], measured.ulps[i], bounds[i], atol=atol)
        for i, name in enumerate(measured.names)
    )


def _ratio(value: float, bound: float) -> float:
    return value / bound if bound > 0.0 else (math.inf if value > 0.0 else 0.0)


def judge(
    name: str,
    cases: Sequence[Case],
    outputs: Sequence[Judged],
    comparison: str,
    failures: Mapping[int, str],
) -> Edge:
    """The edge of these outputs: its figures are those of the one furthest past its bound, or closest to it.

    comparison: what the outputs were compared with. failures: what runs that ended in an error said, per case number.
    """
    worst = max(outputs, key=lambda output: output.excess)
    max_abs = worst.samples[worst.worst].max_abs
    passed = all(output.passed for output in outputs)
    detail = comparison if passed else f"{_where(cases, worst, failures)}; {comparison}"
    said = (name, "passes" if passed else "fails", max_abs / worst.scale, worst.bound, detail)
    _log.info("%s %s: relative error %.3g, allowed %.3g; %s", *said)
    return Edge(name, max_abs, max_abs / worst.scale, worst.bound, passed, detail, tuple(outputs))


def _where(cases: Sequence[Case], output: Judged, failures: Mapping[int, str]) -> str:
    at = f"output {output.name!r} is worst at {cases[output.worst]}"
    if output.worst in failures:
        at += f": {failures[output.worst]}"
    if output.allowed is not None and max(output.relative) <= output.bound and output.excess > 1.0:
        sample = max(range(len(output.samples)), key=output.needs.__getitem__)
        error, most = output.samples[sample].rms, output.allowed[sample]
        at += f"; at {cases[sample]} its root mean square error is {error:.1e}, and {most:.1e} would be rounding"
    if output.atol is not None and output.beyond > output.atol:
        at += f", and needs an absolute tolerance of {output.beyond:.1e} where {output.atol:.1e} is asked for"
    return at


def with_sizes(edge: Edge, truth: Truth) -> Edge:
    """Say at which sizes of the dynamic axes a graph is wrong, or that they do not matter: it may be right at some."""
    if edge.passed:
        return edge
    agrees = [all(output.needs[number] <= 1.0 for output in edge.outputs) for number in range(len(truth.cases))]
    if clause := told_by_values(truth.cases, agrees):
        return replace(edge, detail=f"{clause}. {edge.detail}")
    bad = list(dict.fromkeys(case.axes for case, right in zip(truth.cases, agrees, strict=True) if not right))
    good = list(dict.fromkeys(case.axes for case in truth.cases if case.axes not in bad))
    if not bad or not any(case.sizes for case in truth.cases) or (any(agrees) and not good):
        return edge
    sizes = f"disagrees at {'; '.join(bad)}"
    sizes += f" and agrees at {'; '.join(good)}" if good else ", at no size does it agree"
    return replace(edge, detail=f"{sizes}. {edge.detail}")
