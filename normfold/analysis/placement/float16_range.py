"""What a float16 can hold, and whether tensors and constants stay in it once they are stored in their frames.

A stored tensor is `(v - t) / s`. float32 and bfloat16 have exponents to spare: any scale that a network gathers leaves
their digits as they are. float16 ends at 65504, and below 2^-14 its numbers are 2^-24 apart whatever their size. How
far a scale may go there depends on what the tensor holds, which inputs show (calibrate.py); without them
2^6 is as far as it goes.

Two rounding errors are bounded. Of a stored tensor: a step of 2^-24 is `|s| 2^-24` of `v`, which is to stay well below
the digits that float16 gives `v` itself. Of a weight between stored tensors: the error of all its entries, each
weighted with what it is multiplied with, is to stay near the one that rounding to normal numbers makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfold.analysis.edits import Edit, NewAdd, NewConstant
from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import FrameOf, name_of
from normfold.graph.affine import Array, Frame, varying_axes
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph
from normfold.system.numbers import LARGEST_HALF

# A stored tensor is v / s: beyond these sizes of s it might leave the range, or the precision, of its type.
LARGEST_SCALE = {
    ir.DataType.FLOAT16: 2.0**6,
    ir.DataType.BFLOAT16: 2.0**60,
    ir.DataType.FLOAT: 2.0**60,
    ir.DataType.DOUBLE: 2.0**500,
}

# Other inputs than those that were looked at may be this many times larger.
LARGEST_STORED = LARGEST_HALF / 16.0
# RMS(v) / |s|: a step of 2^-24 of the stored tensor is then 2^-14 RMS(v), an eighth of the step that v has in float16.
SMALLEST_STORED = 2.0**-10
# Relative rounding error of a weight: twice the most that one rounding to a normal number makes.
WEIGHT_ERROR = 2.0**-10


@dataclass(frozen=True, slots=True)
class Range:
    """What a tensor held on the inputs that were looked at: per entry of a tuple first over all of it, then along each
    of its axes in turn, over all others.

    lowest, highest; mean, and mean of the squares. Float64, of the tensor's rank, size 1 along an axis whose size is
    not fixed.
    """

    lowest: tuple[Array, ...]
    highest: tuple[Array, ...]
    mean: tuple[Array, ...]
    square: tuple[Array, ...]

    def reach(self, shift: Array, axes: tuple[int, ...]) -> Array:
        """A bound of |v - shift| where `axes` tell entries apart."""
        lowest, highest = self.lowest[0], self.highest[0]
        for axis in axes:
            lowest = np.maximum(lowest, self.lowest[axis + 1])
            highest = np.minimum(highest, self.highest[axis + 1])
        found: Array = np.maximum(np.abs(lowest - shift), np.abs(highest - shift))
        return found

    @property
    def largest(self) -> float:
        """The largest |v|."""
        return float(self.reach(np.zeros(()), ()).max())

    def scaled(self, factor: float) -> Range:
        """What it held, times a number above 0."""
        parts = (self.lowest, self.highest, self.mean)
        lowest, highest, mean = (tuple(array * factor for array in part) for part in parts)
        return Range(lowest, highest, mean, tuple(array * factor**2 for array in self.square))

    def typical(self, shift: Array, axes: tuple[int, ...]) -> Array:
        """RMS of v - shift; of several axes, the one along which it is smallest."""
        squares = [
            self.square[part] - 2.0 * shift * self.mean[part] + np.square(shift)
            for part in ([axis + 1 for axis in axes] or [0])
        ]
        least = squares[0]
        for square in squares[1:]:
            least = np.minimum(least, square)
        found: Array = np.sqrt(np.maximum(least, 0.0))
        return found


@dataclass(frozen=True, slots=True)
class Ranges:
    """The ranges of tensors, by name. half: float32 tensors become float16 in the end."""

    of: Mapping[str, Range]
    half: bool = False

    def scaled(self, powers: Mapping[str, int]) -> Ranges:
        """The same once tensors are stored as multiples of these powers of two."""
        return Ranges({name: one.scaled(2.0 ** -powers.get(name, 0)) for name, one in self.of.items()}, self.half)

    def type_of(self, value: Value) -> ir.DataType | None:
        """The type that `value` is stored in."""
        return ir.DataType.FLOAT16 if self.half and value.dtype == ir.DataType.FLOAT else value.dtype

    def get(self, value: Value) -> Range | None:
        """The range of a float16 tensor, where it is known."""
        return self.of.get(name_of(value)) if self.type_of(value) == ir.DataType.FLOAT16 else None


def holds_half(model: ir.Model) -> bool:
    """Whether any constant or tensor of `model` is float16."""
    values = (value for node in model.graph for value in node.outputs)
    found = (*model.graph.initializers.values(), *model.graph.inputs, *values)
    return any(value.dtype == ir.DataType.FLOAT16 for value in found)


def scale_in_range(ranges: Ranges | None, value: Value, scale: Array) -> Refuse | None:
    """Whether the type of `value` has room for `scale`, whatever it holds; what is known of it is asked later."""
    if ranges is not None and ranges.get(value) is not None:
        return None
    kind = value.dtype if ranges is None else ranges.type_of(value)
    largest = LARGEST_SCALE.get(kind or ir.DataType.FLOAT, LARGEST_SCALE[ir.DataType.FLOAT])
    sizes = np.abs(scale[scale != 0.0])
    if sizes.size and (sizes.max() > largest or sizes.min() < 1.0 / largest):
        return Refuse("scale-range", f"{value.name}: the scales gathered on it would leave the range of its type")
    return None


def first_beyond(
    ranges: Ranges,
    graph: Graph,
    values: Iterable[Value],
    ops: Iterable[Op],
    frame: FrameOf,
    *,
    smallest: float = SMALLEST_STORED,
) -> Refuse | None:
    """The first of these tensors, or of the constants of these operators, that float16 cannot hold in its frame.

    smallest: the least RMS that a tensor may be stored with.
    """
    for value in values:
        known = ranges.get(value)
        if known is not None and (refused := _tensor(graph, value, frame(value), known, smallest)):
            return refused
    for op in ops:
        if op.affine is not None and (refused := _map(ranges, op, op.affine.frame, frame)):
            return refused
        for edit in _edits(graph, op, frame):
            if refused := _constant(ranges, graph, op, edit, frame):
                return refused
    return None


def _tensor(graph: Graph, value: Value, frame: Frame, known: Range, smallest: float) -> Refuse | None:
    size = np.abs(frame.scale)
    used = size != 0.0  # with scale 0 the tensor is its shift, whatever is stored
    size = np.where(used, size, 1.0)
    axes = tuple(sorted({*varying_axes(frame.scale), *varying_axes(frame.shift)}))
    zero = np.zeros((1,) * frame.scale.ndim)
    stored = known.reach(frame.shift, axes) / size
    if np.any(used & (stored > np.maximum(LARGEST_STORED, known.reach(zero, axes)))):
        return Refuse(
            "scale-range", f"{value.name}: it would be stored as numbers up to {stored.max():.2g}, too near 65504"
        )
    typical = known.typical(zero, varying_axes(frame.scale))
    sinks = used & (size > 1.0) & (typical > 0.0) & (typical / size < smallest)
    # A part of a sum needs no digits that the sum has not, which has the same scale.
    if np.any(sinks) and not sums_of(graph, value):
        least = float((typical / size)[np.broadcast_to(sinks, (typical / size).shape)].min())
        return Refuse("scale-range", f"{value.name}: it would be stored as numbers about {least:.2g}, too few digits")
    return None


def sums_of(graph: Graph, value: Value) -> list[Value]:
    """The sums that a tensor is a part of, reordered or not; none where anything else reads it."""
    found: list[Value] = []
    for op in graph.readers(value):
        rule = rule_of(op.type)
        if op.affine is not None or not (rule.adds or rule.rearranges):
            return []
        added = sums_of(graph, op.output)
        if not (added or rule.adds):
            return []
        found += added or [op.output]
    return [] if value in graph.outputs else found


def _beside_sums(ranges: Ranges, graph: Graph, value: Value) -> float:
    """How many times larger the sums are that a tensor is a part of, in the channel where that is least; at least 1."""
    known, sums = ranges.get(value), [ranges.get(total) for total in sums_of(graph, value)]
    ratios: list[float] = []
    for total in sums:
        if known is None or total is None:
            return 1.0
        for own, whole in zip(reversed(known.square[1:]), reversed(total.square[1:]), strict=False):
            if own.size == whole.size > 1 and np.any(own > 0.0):
                own, whole = own.reshape(-1), whole.reshape(-1)
                ratios.append(float(np.sqrt((whole[own > 0.0] / own[own > 0.0]).min())))
    return max(1.0, min(ratios, default=1.0))


def _map(ranges: Ranges, op: Op, own: Frame, frame: FrameOf) -> Refuse | None:
    """A fixed map between stored tensors: 1 and 0 where it is folded away."""
    source = op.inputs[0]
    if source is None or ranges.type_of(op.output) != ir.DataType.FLOAT16:
        return None
    stored = own.between(frame(source), frame(op.output))
    return _beyond(op, stored.scale) or _beyond(op, stored.shift)


def _edits(graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
    if op.affine is None:
        yield from rule_of(op.type).edits(graph, op, frame)


def _constant(ranges: Ranges, graph: Graph, op: Op, edit: Edit, frame: FrameOf) -> Refuse | None:
    if isinstance(edit, NewAdd):
        value = next(value for value in op.outputs if name_of(value) == edit.output)
        return _beyond(op, edit.add) if ranges.type_of(value) == ir.DataType.FLOAT16 else None
    if not isinstance(edit, NewConstant):
        return None
    source = op.inputs[edit.input] if edit.source is not None else None
    if ranges.type_of(op.output if source is None else source) != ir.DataType.FLOAT16:
        return None
    before = np.zeros(()) if source is None else graph.constant(source)
    after = edit.content(before)
    if refused := _beyond(op, after):
        return refused
    if edit.times is None or edit.add is not None:
        # What is added to a stored tensor of a fair size may itself be as small as it likes.
        return None
    weighted = before * _read_by(ranges, graph, op, edit, frame)
    kept = () if edit.over is None else varying_axes(edit.over)
    error = _error(after, weighted, kept) / _beside_sums(ranges, graph, op.output)
    if np.any(error > np.maximum(WEIGHT_ERROR, 2.0 * _error(before, weighted, kept))):
        return refuse(op, "scale-range", "float16 would leave its weights too few digits")
    return None


def _read_by(ranges: Ranges, graph: Graph, op: Op, edit: NewConstant, frame: FrameOf) -> Array:
    """What the entries of a weight are multiplied with, as the rule of its operator lays frames along the weight."""
    identity = {value: Frame.identity(len(graph.dims(value) or ())) for value in (*op.inputs, *op.outputs) if value}

    def size(value: Value) -> Frame:
        known = ranges.get(value)
        if value in op.outputs or known is None:
            return identity[value]
        now = frame(value)
        axes = varying_axes(now.scale)
        shift = now.shift if set(varying_axes(now.shift)) <= set(axes) else np.zeros_like(now.scale)
        return Frame(known.typical(shift, axes), identity[value].shift)

    found = [
        other.times
        for other in _edits(graph, op, size)
        if isinstance(other, NewConstant) and other.input == edit.input and other.times is not None
    ]
    return found[0] if found else np.ones(())


def _error(array: Array, weighted: Array, kept: tuple[int, ...]) -> Array:
    """Relative rounding error of `array` in float16, its entries weighted, per entry of the axes `kept`."""
    nearest = _half(array)
    size = np.where(array == 0.0, 1.0, np.abs(array))
    loss, weighted = np.broadcast_arrays(np.where(array == 0.0, 0.0, np.abs(nearest - array) / size), weighted)
    axes = tuple(axis for axis in range(loss.ndim) if axis not in kept)
    lost, size_of_all = (
        np.sqrt(np.square(part).sum(axis=axes, keepdims=True)) for part in (loss * weighted, np.abs(weighted))
    )
    found: Array = lost / np.where(size_of_all == 0.0, 1.0, size_of_all)
    return found


def _half(array: Array) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        return array.astype(np.float16).astype(np.float64)


def _beyond(op: Op, array: Array) -> Refuse | None:
    if np.all(np.isfinite(_half(array)) | ~np.isfinite(array)):
        return None
    largest = np.abs(array).max()
    return refuse(op, "scale-range", f"a constant of it would be {largest:.2g}, and float16 ends at 65504")
