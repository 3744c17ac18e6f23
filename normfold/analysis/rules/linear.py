"""Gemm and Conv, with a constant weight: they absorb any frame.

`out = x W + b` with `x = s_in * x' + t_in` and `out = s_out * out' + t_out` is `out' = x' W' + b'` for
`W' = diag(s_in) W diag(1 / s_out)` and `b' = (b + t_in W - t_out) / s_out`. No s_out may be 0; s_in may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import final

import numpy as np

from normfold.analysis.edits import Edit, NewAdd, NewAttribute, NewConstant
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.base import (
    OUT,
    Costs,
    Demands,
    FrameOf,
    Rule,
    SizeOf,
    Surroundings,
    along,
    name_of,
    only_along,
    rank_of,
    value_at,
    weight_and_bias,
)
from normfold.analysis.rules.weights import contracted_with, size_by_weight, weight_without_mean
from normfold.analysis.rules.windows import Window, convolve, kernel_of, map_elements, spatial, window
from normfold.errors import InternalError
from normfold.graph.affine import Array, compress, total
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph


@final
class GemmRule(Rule):
    """Gemm, `alpha * A' B' + beta * C`, with A or B constant, and C constant or absent."""

    attributes = frozenset({"alpha", "beta", "transA", "transB"})
    bias_follows = True

    def writer_cost(self, costs: Costs, op: Op) -> float:
        return 0.0

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        return True

    def _weight(self, graph: Graph, op: Op) -> int:
        """The input that holds the weight: B, unless only A is constant."""
        constant = [port for port in (0, 1) if graph.is_constant(value_at(op, port))]
        return 0 if constant == [0] else 1

    def _turned(self, op: Op, weight: int) -> bool:
        """Whether the weight is stored as (outputs, inputs)."""
        return bool(op.integer("transB", 0)) if weight else not op.integer("transA", 0)

    def _channels(self, op: Op, weight: int, port: int) -> int:
        """The axis of a port along which the weight is applied."""
        if port == OUT:
            return weight
        return weight if not op.integer("transA" if weight else "transB", 0) else 1 - weight

    def ports(self, graph: Graph, op: Op) -> tuple[int, ...]:
        weight = self._weight(graph, op)
        return (OUT,) if graph.is_constant(value_at(op, 1 - weight)) else (1 - weight, OUT)

    def _fits(self, at: Surroundings) -> Refuse | None:
        weight = self._weight(at.graph, at.op)
        if refused := at.not_constant(at.op.inputs[weight], weight_and_bias(at.op)[1]):
            return refused
        if not all(only_along(array, (self._channels(at.op, weight, port),)) for port, array in at.known.items()):
            return at.refuse("not-contracted", "does not contract the channels of the norm")
        return None

    def scale(self, at: Surroundings) -> Demands:
        if refused := self._fits(at):
            return refused
        return at.zero_output() or {}

    def shift(self, at: Surroundings) -> Demands:
        return self._fits(at) or {}

    def magnitude(self, graph: Graph, op: Op, size: SizeOf) -> Array | None:
        return size_by_weight(graph, op, -1 if op.integer("transB", 0) else -2)

    def without_mean(self, graph: Graph, op: Op, port: int, axis: int) -> Mapping[int, int] | Refuse:
        if port != OUT:
            return super().without_mean(graph, op, port, axis)
        columns = -2 if op.integer("transB", 0) else -1
        return weight_without_mean(graph, op, axis, channels=(rank_of(graph, op.output) or 0) - 1, columns=columns)

    def contracting_weight(self, graph: Graph, op: Op, port: int, axis: int) -> tuple[int, int] | None:
        channels = 0 if op.integer("transA", 0) else 1
        return contracted_with(graph, op, port, axis, channels=channels, rows=-1 if op.integer("transB", 0) else -2)

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        index, bias = self._weight(graph, op), weight_and_bias(op)[1]
        weight = value_at(op, index)
        incoming, outgoing = frame(value_at(op, 1 - index)), frame(op.output)
        stored = graph.constant(weight)
        matrix = stored.T if self._turned(op, index) else stored
        inputs, outputs = matrix.shape
        scale_in, scale_out = along(incoming.scale, inputs), along(outgoing.scale, outputs)
        if np.any(scale_in != 1.0) or np.any(scale_out != 1.0):
            rows, columns = scale_in[:, None], scale_out[None, :]
            if self._turned(op, index):
                rows, columns = rows.T, columns.T
            yield NewConstant(name_of(op.output), index, name_of(weight), times=rows, over=columns)
        passed = op.number("alpha", 1.0) * along(incoming.shift, inputs) @ matrix
        add = (passed - along(outgoing.shift, outputs)) / scale_out
        if not index:
            # C lies on (rows, columns), and the weight's outputs are the rows.
            scale_out, add = scale_out[:, None], add[:, None]
        if not np.any(add != 0.0):
            if bias is not None and np.any(scale_out != 1.0):
                yield NewConstant(name_of(op.output), 2, name_of(bias), over=scale_out)
        else:
            beta = op.number("beta", 1.0)
            yield NewConstant(name_of(op.output), 2, _name(bias), times=np.full(1, beta), over=scale_out, add=add)
            if beta != 1.0:
                # beta moves into C because C now also holds the shift, which beta must not scale.
                yield NewAttribute(name_of(op.output), "beta", 1.0)


@final
class ConvRule(Rule):
    """Conv in any number of dimensions and groups.

    Zero padding takes a scale. A shift it does not receive (it would have to be -t / s): behind the operator that is a
    bias for each position, an Add of a map, where sizes are known and it costs less than the Add in front.
    """

    attributes = frozenset({"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"})
    bias_follows = True
    convolves = True

    def writer_cost(self, costs: Costs, op: Op) -> float:
        return 0.0

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        return not pads_with_zeros(op)

    def _weights(self, at: Surroundings) -> Refuse | None:
        return at.not_constant(*weight_and_bias(at.op))

    def scale(self, at: Surroundings) -> Demands:
        if refused := self._weights(at):
            return refused
        if not all(only_along(array, (1,)) for array in at.known.values()):
            return at.refuse("not-contracted", "does not contract the channels of the norm")
        return at.zero_output() or {}

    def shift(self, at: Surroundings) -> Demands:
        if refused := self._weights(at):
            return refused
        graph, op = at.graph, at.op
        if any(array.shape[0] != 1 for array in at.known.values()):
            return at.refuse("not-contracted", "does not contract the channels of the norm")
        if only_along(at.get(OUT), (1,)) and not _differs_by_position(op, at.get(0)):
            return {}
        if spatial(graph, at.value(0)) is None or spatial(graph, at.value(OUT)) is None:
            return at.refuse("shift-meets-padding", "zero padding would not receive the shift")
        if self._bias_behind(at):
            return {OUT: self._through(graph, op, at.get(0))}
        if OUT in at.known and only_along(self._rest(graph, op, at.get(0), at.known[OUT]), (1,)):
            return {}
        if map_elements(graph, at.value(OUT)) > at.map_limit:
            why = "zero padding would not receive the shift, and a bias for each position behind it would cost more"
            return at.refuse("shift-meets-padding", why)
        return {}

    def _bias_behind(self, at: Surroundings) -> bool:
        """Whether an Add reads the output that could hold a map; a norm, which is to go, is none."""
        readers = at.graph.readers(at.value(OUT))
        if OUT in at.known or len(readers) != 1 or at.value(OUT) in at.graph.outputs:
            return False
        affine = readers[0].affine
        return affine is not None and not affine.is_norm and not at.costs.is_fixed(readers[0])

    def _through(self, graph: Graph, op: Op, shift: Array) -> Array:
        """What a shift of the input adds to the output, of the output's rank; float64."""
        weight = value_at(op, 1)
        groups = op.integer("group", 1)

        def summed() -> Array:
            kernel = graph.constant(weight)
            outputs, inputs = kernel.shape[:2]
            per_channel = along(shift, inputs * groups).reshape(groups, inputs)
            spread = np.repeat(np.arange(groups), outputs // groups)  # the group of each output channel
            sums = kernel.reshape(outputs, inputs, -1).sum(axis=2)
            column: Array = (sums * per_channel[spread]).sum(axis=1).reshape(1, -1, *(1,) * (kernel.ndim - 2))
            return column

        def mapped() -> Array:
            kernel, sizes = graph.constant(weight), spatial(graph, value_at(op, 0))
            moved = None if sizes is None else window(op, kernel.shape[2:], sizes)
            if sizes is None or moved is None:
                raise InternalError(f"{op.label}: a shift for each position, and sizes that are not known")
            full = np.broadcast_to(shift[0], (kernel.shape[1] * groups, *sizes))
            return compress(convolve(full, kernel, groups, moved)[None], tuple(range(2, kernel.ndim)))

        by_position = _differs_by_position(op, shift)
        return graph.product(op.output, shift, mapped if by_position else summed)

    def _rest(self, graph: Graph, op: Op, incoming: Array, outgoing: Array) -> Array:
        """What the output lacks once both shifts are in place."""
        rest = total(self._through(graph, op, incoming), -outgoing) if np.any(incoming) else -outgoing
        return compress(rest, tuple(range(2, rest.ndim)))

    def added_elements(self, graph: Graph, op: Op, shift: Callable[[Value], Array]) -> int:
        rest = self._rest(graph, op, shift(value_at(op, 0)), shift(op.output))
        return 0 if only_along(rest, (1,)) else map_elements(graph, op.output)

    def window(self, graph: Graph, op: Op) -> Window | None:
        return window(op, kernel_of(graph, op), spatial(graph, value_at(op, 0)))

    def magnitude(self, graph: Graph, op: Op, size: SizeOf) -> Array | None:
        return size_by_weight(graph, op, None)

    def without_mean(self, graph: Graph, op: Op, port: int, axis: int) -> Mapping[int, int] | Refuse:
        if port != OUT:
            return super().without_mean(graph, op, port, axis)
        return weight_without_mean(graph, op, axis, channels=1 if op.integer("group", 1) == 1 else None, columns=0)

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        weight, bias = weight_and_bias(op)
        assert weight is not None and op.inputs[0] is not None
        incoming, outgoing = frame(op.inputs[0]), frame(op.output)
        dims = [dim.size for dim in graph.dims(weight) or ()]
        outputs, inputs, taps = dims[0], dims[1], (1,) * (len(dims) - 2)
        groups = op.integer("group", 1)
        scale_in = along(incoming.scale, inputs * groups).reshape(groups, inputs)
        scale_in = scale_in if groups == 1 else np.repeat(scale_in, outputs // groups, axis=0)
        scale_out = along(outgoing.scale, outputs)
        if np.any(scale_in != 1.0) or np.any(scale_out != 1.0):
            times, over = scale_in.reshape(-1, inputs, *taps), scale_out.reshape(-1, 1, *taps)
            yield NewConstant(name_of(op.output), 1, name_of(weight), times=times, over=over)
        rest = self._rest(graph, op, incoming.shift, outgoing.shift) / outgoing.scale
        by_position = not only_along(rest, (1,))
        add = np.zeros(outputs) if by_position else along(rest, outputs)
        if np.any(add != 0.0) or (bias is not None and np.any(scale_out != 1.0)):
            yield NewConstant(name_of(op.output), 2, _name(bias), over=scale_out, add=add)
        if by_position:
            yield NewAdd(name_of(op.output), rest)


def _differs_by_position(op: Op, shift: Array) -> bool:
    """Whether a Conv makes a shift of its input into another one at every position."""
    return bool(np.any(shift)) and (pads_with_zeros(op) or not only_along(shift, (1,)))


def _name(value: Value | None) -> str | None:
    return None if value is None else name_of(value)


def pads_with_zeros(op: Op) -> bool:
    """Whether a Conv or a pooling reads zeros beyond the border."""
    automatic = op.text("auto_pad", "NOTSET")
    if automatic in ("NOTSET", ""):
        return any(op.integers("pads") or ())
    return automatic != "VALID"
