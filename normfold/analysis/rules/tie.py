"""Operators that pick, for every element, one of several tensors or bounds: all of them share one frame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import numpy as np

from normfold.analysis.edits import Edit, NewAttribute
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.base import (
    OUT,
    Demands,
    FrameOf,
    InStatistic,
    Rule,
    Surroundings,
    name_of,
    rescaled_constant,
    tied,
    unchanged,
)
from normfold.analysis.rules.spellings import Told, told
from normfold.graph.affine import Array, Frame
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph

ONE_BOUND = "has one bound for all channels, which would need one each"


@final
class TieRule(Rule):
    """Where, Min, Max: `z` is one of the operands, so s and t are the same on all; Min and Max need s > 0.

    Constant operands are rewritten into the frame: c' = (c - t) / s, where they may widen to one value per channel.
    first: the first input that holds values.
    """

    late = True

    def __init__(self, *, first: int, positive: bool, in_statistic: InStatistic | None = None) -> None:
        self.first = first
        self.positive = positive
        self.in_statistic = in_statistic

    def _operands(self, op: Op) -> dict[int, Value]:
        return {port: value for port, value in enumerate(op.inputs) if port >= self.first and value is not None}

    def _constants(self, graph: Graph, op: Op) -> dict[int, Value]:
        return {port: value for port, value in self._operands(op).items() if graph.is_constant(value)}

    def ports(self, graph: Graph, op: Op) -> tuple[int, ...]:
        constants = self._constants(graph, op)
        return (*(port for port in self._operands(op) if port not in constants), OUT)

    def scale(self, at: Surroundings) -> Demands:
        for array in at.known.values():
            if self.positive and np.any(array <= 0.0):
                return at.refuse("negative-scale", "a negative or zero scale does not pass through it")
            for constant in self._constants(at.graph, at.op).values():
                if np.any(array == 0.0):
                    return at.refuse("zero-scale", "a constant cannot be stored with scale 0")
                if not in_range(at.graph, constant, array):
                    return at.refuse("scale-range", "a constant of it would leave the range of its type")
        return tied(at, self.ports(at.graph, at.op))

    def shift(self, at: Surroundings) -> Demands:
        return tied(at, self.ports(at.graph, at.op))

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        outgoing = frame(op.output)
        if outgoing.is_identity:
            return
        for port in self._constants(graph, op):
            yield rescaled_constant(op, port, outgoing)


@final
class ClipRule(Rule):
    """Clip between constants: s > 0, and the bounds become (bound - t) / s.

    A bound is a scalar, so s and t are the same for all channels; but where all bounds are 0 or infinite any s > 0
    leaves them as they are, and t is 0, as for a ReLU.
    """

    in_statistic = "step"
    attributes = frozenset({"min", "max"})

    def _bounds(self, graph: Graph, op: Op) -> dict[int, Told]:
        """The bounds, by input. What an attribute says by default, the largest float32, is none."""
        given = {port: told(graph, op, port, name) for port, name in ((1, "min"), (2, "max"))}
        return {port: one for port, one in given.items() if one is not None and not _is_default(one)}

    def _values(self, at: Surroundings) -> list[float] | Refuse:
        source, *_ = at.op.inputs
        found = [bound.value for bound in self._bounds(at.graph, at.op).values()]
        if source is None or any(bound is None for bound in found):
            return at.refuse("two-tensors", "a bound of it is computed at run time")
        if at.graph.is_constant(source):
            return at.refuse("wall", "clips a constant")
        if any(bound.size != 1 for bound in found if bound is not None):
            return at.refuse("unknown-shape", "a bound of it is no scalar")
        return [_number(bound) for bound in found if bound is not None]

    def scale(self, at: Surroundings) -> Demands:
        bounds = self._values(at)
        if isinstance(bounds, Refuse):
            return bounds
        bends = any(bound != 0.0 and not np.isinf(bound) for bound in bounds)
        for array in at.known.values():
            if np.any(array <= 0.0):
                return at.refuse("negative-scale", "a negative or zero scale does not pass through it")
            if bends and not _uniform(array):
                return at.refuse("one-bound", ONE_BOUND)
            if not all(_within(np.asarray(bound), at.value(OUT), array) for bound in bounds):
                return at.refuse("scale-range", "a bound of it would leave the range of its type")
        return unchanged(at)

    def shift(self, at: Surroundings) -> Demands:
        bounds = self._values(at)
        if isinstance(bounds, Refuse):
            return bounds
        finite = [bound for bound in bounds if not np.isinf(bound)]
        for array in at.known.values():
            if finite and not any(finite) and np.any(array != 0.0):
                return at.refuse("shift-meets-activation", "a shift moves the point where it bends")
            if finite and not _uniform(array):
                return at.refuse("one-bound", ONE_BOUND)
        return unchanged(at)

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        outgoing = frame(op.output)
        for port, bound in self._bounds(graph, op).items():
            assert bound.value is not None
            moved = (_number(bound.value) - outgoing.shift) / outgoing.scale
            if np.all(moved == _number(bound.value)):
                continue
            if bound.attribute is not None:
                yield NewAttribute(name_of(op.output), bound.attribute, float(moved.flat[0]))
                continue
            scale, shift = (part.reshape(-1)[:1].reshape(()) for part in (outgoing.scale, outgoing.shift))
            yield rescaled_constant(op, port, Frame(scale, shift))


def _is_default(bound: Told) -> bool:
    if bound.attribute is None or bound.value is None:
        return False
    return abs(_number(bound.value)) >= float(np.finfo(np.float32).max)


def _number(bound: Array) -> float:
    return float(bound.reshape(-1)[0])


def _uniform(array: Array) -> bool:
    return bool(np.all(array == array.flat[0]))


def in_range(graph: Graph, constant: Value, scale: Array) -> bool:
    """Whether a constant stays within the range of its type when it is divided by `scale`: a mask's -3.4e38 may not."""
    return _within(graph.constant(constant), constant, scale)


def _within(content: Array, holder: Value, scale: Array) -> bool:
    values = np.abs(content)
    finite = values[np.isfinite(values)]
    if not finite.size or holder.dtype is None:
        return True
    largest = 3.3895313892515355e38 if holder.dtype.name == "BFLOAT16" else np.finfo(holder.dtype.numpy()).max
    return bool(finite.max() / float(largest) <= 0.5 * np.abs(scale).min() or np.all(scale == 1.0))
