"""Operators that act on every element alone: fixed maps, sums of two tensors."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import final

import numpy as np

from normfold.analysis.edits import Edit
from normfold.analysis.refusal import Refuse
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
    one_constant,
    rank_of,
    rescaled_constant,
    tied,
    to_port,
    to_rank_of,
    value_at,
)
from normfold.analysis.rules.tie import in_range
from normfold.analysis.rules.windows import map_elements
from normfold.graph.affine import Array, Frame, compress, total, varying_axes
from normfold.graph.types import BATCH_NORM, Op, Value
from normfold.graph.view import Graph


@final
class AffineRule(Rule):
    """`y = a * x + b` with constants. Folded, it is a no-op: s_y = a * s_x, t_y = a * t_x + b.

    Otherwise it absorbs any frame: its constants change.
    """

    in_statistic = "step"

    def writer_cost(self, costs: Costs, op: Op) -> float:
        if not costs.is_fixed(op):
            return 0.0
        blocked = op.affine is None or bool(np.any(op.affine.frame.scale == 0.0))
        return math.inf if blocked else costs.writer_cost(value_at(op, 0))

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        return not costs.is_fixed(op) or costs.absorbs_shift(op.output)

    def scale(self, at: Surroundings) -> Demands:
        affine = at.op.affine
        assert affine is not None
        if not at.fixed:
            return at.zero_output() or {}
        a = affine.frame.scale
        demands: dict[int, Array] = {}
        if 0 in at.known:
            demands[OUT] = a * at.known[0]
            if np.any(demands[OUT] == 0.0) and not at.folding and not at.costs.is_fixed(at.op):
                return at.refuse("zero-scale", "its shift cannot be written as a multiple of 0")
        elif OUT in at.known:
            if np.any(a == 0.0):
                return at.refuse("zero-scale", "a channel with scale 0 cannot be undone")
            source = to_port(at, at.known[OUT] / a, 0)
            if isinstance(source, Refuse):
                return source
            demands[0] = source
        return demands

    def shift(self, at: Surroundings) -> Demands:
        affine = at.op.affine
        assert affine is not None
        if not at.fixed:
            return {}
        a, b = affine.frame.scale, affine.frame.shift
        demands: dict[int, Array] = {}
        if 0 in at.known:
            demands[OUT] = total(a * at.known[0], b)
        elif OUT in at.known:
            if np.any(a == 0.0):
                return at.refuse("zero-scale", "a channel with scale 0 cannot take a shift from behind it")
            source = to_port(at, total(at.known[OUT], -b) / a, 0)
            if isinstance(source, Refuse):
                return source
            demands[0] = source
        return demands

    def added_elements(self, graph: Graph, op: Op, shift: Callable[[Value], Array]) -> int:
        affine = op.affine
        assert affine is not None
        left = total(affine.frame.scale * shift(value_at(op, 0)), affine.frame.shift, -shift(op.output))
        left = compress(left, tuple(range(left.ndim)))
        if len(varying_axes(left)) <= max(len(varying_axes(affine.frame.shift)), 1):
            return 0
        # The map is read as well; and a BatchNormalization has no place for one, its scale and shift are written apart.
        split = any(node.op_type == BATCH_NORM for node in affine.nodes)
        return map_elements(graph, op.output) - (0 if split else graph.size(op.output))

    def magnitude(self, graph: Graph, op: Op, size: SizeOf) -> Array | None:
        affine, source = op.affine, size(0)
        assert affine is not None
        shift = affine.frame.shift
        return np.abs(shift) if source is None else np.hypot(affine.frame.scale * source, shift)


class _SumRule(Rule):
    """`z = sum of w_k x_k` of several tensors ties them: one scale for all, and t_z = sum of w_k t_k.

    The shifts leave a choice. One that arrives on x_k goes no further when another operand's writer has a bias to take
    it; otherwise z carries it on. One that arrives on z is taken by the operand whose writer takes it for the least.
    A constant operand (of more than two, or wider than the tensor: else the sum is a fixed map) is divided by the
    scale, and takes every shift.
    """

    late = True
    adds = True

    def ports(self, graph: Graph, op: Op) -> tuple[int, ...]:
        return (*self._computed(graph, op), OUT)

    def _operands(self, op: Op) -> tuple[int, ...]:
        return tuple(range(len(op.inputs)))

    def _computed(self, graph: Graph, op: Op) -> tuple[int, ...]:
        return tuple(port for port in self._operands(op) if not graph.is_constant(value_at(op, port)))

    def _constants(self, graph: Graph, op: Op) -> tuple[int, ...]:
        return tuple(port for port in self._operands(op) if graph.is_constant(value_at(op, port)))

    @abstractmethod
    def _weight(self, op: Op, port: int) -> float:
        """w_k."""

    def writer_cost(self, costs: Costs, op: Op) -> float:
        if self._constants(costs.graph, op):
            return 0.0
        return min(costs.writer_cost(value_at(op, port)) for port in self._operands(op))

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        return bool(self._constants(costs.graph, op))

    def scale(self, at: Surroundings) -> Demands:
        constants = [at.value(port) for port in self._constants(at.graph, at.op)]
        for array in at.known.values():
            if constants and np.any(array == 0.0):
                return at.refuse("zero-scale", "a constant cannot be stored with scale 0")
            if not all(in_range(at.graph, constant, array) for constant in constants):
                return at.refuse("scale-range", "a constant of it would leave the range of its type")
        return tied(at, self.ports(at.graph, at.op))

    def shift(self, at: Surroundings) -> Demands:
        if self._constants(at.graph, at.op):
            return {}
        taker = self._taker(at)
        if isinstance(taker, Refuse):
            return taker
        wanted = self._solve(at, taker)
        return wanted if isinstance(wanted, Refuse) else {taker: wanted}

    def _taker(self, at: Surroundings) -> int | Refuse:
        """The port that makes up for the others."""
        missing = [port for port in (OUT, *self._operands(at.op)) if port not in at.known]
        if len(missing) <= 1:
            return missing[0] if missing else OUT
        costs = {port: at.costs.writer_cost(at.value(port)) for port in missing if port != OUT}
        cheapest = min(costs, key=lambda port: costs[port])
        if OUT in missing:
            return cheapest if costs[cheapest] <= at.writer_limit else OUT
        if math.isinf(costs[cheapest]):
            return at.refuse("no-bias", "no operand is written by an operator that could take the shift")
        return cheapest

    def _solve(self, at: Surroundings, taker: int) -> Array | Refuse:
        terms = [self._weight(at.op, port) * at.get(port) for port in self._operands(at.op) if port != taker]
        if taker == OUT:
            return to_port(at, total(*terms), OUT)
        rest = total(at.get(OUT), *(-term for term in terms))
        return to_port(at, rest / self._weight(at.op, taker), taker)

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        outgoing, constants = frame(op.output), self._constants(graph, op)
        for port in constants:
            shift = np.zeros(())
            if port == constants[0]:
                terms = [self._weight(op, one) * frame(value_at(op, one)).shift for one in self._computed(graph, op)]
                shift = total(outgoing.shift, *(-term for term in terms)) / self._weight(op, port)
            if np.any(outgoing.scale != 1.0) or np.any(shift != 0.0):
                yield rescaled_constant(op, port, Frame(outgoing.scale, shift))


@final
class SumRule(_SumRule):
    """Sum and Mean, of any number of tensors."""

    def __init__(self, *, mean: bool = False) -> None:
        self.mean = mean

    def _weight(self, op: Op, port: int) -> float:
        return 1.0 / len(op.inputs) if self.mean else 1.0

    def fixed_map(self, graph: Graph, op: Op) -> FixedMap | None:
        constants = self._constants(graph, op)
        if len(constants) != len(op.inputs) - 1 or not constants or not graph.is_floating(op.output):
            return None
        (source,) = self._computed(graph, op)
        weight = self._weight(op, source)
        try:
            shift = sum(weight * graph.constant(value_at(op, port)) for port in constants)
        except ValueError:  # of shapes that do not fit together
            return None
        return FixedMap(value_at(op, source), np.full((), weight) if self.mean else None, np.asarray(shift))


@final
class AddRule(_SumRule):
    """Add and Sub; with a constant a fixed map. sign: of the second operand."""

    def __init__(self, sign: float, *, in_statistic: InStatistic | None = None) -> None:
        self.sign = self.sign_of_second = sign
        self.in_statistic = in_statistic

    def _weight(self, op: Op, port: int) -> float:
        return self.sign if port else 1.0

    def fixed_map(self, graph: Graph, op: Op) -> FixedMap | None:
        found = one_constant(graph, op)
        if found is None:
            return None
        source, constant, first = found
        if first and self.sign < 0.0:
            return FixedMap(source, scale=np.full((), -1.0), shift=constant)
        return FixedMap(source, shift=constant if first else self.sign * constant)

    def magnitude(self, graph: Graph, op: Op, size: SizeOf) -> Array | None:
        sizes = [found for port in (0, 1) if (found := size(port)) is not None]
        if not sizes:
            return None
        return to_rank_of(graph, op.output, sizes[0] if len(sizes) == 1 else np.hypot(*sizes))

    def without_mean(self, graph: Graph, op: Op, port: int, axis: int) -> Mapping[int, int] | Refuse:
        from_last = axis - (rank_of(graph, value_at(op, port)) or 0)
        axes: dict[int, int] = {}
        for other in (*self._operands(op), OUT):
            value = op.output if other == OUT else op.inputs[other]
            rank = None if value is None else rank_of(graph, value)
            if rank is None or rank < -from_last:
                return keeps_mean(op, "one value is broadcast over the channels")
            axes[other] = rank + from_last
        return axes


def negated(graph: Graph, op: Op) -> FixedMap | None:
    """Neg: a fixed map of every tensor."""
    source = op.inputs[0]
    return None if source is None else FixedMap(source, scale=np.full((), -1.0))
