"""Operators that pick elements out: by their places, or by what they are."""

from __future__ import annotations

import math

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.casts import truncated
from normfold.graph.evaluator.values import Tensor, Value, axis_in, is_float, moved, through_numpy, to_numpy


def gather(call: Call, x: Value, indices: Tensor) -> Value:
    """Slices of X along an axis, by number; negative ones count from the end."""
    axis = axis_in(call.integer("axis", 0), x.ndim)
    sizes = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    call.reserve(*sizes)
    places = from_front(indices, x.shape[axis]).reshape(-1)
    return moved(lambda values: values.index_select(axis, places).reshape(sizes), x)


def from_front(indices: Tensor, size: int) -> Tensor:
    """Indices of which negative ones count from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def gather_elements(call: Call, x: Value, indices: Tensor) -> Value:
    """For every index the element of X in its row along an axis."""
    axis = axis_in(call.integer("axis", 0), x.ndim)
    places = from_front(indices, x.shape[axis])
    return moved(lambda values: values.gather(axis, places), x)


def gather_nd(call: Call, x: Value, indices: Tensor) -> Value:
    """Parts of X by the numbers of their first axes, behind the batch axes that both have."""
    batch_axes = call.integer("batch_dims", 0) if call.version >= 12 else 0
    rows, depth = math.prod(x.shape[:batch_axes]), indices.shape[-1]
    sizes = (*indices.shape[:-1], *x.shape[batch_axes + depth :])
    call.reserve(*sizes)
    places = indices.reshape(rows, math.prod(indices.shape[batch_axes:-1]), depth).to(torch.int64).unbind(-1)
    inner = x.shape[batch_axes:]
    row = torch.arange(rows).reshape(-1, 1)
    return moved(lambda values: values.reshape(rows, *inner)[(row, *places)].reshape(sizes), x)


def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Value) -> Value:
    """values[1] where the new axis has the number that the index says, values[0] elsewhere."""
    count = int(depth)
    if count <= 0:
        raise ValueError(f"the depth {count} is not positive")
    axis = axis_in(call.integer("axis", -1), indices.ndim + 1)
    call.reserve(*indices.shape, count)
    whole = truncated(indices, torch.int64) if is_float(indices) else indices
    steps = torch.arange(count).reshape([-1 if place == axis else 1 for place in range(indices.ndim + 1)])
    hot = from_front(whole, count).unsqueeze(axis) == steps
    return moved(lambda both: torch.where(hot, both[1], both[0]), values)


def non_zero(call: Call, x: Tensor) -> Tensor:
    """The places of what is not 0, a column each. A scalar counts as one row, against the schema's text, which gives
    it none, as in onnxruntime.
    """
    found: Tensor = through_numpy(lambda array: np.stack(np.nonzero(np.atleast_1d(array))).astype(np.int64), x)
    return found


def unique(call: Call, x: Value) -> tuple[Value, ...]:
    """What is in X once each, sorted or in order of appearance; where first, where what is, how often."""
    axis, is_sorted = call.attribute("axis"), bool(call.integer("sorted", 1))
    array = to_numpy(x)
    axis = None if axis is None else axis_in(int(axis), array.ndim)
    comparable = array.astype(np.str_) if array.dtype == object else array
    _, first, inverse, counts = np.unique(
        comparable, axis=axis, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.arange(len(first)) if is_sorted else np.argsort(first, kind="stable")
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    first = first[order]
    numbers = first, back[inverse.reshape(-1)], counts[order]
    picked = array.reshape(-1)[first] if axis is None else array.take(first, axis)
    return tuple(through_numpy(lambda found: found, item) for item in (picked, *(n.astype(np.int64) for n in numbers)))


def top_k_1(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest along an axis, k an attribute."""
    return _top(call, x, call.integer("k", 0))


def top_k(call: Call, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) along an axis, in order; the first of equals comes first. What `sorted=0` leaves
    open is in order too.
    """
    call.integer("sorted", 1)
    return _top(call, x, int(k))


def _top(call: Call, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    axis = axis_in(call.integer("axis", -1), x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"there are no {k} elements along axis {axis} of {list(x.shape)}")
    downwards = bool(call.integer("largest", 1))
    places = torch.sort(ordered(x), stable=True, dim=axis, descending=downwards)[1].narrow(axis, 0, k)
    found: Tensor = moved(lambda values: values.gather(axis, places), x)
    return found, places.clone()


def ordered(x: Tensor) -> Tensor:
    """Numbers in the same order, of a type that torch can compare."""
    if x.dtype == torch.uint64:
        return x.view(torch.int64) ^ torch.iinfo(torch.int64).min
    return x.to(torch.int64) if x.dtype in (torch.uint16, torch.uint32, torch.bool) else x


def compress(call: Call, x: Value, condition: Tensor) -> Value:
    """The slices of X for which the condition holds; it may be shorter than the axis."""
    places = condition.reshape(-1).nonzero().reshape(-1)
    axis = call.attribute("axis")
    if axis is None:
        return moved(lambda values: values.reshape(-1).index_select(0, places), x)
    return moved(lambda values: values.index_select(axis_in(int(axis), x.ndim), places), x)


ROWS: Rows = {
    "Compress": {(9, 11, 28): compress},
    "Gather": {(1, 11, 13): gather},
    "GatherElements": {(11, 13): gather_elements},
    "GatherND": {(11, 12, 13): gather_nd},
    "NonZero": {(9, 13): non_zero},
    "OneHot": {(9, 11, 28): one_hot},
    "TopK": {(1,): top_k_1, (10, 11, 24): top_k},
    "Unique": {(11, 28): unique},
}
