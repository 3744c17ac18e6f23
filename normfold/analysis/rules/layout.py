"""Operators that move elements without changing them: they carry a frame to its new place.

Each row of the table gives one function `(graph, op) -> AxisMap | Refuse`: how an array of the input's rank, with
size 1 where it does not vary, looks on the output, and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from normfold.analysis.edits import Edit
from normfold.analysis.refusal import Code, Refuse
from normfold.analysis.rules.base import OUT, Costs, Demands, FrameOf, Ports, Rule, rescaled_constant, value_at
from normfold.graph.affine import Array, Frame, compress, varying_axes
from normfold.graph.dims import Dim, product, reshape_groups
from normfold.graph.types import Op
from normfold.graph.view import Graph


class AxisMap(Protocol):
    """How an array of frame coefficients looks on the other side of an operator."""

    def forward(self, array: Array) -> Array | Refuse: ...
    def backward(self, array: Array) -> Array | Refuse: ...


AxisMapOf = Callable[[Graph, Op], AxisMap | Refuse]


def _refuse(op: Op, code: Code, why: str) -> Refuse:
    return Refuse(code, f"{op.label}: {why}")


@dataclass(frozen=True, slots=True)
class Same:
    """Input and output have the same axes."""

    def forward(self, array: Array) -> Array:
        return array

    def backward(self, array: Array) -> Array:
        return array


@dataclass(frozen=True, slots=True)
class Permuted:
    """A Transpose."""

    permutation: tuple[int, ...]

    def forward(self, array: Array) -> Array:
        return array.transpose(self.permutation)

    def backward(self, array: Array) -> Array:
        return array.transpose(np.argsort(self.permutation))


@dataclass(frozen=True, slots=True)
class Regrouped:
    """A Reshape: runs of axes that hold the same elements."""

    op: Op
    source: tuple[Dim, ...]
    target: tuple[Dim, ...]

    def forward(self, array: Array) -> Array | Refuse:
        return self._carry(array, self.source, self.target)

    def backward(self, array: Array) -> Array | Refuse:
        return self._carry(array, self.target, self.source)

    def _carry(self, array: Array, source: Sequence[Dim], target: Sequence[Dim]) -> Array | Refuse:
        if all(dim.static for dim in (*source, *target)) and product(source) != product(target):
            return _refuse(self.op, "unknown-shape", "the shapes that the file gives for it contradict each other")
        full = [1] * len(source)
        shape = [1] * len(target)
        joined: list[int] = []
        for group in reshape_groups(source, target):
            if all(array.shape[axis] == 1 for axis in group.source):
                continue
            dims = [source[axis] for axis in group.source] + [target[axis] for axis in group.target]
            if not all(dim.static for dim in dims) or not group.target:
                return _refuse(self.op, "reshaped-channels", "channels are merged with, or split from, a dynamic axis")
            for axis in group.source:
                full[axis] = source[axis].size
            for axis in group.target:
                shape[axis] = target[axis].size
            if len(group.source) > 1 or len(group.target) > 1:
                joined += group.target
        return compress(np.broadcast_to(array, full).reshape(shape), tuple(joined))


@dataclass(frozen=True, slots=True)
class Windowed:
    """Some axes are cut, widened or repeated; a frame passes where it does not vary along them."""

    op: Op
    axes: frozenset[int]
    cut: tuple[slice, ...] | None = None  # the exact cut of every axis, when it is known

    def forward(self, array: Array) -> Array | Refuse:
        if not self.axes & set(varying_axes(array)):
            return array
        if self.cut is None:
            return _refuse(self.op, "channels-cut", "changes the axis that the norm's channels lie on")
        return array[tuple(cut if size != 1 else slice(None) for cut, size in zip(self.cut, array.shape, strict=True))]

    def backward(self, array: Array) -> Array | Refuse:
        if self.axes & set(varying_axes(array)):
            return _refuse(self.op, "channels-cut", "reads only a part of the norm's channels")
        return array


@dataclass(frozen=True, slots=True)
class Dropped:
    """Some axes are gone from the output (or are of size 1 there, with `keep`)."""

    op: Op
    axes: tuple[int, ...]
    keep: bool = False

    def forward(self, array: Array) -> Array | Refuse:
        if set(self.axes) & set(varying_axes(array)):
            return _refuse(self.op, "across-channels", "works across the channels of the norm")
        return array if self.keep else array.reshape([s for k, s in enumerate(array.shape) if k not in self.axes])

    def backward(self, array: Array) -> Array:
        return array if self.keep else np.expand_dims(array, self.axes)


def same(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Operators whose output has the axes of their input."""
    return Same()


