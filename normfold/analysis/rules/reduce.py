"""Pooling and means: what they do to a frame off the channel axis."""

from __future__ import annotations

import math

from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules.axis_maps import AxisMap, Dropped, Windowed
from normfold.analysis.rules.linear import pads_with_zeros
from normfold.graph.types import Op
from normfold.graph.view import Graph


def pooled(graph: Graph, op: Op) -> AxisMap | Refuse:
    """MaxPool and AveragePool: windows over the axes behind the channels."""
    dims = graph.dims(op.output)
    if dims is None:
        return refuse(op, "unknown-shape", "the rank of its output is not known")
    return Windowed(op, frozenset(range(2, len(dims))))


def pooled_to_one(graph: Graph, op: Op) -> AxisMap | Refuse:
    """GlobalAveragePool and GlobalMaxPool."""
    dims = graph.dims(op.output)
    if dims is None:
        return refuse(op, "unknown-shape", "the rank of its output is not known")
    return Dropped(op, tuple(range(2, len(dims))), keep=True)


def averaged(graph: Graph, op: Op) -> AxisMap | Refuse:
    """ReduceMean and the other reductions: the axes are an attribute in older opsets, an input in newer ones."""
    source = graph.dims(op.inputs[0]) if op.inputs[0] is not None else None
    if source is None:
        return refuse(op, "unknown-shape", "the rank of its input is not known")
    given = op.inputs[1] if len(op.inputs) > 1 else None
    if given is not None and not graph.is_constant(given):
        return refuse(op, "dynamic-axes", "its axes are computed at run time")
    axes = op.integers("axes") if given is None else tuple(int(axis) for axis in graph.constant(given).reshape(-1))
    if not axes:
        if op.integer("noop_with_empty_axes", 0):
            return Dropped(op, (), keep=True)
        axes = tuple(range(len(source)))
    return Dropped(op, tuple(sorted(axis % len(source) for axis in axes)), keep=bool(op.integer("keepdims", 1)))


def counts_padding(graph: Graph, op: Op) -> Refuse | None:
    """An average that counts padded zeros does not receive a shift there."""
    if op.integer("count_include_pad", 0) and (pads_with_zeros(op) or op.integer("ceil_mode", 0)):
        return refuse(op, "shift-meets-padding", "counts padding, which would not receive the shift")
    return None


def summed(graph: Graph, op: Op) -> float | Refuse:
    """How many elements a ReduceSum adds up: so often its input's shift is in its output."""
    mapped = averaged(graph, op)
    dims = graph.dims(op.inputs[0]) if op.inputs[0] is not None else None
    if isinstance(mapped, Refuse):
        return mapped
    if dims is None or not isinstance(mapped, Dropped) or not all(dims[axis].static for axis in mapped.axes):
        return refuse(op, "unknown-shape", "adds up an axis whose size is not known, and with it the shift")
    return float(math.prod(dims[axis].size for axis in mapped.axes))
