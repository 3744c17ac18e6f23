"""The axis maps of operators that move elements without changing them: one function `(graph, op)` for each."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules.axis_maps import AxisMap, Expanded, Gathered, Permuted, Regrouped, Same, Windowed
from normfold.analysis.rules.spellings import told
from normfold.graph.dims import Dim
from normfold.graph.types import Op
from normfold.graph.view import Graph

# What a Gather looks up is written out channel by channel; a file can claim any number of them.
MOST_PICKED = 1 << 20


def same(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Operators whose output has the axes of their input."""
    return Same()


def transpose(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Transpose; without `perm` it reverses the axes."""
    dims = graph.dims(op.output)
    if dims is None:
        return refuse(op, "unknown-shape", "the rank of its output is not known")
    return Permuted(op.integers("perm") or tuple(range(len(dims)))[::-1])


def reshape(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Reshape, Flatten, Squeeze and Unsqueeze: all that matters is the shape before and after."""
    source = graph.dims(op.inputs[0]) if op.inputs[0] is not None else None
    target = graph.dims(op.output)
    if source is None or target is None:
        return refuse(op, "unknown-shape", "a shape is not known")
    return Regrouped(op, source, target)


def expand(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Expand: what matters is the shape before and after."""
    source = graph.dims(op.inputs[0]) if op.inputs[0] is not None else None
    target = graph.dims(op.output)
    if source is None or target is None or len(target) < len(source):
        return refuse(op, "unknown-shape", "a shape is not known")
    added = len(target) - len(source)
    widened = {axis + added for axis, dim in enumerate(source) if dim != target[axis + added]}
    return Expanded(op, added, frozenset(widened) | frozenset(range(added)))


def slices(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Slice; before opset 10 its starts, ends and axes are attributes, and it has no steps."""
    dims = graph.dims(op.output)
    if dims is None:
        return refuse(op, "unknown-shape", "the rank of its output is not known")
    arguments = [told(graph, op, port, name) for port, name in enumerate(("starts", "ends", "axes", "steps"), 1)]
    starts, ends, axes, steps = (None if one is None else one.numbers for one in arguments)
    if arguments[2] is not None and axes is None:
        return refuse(op, "dynamic-slice", "its axes are computed at run time")
    if axes is None and starts is None:
        return Windowed(op, frozenset(range(len(dims))))
    touched = [axis % len(dims) for axis in (axes if axes is not None else range(len(starts or ())))]
    if starts is None or ends is None or (arguments[3] is not None and steps is None):
        return Windowed(op, frozenset(touched))
    steps = steps or [1] * len(touched)
    cut = [slice(None)] * len(dims)
    for axis, start, end, step in zip(touched, starts, ends, steps, strict=True):
        cut[axis] = slice(start, None if step < 0 and end < -(2**31) else end, step)
    return Windowed(op, frozenset(touched), tuple(cut))


def gather(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Gather, from an activation or from a constant table (an embedding)."""
    data, indices = (None if value is None else graph.dims(value) for value in op.inputs[:2])
    if data is None or indices is None:
        return refuse(op, "unknown-shape", "the rank of an input is not known")
    axis = op.integer("axis", 0) % len(data)
    return Gathered(op, axis, len(indices), _picked(graph, op, data[axis]), data[axis].size)


def _picked(graph: Graph, op: Op, dim: Dim) -> NDArray[np.int64] | None:
    """Which entries of an axis a Gather looks up; None where they are computed at run time."""
    indices = op.inputs[1]
    if indices is None or not graph.is_constant(indices) or not dim.static or graph.size(indices) > MOST_PICKED:
        return None
    found = graph.constant(indices).astype(np.int64)
    if np.any(found < -dim.size) or np.any(found >= dim.size):
        return None
    return np.asarray(np.where(found < 0, found + dim.size, found))


def gather_elements(graph: Graph, op: Op) -> AxisMap | Refuse:
    """GatherElements: entries along one axis, another for each position; off that axis the first ones, in place."""
    data, indices = (None if value is None else graph.dims(value) for value in op.inputs[:2])
    if not data or indices is None or len(data) != len(indices):
        return refuse(op, "unknown-shape", "the rank of an input is not known")
    shorter = {axis for axis, dim in enumerate(data) if dim != indices[axis]}
    return Windowed(op, frozenset({op.integer("axis", 0) % len(data)} | shorter))


def reverse_sequence(graph: Graph, op: Op) -> AxisMap | Refuse:
    """ReverseSequence: another order along one axis."""
    return Windowed(op, frozenset({op.integer("time_axis", 0)}))


def summed_up(graph: Graph, op: Op) -> AxisMap | Refuse:
    """CumSum: `y[k] = sum of x[j] over j <= k`, along one axis."""
    dims, axis = graph.dims(op.output), told(graph, op, 1, "axis")
    numbers = None if axis is None else axis.numbers
    if dims is None or not numbers:
        return refuse(op, "dynamic-axes", "its axis is computed at run time")
    return Windowed(op, frozenset({int(numbers[0]) % len(dims)}))


def gather_nd(graph: Graph, op: Op) -> AxisMap | Refuse:
    """GatherND whose indices are single numbers: a Gather along the first axis (a table read by `table[positions]`)."""
    data, indices = (None if value is None else graph.dims(value) for value in op.inputs[:2])
    if data is None or not indices:
        return refuse(op, "unknown-shape", "the rank of an input is not known")
    if op.integer("batch_dims", 0) or not indices[-1].static or indices[-1].size != 1:
        return refuse(op, "wall", "its indices are no single numbers along the first axis")
    return Gathered(op, 0, len(indices) - 1)


def pad(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Pad."""
    ends = padding(graph, op)
    return ends if isinstance(ends, Refuse) else Windowed(op, frozenset(axis for axis, one in ends.items() if any(one)))


def filling(graph: Graph, op: Op) -> float | None:
    """The number that a Pad fills with; None where it is computed. It fills with 0 where it is not told."""
    given = told(graph, op, 2, "value")
    if given is None:
        return 0.0
    return None if given.value is None or given.value.size != 1 else float(given.value.reshape(-1)[0])


def fills_with_infinity(graph: Graph, op: Op) -> bool:
    """Whether a Pad puts an infinite number beyond the border."""
    if op.text("mode", "constant") != "constant":
        return False
    number = filling(graph, op)
    return number is not None and math.isinf(number)


def padding(graph: Graph, op: Op) -> dict[int, tuple[int, int]] | Refuse:
    """How many elements a Pad adds at either end of each axis; before opset 11 an attribute says so."""
    dims, amounts = graph.dims(op.output), told(graph, op, 1, "pads")
    values = None if amounts is None else amounts.numbers
    if dims is None or values is None:
        return refuse(op, "dynamic-pad", "its amounts are computed at run time")
    given = told(graph, op, 3, "axes")
    axes = range(len(dims)) if given is None else given.numbers
    if axes is None or len(values) != 2 * len(axes):
        return refuse(op, "dynamic-pad", "the axes that it pads are computed at run time")
    pairs = zip(values[: len(axes)], values[len(axes) :], strict=True)
    return {axis % len(dims): (int(begin), int(end)) for axis, (begin, end) in zip(axes, pairs, strict=True)}
