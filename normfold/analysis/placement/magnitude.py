"""How large a tensor's values are, channel by channel, as far as the graph tells.

A shift is exact in any size; in floating point it costs the digits by which it exceeds the tensor that carries it.
What a residual stream may carry for a norm behind it is therefore bounded by what the stream itself holds: of a
weight that reads values of order 1, an output channel has the size of the weight's norm over that channel. A batch norm
that reads the tensor has measured it in training: its mean and variance are those of its input.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from normfold.analysis.rules import rule_of
from normfold.analysis.rules.weights import pooled
from normfold.graph.affine import Array, varying_axes
from normfold.graph.types import BATCH_NORM, Op, Value
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
    together = [pooled(size, tuple(axis for axis in range(size.ndim) if shift.shape[axis] == 1)) for size in sizes]
    return bool(np.all(np.abs(shift) <= LARGEST_SHIFT * np.max(np.broadcast_arrays(*together), axis=0)))


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
        if node.op_type == BATCH_NORM and _layout_of(graph, node.inputs[0]) is read:
            mean, var = (graph.constant(item).reshape(shape) for item in node.inputs[3:5] if item is not None)
            yield mean, var


def _layout_of(graph: Graph, value: Value | None) -> Value | None:
    """The tensor that `value` holds the elements of, in another order."""
    while value is not None and (node := value.producer()) is not None and rule_of(node.op_type).rearranges:
        value = node.inputs[0]
    return value


def _size(graph: Graph, value: Value, depth: int) -> Array | None:
    """The size of each channel, of the rank of `value`; of each element where constants tell it."""
    op = graph.producer.get(value)
    if op is None or depth < 0:
        return None
    rule = rule_of(op.type)

    def at_input(port: int) -> Array | None:
        source = op.inputs[port]
        # Behind an operator of several tensors there is that much more to look at.
        return None if source is None else _size(graph, source, depth - rule.late)

    return rule.magnitude(graph, op, at_input)
