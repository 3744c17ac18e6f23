"""Products and quotients of two computed tensors (a gate: SwiGLU)."""

from __future__ import annotations

from typing import final

import numpy as np

from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.base import OUT, Demands, FixedMap, Rule, Surroundings, one_constant, to_port
from normfold.graph.affine import Array, agree_each
from normfold.graph.types import Op
from normfold.graph.view import Graph


@final
class ProductRule(Rule):
    """`z = x * y^p` for p = 1 (Mul) or -1 (Div): s_z = s_x * s_y^p, and none of the three has a shift.

    A constant operand here is one that no fixed map could hold (wider than the tensor, or a numerator): it keeps its
    values. A scale that arrives on z alone goes to the operand whose writer can take it.
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

    def shift(self, at: Surroundings) -> Demands:
        if any(np.any(array != 0.0) for array in at.known.values()):
            return at.refuse("two-tensors", "multiplies two tensors, and a shift of one would scale the other")
        return {}
