"""PRelu: `y = x` where x is positive, `a x` elsewhere, with a slope a for each channel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import numpy as np

from normfold.analysis.edits import Edit, NewConstant
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.axis_maps import AxisMap, Same
from normfold.analysis.rules.base import (
    OUT,
    Demands,
    FrameOf,
    Rule,
    SizeOf,
    Surroundings,
    name_of,
    to_rank_of,
    unchanged,
    value_at,
)
from normfold.graph.affine import Array
from normfold.graph.types import Op
from normfold.graph.view import Graph


@final
class PReluRule(Rule):
    """A scale s > 0 passes. One below 0 turns the sides: `prelu(s x', a) = s a prelu(x', 1 / a)`, for a that is not 0.

    So s_y = s where s > 0, and s a where s < 0, with 1 / a for a. No shift passes: it would move the point where it
    bends.
    """

    carries = True

    def axis_map(self, graph: Graph, op: Op) -> AxisMap | Refuse:
        return Same()

    def magnitude(self, graph: Graph, op: Op, size: SizeOf) -> Array | None:
        return size(0)

    def _slope(self, at: Surroundings) -> Array | None:
        """The slopes, of the rank of the tensor; None where they are computed."""
        slope = at.value(1)
        return to_rank_of(at.graph, at.value(OUT), at.graph.constant(slope)) if at.graph.is_constant(slope) else None

    def scale(self, at: Surroundings) -> Demands:
        known, slope = at.known.get(0), self._slope(at)
        if 0 not in self.ports(at.graph, at.op):
            return at.refuse("wall", "it bends a constant")
        if slope is None and any(np.any(array <= 0.0) for array in at.known.values()):
            return at.refuse("negative-scale", "a negative or zero scale does not pass through slopes that it computes")
        if slope is None or all(np.all(array > 0.0) for array in at.known.values()):
            return unchanged(at)
        if np.any(known == 0.0) if known is not None else np.any(at.known[OUT] == 0.0):
            return at.refuse("negative-scale", "a zero scale does not pass through it")
        if known is None:
            known = at.known[OUT] / np.where(at.known[OUT] < 0.0, np.where(slope > 0.0, slope, np.nan), 1.0)
            return {0: known} if np.all(np.isfinite(known)) and _invertible(known, slope) else self._stops(at)
        return {OUT: known * np.where(known < 0.0, slope, 1.0)} if _invertible(known, slope) else self._stops(at)

    def _stops(self, at: Surroundings) -> Refuse:
        return at.refuse("negative-scale", "a negative scale does not pass a slope of 0, or one without inverse")

    def shift(self, at: Surroundings) -> Demands:
        if any(np.any(array != 0.0) for array in at.known.values()):
            return at.refuse("shift-meets-activation", "a shift moves the point where it bends")
        return unchanged(at)

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        scale, slope = frame(value_at(op, 0)).scale, value_at(op, 1)
        if np.all(scale > 0.0):
            return
        content = to_rank_of(graph, op.output, graph.constant(slope))
        assert content is not None
        # 1 / a where the sides are turned: a times 1 / a^2.
        times = np.where(scale < 0.0, 1.0 / np.where(content == 0.0, 1.0, content) ** 2, 1.0)
        yield NewConstant(name_of(op.output), 1, name_of(slope), times=times)


def _invertible(scale: Array, slope: Array) -> bool:
    """Whether the slopes of channels whose sides are turned have inverses that a float of their size can hold."""
    turned = np.broadcast_to(scale < 0.0, np.broadcast_shapes(scale.shape, slope.shape))
    sizes = np.abs(np.broadcast_to(slope, turned.shape)[turned])
    return bool(np.all((sizes >= _SMALLEST) & (sizes <= 1.0 / _SMALLEST)))


# Smaller slopes would cost the digits of a half.
_SMALLEST = 2.0**-10
