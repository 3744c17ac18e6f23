"""Powers of a tensor: the square of what a written-out norm reads, the root of its mean, one over that."""

from __future__ import annotations

from typing import final

import numpy as np

from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules.base import OUT, Demands, InStatistic, Rule, Surroundings
from normfold.graph.types import Op
from normfold.graph.view import Graph


@final
class PowerRule(Rule):
    """`y = x^p` with a constant p: s_y = s_x^p for s > 0; no shift passes.

    power: p; None: the second input of a Pow.
    """

    in_statistic: InStatistic | None = "step"

    def __init__(self, power: float | None = None) -> None:
        self.power = power

    def _power(self, graph: Graph, op: Op) -> float | Refuse:
        if self.power is not None:
            return self.power
        exponent = op.inputs[1]
        if exponent is None or not graph.is_constant(exponent) or graph.constant(exponent).size != 1:
            return refuse(op, "wall", "its exponent is no constant number")
        power = float(graph.constant(exponent).reshape(-1)[0])
        return power if power else refuse(op, "wall", "its exponent is 0")

    def scale(self, at: Surroundings) -> Demands:
        power = self._power(at.graph, at.op)
        if isinstance(power, Refuse):
            return power
        if any(np.any(array <= 0.0) for array in at.known.values()):
            return at.refuse("negative-scale", "a negative or zero scale does not pass through it")
        if 0 in at.known:
            return {OUT: at.known[0] ** power}
        if 0 not in self.ports(at.graph, at.op):
            return at.refuse("wall", "it computes with constants alone")
        return {0: at.known[OUT] ** (1.0 / power)}

    def shift(self, at: Surroundings) -> Demands:
        if any(np.any(array != 0.0) for array in at.known.values()):
            return at.refuse("shift-meets-activation", "a power of a sum is no sum of powers")
        return {}
