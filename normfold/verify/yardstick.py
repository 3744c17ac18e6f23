"""What a candidate is held to, and the comparisons: judge.py says what the bounds are, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from normfold.errors import CannotJudgeError, CheckpointError, GraphError, VerificationError
from normfold.graph.float64 import Body, body_of, read_again
from normfold.system.clock import Tick, nothing
from normfold.system.spill import Folder
from normfold.verify.judge import (
    EXPORT_BOUND,
    EXPORT_EDGE,
    EXPORT_FACTOR,
    FEW,
    FLOOR_ULPS,
    FOLD_EDGE,
    FOLD_FACTOR,
    LOST,
    NEAR,
    OPTIMISED,
    PEAK_ULPS,
    PLAIN,
    RERUNS,
    RUNTIME_EDGE,
    RUNTIME_EXCUSE,
    SAMPLE_FACTOR,
    SAMPLE_FLOOR_ULPS,
    SMALL_FACTOR,
    SQUASHED_ULPS,
    Edge,
    Tolerance,
    judge,
    judged,
    with_sizes,
)
from normfold.verify.measure import Measured, Own, RenamedError, measure, moved_runs, rerun
from normfold.verify.metrics import difference, rms_error, settled
from normfold.verify.runtime import UNOPTIMISED, Runtime, open_session, version
from normfold.verify.tensors import first_parting, opened, writers
from normfold.verify.truth import Magnitudes, Truth, establish


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What candidates are held to: the truth, and how far from it the original graph at `path` is itself.

    outputs: the names of the original's. body: how finely it computes. magnitudes: of the pieces of the truth.
    tolerance: a bound of the user's own, on top. tick: called after every run of a graph. module: the own error of the
    module in its own precision, if there is one. renamed: what candidates call the outputs, in the same order, where
    that is known to be something else. before: the same of the graphs that end before the Sigmoids which have pressed
    their outputs against 0.
    """

    truth: Truth
    path: Path
    outputs: tuple[str, ...]
    body: Body
    original: Measured
    magnitudes: Magnitudes
    tolerance: Tolerance | None = None
    tick: Tick = nothing
    module: Own | None = None
    renamed: tuple[str, ...] = ()
    before: Before | None = None

    @classmethod
    def lay(
        cls,
        truth: Truth,
        path: Path,
        *,
        tolerance: Tolerance | None = None,
        tick: Tick = nothing,
        ceiling: bool = True,
    ) -> Yardstick:
        """Measure the original graph at `path`. ceiling: see judge.py; without it the caller has one of its own.

        Raises GraphError when onnxruntime does not accept it, CannotJudgeError when it is farther from the truth than
        rounding explains.
        """
        outputs = tuple(output.name for output in open_session(path, PLAIN).get_outputs())
        if not outputs:
            raise GraphError(f"{path}: the graph has no outputs: there is nothing to verify")
        body = body_of(read_again(path))
        original = measure(truth, path, PLAIN, moved=moved_runs(truth), eps=body.eps, tick=tick)
        module = _own_of_module(truth)
        yardstick = cls(truth, path, outputs, body, original, truth.magnitudes(), tolerance, tick, module)._told_apart()
        squashed = yardstick._check_conditioned() if ceiling else ()
        return replace(yardstick, before=Before.lay(truth, path, squashed, tick=tick)) if squashed else yardstick

    @property
    def scales(self) -> tuple[float, ...]:
        """Root mean squares of the pieces of the truth."""
        return self.magnitudes.scales

    def _told_apart(self) -> Yardstick:
        """Without the parts that the source itself loses in its rounding: those are judged with the whole alone."""
        own, outputs = self._of_source(), len(self.truth.outputs[0])
        kept = [n for n, scale in enumerate(self.scales) if n < outputs or own.worst[n] <= LOST * scale]
        if len(kept) == len(self.scales):
            return self
        truth = replace(self.truth, parts=tuple(self.truth.parts[n - outputs] for n in kept[outputs:]))
        module = None if self.module is None else self.module.only(kept)
        return replace(
            self, truth=truth, original=self.original.only(kept), magnitudes=truth.magnitudes(), module=module
        )

    def _of_source(self) -> Own:
        """The source's own error: of a module that of its own float32 run, for its export may be wrong."""
        return self.module if self.truth.from_module and self.module is not None else self.original.own

    def _check_conditioned(self) -> tuple[str, ...]:
        """Raise CannotJudgeError where rounding does not explain how far the source is from its own float64 value.

        Returned are the outputs that a Sigmoid has pressed against 0, where float32 has steps of a unit: right, and no
        measure.
        """
        own = self._of_source()
        sizes = [[value.size for value in row] for row in self.truth.outputs]
        squashed = []
        for index, value in enumerate(self.truth.outputs[0]):
            # Of anything but floats the error is a share of entries, and has no scale.
            scale = self.scales[index] if value.dtype.kind == "f" else 1.0
            error, rms = own.worst[index] / scale, _pooled(own, index, [row[index] for row in sizes]) / scale
            # Where it is not finite, `own` says what happened.
            if math.isfinite(error) and (error > self.body.ceiling or rms > self.body.rms_ceiling):
                name = self.original.names[index]
                steps = own.worst[index] / (self.original.ulps[index] or 1.0)
                if self.truth.from_module or steps > SQUASHED_ULPS or writers(self.path).get(name) != "Sigmoid":
                    raise CannotJudgeError(self._apart(index, error, own))
                squashed.append(name)
        return tuple(squashed)

    def _apart(self, index: int, error: float, own: Own) -> str:
        rows = [row[index] for row in own.samples]
        case = self.truth.cases[max(range(len(rows)), key=rows.__getitem__)]
        text = (
            f"there can be no verdict on output {self.original.names[index]!r}: the original itself is up to "
            f"{error:.1e} (relative) away from its float64 value, at {case}, which rounding does not explain. Either "
            "the model amplifies rounding, or normfold and onnxruntime do not compute the same"
        )
        place = first_parting(self.path, case, self.body.rms_ceiling)
        text += f"; the first tensor at which they part is {place}" if place else ""
        return f"{text}. `fold --no-verify` folds without a verdict; inputs of your own (--data) may be milder"

    def compare(self, candidate: Path, runtimes: Sequence[Runtime] = (OPTIMISED,)) -> Iterator[Edge]:
        """The candidate against the original, and in every runtime against itself.

        Raises VerificationError when onnxruntime does not accept the candidate, CheckpointError when the original is
        not finite.
        """
        try:
            plain = self.measure(candidate)
        except RenamedError as error:
            yield Edge(FOLD_EDGE, math.inf, math.inf, max(self.bounds(self.own())), passed=False, detail=str(error))
            return
        fold = self.fold_edge(plain)
        yield fold
        if self.before is not None:
            yield self.before.edge(candidate)
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
        if self.module is not None and self.truth.from_module:
            edge = self._judge(EXPORT_EDGE, self.original, self._excused(self.module), EXPORT_FACTOR)
            return (with_sizes(edge, self.truth),)
        truth = replace(self.truth, outputs=self.truth.narrow, method="torch in its own precision")
        measured = measure(truth, self.path, PLAIN, tick=self.tick)
        outputs = judged(measured, truth.magnitudes().scales, [EXPORT_BOUND] * len(measured.names), None)
        edge = judge(EXPORT_EDGE, truth.cases, outputs, f"against {truth.method}", measured.failures)
        return (with_sizes(edge, truth),)

    def _excused(self, module: Own) -> Own:
        """The module's own error; of small channels what kernels of two libraries make of them (a sigmoid near 0)."""
        outputs = len(self.truth.outputs[0])
        small = (EXPORT_BOUND / EXPORT_FACTOR * scale for scale in self.scales[outputs:])
        return replace(module, worst=(*module.worst[:outputs], *map(max, module.worst[outputs:], small)))

    def fold_edge(self, plain: Measured) -> Edge:
        """The candidate against the original, graph optimisations off in both."""
        own = self.own()
        edge = self._judge(FOLD_EDGE, plain, own, FOLD_FACTOR, each=True)
        if self._near(edge):
            edge = self._judge(FOLD_EDGE, plain, self._measured_again(edge, own, PLAIN), FOLD_FACTOR, each=True)
        return with_sizes(edge, self.truth)

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
            edge = self._judge(name, fast, self._measured_again(edge, excused, runtime), FOLD_FACTOR, each=True)
        return edge if edge.passed else replace(edge, detail=f"{self._blame(runtime, original)}; {edge.detail}")

    def _near(self, edge: Edge) -> bool:
        """Whether an original that was measured on lucky throws could be why this fails."""
        near = math.inf if self.body.steps else NEAR
        return not edge.passed and max(output.excess for output in edge.outputs) <= near

    def _measured_again(self, edge: Edge, own: Own, runtime: Runtime) -> Own:
        """The original's own error once more, of many runs at the samples where the candidate is past its bound."""
        suspects = sorted({n for output in edge.outputs for n, need in enumerate(output.needs) if need > 1.0})
        if not suspects:
            return own
        truth, eps = self.truth.only(suspects), self.body.eps
        again = rerun(truth, self.path, runtime, runs=RERUNS, outputs=self.outputs, eps=eps, tick=self.tick)
        return own.at(suspects, again)

    def measure(self, candidate: Path) -> Measured:
        """A candidate without optimisations.

        Raises VerificationError when onnxruntime does not accept it, RenamedError when it lacks an output.
        """
        try:
            return self._measure(candidate, PLAIN)
        except RenamedError:
            raise
        except GraphError as error:
            raise VerificationError(str(error)) from error

    def _measure(self, path: Path, runtime: Runtime) -> Measured:
        rtol = self.tolerance.rtol if self.tolerance is not None else 0.0
        whole = runtime.level in (UNOPTIMISED, OPTIMISED.level)
        return measure(
            self.truth if whole else self.truth.only(range(min(FEW, len(self.truth.cases)))),
            path,
            runtime,
            outputs=self.outputs if path == self.path else self.renamed or self.outputs,
            eps=self.body.eps,
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
                case = self.truth.cases[number]
                raise CheckpointError(f"the unfolded model itself fails at {case}: {said}.{case.integers}")
        return self.original.own if self.module is None else self.original.own.or_larger(self.module)

    def bounds(self, own: Own, factor: float = FOLD_FACTOR) -> list[float]:
        """The largest relative error that passes, per piece of the truth."""
        outputs = len(self.truth.outputs[0])
        return [
            factor * (SMALL_FACTOR if index >= outputs else 1.0) * error / scale
            + (FLOOR_ULPS + PEAK_ULPS * peak / scale) * ulp
            for index, (error, scale, peak, ulp) in enumerate(
                zip(own.worst, self.scales, self.magnitudes.peaks, self.original.ulps, strict=True)
            )
        ]

    def _allowed(self, own: Sequence[tuple[float, ...]], output: int) -> tuple[float, ...] | None:
        """The largest RMS error that passes, case by case; None for integers.

        None for small channels too: of a few entries of one sample no two runs make the same error.
        """
        ulp = self.original.ulps[output]
        if not ulp or output >= len(self.truth.outputs[0]):
            return None
        return tuple(
            SAMPLE_FACTOR * row[output] + SAMPLE_FLOOR_ULPS * ulp * rms[output]
            for row, rms in zip(own, self.magnitudes.rms, strict=False)
        )

    def _judge(self, name: str, measured: Measured, own: Own, factor: float, *, each: bool = False) -> Edge:
        """each: hold every sample to its own error too."""
        largest = max((error / scale for error, scale in zip(own.worst, self.scales, strict=True)), default=0.0)
        whose = "without optimisations the" if name.startswith(RUNTIME_EDGE) else "the original's own"
        comparison = f"against {self.truth.method}; {whose} relative error is {largest:.1e}"
        atol = None if self.tolerance is None or name == EXPORT_EDGE else self.tolerance.atol
        outputs = judged(measured, self.scales, self.bounds(own, factor), atol)
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


@dataclass(frozen=True, slots=True)
class Before:
    """A yardstick for the graphs that end before the Sigmoids of these outputs. folder: where such graphs lie."""

    outputs: tuple[str, ...]
    folder: Folder
    yardstick: Yardstick

    @classmethod
    def lay(cls, truth: Truth, path: Path, outputs: tuple[str, ...], *, tick: Tick) -> Before:
        """Raises what `Yardstick.lay` does."""
        folder = Folder()
        place, _ = opened(path, outputs, folder.path)
        return cls(outputs, folder, Yardstick.lay(establish(None, place, (), cases=truth.cases), place, tick=tick))

    def edge(self, candidate: Path) -> Edge:
        """The candidate against the original, both before their Sigmoids."""
        name = f"{FOLD_EDGE}, before Sigmoid"
        try:
            place, found = opened(candidate, self.outputs, self.folder.path)
            yardstick = replace(self.yardstick, renamed=found)
            return replace(yardstick.fold_edge(yardstick.measure(place)), name=name)
        except (GraphError, VerificationError) as error:
            return Edge(name, math.inf, math.inf, 0.0, passed=False, detail=str(error))


def _own_of_module(truth: Truth) -> Own | None:
    """The module's in its own precision; None without a module, or where it gave the truth in that precision."""
    if not truth.narrow:
        return None
    largest, samples = [], []
    for number, (narrow, outputs) in enumerate(zip(truth.narrow, truth.outputs, strict=True)):
        pieces = zip(truth.pieces(narrow), truth.pieces(outputs), truth.masks(number), strict=True)
        pairs = [(settled(value, true, mask), true) for value, true, mask in pieces]
        largest.append([difference(*pair) for pair in pairs])
        samples.append(tuple(rms_error(*pair) for pair in pairs))
    worst = tuple(map(max, *largest)) if len(largest) > 1 else tuple(largest[0])
    if not np.isfinite(worst).all():
        raise CheckpointError("the source itself yields numbers that are not finite in its own precision")
    return Own(worst, tuple(samples))


def _pooled(own: Own, index: int, sizes: Sequence[int]) -> float:
    """The root mean square error of an output over all cases. sizes: its entries, case by case."""
    squares = [size * row[index] ** 2 for size, row in zip(sizes, own.samples, strict=True)]
    return math.sqrt(sum(squares) / max(sum(sizes), 1))