def transpose(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Transpose; without `perm` it reverses the axes."""
    dims = graph.dims(op.output)
    if dims is None:
        return _refuse(op, "unknown-shape", "the rank of its output is not known")
    return Permuted(op.integers("perm") or tuple(range(len(dims)))[::-1])


def reshape(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Reshape, Flatten, Squeeze and Unsqueeze: all that matters is the shape before and after."""
    source = graph.dims(op.inputs[0]) if op.inputs[0] is not None else None
    target = graph.dims(op.output)
    if source is None or target is None:
        return _refuse(op, "unknown-shape", "a shape is not known")
    return Regrouped(op, source, target)


def expand(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Expand: what matters is the shape before and after."""
    source = graph.dims(op.inputs[0]) if op.inputs[0] is not None else None
    target = graph.dims(op.output)
    if source is None or target is None or len(target) < len(source):
        return _refuse(op, "unknown-shape", "a shape is not known")
    added = len(target) - len(source)
    widened = {axis + added for axis, dim in enumerate(source) if dim != target[axis + added]}
    return Expanded(op, added, frozenset(widened) | frozenset(range(added)))


@dataclass(frozen=True, slots=True)
class Expanded:
    """An Expand: leading axes are added, axes of size 1 widened."""

    op: Op
    added: int
    widened: frozenset[int]

    def forward(self, array: Array) -> Array:
        return array.reshape((1,) * self.added + array.shape)

    def backward(self, array: Array) -> Array | Refuse:
        if self.widened & set(varying_axes(array)):
            return _refuse(self.op, "broadcast", "repeats one value over channels that would need different frames")
        return array.reshape(array.shape[self.added :])


def slices(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Slice (opset 10 and later: starts, ends, axes and steps are inputs)."""
    dims = graph.dims(op.output)
    if dims is None:
        return _refuse(op, "unknown-shape", "the rank of its output is not known")
    arguments = list(op.inputs[1:5])
    known = [None if v is None or not graph.is_constant(v) else graph.constant(v).tolist() for v in arguments]
    known += [None] * (4 - len(known))
    starts, ends, axes, steps = known
    given = len(arguments) > 2 and arguments[2] is not None
    if given and axes is None:
        return _refuse(op, "dynamic-slice", "its axes are computed at run time")
    if axes is None and starts is None:
        return Windowed(op, frozenset(range(len(dims))))
    touched = [axis % len(dims) for axis in (axes if axes is not None else range(len(starts or ())))]
    if starts is None or ends is None or (len(arguments) > 3 and arguments[3] is not None and steps is None):
        return Windowed(op, frozenset(touched))
    steps = steps or [1] * len(touched)
    cut = [slice(None)] * len(dims)
    for axis, start, end, step in zip(touched, starts, ends, steps, strict=True):
        cut[axis] = slice(start, None if step < 0 and end < -(2**31) else end, step)
    return Windowed(op, frozenset(touched), tuple(cut))


@dataclass(frozen=True, slots=True)
class Gathered:
    """One axis is looked up: it is replaced by the axes of the indices."""

    op: Op
    axis: int
    index_rank: int

    def forward(self, array: Array) -> Array | Refuse:
        if array.shape[self.axis] != 1:
            return _refuse(self.op, "channels-cut", "looks up single channels of the norm")
        return array.reshape(array.shape[: self.axis] + (1,) * self.index_rank + array.shape[self.axis + 1 :])

    def backward(self, array: Array) -> Array | Refuse:
        end = self.axis + self.index_rank
        if any(size != 1 for size in array.shape[self.axis : end]):
            return _refuse(self.op, "channels-cut", "looks up single channels of the norm")
        return array.reshape((*array.shape[: self.axis], 1, *array.shape[end:]))


def gather(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Gather, from an activation or from a constant table (an embedding)."""
    data, indices = (None if value is None else graph.dims(value) for value in op.inputs[:2])
    if data is None or indices is None:
        return _refuse(op, "unknown-shape", "the rank of an input is not known")
    return Gathered(op, op.integer("axis", 0) % len(data), len(indices))


def pad(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Pad (opset 11 and later: the amounts are an input)."""
    amounts = op.inputs[1] if len(op.inputs) > 1 else None
    dims = graph.dims(op.output)
    if amounts is None or dims is None or not graph.is_constant(amounts):
        return _refuse(op, "dynamic-pad", "its amounts are computed at run time")
    if len(op.inputs) > 3 and op.inputs[3] is not None:
        return _refuse(op, "dynamic-pad", "pads chosen axes")
    values = graph.constant(amounts).tolist()
    rank = len(dims)
    return Windowed(op, frozenset(axis for axis in range(rank) if values[axis] or values[axis + rank]))


class CarryRule(Rule):
    """Carries a frame along an `AxisMap`. On a constant input it is the constant that changes.

    positive: only scales above 0 pass. absolute: of a scale its size passes. shift: why a shift does not pass on, or
    None. times: by what a shift is multiplied on its way.
    """

    def __init__(
        self,
        axis_map: AxisMapOf,
        *,
        attributes: Iterable[str] = (),
        positive: bool = False,
        absolute: bool = False,
        scale: Callable[[Graph, Op], Refuse | None] | None = None,
        shift: Callable[[Graph, Op], Refuse | None] | None = None,
        times: Callable[[Graph, Op], float | Refuse] | None = None,
    ) -> None:
        self.axis_map = axis_map
        self.attributes = frozenset(attributes)
        self.positive = positive
        self.absolute = absolute
        self.scale_stops = scale
        self.shift_stops = shift
        self.shift_times = times

    def writer_cost(self, costs: Costs, op: Op) -> float:
        if 0 not in self.ports(costs.graph, op):
            return 0.0
        blocked = isinstance(self._multiple(costs.graph, op), Refuse)
        return math.inf if blocked else costs.writer_cost(value_at(op, 0))

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        return not isinstance(self._multiple(costs.graph, op), Refuse) and costs.absorbs_shift(op.output)

    def _multiple(self, graph: Graph, op: Op) -> float | Refuse:
        """By what a shift is multiplied on its way, or why none passes."""
        if self.shift_stops is not None and (stopped := self.shift_stops(graph, op)):
            return stopped
        return 1.0 if self.shift_times is None else self.shift_times(graph, op)

    def scale(self, at: Ports) -> Demands:
        if self.scale_stops is not None and (stopped := self.scale_stops(at.graph, at.op)):
            return stopped
        for array in at.known.values():
            if self.positive and np.any(array <= 0.0):
                return at.refuse("negative-scale", "a negative or zero scale does not pass through it")
            if 0 not in self.ports(at.graph, at.op) and np.any(array == 0.0):
                return at.refuse("zero-scale", "a constant cannot be stored with scale 0")
        if not self.absolute:
            return self._carry(at)
        if 0 not in at.known and np.any(at.known[OUT] <= 0.0):
            return at.refuse("negative-scale", "what it writes is never negative")
        carried = self._carry(at)
        return carried if isinstance(carried, Refuse) else {port: np.abs(array) for port, array in carried.items()}

    def shift(self, at: Ports) -> Demands:
        multiple = self._multiple(at.graph, at.op)
        if isinstance(multiple, Refuse):
            return multiple if any(np.any(array != 0.0) for array in at.known.values()) else self._carry(at)
        carried = self._carry(at)
        if isinstance(carried, Refuse):
            return carried
        return {port: array * multiple if port == OUT else array / multiple for port, array in carried.items()}

    def _carry(self, at: Ports) -> Demands:
        mapped = self.axis_map(at.graph, at.op)
        if isinstance(mapped, Refuse):
            return mapped
        # The input's frame tells the output's, even where only a part of it arrives there; so it is asked first.
        port, other, carry = (0, OUT, mapped.forward) if 0 in at.known else (OUT, 0, mapped.backward)
        carried = carry(at.known[port])
        if isinstance(carried, Refuse):
            return carried
        return {other: carried} if other in self.ports(at.graph, at.op) else {}

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        if 0 in self.ports(graph, op):
            return
        mapped = self.axis_map(graph, op)
        assert not isinstance(mapped, Refuse)
        scale, shift = mapped.backward(frame(op.output).scale), mapped.backward(frame(op.output).shift)
        multiple = self._multiple(graph, op)
        assert not isinstance(scale, Refuse) and not isinstance(shift, Refuse)
        shift = shift if isinstance(multiple, Refuse) else shift / multiple
        yield rescaled_constant(op, 0, Frame(scale, shift))


class PadRule(CarryRule):
    """Pad. Its zeros do not receive a shift: behind it every position has its own, which only a Conv can take."""

    def shift(self, at: Ports) -> Demands:
        array = at.known.get(0)
        amounts = at.op.inputs[1] if len(at.op.inputs) > 1 else None
        takers = all(op.type == "Conv" for op in at.graph.readers(at.value(OUT)))
        if array is None or not np.any(array) or amounts is None or not takers or self._blocked(at) is None:
            return super().shift(at)
        source, mapped = at.graph.dims(at.value(0)), self.axis_map(at.graph, at.op)
        if source is None or isinstance(mapped, Refuse):
            return super().shift(at)
        values = [int(amount) for amount in at.graph.constant(amounts)]
        ends = list(zip(values[: len(source)], values[len(source) :], strict=True))
        padded = [axis for axis, pair in enumerate(ends) if any(pair)]
        if min(values) < 0 or not all(source[axis].static for axis in padded):
            return super().shift(at)
        full = [source[axis].size if axis in padded else size for axis, size in enumerate(array.shape)]
        return {OUT: np.pad(np.broadcast_to(array, full), ends)}

    def _blocked(self, at: Ports) -> Refuse | None:
        return None if self.shift_stops is None else self.shift_stops(at.graph, at.op)
