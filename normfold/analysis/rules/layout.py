"""The axis maps of operators that move elements without changing them: one function `(graph, op)` for each."""

from __future__ import annotations

from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules.axis_maps import AxisMap, Expanded, Gathered, Permuted, Regrouped, Same, Windowed
from normfold.graph.types import Op
from normfold.graph.view import Graph


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
    """Slice (opset 10 and later: starts, ends, axes and steps are inputs)."""
    dims = graph.dims(op.output)
    if dims is None:
        return refuse(op, "unknown-shape", "the rank of its output is not known")
    arguments = list(op.inputs[1:5])
    known = [None if v is None or not graph.is_constant(v) else graph.constant(v).tolist() for v in arguments]
    known += [None] * (4 - len(known))
    starts, ends, axes, steps = known
    given = len(arguments) > 2 and arguments[2] is not None
    if given and axes is None:
        return refuse(op, "dynamic-slice", "its axes are computed at run time")
    if axes is None and starts is None:
        return Windowed(op, frozenset(range(len(dims))))
    touched = [axis % len(dims) for axis in (axes if axes is not None else range(len(starts or ())))]
    if starts is None or ends is None or (len(arguments) > 3 and arguments[3] is not None and steps is None):
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
    return Gathered(op, op.integer("axis", 0) % len(data), len(indices))


def gather_nd(graph: Graph, op: Op) -> AxisMap | Refuse:
    """GatherND whose indices are single numbers: a Gather along the first axis (a table read by `table[positions]`)."""
    data, indices = (None if value is None else graph.dims(value) for value in op.inputs[:2])
    if data is None or not indices:
        return refuse(op, "unknown-shape", "the rank of an input is not known")
    if op.integer("batch_dims", 0) or not indices[-1].static or indices[-1].size != 1:
        return refuse(op, "wall", "its indices are no single numbers along the first axis")
    return Gathered(op, 0, len(indices) - 1)


def pad(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Pad (opset 11 and later: the amounts are an input)."""
    amounts = op.inputs[1] if len(op.inputs) > 1 else None
    dims = graph.dims(op.output)
    if amounts is None or dims is None or not graph.is_constant(amounts):
        return refuse(op, "dynamic-pad", "its amounts are computed at run time")
    if len(op.inputs) > 3 and op.inputs[3] is not None:
        return refuse(op, "dynamic-pad", "pads chosen axes")
    values = graph.constant(amounts).tolist()
    rank = len(dims)
    return Windowed(op, frozenset(axis for axis in range(rank) if values[axis] or values[axis + rank]))
