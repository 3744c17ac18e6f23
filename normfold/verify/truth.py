"""The original model in float64 on drawn inputs: what every figure of `verify` is measured against.

A torch module is copied, made double and run; code inside it that asks for float32 (attention that "upcasts", a norm
that does) gets float64 instead. What cannot be run so (sizes or dtypes baked into an exported program), and every ONNX
source, is run by normfold's own evaluator, which computes every float in float64 (docs/truth.md).

An entry (the place of a largest one, the side of a threshold) that changes when inputs and weights move within the
rounding of float32 is undecided, and is left out of the comparison.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from normfold.errors import CannotJudgeError, CheckpointError, GraphError
from normfold.graph.float64 import Outputs, body_of, evaluator_of, read_again, run_evaluator
from normfold.inputs.cases import Array, Case, draw_cases
from normfold.inputs.spec import InputSpec
from normfold.system.clock import Tick, nothing
from normfold.system.failures import check_memory, raised
from normfold.system.numbers import MASK
from normfold.system.spill import Rows
from normfold.verify.demand import check_fits
from normfold.verify.exercise import Exercise
from normfold.verify.metrics import blocks
from normfold.verify.module import run_double, run_module

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)

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
    outputs: Rows
    method: str
    from_module: bool
    narrow: Rows | None = None
    parts: tuple[Part, ...] = ()
    undecided: tuple[tuple[Array | None, ...], ...] | None = None
    unexercised: tuple[str, ...] = ()

    def only(self, numbers: Sequence[int]) -> Truth:
        """The truth about these cases alone."""
        return replace(
            self,
            cases=tuple(self.cases[number] for number in numbers),
            outputs=self.outputs.only(numbers),
            narrow=None if self.narrow is None else self.narrow.only(numbers),
            undecided=None if self.undecided is None else tuple(self.undecided[number] for number in numbers),
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

    def magnitudes(self) -> Magnitudes:
        """How large every piece is."""
        rows = [[_squares(piece) for piece in self.pieces(outputs)] for outputs in self.outputs]
        squares, counts, peaks = (np.array([[found[n] for found in row] for row in rows]) for n in range(3))
        scales = np.sqrt(squares.sum(0) / np.maximum(counts.sum(0), 1))
        rms = np.sqrt(squares / np.maximum(counts, 1))
        return Magnitudes(
            tuple(scale if scale > 0.0 else 1.0 for scale in scales.tolist()),
            tuple(peaks.max(0).tolist()),
            tuple(map(tuple, rms.tolist())),
        )


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """Of every piece of a truth, masks and what is no number left out.

    scales: root mean square over all cases, 1 for one that is zero everywhere. peaks: the largest entry of all cases.
    rms: root mean squares, case by case.
    """

    scales: tuple[float, ...]
    peaks: tuple[float, ...]
    rms: tuple[tuple[float, ...], ...]


def _squares(value: Array) -> tuple[float, int, float]:
    """Of the entries that are finite and no masks: the sum of their squares, their number, and the largest."""
    total, count, peak = 0.0, 0, 0.0
    for (part,) in blocks(value) if value.dtype.kind in "fiub" else ():
        numbers = np.abs(part.astype(np.float64))
        numbers = numbers[numbers < MASK]
        total, count = total + float(numbers @ numbers), count + numbers.size
        peak = max(peak, float(numbers.max(initial=0.0)))
    return total, count, peak


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
    model = read_again(path)
    evaluator = evaluator_of(model, path)
    check_fits(model, cases, path)
    exercise = Exercise(model)
    found = Rows()
    for case in cases:
        found.append(run_evaluator(evaluator, case, path, watch=exercise.saw))
        tick()
    undecided = None
    if exercise.jumps or any(value.dtype.kind != "f" for value in found[0]):
        # Moved one way and the other: a tie goes to another side in one of the two.
        sides = [(evaluator_of(model, path, move=move), move < 0) for move in (SINGLE, -SINGLE)]
        jump = body_of(read_again(path)).rms_ceiling
        undecided = tuple(
            _undecided(outputs, [run_evaluator(e, case.moved(1, mirrored=back), path) for e, back in sides], jump)
            for outputs, case in zip(found, cases, strict=True)
        )
    return Truth(tuple(cases), found, method, from_module=False, undecided=undecided, unexercised=exercise.missed())


def _undecided(outputs: Outputs, moved: Sequence[Outputs], jump: float) -> tuple[Array | None, ...]:
    """Per output the entries that are something else in one of the moved runs; None where there are none.

    jump: what a float moves by, relative to the RMS of its output, if it moves by more than rounding explains.
    """
    masks = (
        np.logical_or.reduce([_changed(value, other[index], jump) for other in moved])
        for index, value in enumerate(outputs)
    )
    return tuple(mask if mask.any() else None for mask in masks)


def _changed(value: Array, moved: Array, jump: float) -> Array:
    """The entries that are something else when inputs and weights move within rounding."""
    if value.shape != moved.shape:
        return np.ones(value.shape, dtype=bool)
    if value.dtype.kind != "f":
        return np.asarray(value != moved, dtype=bool)
    finite = np.abs(value) < MASK
    scale = float(np.sqrt(np.mean(np.square(value[finite])))) if finite.any() else 0.0
    with np.errstate(invalid="ignore"):
        return np.asarray(finite & ~(np.abs(value - moved) <= jump * scale))


def _finished(truth: Truth) -> Truth:
    """The truth with its parts. Raises CheckpointError for NaN, CannotJudgeError where too little is decided."""
    _log.info("the truth: %s, %d samples", truth.method, len(truth.cases))
    entries = [0] * len(truth.outputs[0])
    for case, outputs in zip(truth.cases, truth.outputs, strict=True):
        for index, value in enumerate(outputs):
            entries[index] += value.size
            if value.dtype.kind == "f" and np.isnan(value).any():
                raise CheckpointError(
                    f"the source itself yields NaN: output {index} at {case}, computed in {truth.method}. "
                    "Nothing can be verified against that: are the weights finite, and does the model take "
                    f"normally distributed inputs?{case.integers}"
                )
    for index, value in enumerate(truth.outputs[0]):
        masks = [row[index] for row in truth.undecided or ()]
        undecided = sum(int(mask.sum()) for mask in masks if mask is not None)
        if undecided > MOST_UNDECIDED[value.dtype.kind == "f"] * entries[index]:
            raise CannotJudgeError(
                f"output {index} is decided by rounding: {undecided} of its {entries[index]} entries change when "
                "inputs and weights move by less than float32 can hold, so there can be no verdict on it. Inputs of "
                "your own may decide more (--data samples.npz); `fold --no-verify` folds without a verdict"
            )
    return replace(truth, parts=_parts(truth.outputs))


def _parts(outputs: Rows) -> tuple[Part, ...]:
    """Channels of other magnitudes than the largest, on the last axis or axis 1, whichever tells them further apart."""
    first = outputs[0]
    places = [
        (index, axis)
        for index, value in enumerate(first)
        if value.dtype.kind == "f" and value.ndim > 1
        for axis in sorted({1 % value.ndim, value.ndim - 1})
    ]
    sums = {place: np.zeros(first[place[0]].shape[place[1]]) for place in places}
    counts = dict.fromkeys(places, 0)
    for row in outputs:
        for index, axis in list(sums):
            value = row[index]
            if value.shape[axis] != sums[index, axis].size:  # an axis of other sizes has no channels
                del sums[index, axis]
                continue
            sums[index, axis] += _squares_along(value, axis)
            counts[index, axis] += value.size // max(value.shape[axis], 1)
    found: list[Part] = []
    for index in range(len(first)):
        choices = [_by_magnitude(*place, total, counts[place]) for place, total in sums.items() if place[0] == index]
        found += max(choices, key=lambda parts: max((1 / part.magnitude for part in parts), default=0.0), default=[])
    return tuple(found)


def _squares_along(value: Array, axis: int) -> Array:
    """For every place on an axis, the sum of the squares of the entries that are no masks."""
    sums = np.zeros(value.shape[axis])
    for sample in np.moveaxis(value, axis, -1):
        rows = sample.reshape(-1, sums.size)
        rows = np.where(np.abs(rows) < MASK, rows, 0.0)
        sums += np.einsum("ij,ij->j", rows, rows)
    return sums


def _by_magnitude(index: int, axis: int, squares: Array, count: int) -> list[Part]:
    rms = np.sqrt(squares / max(count, 1))
    present = np.flatnonzero(rms)
    if rms.size < 2 or not present.size:
        return []
    decades = np.floor(np.log10(rms.max() / rms[present])).astype(int)
    return [
        Part(index, axis, tuple(present[decades == decade].tolist()), float(10.0**-decade))
        for decade in np.unique(decades[decades >= ORDERS]).tolist()
    ]
