"""The flood: give one tensor a frame and follow the relations outward until every front is absorbed.

`State` is what has been decided so far. `flood` tries one more decision against it, changing nothing: it returns
the tensors whose frames have to change with it, or the refusal of the operator that could not follow. Scales and
shifts are flooded apart (see frame.py), by the same engine.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from normfold.analysis.placement.float16_range import Ranges, scale_in_range
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import Surroundings, value_at, wall
from normfold.errors import InternalError
from normfold.graph.affine import Array, Frame, agree, agree_each, varying_axes
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph

Half = Literal["scale", "shift"]

# A flood of this many operators is short: two of them cost a deep network nothing beside one that runs along it.
_NEARBY = 32


@dataclass(slots=True)
class State:
    """Frames decided so far, by tensor (absent: the identity), and the affine maps already folded, by half.

    ranges: what tensors hold, where some of them are stored in float16.
    """

    graph: Graph
    ranges: Ranges | None = None
    frames: dict[Half, dict[Value, Array]] = field(default_factory=lambda: {"scale": {}, "shift": {}})
    fixed: dict[Half, set[Op]] = field(default_factory=lambda: {"scale": set(), "shift": set()})

    def half(self, half: Half, value: Value) -> Array:
        found = self.frames[half].get(value)
        if found is not None:
            return found
        rank = len(self.graph.dims(value) or ())
        return np.ones((1,) * rank) if half == "scale" else np.zeros((1,) * rank)

    def frame(self, value: Value) -> Frame:
        return Frame(self.half("scale", value), self.half("shift", value))

    def is_fixed(self, op: Op, half: Half) -> bool:
        """An affine map without a constant of that half cannot absorb it: it carries it, as a folded one does."""
        if op.affine is None:
            return False
        holds = op.affine.has_scale if half == "scale" else op.affine.has_shift
        return not holds or op in self.fixed[half]

    def commit(self, half: Half, op: Op, decided: Mapping[Value, Array]) -> None:
        self.frames[half].update(decided)
        if op.affine is not None:
            self.fixed[half].add(op)


@dataclass(frozen=True, slots=True)
class ShiftCosts:
    """Where a shift costs nothing, and what it costs elsewhere: `rules.base.Costs` on what is decided so far."""

    state: State

    @property
    def graph(self) -> Graph:
        """The graph whose shifts they are."""
        return self.state.graph

    def is_fixed(self, op: Op) -> bool:
        return self.state.is_fixed(op, "shift")

    def shift(self, value: Value) -> Array:
        return self.state.half("shift", value)

    def writer_cost(self, value: Value) -> float:
        op = self.graph.producer.get(value)
        if op is None or value in self.graph.outputs or len(self.graph.readers(value)) != 1:
            return math.inf
        return rule_of(op.type).writer_cost(self, op)

    def absorbs_shift(self, value: Value) -> bool:
        readers = self.graph.readers(value)
        if not readers or value in self.graph.outputs:
            return False
        return all(rule_of(op.type).absorbs_shift(self, op) for op in readers)

    def read_by_convolutions(self, value: Value) -> bool:
        return all(rule_of(op.type).convolves for op in self.graph.readers(value))

    def added_elements(self, decided: Mapping[Value, Array], ops: tuple[Op, ...]) -> int:
        """How many more elements Adds would touch, at operators without a bias, were the shifts in `decided` taken."""

        def after(value: Value) -> Array:
            found = decided.get(value)
            return self.shift(value) if found is None else found

        return sum(
            rule_of(op.type).added_elements(self.graph, op, after)
            - rule_of(op.type).added_elements(self.graph, op, self.shift)
            for op in ops
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """A flood that closed: the frames it decides, the operators it reached, in order, and how many absorbed it."""

    decided: dict[Value, Array]
    reached: tuple[Op, ...]
    absorbed: int


def flood(
    state: State,
    half: Half,
    start: Mapping[Value, Array],
    *,
    folding: Op,
    writer_limit: float = 0.0,
    map_limit: float = 0.0,
) -> Outcome | Refuse:
    """Decide the frames in `start`, with `folding` counted as folded, and all that follow from them.

    writer_limit, map_limit: see `rules.base.Surroundings`.
    """
    found = _Flood(state, half, folding, writer_limit, map_limit).run(start)
    assert found is not None, "a flood without bounds ends somewhere"
    return found


def short_flood(
    state: State, half: Half, start: Mapping[Value, Array], *, folding: Op, absorbed_below: int
) -> Outcome | None:
    """`flood`, where it closes nearby and fewer than `absorbed_below` operators absorb it; None otherwise."""
    found = _Flood(state, half, folding, 0.0, 0.0).run(start, absorbed_below=absorbed_below, reached_below=_NEARBY)
    return None if isinstance(found, Refuse) else found


class _Flood:
    def __init__(self, state: State, half: Half, folding: Op, writer_limit: float, map_limit: float) -> None:
        self.state, self.graph, self.half, self.folding = state, state.graph, half, folding
        self.writer_limit, self.map_limit = writer_limit, map_limit
        self.costs = ShiftCosts(state)
        self.known: dict[Value, Array] = {}
        self.reached: dict[Op, None] = {}
        self.absorbed: set[Op] = set()
        self.queue: list[tuple[bool, int, int, Op]] = []
        self.queued: set[Op] = set()

    def run(
        self, start: Mapping[Value, Array], *, absorbed_below: float = math.inf, reached_below: float = math.inf
    ) -> Outcome | Refuse | None:
        """The outcome, or what refused; None where it passes a bound."""
        for value, array in start.items():
            if refused := self._decide(value, array):
                return refused
        while self.queue:
            *_, op = heapq.heappop(self.queue)
            self.queued.discard(op)
            if refused := self._ask(op):
                return refused
            if len(self.absorbed) >= absorbed_below or len(self.reached) >= reached_below:
                return None
        return Outcome(self.known, tuple(self.reached), len(self.absorbed))

    def _decide(self, value: Value, array: Array) -> Refuse | None:
        same = agree_each if self.half == "scale" else agree
        if value in self.known:
            if same(self.known[value], array):
                return None
            return Refuse("frame-conflict", f"{value.name}: two ways around a loop need different frames")
        if refused := _without_shape(self.graph, value, array):
            return refused
        array = _checked(self.graph, value, array)
        if self.half == "scale" and (refused := scale_in_range(self.state.ranges, value, array)):
            return refused
        before = self.state.half(self.half, value)
        if same(before, array):
            self.known[value] = before  # as it was, not as rounding has it
            return None
        self.known[value] = array
        if value in self.graph.outputs:
            return Refuse("graph-output", f"{value.name}: it is an output of the model")
        if value in self.graph.inputs:
            return Refuse("graph-input", f"{value.name}: it is an input of the model")
        producer = self.graph.producer.get(value)
        for op in [*self.graph.readers(value), *([producer] if producer is not None else [])]:
            self._push(op)
        return None

    def _push(self, op: Op) -> None:
        if op in self.queued:
            return
        self.queued.add(op)
        heapq.heappush(self.queue, (rule_of(op.type).late, op.index, id(op), op))

    def _ask(self, op: Op) -> Refuse | None:
        rule = rule_of(op.type)
        if not rule.reads(op):
            return wall(op)
        ports = rule.ports(self.graph, op)
        reads = {port: op.inputs[port] for port in range(len(op.inputs))}
        known: dict[int, Array] = {}
        for port, value in [*reads.items(), *((-1 - k, value) for k, value in enumerate(op.outputs))]:
            if value is None or value not in self.known:
                continue
            if port not in ports:
                return wall(op)
            known[port] = self.known[value]
        self.reached[op] = None
        at = self._around(op, known)
        demands = rule.scale(at) if self.half == "scale" else rule.shift(at)
        if isinstance(demands, Refuse):
            return demands
        if not demands:
            self.absorbed.add(op)
        for port, array in demands.items():
            if refused := self._decide(value_at(op, port), array):
                return (
                    Refuse(refused.code, f"{refused.reason} (reached through {op.label})")
                    if refused.code == "frame-conflict"
                    else refused
                )
        return None

    def _around(self, op: Op, known: dict[int, Array]) -> Surroundings:
        fixed = op is self.folding or self.state.is_fixed(op, self.half)
        return Surroundings(
            graph=self.graph,
            op=op,
            known=known,
            before=lambda port: self.state.half(self.half, value_at(op, port)),
            fixed=fixed,
            costs=self.costs,
            writer_limit=self.writer_limit,
            map_limit=self.map_limit,
            folding=op is self.folding,
        )


def _without_shape(graph: Graph, value: Value, array: Array) -> Refuse | None:
    dims = graph.dims(value)
    if dims is not None and all(dims[axis].static for axis in varying_axes(array) if axis < len(dims)):
        return None
    return Refuse("unknown-shape", f"{value.name}: the size of its channel axis is not known")


def _checked(graph: Graph, value: Value, array: Array) -> Array:
    dims = graph.dims(value)
    if (
        dims is None
        or array.ndim != len(dims)
        or any(size not in (1, dim.size if dim.static else 1) for size, dim in zip(array.shape, dims, strict=True))
    ):
        raise InternalError(f"{value.name}: a frame of shape {array.shape} for dimensions {dims}")
    return array
