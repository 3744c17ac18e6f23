"""LayerNormalization and RMSNormalization: their statistic stays, their weight and bias absorb."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from normfold.frame import Array, Frame, Refuse
from normfold.graph import Graph, Op, Value
from normfold.rules.base import (
    OUT,
    Costs,
    Demands,
    Edit,
    FrameOf,
    NewAttribute,
    NewConstant,
    Ports,
    Rule,
    name_of,
)

# Defaults of the ONNX specification.
EPSILON = 1e-5


class NormalizeRule(Rule):
    """`w * (x - mean) / sqrt(var + eps) + b` over the last axes, or the RMS form, which has neither mean nor b.

    Input: one scale s > 0 for all channels, `eps' = eps / s^2`; a mean takes one shift for all channels with it.
    Output: any.
    """

    attributes = frozenset({"axis", "epsilon", "stash_type"})

    def __init__(self, *, centred: bool) -> None:
        self.centred = centred

    def _fits(self, at: Ports) -> Refuse | None:
        weight, bias = parameters(at.op)
        if weight is None or not at.graph.is_constant(weight) or (bias is not None and not at.graph.is_constant(bias)):
            return at.refuse("two-tensors", "its weight or its bias is not a constant")
        if any(at.graph.readers(value) or value in at.graph.outputs for value in at.op.outputs[1:]):
            return at.refuse("statistic-read", "its mean or deviation is used elsewhere")
        if OUT in at.known:
            shaped = self._at_weight(at, at.known[OUT], weight)
            if isinstance(shaped, Refuse):
                return shaped
        if 0 in at.known and at.known[0].size != 1 and not np.all(at.known[0] == at.known[0].flat[0]):
            return at.refuse("statistic", "computes its statistic over channels in different frames")
        return None

    def _at_weight(self, at: Ports, array: Array, weight: Value) -> Array | Refuse:
        dims = at.graph.dims(weight)
        axes = len(dims) if dims is not None else 0
        if any(size != 1 for size in array.shape[: array.ndim - axes]):
            return at.refuse("not-contracted", "its weight does not lie on the channels of the norm")
        return array

    def writer_cost(self, costs: Costs, op: Op) -> float:
        return 0.0 if self.centred else math.inf

    def scale(self, at: Ports) -> Demands:
        if refused := self._fits(at):
            return refused
        if 0 in at.known and np.any(at.known[0] <= 0.0):
            return at.refuse("negative-scale", "a negative or zero scale does not pass through its statistic")
        if OUT in at.known and np.any(at.known[OUT] == 0.0):
            return at.refuse("zero-scale", "a channel with scale 0 cannot be restored")
        return {}

    def shift(self, at: Ports) -> Demands:
        if refused := self._fits(at):
            return refused
        if 0 in at.known and np.any(at.known[0] != 0.0) and not self.centred:
            return at.refuse("statistic", "its mean square changes with a shift")
        if OUT in at.known and np.any(at.known[OUT] != 0.0) and not self.centred:
            return at.refuse("no-bias", "it has no bias to take a shift")
        return {}

    def own_frame(self, graph: Graph, op: Op, rank: int) -> Frame | None:
        """Its weight and bias, as the frame its output would have were they folded."""
        weight, bias = parameters(op)
        if weight is None or not graph.is_constant(weight) or (bias is not None and not graph.is_constant(bias)):
            return None
        identity = Frame.identity(rank)
        scale = identity.scale * graph.constant(weight)
        return Frame(scale, identity.shift if bias is None else identity.shift + graph.constant(bias))

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        weight, bias = parameters(op)
        assert weight is not None and op.inputs[0] is not None
        incoming, outgoing = frame(op.inputs[0]), frame(op.output)
        size = float(incoming.scale.flat[0])
        if size != 1.0:
            yield NewAttribute(name_of(op.output), "epsilon", op.number("epsilon", EPSILON) / size**2)
        rank = len(graph.dims(weight) or ())
        scale = outgoing.scale.reshape(outgoing.scale.shape[outgoing.scale.ndim - rank :])
        shift = outgoing.shift.reshape(outgoing.shift.shape[outgoing.shift.ndim - rank :])
        if np.any(scale != 1.0):
            yield NewConstant(name_of(op.output), 1, name_of(weight), over=scale)
        if np.any(shift != 0.0) or (bias is not None and np.any(scale != 1.0)):
            source = None if bias is None else name_of(bias)
            yield NewConstant(name_of(op.output), 2, source, over=scale, add=-shift / scale)


def parameters(op: Op) -> tuple[Value | None, Value | None]:
    """The weight and the bias."""
    return op.inputs[1] if len(op.inputs) > 1 else None, op.inputs[2] if len(op.inputs) > 2 else None
