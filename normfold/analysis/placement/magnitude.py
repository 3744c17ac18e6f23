"""How large a tensor's values are, channel by channel, as far as the graph tells.

A shift is exact in any size; in floating point it costs the digits by which it exceeds the tensor that carries it.
What a residual stream may carry for a norm behind it is therefore bounded by what the stream itself holds: of a
weight that reads values of order 1, an output channel has the size of the weight's norm over that channel. A batch norm
that reads the tensor knows better what trained on: its mean and variance are those of its input.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from normfold.analysis.recognition.affine_maps import LAYOUT
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import TABLE
from normfold.analysis.rules.base import to_rank_of
from normfold.analysis.rules.layout import CarryRule
from normfold.graph.affine import Array, varying_axes
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph

# A shift this many times larger than the tensor costs three binary digits of it.
LARGEST_SHIFT = 8.0

# How many sums to look back through: enough for the writers next to a norm, constant work in a deep network.
_DEPTH = 4


def fits(graph: Graph, value: Value, shift: Array) -> bool:
    """Whether `value` can carry `shift` without losing more than a few digits. Unknown sizes do not fit."""
    sizes = [size for size in (_size(graph, value, _DEPTH), *_measured(graph, value)) if size is not None]
    if not sizes:
        return False
    # One shift serves all positions of a channel, so their sizes count together: position embeddings differ by them.
    pooled = [_pooled(size, tuple(axis for axis in range(size.ndim) if shift.shape[axis] == 1)) for size in sizes]
    return bool(np.all(np.abs(shift) <= LARGEST_SHIFT * np.max(np.broadcast_arrays(*pooled), axis=0)))


def _pooled(size: Array, axes: tuple[int, ...]) -> Array:
    root: Array = np.sqrt(np.square(size).mean(axis=axes, keepdims=True))
    return root


def centres(graph: Graph, op: Op) -> bool:
    """Whether a norm writes smaller values than it reads, by the statistics of its own batch norm.

    Its readers lose digits to the larger of the two: with the shift in their biases they contract `a * x`, with the
    shift in front of the norm `a * x + b`.
    """
    found = next(_statistics(graph, op), None)
    if op.affine is None or found is None:
        return False
    (mean, var), frame = found, op.affine.frame
    before = np.square(frame.scale) * (np.square(mean) + var)
    after = np.square(frame.scale) * var + np.square(frame.scale * mean + frame.shift)
    return bool(after.sum() < before.sum())


def _measured(graph: Graph, value: Value) -> Iterator[Array]:
    """What the batch norms that read `value` have stored of it: root E[x^2] of each channel."""
    for op in graph.readers(value):
        if op.inputs[0] is value:
            yield from (np.sqrt(np.square(mean) + var) for mean, var in _statistics(graph, op))


def _statistics(graph: Graph, op: Op) -> Iterator[tuple[Array, Array]]:
    """Mean and variance of what a fixed map reads, of its rank, where it holds a batch norm of that, in any layout."""
    axes = () if op.affine is None else varying_axes(op.affine.frame.scale)
    if op.affine is None or len(axes) != 1:
        return
    shape = [-1 if axis == axes[0] else 1 for axis in range(op.affine.frame.scale.ndim)]
    read = _layout_of(graph, op.inputs[0])
    for node in op.affine.nodes:
        if node.op_type == "BatchNormalization" and _layout_of(graph, node.inputs[0]) is read:
            mean, var = (graph.constant(item).reshape(shape) for item in node.inputs[3:5] if item is not None)
            yield mean, var


def _layout_of(graph: Graph, value: Value | None) -> Value | None:
    """The tensor that `value` holds the elements of, in another order."""
    while value is not None and (node := value.producer()) is not None and node.op_type in LAYOUT:
        value = node.inputs[0]
    return value


def _size(graph: Graph, value: Value, depth: int) -> Array | None:
    """The size of each channel, of the rank of `value`; of each element where constants tell it."""
    op = graph.producer.get(value)
    if op is None or depth < 0:
        return None
    if op.affine is not None:
        source = _input(graph, op, 0, depth)
        frame = op.affine.frame
        return np.abs(frame.shift) if source is None else np.hypot(frame.scale * source, frame.shift)
    if op.type in ("Add", "Sub"):
        return _of_sum(graph, op, depth)
    if op.type == "Concat":
        return _of_parts(graph, op, depth)
    if op.type in ("MatMul", "Gemm", "Conv"):
        return _of_weight(graph, op)
    rule = TABLE.get(op.type)
    if not isinstance(rule, CarryRule):
        return None
    return _carried(graph, op, rule, depth)


def _input(graph: Graph, op: Op, port: int, depth: int) -> Array | None:
    value = op.inputs[port]
    return None if value is None else _size(graph, value, depth)


def _of_sum(graph: Graph, op: Op, depth: int) -> Array | None:
    sizes = [size for port in (0, 1) if (size := _input(graph, op, port, depth - 1)) is not None]
    if not sizes:
        return None
    size = sizes[0] if len(sizes) == 1 else np.hypot(*sizes)
    return to_rank_of(graph, op.output, size)


def _of_parts(graph: Graph, op: Op, depth: int) -> Array | None:
    """The parts' sizes side by side; where a part's length is not known, all count alike."""
    dims = graph.dims(op.output)
    parts = [value for value in op.inputs if value is not None]
    found = [_of_constant(graph, v) if graph.is_constant(v) else _size(graph, v, depth - 1) for v in parts]
    sizes = [size for size in found if size is not None]
    if dims is None or len(sizes) < len(parts) or not sizes:
        return None
    axis = op.integer("axis", 0) % len(dims)
    lengths = [graph.dims(value) for value in parts]
    if all(length is not None and length[axis].static for length in lengths):
        spread = [1 if length is None else length[axis].size for length in lengths]
    elif all(size.shape[axis] == 1 for size in sizes):
        spread = [1] * len(sizes)
    else:
        return None
    common = np.broadcast_shapes(*((*size.shape[:axis], 1, *size.shape[axis + 1 :]) for size in sizes))
    full = [
        np.broadcast_to(size, (*common[:axis], length, *common[axis + 1 :]))
        for size, length in zip(sizes, spread, strict=True)
    ]
    joined: Array = np.concatenate(full, axis=axis)
    if dims[axis].static:
        return joined
    return _pooled(joined, (axis,))


def _of_weight(graph: Graph, op: Op) -> Array | None:
    """The norm of a constant second operand over all but the output channels; the first is taken to be of order 1."""
    weight = op.inputs[1]
    dims = graph.dims(op.output)
    if weight is None or not graph.is_constant(weight) or dims is None:
        return None
    matrix = graph.constant(weight)
    if matrix.ndim < 2:
        return None
    if op.type == "Conv":
        per_kernel: Array = np.sqrt(np.square(matrix).sum(axis=tuple(range(1, matrix.ndim))))
        return per_kernel.reshape((1, -1) + (1,) * (len(dims) - 2))
    norm: Array = np.sqrt(np.square(matrix).sum(axis=-1 if op.type == "Gemm" and op.integer("transB", 0) else -2))
    return to_rank_of(graph, op.output, norm)


def _carried(graph: Graph, op: Op, rule: CarryRule, depth: int) -> Array | None:
    source = op.inputs[0]
    if source is None:
        return None
    mapped = rule.axis_map(graph, op)
    if isinstance(mapped, Refuse):
        return None
    size = _of_constant(graph, source) if graph.is_constant(source) else _size(graph, source, depth)
    carried = None if size is None else mapped.forward(size)
    return None if isinstance(carried, Refuse) else carried


def _of_constant(graph: Graph, source: Value) -> Array:
    """The size of each channel of a table (an embedding): over all but its last axis."""
    table = graph.constant(source)
    size: Array = np.sqrt(np.square(table).mean(axis=tuple(range(table.ndim - 1)), keepdims=True))
    return size
