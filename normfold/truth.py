"""The original model in float64 on drawn inputs: what every figure of `verify` is measured against.

A torch module is copied, made double and run; code inside it that asks for float32 (attention that "upcasts", a norm
that does) gets float64 instead. What cannot be run so (sizes or dtypes baked into an exported program), and every ONNX
source, is run by normfold's own evaluator, which computes every float in float64 (docs/truth.md).

What nobody can know is left out of the comparison: an entry (the place of a largest one, the side of a threshold) that
changes when inputs and weights move within the rounding of float32 is undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normfold.cases import Array, Case, draw_cases
from normfold.clock import Tick, nothing
from normfold.demand import check_fits
from normfold.errors import CannotJudgeError, CheckpointError, GraphError
from normfold.exercise import Exercise
from normfold.figures import MASK
from normfold.foreign import raised
from normfold.inputs import InputSpec
from normfold.runtime import check_memory
from normfold.truth_of_graph import Outputs, evaluator_of, read_graph, run_evaluator
from normfold.truth_of_module import run_double, run_module

if TYPE_CHECKING:
    from torch import nn

# An entry that moves by more than this share of its output's RMS when nothing moved beyond rounding has jumped.
JUMP = 1e-2
# Beyond this share of undecided entries nothing is judged, of floats and of anything else.
MOST_UNDECIDED = {True: 0.1, False: 0.5}
# What rounding to float32 may move: a unit in its last place.
SINGLE = 2.0**-23
# Orders of magnitude from which on small channels are judged apart: their errors would drown in those of the large.
ORDERS = 2


@dataclass(frozen=True, slots=True)
class Part:
    """Channels of one output that are of one magnitude, where the channels of an output differ by orders of it.

    output: its number. axis: of the channels. magnitude: their RMS relative to that of the largest channels.
    """

    output: int
    axis: int
    channels: tuple[int, ...]
    magnitude: float

    def of(self, outputs: Sequence[Array]) -> Array:
        """These channels of the output; the output itself where it has another shape than it should have."""
        value = np.asarray(outputs[self.output])
        fits = value.ndim > self.axis and value.shape[self.axis] > max(self.channels)
        return np.take(value, self.channels, axis=self.axis) if fits else value

    @property
    def label(self) -> str:
        """For people, behind the name of the output."""
        shown = ", ".join(map(str, self.channels[:3])) + (", ..." if len(self.channels) > 3 else "")
        return f"[channel {shown}, of {self.magnitude:.0e} of the largest]"


@dataclass(frozen=True, slots=True)
class Truth:
    """Outputs in float64 (integers, booleans and strings as they are): one tuple per case, in the order of the model's.

    method: how they were computed, for the report. from_module: whether the torch module itself computed them.
    narrow: what the module computes in its own precision, None where there is no module. parts: what is judged beside
    the outputs themselves. undecided: per case and output the entries that rounding decides, None where it decides
    none. unexercised: what no case of these has reached, for people.
    """

    cases: tuple[Case, ...]
    outputs: tuple[Outputs, ...]
    method: str
    from_module: bool
    narrow: tuple[Outputs, ...] | None = None
    parts: tuple[Part, ...] = ()
    undecided: tuple[tuple[Array | None, ...], ...] | None = None
    unexercised: tuple[str, ...] = ()

    def only(self, numbers: Sequence[int]) -> Truth:
        """The truth about these cases alone."""

        def chosen(rows: tuple[Any, ...] | None) -> Any:
            return None if rows is None else tuple(rows[number] for number in numbers)

        return replace(
            self,
            cases=chosen(self.cases),
            outputs=chosen(self.outputs),
            narrow=chosen(self.narrow),
            undecided=chosen(self.undecided),
        )

    def pieces(self, outputs: Sequence[Array]) -> tuple[Array, ...]:
        """What is judged of these outputs: each of them, and the parts."""
        return (*outputs, *(part.of(outputs) for part in self.parts))

    def names(self, outputs: Sequence[str]) -> tuple[str, ...]:
        """What the pieces are called."""
        return (*outputs, *(f"{outputs[part.output]} {part.label}" for part in self.parts))

    def masks(self, case: int) -> tuple[Array | None, ...]:
        """For each piece the entries that are not compared; None where all are."""
        if self.undecided is None:
            return (None,) * (len(self.outputs[0]) + len(self.parts))
        row = self.undecided[case]
        return (*row, *(None if row[part.output] is None else part.of(row) for part in self.parts))  # type: ignore[arg-type]

    def scale(self, index: int) -> float:
        """Root mean square of piece `index` over all cases; 1 for one that is zero everywhere."""
        finite = self._finite(index)
        rms = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
        return rms if rms > 0.0 else 1.0

    def peak(self, index: int) -> float:
        """The largest entry of piece `index` over all cases."""
        return float(np.max(np.abs(self._finite(index)), initial=0.0))

    def _finite(self, index: int) -> Array:
        values = [np.asarray(self.pieces(outputs)[index]) for outputs in self.outputs]
        numbers = [value.astype(np.float64).ravel() for value in values if value.dtype.kind in "fiub"]
        return np.concatenate([number[np.abs(number) < MASK] for number in numbers] or [np.zeros(0)])


def establish(
    module: nn.Module | None,
    graph_path: Path,
    specs: Sequence[InputSpec],
    *,
    seed: int = 0,
    cases: Sequence[Case] | None = None,
    thorough: bool = False,
    tick: Tick = nothing,
) -> Truth:
    """The truth about a model: from `module` if it runs in float64, otherwise from the graph at `graph_path`.

    cases: the inputs; by default those that `draw_cases` draws from `seed`. thorough: run the graph in float64 even
    where the module gave the truth, to say what the cases did not reach. tick: called after every run of the model.
    Raises InputSpecError when the module does not run at all, CheckpointError when the outputs hold NaN, GraphError
    when neither way leads anywhere, CannotJudgeError when memory runs out or the graph has an operator whose float64
    value is not known.
    """
    cases = draw_cases(specs, seed=seed) if cases is None else tuple(cases)
    if module is None:
        return _finished(_of_graph(graph_path, cases, "float64", tick=tick))
    # First: a model that does not run in float32 either is to hear about its inputs, not about its dtypes.
    narrow = run_module(module, cases, tick=tick)
    try:
        outputs = run_double(module, cases, tick=tick)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        check_memory(error, "the source in float64")
        method = f"the exported graph in float64, for the module does not run in float64 ({raised(error)})"
        return _finished(replace(_of_graph(graph_path, cases, method, tick=tick), narrow=narrow))
    truth = Truth(cases, outputs, "torch in float64", from_module=True, narrow=narrow)
    if thorough:
        truth = replace(truth, unexercised=_unexercised(graph_path, cases, tick=tick))
    return _finished(truth)


def _unexercised(path: Path, cases: Sequence[Case], *, tick: Tick) -> tuple[str, ...]:
    """What the cases do not reach of an exported graph, whose truth the module gave."""
    try:
        return _of_graph(path, cases, "", tick=tick).unexercised
    except (CannotJudgeError, GraphError) as error:
        return (f"unknown, for the exported graph was not run in float64: {error}",)


def _of_graph(path: Path, cases: Sequence[Case], method: str, *, tick: Tick) -> Truth:
    """The graph at `path` in float64, with what its operators tell on the way. Raises GraphError, CannotJudgeError."""
    model = read_graph(path)
    evaluator = evaluator_of(model, path)
    check_fits(model, cases, path)
    exercise = Exercise(model)
    found = []
    for case in cases:
        found.append(run_evaluator(evaluator, case, path, watch=exercise.saw))
        tick()
    undecided = None
    if exercise.jumps or any(value.dtype.kind != "f" for value in found[0]):
        # Moved one way and the other: a tie goes to another side in one of the two.
        sides = [(evaluator_of(model, path, move=move), move < 0) for move in (SINGLE, -SINGLE)]
        undecided = tuple(
            _undecided(outputs, [run_evaluator(e, case.moved(1, mirrored=back), path) for e, back in sides])
            for outputs, case in zip(found, cases, strict=True)
        )
    return Truth(
        tuple(cases), tuple(found), method, from_module=False, undecided=undecided, unexercised=exercise.missed()
    )


def run_graph(path: Path, cases: Sequence[Case], *, tick: Tick = nothing) -> tuple[Outputs, ...]:
    """Outputs of the graph at `path` in float64. Raises what `establish` does."""
    return _of_graph(path, cases, "", tick=tick).outputs


def _undecided(outputs: Outputs, moved: Sequence[Outputs]) -> tuple[Array | None, ...]:
    """Per output the entries that are something else in one of the moved runs; None where there are none."""
    masks = (
        np.logical_or.reduce([_changed(value, other[index]) for other in moved]) for index, value in enumerate(outputs)
    )
    return tuple(mask if mask.any() else None for mask in masks)


def _changed(value: Array, moved: Array) -> Array:
    """The entries that are something else when inputs and weights move within rounding."""
    if value.shape != moved.shape:
        return np.ones(value.shape, dtype=bool)
    if value.dtype.kind != "f":
        return np.asarray(value != moved, dtype=bool)
    finite = np.abs(value) < MASK
    scale = float(np.sqrt(np.mean(np.square(value[finite])))) if finite.any() else 0.0
    with np.errstate(invalid="ignore"):
        return np.asarray(finite & ~(np.abs(value - moved) <= JUMP * scale))


def _finished(truth: Truth) -> Truth:
    """The truth with its parts. Raises CheckpointError for NaN, CannotJudgeError where too little is decided."""
    for case, outputs in zip(truth.cases, truth.outputs, strict=True):
        for index, value in enumerate(outputs):
            if value.dtype.kind == "f" and np.isnan(value).any():
                raise CheckpointError(
                    f"the source itself yields NaN: output {index} at {case}, computed in {truth.method}. "
                    "Nothing can be verified against that: are the weights finite, and does the model take "
                    "normally distributed inputs?"
                )
    for index in range(len(truth.outputs[0])):
        masks = [row[index] for row in truth.undecided or ()]
        undecided = sum(int(mask.sum()) for mask in masks if mask is not None)
        entries = sum(outputs[index].size for outputs in truth.outputs)
        if undecided > MOST_UNDECIDED[truth.outputs[0][index].dtype.kind == "f"] * entries:
            raise CannotJudgeError(
                f"output {index} is decided by rounding: {undecided} of its {entries} entries change when inputs and "
                "weights move by less than float32 can hold, so there can be no verdict on it. Inputs of your own may "
                "decide more (--inputs samples.npz); `fold --no-verify` folds without a verdict"
            )
    return replace(truth, parts=_parts(truth.outputs))


def _parts(outputs: Sequence[Outputs]) -> tuple[Part, ...]:
    """Channels of other magnitudes than the largest, on the last axis or axis 1, whichever tells them further apart."""
    found: list[Part] = []
    for index, value in enumerate(outputs[0]):
        if value.dtype.kind != "f":
            continue
        axes = {1 % value.ndim, value.ndim - 1} if value.ndim > 1 else ()
        choices = [_by_magnitude(index, axis, [row[index] for row in outputs]) for axis in axes]
        found += max(choices, key=lambda parts: max((1 / part.magnitude for part in parts), default=0.0), default=[])
    return tuple(found)


def _by_magnitude(index: int, axis: int, values: Sequence[Array]) -> list[Part]:
    if len({value.shape[axis] for value in values}) > 1 or values[0].shape[axis] < 2:
        return []
    rest = tuple(other for other in range(values[0].ndim) if other != axis)
    squares = [np.square(np.where(np.abs(value) < MASK, value, 0.0)).sum(rest) for value in values]
    rms = np.sqrt(np.sum(squares, axis=0) / max(sum(value.size // value.shape[axis] for value in values), 1))
    present = np.flatnonzero(rms)
    if not present.size:
        return []
    decades = np.floor(np.log10(rms.max() / rms[present])).astype(int)
    return [
        Part(index, axis, tuple(present[decades == decade].tolist()), float(10.0**-decade))
        for decade in np.unique(decades[decades >= ORDERS]).tolist()
    ]
