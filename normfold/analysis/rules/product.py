"""Products and quotients of two computed tensors (a gate: SwiGLU)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import numpy as np

from normfold.analysis.edits import Edit, NewConstant
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.base import (
    OUT,
    Demands,
    FixedMap,
    FrameOf,
    Rule,
    Surroundings,
    name_of,
    one_constant,
    to_port,
    value_at,
)
from normfold.graph.affine import Array, agree_each
from normfold.graph.types import Op
from normfold.graph.view import Graph


@final
class ProductRule(Rule):
    """`z = x * y^p` for p = 1 (Mul) or -1 (Div): s_z = s_x * s_y^p, and none of the three has a shift.

    A constant that is no wider than the tensor takes up what differs between x and z, as a weight does. (Where
    fixed maps are looked for it is part of one, and this rule is not asked.) One that is wider, or a numerator, keeps
    its values.
    A scale that arrives on z alone goes to the operand whose writer can take it; of a square, `x * x`, its root to x.
    """

    late = True
    multiplies = True
    in_statistic = "step"

    def __init__(self, power: float) -> None:
        self.power = power

    def ports(self, graph: Graph, op: Op) -> tuple[int, ...]:
        return (*(port for port in (0, 1) if (v := op.inputs[port]) is not None and not graph.is_constant(v)), OUT)

    def fixed_map(self, graph: Graph, op: Op) -> FixedMap | None:
        found = one_constant(graph, op)
        if found is None:
            return None
        source, constant, first = found
        if self.power > 0.0:
            return FixedMap(source, scale=constant)
        return None if first or np.any(constant == 0) else FixedMap(source, scale=1.0 / constant)

    def scale(self, at: Surroundings) -> Demands:
        if self._absorbs(at.graph, at.op):
            return self._carried(at) if at.fixed else at.zero_output() or {}
        if at.op.inputs[0] is at.op.inputs[1] and 0 not in at.known and self.power > 0.0:
            if np.any(at.known[OUT] <= 0.0):
                return at.refuse("negative-scale", "what it writes is never negative")
            return {0: np.sqrt(at.known[OUT])}
        if OUT in at.known and agree_each(at.known[OUT], self._solve(at, OUT)):
            return {}
        taker = self._taker(at)
        others = [port for port in self.ports(at.graph, at.op) if port != taker]
        divided_by = others if taker != OUT else [port for port in others if port == 1 and self.power < 0]
        if any(np.any(at.get(port) == 0.0) for port in divided_by):
            return at.refuse("zero-scale", "a channel with scale 0 cannot be divided by")
        wanted = to_port(at, self._solve(at, taker), taker)
        return wanted if isinstance(wanted, Refuse) else {taker: wanted}

    def _taker(self, at: Surroundings) -> int:
        """The port that makes up for the others."""
        missing = [port for port in self.ports(at.graph, at.op) if port not in at.known]
        if not missing or OUT in missing:
            return OUT
        return min(missing, key=lambda port: at.costs.writer_cost(at.value(port)))

    def _solve(self, at: Surroundings, taker: int) -> Array:
        x, y = (at.get(port) if port in self.ports(at.graph, at.op) else np.ones(()) for port in (0, 1))
        if taker == OUT:
            return x * y**self.power
        z = at.get(OUT)
        return z / y**self.power if taker == 0 else (z / x) ** self.power

    def _carried(self, at: Surroundings) -> Demands:
        """What the constant took up before, it goes on to take up."""
        source = next(port for port in self.ports(at.graph, at.op) if port != OUT)
        port, other = (source, OUT) if source in at.known else (OUT, source)
        if np.any(at.before(port) == 0.0):
            return at.refuse("zero-scale", "a channel with scale 0 cannot be divided by")
        return {other: at.before(other) * at.known[port] / at.before(port)}

    def _absorbs(self, graph: Graph, op: Op) -> bool:
        fixed = self.fixed_map(graph, op)
        return fixed is not None and graph.dims(fixed.source) == graph.dims(op.output) is not None

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        if not self._absorbs(graph, op):
            return
        port = 0 if graph.is_constant(value_at(op, 0)) else 1
        source, constant = value_at(op, 1 - port), value_at(op, port)
        before, after = frame(source).scale, frame(op.output).scale
        if np.any(before != after):
            times, over = (before, after) if self.power > 0.0 else (after, before)
            yield NewConstant(name_of(op.output), port, name_of(constant), times=times, over=over)

    def shift(self, at: Surroundings) -> Demands:
        if any(np.any(array != 0.0) for array in at.known.values()):
            return at.refuse("two-tensors", "multiplies two tensors, and a shift of one would scale the other")
        return {}
