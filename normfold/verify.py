"""The judge: whether a graph computes what its source computes. It knows nothing of folding.

Three comparisons, called edges, are made apart, because each has failed without the others in tools people use:

    checkpoint -> export        the exported graph against the module, at several sizes of every dynamic axis
    original -> folded          the folded graph against the unfolded one, both in an unoptimised runtime
    unoptimised -> optimised    the folded graph as the runtime will really run it (fusions have been silently wrong)

All errors are taken against the truth: the original in float64 (truth.py). Per output, pooled over all cases,

    relative error = max |value - truth| / RMS(truth)
    passes when    relative error <= factor * (the original's own relative error) + FLOOR_ULPS * ULP(1) of the dtype

so a fold is right when it is no worse than the float32 that the user already accepted, and an absolute or a relative
tolerance alone never decides. Where one sample amplifies rounding the largest error is that sample's, and a fault that
shows in the others would hide behind it; so every sample is held to its own error too, as root mean squares, of which
one run is much like another:

    RMS(value - truth) <= sample factor * (the original's own) + SAMPLE_FLOOR_ULPS * ULP(1) * RMS(truth)

Integers and booleans count as the share of entries that differ, pooled, without a floor.

One float32 run is one throw of the dice: in a network that amplifies rounding, the largest error of one run and of the
next, on inputs that differ in the last bit, are a factor of five apart. The original's own error is therefore the
largest of several runs: in torch, where there is a module, and in the runtime, on the inputs and on their float32
neighbours.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from normfold.cases import Case
from normfold.errors import CheckpointError, GraphError, UsageError, VerificationError
from normfold.figures import Figures, difference, rms_error
from normfold.measure import Measured, Own, measure, moved_runs, thrown
from normfold.runtime import UNOPTIMISED, Runtime, version
from normfold.truth import Tick, Truth, nothing

EXPORT_EDGE = "checkpoint -> export"
HALF_EDGE = "float32 -> float16"
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
# What a sample may make of its own RMS error. Over the samples of five right folds it was 2.6 times that of one run at
# most; of every mutant that was wrong by more than its bound, one sample was at 5 or more (docs/verification.md).
SAMPLE_FACTOR = 3.0
SAMPLE_FLOOR_ULPS = 2.0
# A failure this close to its bound may be an original that was measured on a lucky throw: it is thrown again, so often.
NEAR = 4.0
THROWN_AGAIN = 16
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


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What candidates are held to: the truth, and how far from it the original graph at `path` is itself.

    tolerance: a bound of the user's own, on top. tick: called after every run of a graph.
    """

    truth: Truth
    path: Path
    original: Measured
    scales: tuple[float, ...]
    tolerance: Tolerance | None = None
    tick: Tick = nothing

    @classmethod
    def lay(cls, truth: Truth, path: Path, *, tolerance: Tolerance | None = None, tick: Tick = nothing) -> Yardstick:
        """Measure the original graph at `path`. Raises GraphError when onnxruntime does not accept it."""
        original = measure(truth, path, PLAIN, moved=moved_runs(truth), tick=tick)
        if not original.names:
            raise GraphError(f"{path}: the graph has no outputs: there is nothing to verify")
        return cls(truth, path, original, _scales(truth), tolerance, tick)

    def compare(self, candidate: Path, runtimes: Sequence[Runtime] = (OPTIMISED,)) -> Iterator[Edge]:
        """The candidate against the original, and in every runtime against itself.

        Raises VerificationError when onnxruntime does not accept the candidate, CheckpointError when the original is
        not finite.
        """
        plain = self.measure(candidate)
        fold = self.fold_edge(plain)
        yield fold
        # A bound that the candidate breaks without optimisations says nothing of them.
        held = self if fold.passed else replace(self, tolerance=None)
        for runtime in runtimes:
            yield held.runtime_edge(candidate, plain, runtime)

    def export_edges(self) -> tuple[Edge, ...]:
        """The original graph against the module that it was exported from; none where it is itself the source.

        Where this one fails there is nothing to compare a candidate with.
        """
        if self.truth.narrow is None:
            return ()
        module = self._own_of_module()
        if module is not None and self.truth.from_module:
            edge = self._judge(EXPORT_EDGE, self.original, module, EXPORT_FACTOR)
            return (_with_sizes(edge, self.truth),)
        truth = replace(self.truth, outputs=self.truth.narrow, method="torch in its own precision")
        measured = measure(truth, self.path, PLAIN, tick=self.tick)
        outputs = _judged(measured, _scales(truth), [EXPORT_BOUND] * len(measured.names), None)
        edge = judge(EXPORT_EDGE, truth.cases, outputs, f"against {truth.method}", measured.failures)
        return (_with_sizes(edge, truth),)

    def fold_edge(self, plain: Measured) -> Edge:
        """The candidate against the original, graph optimisations off in both."""
        own = self.own()
        edge = self._judge(FOLD_EDGE, plain, own, FOLD_FACTOR, each=True)
        if self._near(edge):
            edge = self._judge(FOLD_EDGE, plain, self._thrown_again(edge, own, PLAIN), FOLD_FACTOR, each=True)
        return _with_sizes(edge, self.truth)

    def runtime_edge(self, candidate: Path, plain: Measured, runtime: Runtime) -> Edge:
        """The candidate in an optimising runtime against itself in an unoptimised one, `plain`."""
        name = RUNTIME_EDGE if runtime == OPTIMISED else f"{RUNTIME_EDGE} ({runtime})"
        own = self.own().or_larger(plain.own)
        try:
            fast = self._measure(candidate, runtime)
        except GraphError as error:  # without optimisations it did run
            return Edge(name, math.inf, math.inf, max(self.bounds(own)), passed=False, detail=str(error))
        edge = self._judge(name, fast, own, FOLD_FACTOR, each=True)
        if edge.passed:
            return edge
        # The runtime may add in another order, in the original as in the candidate: that much is no bug.
        original = self._measure(self.path, runtime)
        excused = own.or_larger(original.own.at_most(own, RUNTIME_EXCUSE))
        edge = self._judge(name, fast, excused, FOLD_FACTOR, each=True)
        if self._near(edge):
            edge = self._judge(name, fast, self._thrown_again(edge, excused, runtime), FOLD_FACTOR, each=True)
        return edge if edge.passed else replace(edge, detail=f"{self._blame(runtime, original)}; {edge.detail}")

    def _near(self, edge: Edge) -> bool:
        return not edge.passed and max(output.excess for output in edge.outputs) <= NEAR

    def _thrown_again(self, edge: Edge, own: Own, runtime: Runtime) -> Own:
        """The original's own error once more, of many runs at the samples where the candidate is past its bound."""
        suspects = sorted({n for output in edge.outputs for n, need in enumerate(output.needs) if need > 1.0})
        if not suspects:
            return own
        again = thrown(self.truth.only(suspects), self.path, runtime, throws=THROWN_AGAIN, tick=self.tick)
        return own.at(suspects, again)

    def measure(self, candidate: Path) -> Measured:
        """A candidate without optimisations. Raises VerificationError when onnxruntime does not accept it."""
        try:
            return self._measure(candidate, PLAIN)
        except GraphError as error:
            raise VerificationError(str(error)) from error

    def _measure(self, path: Path, runtime: Runtime) -> Measured:
        rtol = self.tolerance.rtol if self.tolerance is not None else 0.0
        whole = runtime.level in (UNOPTIMISED, OPTIMISED.level)
        return measure(
            self.truth if whole else self.truth.only(range(min(FEW, len(self.truth.cases)))),
            path,
            runtime,
            rtol=rtol,
            tick=self.tick,
        )

    def own(self) -> Own:
        """The original's own errors: the largest of all its runs. Raises CheckpointError if they are not finite."""
        for number, row in enumerate(self.original.samples):
            if not all(math.isfinite(sample.max_abs) for sample in row):
                said = self.original.failures.get(
                    number, "its outputs are not finite, or have another shape, in its own precision"
                )
                raise CheckpointError(f"the unfolded model itself fails at {self.truth.cases[number]}: {said}")
        module = self._own_of_module()
        return self.original.own if module is None else self.original.own.or_larger(module)

    def bounds(self, own: Own, factor: float = FOLD_FACTOR) -> list[float]:
        """The largest relative error that passes, per output."""
        return [
            factor * error / scale + FLOOR_ULPS * ulp
            for error, scale, ulp in zip(own.worst, self.scales, self.original.ulps, strict=True)
        ]

    def _allowed(self, own: Sequence[tuple[float, ...]], output: int) -> tuple[float, ...] | None:
        """The largest RMS error that passes, case by case; None for integers."""
        ulp = self.original.ulps[output]
        if not ulp:
            return None
        return tuple(
            SAMPLE_FACTOR * row[output] + SAMPLE_FLOOR_ULPS * ulp * rms_error(true[output], np.zeros_like(true[output]))
            for row, true in zip(own, self.truth.outputs, strict=False)
        )

    def _own_of_module(self) -> Own | None:
        """The module's in its own precision; None without a module, or where it gave the truth in that precision."""
        if not self.truth.narrow:
            return None
        pairs = [list(zip(*rows, strict=True)) for rows in zip(self.truth.narrow, self.truth.outputs, strict=True)]
        worst = [max(difference(*pair) for pair in column) for column in zip(*pairs, strict=True)]
        if not np.isfinite(worst).all():
            raise CheckpointError("the source itself yields numbers that are not finite in its own precision")
        return Own(tuple(worst), tuple(tuple(rms_error(*pair) for pair in row) for row in pairs))

    def _judge(self, name: str, measured: Measured, own: Own, factor: float, *, each: bool = False) -> Edge:
        """each: hold every sample to its own error too."""
        largest = max((error / scale for error, scale in zip(own.worst, self.scales, strict=True)), default=0.0)
        whose = "without optimisations the" if name.startswith(RUNTIME_EDGE) else "the original's own"
        comparison = f"against {self.truth.method}; {whose} relative error is {largest:.1e}"
        atol = None if self.tolerance is None or name == EXPORT_EDGE else self.tolerance.atol
        outputs = _judged(measured, self.scales, self.bounds(own, factor), atol)
        if each:
            rows = own.samples[: len(measured.samples)]
            outputs = tuple(replace(output, allowed=self._allowed(rows, i)) for i, output in enumerate(outputs))
        return judge(name, self.truth.cases, outputs, comparison, measured.failures)

    def _blame(self, runtime: Runtime, original: Measured) -> str:
        """Whose fault it is when only the optimising runtime is wrong."""
        said = f"the graph is right without optimisations: onnxruntime {version()} ({runtime}) computes it wrongly"
        worst = max(error / scale for error, scale in zip(original.own.worst, self.scales, strict=True))
        if worst > max(self.bounds(self.own())):
            return f"{said}, and the unfolded original too, by a relative error of {worst:.1e}"
        return f"{said}, the unfolded original it computes rightly"


