"""Operators that carry a frame to another place, along the axis map of their row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import final

import numpy as np

from normfold.analysis.edits import Edit
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.axis_maps import AxisMap
from normfold.analysis.rules.base import (
    OUT,
    Costs,
    Demands,
    FixedMap,
    FrameOf,
    InStatistic,
    Rule,
    SizeOf,
    Surroundings,
    keeps_mean,
    rescaled_constant,
    value_at,
)
from normfold.analysis.rules.layout import fills_with_infinity, padding
from normfold.analysis.rules.weights import size_of_table
from normfold.graph.affine import Array, Frame
from normfold.graph.types import Op
from normfold.graph.view import Graph

AxisMapOf = Callable[[Graph, Op], AxisMap | Refuse]


class _Carry(Rule):
    """Carries a frame along an `AxisMap`. On a constant input it is the constant that changes.

    positive: only scales above 0 pass. absolute: of a scale its size passes, raised to `power`. shift: why a shift does
    not pass on, or None. times: by what a shift is multiplied on its way. rearranges, in_statistic, fixed_map: see
    `Rule`. mean_passes: linear, and alike for all channels: without the mean over channels of its input, its output
    lacks its own.
    """

    carries = True

    def __init__(
        self,
        axis_map: AxisMapOf,
        *,
        attributes: Iterable[str] = (),
        positive: bool = False,
        absolute: bool = False,
        power: float = 1.0,
        scale: Callable[[Graph, Op], Refuse | None] | None = None,
        shift: Callable[[Graph, Op], Refuse | None] | None = None,
        times: Callable[[Graph, Op], float | Refuse] | None = None,
        rearranges: bool = False,
        in_statistic: InStatistic | None = None,
        mean_passes: bool = False,
        fixed_map: Callable[[Graph, Op], FixedMap | None] | None = None,
    ) -> None:
        self.axis_map_of = axis_map
        self.attributes = frozenset(attributes)
        self.positive = positive
        self.absolute = absolute
        self.power = power
        self.fixed_map_of = fixed_map
        self.scale_stops = scale
        self.shift_stops = shift
        self.shift_times = times
        self.rearranges = rearranges
        self.in_statistic = in_statistic
        self.mean_passes = mean_passes

    def axis_map(self, graph: Graph, op: Op) -> AxisMap | Refuse:
        return self.axis_map_of(graph, op)

    def fixed_map(self, graph: Graph, op: Op) -> FixedMap | None:
        return None if self.fixed_map_of is None else self.fixed_map_of(graph, op)

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

    def scale(self, at: Surroundings) -> Demands:
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
        if isinstance(carried, Refuse):
            return carried
        return {port: np.abs(array) ** self.power ** (1 if port == OUT else -1) for port, array in carried.items()}

    def shift(self, at: Surroundings) -> Demands:
        multiple = self._multiple(at.graph, at.op)
        if isinstance(multiple, Refuse):
            return multiple if any(np.any(array != 0.0) for array in at.known.values()) else self._carry(at)
        carried = self._carry(at)
        if isinstance(carried, Refuse):
            return carried
        return {port: array * multiple if port == OUT else array / multiple for port, array in carried.items()}

    def _carry(self, at: Surroundings) -> Demands:
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

    def magnitude(self, graph: Graph, op: Op, size: SizeOf) -> Array | None:
        source = op.inputs[0]
        mapped = self.axis_map(graph, op)
        if source is None or isinstance(mapped, Refuse):
            return None
        own = size_of_table(graph, source) if graph.is_constant(source) else size(0)
        carried = None if own is None else mapped.forward(own)
        return None if isinstance(carried, Refuse) else carried

    def without_mean(self, graph: Graph, op: Op, port: int, axis: int) -> Mapping[int, int] | Refuse:
        """The channels are numbered, and the numbers carried: what moves, cuts or merges channels shows."""
        if not self.mean_passes or port not in (0, OUT):
            return super().without_mean(graph, op, port, axis)
        source = op.inputs[0]
        mapped = self.axis_map(graph, op)
        dims = graph.dims(value_at(op, port))
        if source is None or dims is None or isinstance(mapped, Refuse):
            return mapped if isinstance(mapped, Refuse) else keeps_mean(op, "the rank of a tensor is not known")
        if not (graph.is_floating(source) and graph.is_floating(op.output)):
            return keeps_mean(op, "it rounds to integers")
        # Numbered from 1 on: on the other side they have to be the same channels in the same order.
        numbers = np.arange(1.0, dims[axis].size + 1.0).reshape([-1 if k == axis else 1 for k in range(len(dims))])
        there = mapped.forward(numbers) if port == 0 else mapped.backward(numbers)
        if isinstance(there, Refuse):
            return there
        found = [k for k, size in enumerate(there.shape) if size == numbers.size]
        if there.size != numbers.size or not found or not np.array_equal(there.ravel(), numbers.ravel()):
            return keeps_mean(op, "it moves, cuts or merges channels")
        return {OUT if port == 0 else 0: found[0]}


@final
class CarryRule(_Carry):
    """An operator that carries a frame, and nothing else."""


@final
class PadRule(_Carry):
    """Pad. Its zeros do not receive a shift: behind it every position has its own, which only a Conv can take.

    An infinite number, in front of a maximum, stays what it is for any shift and every scale above 0.
    """

    def scale(self, at: Surroundings) -> Demands:
        if fills_with_infinity(at.graph, at.op) and any(np.any(array <= 0.0) for array in at.known.values()):
            return at.refuse("negative-scale", "it fills with an infinite number, which would change its sign")
        return super().scale(at)

    def shift(self, at: Surroundings) -> Demands:
        array = at.known.get(0)
        takers = at.costs.read_by_convolutions(at.value(OUT))
        if array is None or not np.any(array) or not takers or self._blocked(at) is None:
            return super().shift(at)
        source, ends = at.graph.dims(at.value(0)), padding(at.graph, at.op)
        if source is None or isinstance(ends, Refuse):
            return super().shift(at)
        padded = {axis: pair for axis, pair in ends.items() if any(pair)}
        cuts = any(amount < 0 for pair in ends.values() for amount in pair)
        if cuts or not all(source[axis].static for axis in padded):
            return super().shift(at)
        full = [source[axis].size if axis in padded else size for axis, size in enumerate(array.shape)]
        return {OUT: np.pad(np.broadcast_to(array, full), [padded.get(axis, (0, 0)) for axis in range(array.ndim)])}

    def _blocked(self, at: Surroundings) -> Refuse | None:
        return None if self.shift_stops is None else self.shift_stops(at.graph, at.op)
