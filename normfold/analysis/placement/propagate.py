"""The flood: give one tensor a frame and follow the relations outward until every front is absorbed.

`State` is what has been decided so far. `flood` tries one more decision against it, changing nothing: it returns
the tensors whose frames have to change with it, or the refusal of the operator that could not follow. Scales and
shifts are flooded apart (see graph/affine.py), by the same engine.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from normfold.analysis.placement.float16_range import Ranges, scale_in_range
from normfold.analysis.placement.shared_weights import SharedWeights
from normfold.analysis.plan import Untied
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import OUT, FrameOf, Surroundings, name_of, value_at, wall
from normfold.errors import InternalError
from normfold.graph.affine import Array, Frame, agree, agree_each, varying_axes
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph

Coefficient = Literal["scale", "shift"]

# A flood of this many operators is short: two of them cost a deep network nothing beside one that runs along it.
_NEARBY = 32


@dataclass(frozen=True, slots=True)
class Outcome:
    """A flood that closed: the frames it decides, the operators it reached, in order, and how many absorbed it."""

    decided: dict[Value, Array]
    reached: tuple[Op, ...]
    absorbed: int


class State:
    """What has been decided so far, and the one place where it changes: `commit`.

    frames: by tensor (absent: the identity). fixed: the affine maps that have been folded away. added_bytes: of the
    copies of shared weights. ranges: what tensors hold, where some of them are stored in float16. keep_tied: forbid
    copies of shared weights. whole: the names of the tensors that norms write which are to go whole, whatever that
    costs elsewhere.
    """

    def __init__(
        self,
        graph: Graph,
        ranges: Ranges | None = None,
        *,
        keep_tied: bool = False,
        whole: Collection[str] = (),
    ) -> None:
        self.graph = graph
        self.whole = whole
        self.ranges = ranges
        self.shared = SharedWeights(graph, keep=keep_tied)
        self._frames: dict[Coefficient, dict[Value, Array]] = {"scale": {}, "shift": {}}
        self._fixed: dict[Coefficient, set[Op]] = {"scale": set(), "shift": set()}
        self._added_bytes: dict[Value, int] = {}
        self._added_elements: dict[Op, int] = {}

    def get(self, coefficient: Coefficient, value: Value) -> Array:
        """The scale, or the shift, of a tensor."""
        found = self._frames[coefficient].get(value)
        if found is not None:
            return found
        rank = len(self.graph.dims(value) or ())
        return np.ones((1,) * rank) if coefficient == "scale" else np.zeros((1,) * rank)

    def frame(self, value: Value) -> Frame:
        return Frame(self.get("scale", value), self.get("shift", value))

    def with_outcome(self, coefficient: Coefficient, outcome: Outcome) -> FrameOf:
        """The frames of tensors, were `outcome` taken."""

        def frame_of(value: Value) -> Frame:
            frame, found = self.frame(value), outcome.decided.get(value)
            if found is None:
                return frame
            return Frame(found, frame.shift) if coefficient == "scale" else Frame(frame.scale, found)

        return frame_of

    @property
    def moved(self) -> list[Value]:
        """The tensors whose frame is not the identity, in the order in which they were decided."""
        values = dict.fromkeys([*self._frames["scale"], *self._frames["shift"]])
        return [value for value in values if not self.frame(value).is_identity]

    @property
    def untied(self) -> tuple[Untied, ...]:
        """The shared weights that have copies, and the bytes that these add."""
        return tuple(Untied(name_of(weight), size) for weight, size in self._added_bytes.items() if size)

    def is_fixed(self, op: Op, coefficient: Coefficient) -> bool:
        """An affine map without a constant of that kind cannot absorb it: it carries it, as a folded one does."""
        if op.affine is None:
            return False
        holds = op.affine.has_scale if coefficient == "scale" else op.affine.has_shift
        return not holds or self.is_folded(op, coefficient)

    def is_folded(self, op: Op, coefficient: Coefficient) -> bool:
        """Whether the scale, or shift, of an affine map has been folded away."""
        return op in self._fixed[coefficient]

    def added_elements(self, op: Op) -> int:
        """How many elements an Add behind `op` touches, for want of a bias that could hold its shift."""
        if op not in self._added_elements:
            found = rule_of(op.type).added_elements(self.graph, op, lambda value: self.get("shift", value))
            self._added_elements[op] = found
        return self._added_elements[op]

    def allowed(self, coefficient: Coefficient, outcome: Outcome) -> Outcome | Refuse:
        """`outcome`, or why the copies of shared weights that it needs are too many."""
        after = self.shared.added_bytes(outcome.reached, self.with_outcome(coefficient, outcome))
        return self.shared.refusal(self._added_bytes, after) or outcome

    def commit(self, coefficient: Coefficient, op: Op | None, outcome: Outcome) -> None:
        """Take an outcome, with `op` folded: its frames, and what it makes of shared weights.

        op: None for a frame that is chosen freely.
        """
        self._frames[coefficient].update(outcome.decided)
        for around in outcome.reached:
            self._added_elements.pop(around, None)
        if op is not None and op.affine is not None:
            self._fixed[coefficient].add(op)
        self._added_bytes.update(self.shared.added_bytes(outcome.reached, self.frame))


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
        return self.state.get("shift", value)

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

        return sum(rule_of(op.type).added_elements(self.graph, op, after) - self.state.added_elements(op) for op in ops)


def flood(
    state: State,
    coefficient: Coefficient,
    start: Mapping[Value, Array],
    *,
    folding: Op | None = None,
    writer_limit: float = 0.0,
    map_limit: float = 0.0,
    starts: set[Value] | None = None,
    rigid: bool = False,
) -> Outcome | Refuse:
    """Decide the scales, or the shifts, in `start`, with `folding` counted as folded, and all that follow from them.

    Refused too where it would need more copies of shared weights than are allowed. writer_limit, map_limit: see
    `rules.base.Surroundings`. starts: where it is given, a tensor whose writer takes no scale is no end: it is added
    here, for a product behind it can. rigid: products with constants carry what arrives, as a folded map does.
    """
    found = _Flood(state, coefficient, folding, writer_limit, map_limit, starts, rigid=rigid).run(start)
    assert found is not None, "a flood without bounds ends somewhere"
    return found if isinstance(found, Refuse) else state.allowed(coefficient, found)


def short_flood(
    state: State, coefficient: Coefficient, start: Mapping[Value, Array], *, folding: Op, absorbed_below: int
) -> Outcome | None:
    """`flood`, where it closes nearby and fewer than `absorbed_below` operators absorb it; None otherwise."""
    bounds = {"absorbed_below": absorbed_below, "reached_below": _NEARBY}
    found = _Flood(state, coefficient, folding, 0.0, 0.0).run(start, **bounds)
    if found is None or isinstance(found, Refuse):
        return None
    allowed = state.allowed(coefficient, found)
    return None if isinstance(allowed, Refuse) else allowed


def absorbs_scale(state: State, op: Op, scale: Array) -> bool:
    """Whether `op` writes a tensor in any such scale by itself, as if no other tensor had one."""
    rule = rule_of(op.type)
    if not rule.reads(op) or OUT not in rule.ports(state.graph, op):
        return False
    around = _Flood(state, "scale", None, 0.0, 0.0).around(op, {OUT: scale})
    found = rule.scale(
        replace(around, before=lambda port: np.ones((1,) * len(state.graph.dims(value_at(op, port)) or ())))
    )
    return not isinstance(found, Refuse) and not found


def raises(state: State, op: Op) -> Value | None:
    """The one tensor that `op` writes a higher power of (a square), as if no tensor had a scale; None otherwise."""
    rule, read = rule_of(op.type), {value for value in op.inputs if value and not state.graph.is_constant(value)}
    if len(read) != 1 or len(op.outputs) != 1 or not rule.reads(op):
        return None
    (value,) = read
    ports = [port for port in rule.ports(state.graph, op) if port != OUT and value_at(op, port) is value]
    if not ports or not state.graph.is_floating(value):
        return None
    probe = np.full((1,) * len(state.graph.dims(value) or ()), 2.0)
    around = _Flood(state, "scale", None, 0.0, 0.0).around(op, dict.fromkeys(ports, probe))
    found = rule.scale(
        replace(around, before=lambda port: np.ones((1,) * len(state.graph.dims(value_at(op, port)) or ())))
    )
    higher = not isinstance(found, Refuse) and OUT in found and bool(np.all(found[OUT] > 2.0))
    return value if higher else None


class _Flood:
    def __init__(
        self,
        state: State,
        coefficient: Coefficient,
        folding: Op | None,
        writer_limit: float,
        map_limit: float,
        starts: set[Value] | None = None,
        *,
        rigid: bool = False,
    ) -> None:
        self.state, self.graph, self.coefficient, self.folding = state, state.graph, coefficient, folding
        self.writer_limit, self.map_limit = writer_limit, map_limit
        self.starts, self.rigid = starts, rigid
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
        same = agree_each if self.coefficient == "scale" else agree
        if value in self.known:
            if same(self.known[value], array):
                return None
            return Refuse("frame-conflict", f"{value.name}: two ways around a loop need different frames")
        if refused := _without_shape(self.graph, value, array):
            return refused
        array = _checked(self.graph, value, array)
        if self.coefficient == "scale" and (refused := scale_in_range(self.state.ranges, value, array)):
            return refused
        before = self.state.get(self.coefficient, value)
        if same(before, array):
            self.known[value] = before  # as it was, not as rounding has it
            return None
        self.known[value] = array
        if value in self.graph.outputs:
            return Refuse("graph-output", f"{value.name}: it is an output of the model")
        if value in self.graph.inputs and self.starts is not None:
            self.starts.add(value)
        elif value in self.graph.inputs:
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
        refused = self._pass(op)
        if self.starts is None or refused is None or refused.code != "wall" or any(v in self.known for v in op.inputs):
            return refused
        self.starts.update(value for value in op.outputs if value in self.known)
        return None

    def _pass(self, op: Op) -> Refuse | None:
        """Ask the rule of an operator that a decision reached, and decide what follows."""
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
        at = self.around(op, known)
        demands = rule.scale(at) if self.coefficient == "scale" else rule.shift(at)
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

    def around(self, op: Op, known: dict[int, Array]) -> Surroundings:
        """What a rule may know of its operator, with these scales, or shifts, on its ports."""
        fixed = self.rigid or op is self.folding or self.state.is_fixed(op, self.coefficient)
        return Surroundings(
            graph=self.graph,
            op=op,
            known=known,
            before=lambda port: self.state.get(self.coefficient, value_at(op, port)),
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
