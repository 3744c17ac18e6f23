"""ConvTranspose with a constant weight.

`out[o, p] = sum of x[i, q] W[i, o, k] over all q, k with q * stride + k * dilation - pad = p`. Scales go in and out of
W as for a Conv. A shift t on x adds `sum of t_i W[i, o, k]` over the taps k that reach p: those of one phase, p modulo
the stride, and fewer of them near the border. It is a constant of each channel, which the bias takes, where no output
position lacks a tap of its phase and all phases add up to the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import final

import numpy as np

from normfold.analysis.edits import Edit, NewConstant
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.base import (
    Costs,
    Demands,
    FrameOf,
    Rule,
    Surroundings,
    along,
    name_of,
    only_along,
    value_at,
    weight_and_bias,
)
from normfold.graph.affine import Array, agree
from normfold.graph.types import Op
from normfold.graph.view import Graph


@final
class ConvTransposeRule(Rule):
    """ConvTranspose in any number of dimensions and groups. Its weight is (inputs, outputs / groups, taps)."""

    attributes = frozenset(
        {"auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"}
    )
    bias_follows = True

    def writer_cost(self, costs: Costs, op: Op) -> float:
        return 0.0

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        sums = self._phases(costs.graph, op)
        return sums is not None and agree(sums, sums[..., :1])

    def _fits(self, at: Surroundings) -> Refuse | None:
        if refused := at.not_constant(*weight_and_bias(at.op)):
            return refused
        if not all(only_along(array, (1,)) for array in at.known.values()):
            return at.refuse("not-contracted", "does not contract the channels of the norm")
        return None

    def scale(self, at: Surroundings) -> Demands:
        if refused := self._fits(at):
            return refused
        return at.zero_output() or {}

    def shift(self, at: Surroundings) -> Demands:
        if refused := self._fits(at):
            return refused
        if 0 in at.known and np.any(at.known[0] != 0.0):
            sums = self._phases(at.graph, at.op)
            if sums is None:
                return at.refuse("uneven-taps", "positions near the border receive fewer taps, and less of the shift")
            added = self._passed(at.graph, at.op, at.known[0], sums)
            if not agree(added, added[..., :1]):
                return at.refuse("uneven-taps", "the taps of its phases add up to different multiples of the shift")
        return {}

    def _phases(self, graph: Graph, op: Op) -> Array | None:
        """The weight summed over the taps of each phase, (inputs, outputs / groups, phases).

        None where an output position lacks a tap of its phase, or the file leaves the padding to be computed.
        """
        kernel = graph.constant(value_at(op, 1))
        rank = kernel.ndim - 2
        strides, dilations = op.integers("strides") or (1,) * rank, op.integers("dilations") or (1,) * rank
        pads, extra = op.integers("pads") or (0,) * (2 * rank), op.integers("output_padding") or (0,) * rank
        if op.text("auto_pad", "NOTSET") not in ("NOTSET", "", "VALID") or op.integers("output_shape") is not None:
            return None
        for axis, (stride, dilation) in enumerate(zip(strides, dilations, strict=True)):
            # Beyond this many positions from either end every tap of a phase finds an input.
            border = (kernel.shape[2 + axis] - 1) * dilation + 1 - stride
            if pads[axis] < max(border, 0) or pads[axis + rank] - extra[axis] < border:
                return None
        sums = []
        for phase in product(*(range(stride) for stride in strides)):
            taps = [
                [tap for tap in range(size) if tap * dilation % stride == position]
                for size, dilation, stride, position in zip(kernel.shape[2:], dilations, strides, phase, strict=True)
            ]
            sums.append(
                kernel[np.ix_(*(range(size) for size in kernel.shape[:2]), *taps)].sum(tuple(range(2, kernel.ndim)))
            )
        return np.stack(sums, axis=-1)

    def _passed(self, graph: Graph, op: Op, shift: Array, sums: Array) -> Array:
        """What the shift adds to each output channel in each phase, (outputs, phases)."""
        inputs, outputs, phases = sums.shape
        groups = op.integer("group", 1)
        shifts = along(shift, inputs).reshape(groups, inputs // groups, 1, 1)
        parts = sums.reshape(groups, inputs // groups, outputs, phases)
        return np.asarray((parts * shifts).sum(axis=1).reshape(groups * outputs, phases))

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        weight, bias = weight_and_bias(op)
        assert weight is not None
        incoming, outgoing = frame(value_at(op, 0)), frame(op.output)
        kernel = graph.constant(weight)
        inputs, outputs = kernel.shape[:2]
        groups, taps = op.integer("group", 1), (1,) * (kernel.ndim - 2)
        scale_in, scale_out = along(incoming.scale, inputs), along(outgoing.scale, outputs * groups)
        if np.any(scale_in != 1.0) or np.any(scale_out != 1.0):
            over = np.repeat(scale_out.reshape(groups, outputs), inputs // groups, axis=0)
            times = scale_in.reshape(-1, 1, *taps)
            yield NewConstant(
                name_of(op.output), 1, name_of(weight), times=times, over=over.reshape(inputs, outputs, *taps)
            )
        add = -along(outgoing.shift, outputs * groups) / scale_out
        if np.any(incoming.shift != 0.0):
            sums = self._phases(graph, op)
            assert sums is not None, "a shift was let in"
            add = add + self._passed(graph, op, incoming.shift, sums)[:, 0] / scale_out
        if np.any(add != 0.0) or (bias is not None and np.any(scale_out != 1.0)):
            source = None if bias is None else name_of(bias)
            yield NewConstant(name_of(op.output), 2, source, over=scale_out, add=add)