def _scales(truth: Truth) -> tuple[float, ...]:
    return tuple(truth.scale(output) for output in range(len(truth.outputs[0])))


def _judged(
    measured: Measured, scales: Sequence[float], bounds: Sequence[float], atol: float | None
) -> tuple[Judged, ...]:
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
    return Edge(name, max_abs, max_abs / worst.scale, worst.bound, passed, detail, tuple(outputs))


def _where(cases: Sequence[Case], output: Judged, failures: Mapping[int, str]) -> str:
    at = f"output {output.name!r} is worst at {cases[output.worst]}"
    if output.worst in failures:
        at += f": {failures[output.worst]}"
    if output.allowed is not None and max(output.relative) <= output.bound and output.excess > 1.0:
        sample = max(range(len(cases)), key=output.needs.__getitem__)
        error, most = output.samples[sample].rms, output.allowed[sample]
        at += f"; at {cases[sample]} its root mean square error is {error:.1e}, and {most:.1e} would be rounding"
    if output.atol is not None and output.beyond > output.atol:
        at += f", and needs an absolute tolerance of {output.beyond:.1e} where {output.atol:.1e} is asked for"
    return at


def _with_sizes(edge: Edge, truth: Truth) -> Edge:
    """Say at which sizes of the dynamic axes a graph is wrong: it may well be right at the traced ones."""
    if edge.passed or not any(case.sizes for case in truth.cases):
        return edge
    agree: list[str] = []
    disagree: list[str] = []
    for number, case in enumerate(truth.cases):
        right = all(output.needs[number] <= 1.0 for output in edge.outputs)
        (agree if right else disagree).append(case.axes)
    good, bad = [axes for axes in dict.fromkeys(agree) if axes not in disagree], list(dict.fromkeys(disagree))
    if not bad or (agree and not good):
        return edge
    sizes = f"disagrees at {'; '.join(bad)}"
    sizes += f" and agrees at {'; '.join(good)}" if good else ", at no size does it agree"
    return replace(edge, detail=f"{sizes}. {edge.detail}")
