"""Normalizations by a statistic of the input: the statistic stays, their weight and bias absorb."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import final

import numpy as np

from normfold.analysis.edits import Edit, NewAttribute, NewConstant
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.base import (
    OUT,
    Costs,
    Demands,
    FrameOf,
    Rule,
    Surroundings,
    keeps_mean,
    name_of,
    only_along,
    others_are_read,
    rank_of,
    weight_and_bias,
)
from normfold.analysis.rules.batch_norm import EPSILON
from normfold.graph.affine import Array, Frame, varying_axes
from normfold.graph.operators import opset
from normfold.graph.types import Op
from normfold.graph.view import Graph


@final
class NormalizeRule(Rule):
    """`w * (x - mean) / sqrt(var + eps) + b` over the last axes, or the RMS form, which has neither mean nor b.

    Input: one scale s > 0 for all channels, `eps' = eps / s^2`; a mean takes one shift for all channels with it.
    Output: any.
    """

    attributes = frozenset({"axis", "epsilon", "stash_type"})
    normalizes = True

    def __init__(self, *, centred: bool) -> None:
        self.centred = centred

    def _fits(self, at: Surroundings) -> Refuse | None:
        weight, bias = weight_and_bias(at.op)
        if refused := at.not_constant(weight, bias):
            return refused
        if others_are_read(at.graph, at.op):
            return at.refuse("statistic-read", "its mean or deviation is used elsewhere")
        if OUT in at.known:
            array, axes = at.known[OUT], len(at.graph.dims(at.value(1)) or ())
            if any(size != 1 for size in array.shape[: array.ndim - axes]):
                return at.refuse("not-contracted", "its weight does not lie on the channels of the norm")
        if 0 in at.known and at.known[0].size != 1 and not np.all(at.known[0] == at.known[0].flat[0]):
            return at.refuse("statistic", "computes its statistic over channels in different frames")
        return None

    def writer_cost(self, costs: Costs, op: Op) -> float:
        return 0.0 if self.centred else math.inf

    def scale(self, at: Surroundings) -> Demands:
        if refused := self._fits(at):
            return refused
        if 0 in at.known and np.any(at.known[0] <= 0.0):
            return at.refuse("negative-scale", "a negative or zero scale does not pass through its statistic")
        return at.zero_output() or {}

    def shift(self, at: Surroundings) -> Demands:
        if refused := self._fits(at):
            return refused
        if 0 in at.known and np.any(at.known[0] != 0.0) and not self.centred:
            return at.refuse("statistic", "its mean square changes with a shift")
        if OUT in at.known and np.any(at.known[OUT] != 0.0) and not self.centred:
            return at.refuse("no-bias", "it has no bias to take a shift")
        return {}

    def own_frame(self, graph: Graph, op: Op) -> Frame | None:
        weight, bias = weight_and_bias(op)
        rank = rank_of(graph, op.output)
        if rank is None or weight is None or not graph.is_constant(weight):
            return None
        if bias is not None and not graph.is_constant(bias):
            return None
        identity = Frame.identity(rank)
        scale = identity.scale * graph.constant(weight)
        return Frame(scale, identity.shift if bias is None else identity.shift + graph.constant(bias))

    def without_mean(self, graph: Graph, op: Op, port: int, axis: int) -> Mapping[int, int] | Refuse:
        """A LayerNormalization subtracts the mean of its input: it does not see that it is gone."""
        if not self.centred or port != 0 or op.inputs[0] in op.inputs[1:]:
            return super().without_mean(graph, op, port, axis)
        rank = rank_of(graph, op.output) or 0
        weight, bias = weight_and_bias(op)
        constant = weight is not None and all(part is None or graph.is_constant(part) for part in (weight, bias))
        if op.integer("axis", -1) % rank != rank - 1 or axis != rank - 1:
            return keeps_mean(op, "its mean runs along other axes than the channels of the stream")
        if not constant or others_are_read(graph, op):
            return keeps_mean(op, "its weight is no constant, or its mean or deviation is read")
        return {}

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        weight, bias = weight_and_bias(op)
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


@final
class ChannelNormalizeRule(Rule):
    """`w * (x - mean) / sqrt(var + eps) + b` over a group of channels, or each channel (Instance-).

    Input: one scale s > 0, `eps' = eps / s^2`; the mean takes one shift for all channels of a group with it. Output:
    any, along the channels; before opset 21 GroupNormalization has one w and b for each group only.
    """

    normalizes = True

    def __init__(self, *, grouped: bool) -> None:
        self.grouped = grouped
        self.attributes = frozenset({"epsilon", "num_groups", "stash_type"} if grouped else {"epsilon"})

    def writer_cost(self, costs: Costs, op: Op) -> float:
        return 0.0

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        return not self.grouped

    def _fits(self, at: Surroundings) -> Refuse | None:
        weight, bias = weight_and_bias(at.op)
        if any(value is None or not at.graph.is_constant(value) for value in (weight, bias)):
            return at.refuse("two-tensors", "its weight or its bias is not a constant")
        if not all(only_along(array, (1,)) for array in at.known.values()):
            return at.refuse("not-contracted", "its weight does not lie on the channels of the norm")
        if OUT in at.known and self._by_group(at.graph, at.op) and not _same_within(at.known[OUT], _groups(at.op)):
            return at.refuse("statistic", "has one weight for channels in different frames")
        return None

    def _by_group(self, graph: Graph, op: Op) -> bool:
        return self.grouped and opset(graph.model) < 21

    def scale(self, at: Surroundings) -> Demands:
        if refused := self._fits(at):
            return refused
        if 0 in at.known and not np.all(at.known[0] == at.known[0].flat[0]):
            return at.refuse("statistic", "adds one epsilon to the variances of channels in different frames")
        if 0 in at.known and np.any(at.known[0] <= 0.0):
            return at.refuse("negative-scale", "a negative or zero scale does not pass through its statistic")
        return at.zero_output() or {}

    def shift(self, at: Surroundings) -> Demands:
        if refused := self._fits(at):
            return refused
        if 0 in at.known and self.grouped and not _same_within(at.known[0], _groups(at.op)):
            return at.refuse("statistic", "computes its statistic over channels in different frames")
        return {}

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        weight, bias = weight_and_bias(op)
        assert weight is not None and bias is not None and op.inputs[0] is not None
        size, outgoing = float(frame(op.inputs[0]).scale.flat[0]), frame(op.output)
        if size != 1.0:
            yield NewAttribute(name_of(op.output), "epsilon", op.number("epsilon", EPSILON) / size**2)
        scale, shift = (part.reshape(-1) for part in (outgoing.scale, outgoing.shift))
        if self._by_group(graph, op):
            scale, shift = (part if part.size == 1 else part.reshape(_groups(op), -1)[:, 0] for part in (scale, shift))
        if np.any(scale != 1.0):
            yield NewConstant(name_of(op.output), 1, name_of(weight), over=scale)
        if np.any(shift != 0.0) or np.any(scale != 1.0):
            yield NewConstant(name_of(op.output), 2, name_of(bias), over=scale, add=-shift / scale)


@final
class MeanVarianceRule(Rule):
    """MeanVarianceNormalization, `(x - mean) / (std + 1e-9)`: no scale passes a fixed epsilon; the mean takes a shift.

    A shift must be the same along the axes over which the mean runs.
    """

    attributes = frozenset({"axes"})

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        return True

    def scale(self, at: Surroundings) -> Demands:
        return at.refuse("statistic", "its epsilon is fixed, and cannot follow a scale")

    def shift(self, at: Surroundings) -> Demands:
        if OUT in at.known and np.any(at.known[OUT] != 0.0):
            return at.refuse("no-bias", "it has no bias to take a shift")
        rank = rank_of(at.graph, at.value(0)) or 0
        axes = {axis % rank for axis in at.op.integers("axes") or (0, 2, 3)} if rank else set()
        if 0 in at.known and axes & set(varying_axes(at.known[0])):
            return at.refuse("statistic", "computes its statistic over channels in different frames")
        return {}


def _groups(op: Op) -> int:
    return op.integer("num_groups", 1)


def _same_within(array: Array, groups: int) -> bool:
    """Whether an array along the channels is the same within each group."""
    if array.size == 1:
        return True
    if array.size % groups:
        return False
    parts = array.reshape(groups, -1)
    return bool(np.all(parts == parts[:, :1]))
