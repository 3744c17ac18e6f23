"""What operators share whose second operand is a constant weight: MatMul, Gemm, Conv; and tables of constants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.base import keeps_mean, rank_of, to_rank_of, value_at, weight_and_bias
from normfold.graph.affine import Array
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph


def size_by_weight(graph: Graph, op: Op, inputs: int | None) -> Array | None:
    """The norm of the weight over all but the output channels; what it is multiplied with is taken to be of order 1.

    inputs: its axis of input channels; None: of a convolution, all axes but the first.
    """
    weight, rank = op.inputs[1], rank_of(graph, op.output)
    if weight is None or not graph.is_constant(weight) or rank is None:
        return None
    matrix = graph.constant(weight)
    if matrix.ndim < 2:
        return None
    if inputs is None:
        per_kernel: Array = np.sqrt(np.square(matrix).sum(axis=tuple(range(1, matrix.ndim))))
        return per_kernel.reshape((1, -1) + (1,) * (rank - 2))
    norm: Array = np.sqrt(np.square(matrix).sum(axis=inputs))
    return to_rank_of(graph, op.output, norm)


def size_of_table(graph: Graph, value: Value) -> Array:
    """The size of each channel of a constant (an embedding): over all but its last axis."""
    table = graph.constant(value)
    size: Array = np.sqrt(np.square(table).mean(axis=tuple(range(table.ndim - 1)), keepdims=True))
    return size


def weight_without_mean(
    graph: Graph, op: Op, axis: int, *, channels: int | None, columns: int
) -> Mapping[int, int] | Refuse:
    """The output loses its mean along `axis`: its weight and its bias write what has none.

    channels: the axis of the output on which the output channels lie, None where no axis holds all of them. columns:
    theirs in the weight.
    """
    weight, bias = weight_and_bias(op)
    rank = None if weight is None else rank_of(graph, weight)
    if weight is None or not graph.is_constant(weight) or rank is None or rank < 2 or axis != channels:
        return keeps_mean(op, "it has no constant weight whose output channels are those of the stream")
    if bias is None:
        return {1: columns % rank}
    dims = graph.dims(bias)
    if not graph.is_constant(bias) or not dims or dims[-1] != (graph.dims(op.output) or ())[axis]:
        return keeps_mean(op, "its bias is no constant of one entry per channel")
    return {1: columns % rank, 2: len(dims) - 1}


def contracted_with(graph: Graph, op: Op, port: int, axis: int, *, channels: int, rows: int) -> tuple[int, int] | None:
    """`Rule.contracting_weight` of an operator whose first input meets a constant second one.

    channels: the axis of the first input that is contracted. rows: theirs in the weight.
    """
    weight = value_at(op, 1)
    if port != 0 or axis != channels or rank_of(graph, weight) is None or not graph.is_constant(weight):
        return None
    return 1, rows


def pooled(size: Array, axes: tuple[int, ...]) -> Array:
    """Sizes that count together: their root mean square over `axes`."""
    root: Array = np.sqrt(np.square(size).mean(axis=axes, keepdims=True))
    return root
