"""Gemm and Conv, with a constant weight: they absorb any frame.

`out = x W + b` with `x = s_in * x' + t_in` and `out = s_out * out' + t_out` is `out' = x' W' + b'` for
`W' = diag(s_in) W diag(1 / s_out)` and `b' = (b + t_in W - t_out) / s_out`. No s_out may be 0; s_in may.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from normfold.frame import Refuse
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
    along,
    name_of,
    only_along,
)


class GemmRule(Rule):
    """Gemm, `alpha * A' B' + beta * C`, with B constant and C constant or absent."""

    attributes = frozenset({"alpha", "beta", "transA", "transB"})

    def writer_cost(self, costs: Costs, op: Op) -> float:
        return 0.0

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        return True

    def _fits(self, at: Ports) -> Refuse | None:
        weight, bias = _constants(at.op)
        if weight is None or not at.graph.is_constant(weight) or (bias is not None and not at.graph.is_constant(bias)):
            return at.refuse("two-tensors", "its weight or its bias is not a constant")
        for port, array in at.known.items():
            channels = 1 if port == OUT or not at.op.integer("transA", 0) else 0
            if not only_along(array, (channels,)):
                return at.refuse("not-contracted", "does not contract the channels of the norm")
        return None

    def scale(self, at: Ports) -> Demands:
        if refused := self._fits(at):
            return refused
        if OUT in at.known and np.any(at.known[OUT] == 0.0):
            return at.refuse("zero-scale", "a channel with scale 0 cannot be restored")
        return {}

    def shift(self, at: Ports) -> Demands:
        return self._fits(at) or {}

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        weight, bias = _constants(op)
        assert weight is not None and op.inputs[0] is not None
        incoming, outgoing = frame(op.inputs[0]), frame(op.output)
        stored = graph.constant(weight)
        matrix = stored.T if op.integer("transB", 0) else stored
        inputs, outputs = matrix.shape
        scale_in, scale_out = along(incoming.scale, inputs), along(outgoing.scale, outputs)
        if np.any(scale_in != 1.0) or np.any(scale_out != 1.0):
            rows, columns = scale_in[:, None], scale_out[None, :]
            if op.integer("transB", 0):
                rows, columns = rows.T, columns.T
            yield NewConstant(name_of(op.output), 1, name_of(weight), times=rows, over=columns)
        passed = op.number("alpha", 1.0) * along(incoming.shift, inputs) @ matrix
        add = (passed - along(outgoing.shift, outputs)) / scale_out
        if np.any(add != 0.0) or (bias is not None and np.any(scale_out != 1.0)):
            beta = op.number("beta", 1.0)
            yield NewConstant(name_of(op.output), 2, _name(bias), times=np.full(1, beta), over=scale_out, add=add)
            if beta != 1.0:
                # beta moves into C because C now also holds the shift, which beta must not scale.
                yield NewAttribute(name_of(op.output), "beta", 1.0)


class ConvRule(Rule):
    """Conv in any number of dimensions and groups.

    Zero padding takes a scale, never a shift: the padding would have to be -t / s.
    """

    attributes = frozenset({"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"})

    def writer_cost(self, costs: Costs, op: Op) -> float:
        return 0.0

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        return not pads_with_zeros(op)

    def _fits(self, at: Ports) -> Refuse | None:
        weight, bias = _constants(at.op)
        if weight is None or not at.graph.is_constant(weight) or (bias is not None and not at.graph.is_constant(bias)):
            return at.refuse("two-tensors", "its weight or its bias is not a constant")
        if not all(only_along(array, (1,)) for array in at.known.values()):
            return at.refuse("not-contracted", "does not contract the channels of the norm")
        return None

    def scale(self, at: Ports) -> Demands:
        if refused := self._fits(at):
            return refused
        if OUT in at.known and np.any(at.known[OUT] == 0.0):
            return at.refuse("zero-scale", "a channel with scale 0 cannot be restored")
        return {}

    def shift(self, at: Ports) -> Demands:
        if refused := self._fits(at):
            return refused
        if 0 in at.known and np.any(at.known[0] != 0.0) and pads_with_zeros(at.op):
            return at.refuse("shift-meets-padding", "zero padding would not receive the shift")
        return {}

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        weight, bias = _constants(op)
        assert weight is not None and op.inputs[0] is not None
        incoming, outgoing = frame(op.inputs[0]), frame(op.output)
        kernel = graph.constant(weight)
        outputs, inputs = kernel.shape[:2]
        groups = op.integer("group", 1)
        spread = np.repeat(np.arange(groups), outputs // groups)  # the group of each output channel
        scale_in = along(incoming.scale, inputs * groups).reshape(groups, inputs)
        scale_in = scale_in if groups == 1 else scale_in[spread]
        shift_in = along(incoming.shift, inputs * groups).reshape(groups, inputs)[spread]
        scale_out = along(outgoing.scale, outputs)
        if np.any(scale_in != 1.0) or np.any(scale_out != 1.0):
            taps = (1,) * (kernel.ndim - 2)
            times, over = scale_in.reshape(-1, inputs, *taps), scale_out.reshape(-1, 1, *taps)
            yield NewConstant(name_of(op.output), 1, name_of(weight), times=times, over=over)
        summed = kernel.reshape(outputs, inputs, -1).sum(axis=2)
        add = ((summed * shift_in).sum(axis=1) - along(outgoing.shift, outputs)) / scale_out
        if np.any(add != 0.0) or (bias is not None and np.any(scale_out != 1.0)):
            yield NewConstant(name_of(op.output), 2, _name(bias), over=scale_out, add=add)


def _constants(op: Op) -> tuple[Value | None, Value | None]:
    """The weight and the bias of a Gemm or Conv."""
    return op.inputs[1], op.inputs[2] if len(op.inputs) > 2 else None


def _name(value: Value | None) -> str | None:
    return None if value is None else name_of(value)


def pads_with_zeros(op: Op) -> bool:
    """Whether a Conv or a pooling reads zeros beyond the border."""
    automatic = op.text("auto_pad", "NOTSET")
    if automatic in ("NOTSET", ""):
        return any(op.integers("pads") or ())
    return automatic != "VALID"
