"""Operators that move elements about: shapes, axes, parts. They work on strings too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import Tensor, Value, axis_in, moved


def reshape(call: Call, x: Value, shape: Tensor) -> Value:
    """X in another shape: 0 keeps a dimension (not with `allowzero`), -1 takes what is left."""
    sizes = shape.tolist()
    if not (call.version >= 14 and call.integer("allowzero", 0)):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(call: Call, x: Value) -> Value:
    """X as a matrix: the dimensions before `axis` and those from it on."""
    axis = call.integer("axis", 1)
    axis = axis if axis == x.ndim else axis_in(axis, x.ndim)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(call: Call, x: Value) -> Value:
    """X with its axes in the order `perm`, reversed if there is none."""
    order = call.integers("perm") or list(reversed(range(x.ndim)))
    return moved(lambda values: values.permute(order), x)


def squeeze_1(call: Call, x: Value) -> Value:
    """X without the axes of size 1 that the attribute names, or without all of them."""
    return _squeezed(x, call.integers("axes"))


def squeeze(call: Call, x: Value, axes: Tensor | None = None) -> Value:
    """X without the axes of size 1 that the input names, or without all of them."""
    return _squeezed(x, None if axes is None else axes.reshape(-1).tolist())


def _squeezed(x: Value, axes: Sequence[int] | None) -> Value:
    chosen = {axis_in(axis, x.ndim) for axis in axes or ()} or {axis for axis in range(x.ndim) if x.shape[axis] == 1}
    for axis in chosen:
        if x.shape[axis] != 1:
            raise ValueError(f"axis {axis} of {list(x.shape)} is not of size 1")
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in chosen])


def unsqueeze_1(call: Call, x: Value) -> Value:
    """X with axes of size 1 where the attribute says they are in the result."""
    return _unsqueezed(x, call.integers("axes") or ())


def unsqueeze(call: Call, x: Value, axes: Tensor) -> Value:
    """X with axes of size 1 where the input says they are in the result."""
    return _unsqueezed(x, axes.reshape(-1).tolist())


def _unsqueezed(x: Value, axes: Sequence[int]) -> Value:
    rank = x.ndim + len(axes)
    chosen = {axis_in(axis, rank) for axis in axes}
    if len(chosen) != len(axes):
        raise ValueError("an axis is named twice")
    sizes = iter(x.shape)
    return x.reshape([1 if axis in chosen else next(sizes) for axis in range(rank)])


def concat(call: Call, *parts: Value) -> Value:
    """The inputs, one behind the other."""
    axis = axis_in(call.integer("axis", 1), parts[0].ndim)
    call.reserve(sum(math.prod(part.shape) for part in parts))
    return moved(lambda *values: torch.cat(values, axis), *parts)


def split_2(call: Call, x: Value) -> tuple[Value, ...]:
    """X in parts of the sizes in an attribute, or in equal ones."""
    return _split(call, x, call.integers("split") or _equal(call, x))


def split(call: Call, x: Value, sizes: Tensor | None = None) -> tuple[Value, ...]:
    """X in parts of the sizes in an input, or in equal ones."""
    return _split(call, x, _equal(call, x) if sizes is None else sizes.tolist())


def split_18(call: Call, x: Value, sizes: Tensor | None = None) -> tuple[Value, ...]:
    """As before; `num_outputs` parts are equal but for the last, which may be smaller."""
    count = call.integer("num_outputs", len(call.node.outputs))
    if sizes is not None:
        return _split(call, x, sizes.tolist())
    whole = x.shape[axis_in(call.integer("axis", 0), x.ndim)]
    size = -(-whole // count)
    return _split(call, x, [size] * (count - 1) + [whole - size * (count - 1)])


def _equal(call: Call, x: Value) -> list[int]:
    count = len(call.node.outputs)
    size, rest = divmod(x.shape[axis_in(call.integer("axis", 0), x.ndim)], count)
    if rest:
        raise ValueError(f"{list(x.shape)} cannot be split into {count} equal parts")
    return [size] * count


def _split(call: Call, x: Value, sizes: Sequence[int]) -> tuple[Value, ...]:
    axis = axis_in(call.integer("axis", 0), x.ndim)
    found: tuple[Value, ...] = moved(
        lambda values: tuple(part.clone() for part in torch.split(values, list(sizes), axis)), x
    )
    return found


def slice_1(call: Call, x: Value) -> Value:
    """A part of X: from starts to ends, which are attributes."""
    starts, ends = call.integers("starts") or [], call.integers("ends") or []
    return _sliced(x, starts, ends, call.integers("axes"), None)


def slice_10(
    call: Call, x: Value, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Value:
    """A part of X: from starts to ends in steps, which may go backwards."""
    lists = [None if values is None else values.reshape(-1).tolist() for values in (axes, steps)]
    return _sliced(x, starts.tolist(), ends.tolist(), *lists)


def _sliced(
    x: Value, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None, steps: Sequence[int] | None
) -> Value:
    ranges = [slice(None)] * x.ndim
    backwards = []
    axes = range(len(starts)) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        place = axis_in(axis, x.ndim)
        first, stop, step = slice(start, end, step).indices(x.shape[place])
        if step < 0:
            # Unlike Python's, a slice that goes backwards from before the beginning starts at the first element.
            chosen = range(max(first, 0), stop, step) if x.shape[place] else range(0)
            first, stop, step = (chosen[-1], chosen[0] + 1, -step) if chosen else (0, 0, 1)
            backwards.append(place)
        ranges[place] = slice(first, stop, step)
    # A copy, so that a small part does not keep the whole in memory.
    return moved(lambda values: values[tuple(ranges)].flip(backwards), x)


def tile(call: Call, x: Value, repeats: Tensor) -> Value:
    """X repeated along each axis."""
    times = repeats.tolist()
    if len(times) != x.ndim:
        raise ValueError(f"{len(times)} repeats for {x.ndim} dimensions")
    call.reserve(*(size * count for size, count in zip(x.shape, times, strict=True)))
    return moved(lambda values: values.repeat(times), x)


def expand(call: Call, x: Value, shape: Tensor) -> Value:
    """X broadcast against a shape, both ways."""
    sizes = np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist()))
    call.reserve(*sizes)
    return moved(lambda values: values.expand(sizes), x)


def identity(call: Call, x: Value) -> Value:
    """X: a tensor, a sequence or an optional."""
    return x


def depth_to_space(call: Call, x: Value) -> Value:
    """Channels to blocks of positions: (N, C, H, W) to (N, C / b², H b, W b)."""
    block, mode = call.integer("blocksize", 0), call.text("mode", "DCR")
    batch, channels, height, width = x.shape
    depth = channels // block**2
    if mode == "DCR":
        parts, order = (batch, block, block, depth, height, width), (0, 3, 4, 1, 5, 2)
    else:
        parts, order = (batch, depth, block, block, height, width), (0, 1, 4, 2, 5, 3)
    result = (batch, depth, height * block, width * block)
    return moved(lambda values: values.reshape(parts).permute(order).reshape(result), x)


def space_to_depth(call: Call, x: Value) -> Value:
    """Blocks of positions to channels: (N, C, H, W) to (N, C b², H / b, W / b)."""
    block, mode = call.integer("blocksize", 0), call.text("mode", "DCR")
    batch, channels, height, width = x.shape
    parts = (batch, channels, height // block, block, width // block, block)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    result = (batch, channels * block**2, height // block, width // block)
    return moved(lambda values: values.reshape(parts).permute(order).reshape(result), x)


def trilu(call: Call, x: Value, k: Tensor | None = None) -> Value:
    """The upper (or lower) triangle of matrices, from the k-th diagonal, 0 elsewhere."""
    cut = torch.triu if call.integer("upper", 1) else torch.tril
    diagonal = 0 if k is None else int(k)
    return moved(lambda values: cut(values, diagonal), x)


def reverse_sequence(call: Call, x: Value, lengths: Tensor) -> Value:
    """X with the first `lengths[b]` steps of every sequence b in reverse."""
    batch = axis_in(call.integer("batch_axis", 1), x.ndim)
    time = axis_in(call.integer("time_axis", 0), x.ndim)
    steps = torch.arange(x.shape[time])
    sizes = lengths.reshape(-1, 1)
    places = torch.where(steps < sizes, sizes - 1 - steps, steps)
    rows = torch.arange(x.shape[batch]).reshape(-1, 1)
    others = [axis for axis in range(x.ndim) if axis not in (batch, time)]
    order = [batch, time, *others]
    back = [order.index(axis) for axis in range(x.ndim)]
    return moved(lambda values: values.permute(order)[rows, places].permute(back), x)


def shape(call: Call, x: Value) -> Tensor:
    """The shape of X, or a part of it."""
    if call.version < 15:
        return torch.tensor(x.shape, dtype=torch.int64)
    part = slice(call.integer("start", 0), call.integer("end", x.ndim))
    return torch.tensor(tuple(x.shape)[part], dtype=torch.int64)


def size(call: Call, x: Value) -> Tensor:
    """How many elements X has."""
    return torch.tensor(math.prod(x.shape), dtype=torch.int64)


ROWS: Rows = {
    "Concat": {(4, 11, 13): concat},
    "DepthToSpace": {(1, 11, 13, 28): depth_to_space},
    "Expand": {(8, 13): expand},
    "Flatten": {(1, 9, 11, 13, 21, 23, 24, 25): flatten},
    "Identity": {(1, 13, 14, 16, 19, 21, 23, 24, 25): identity},
    "Reshape": {(5, 13, 14, 19, 21, 23, 24, 25): reshape},
    "ReverseSequence": {(10, 28): reverse_sequence},
    "Shape": {(1, 13, 15, 19, 21, 23, 24, 25): shape},
    "Size": {(1, 13, 19, 21, 23, 24, 25): size},
    "Slice": {(1,): slice_1, (10, 11, 13): slice_10},
    "SpaceToDepth": {(1, 13, 28): space_to_depth},
    "Split": {(2, 11): split_2, (13,): split, (18,): split_18},
    "Squeeze": {(1, 11): squeeze_1, (13, 21, 23, 24, 25): squeeze},
    "Tile": {(6, 13): tile},
    "Transpose": {(1, 13, 21, 23, 24, 25): transpose},
    "Trilu": {(14,): trilu},
    "Unsqueeze": {(1, 11): unsqueeze_1, (13, 21, 23, 24, 25): unsqueeze},
}
