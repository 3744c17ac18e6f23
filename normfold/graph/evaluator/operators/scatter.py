"""Operators that write into a copy of a tensor. Where several updates meet without a reduction the last one stays."""

from __future__ import annotations

import math

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.indexing import from_front
from normfold.graph.evaluator.values import Array, Tensor, Value, axis_in, is_float, moved, through_numpy

_OF_TORCH = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
_OF_NUMPY = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def scatter_elements(call: Call, x: Value, indices: Tensor, updates: Value) -> Value:
    """X, with every update in the row of its index along an axis."""
    axis = axis_in(call.integer("axis", 0), x.ndim)
    reduction = call.text("reduction", "none") if call.version >= 16 else "none"
    return _scattered(x, axis, from_front(indices, x.shape[axis]), updates, reduction)


def scatter_nd(call: Call, x: Value, indices: Tensor, updates: Value) -> Value:
    """X, with parts replaced, by the numbers of their first axes."""
    reduction = call.text("reduction", "none") if call.version >= 16 else "none"
    depth = indices.shape[-1]
    sizes = tuple(x.shape[:depth])
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for size, places in zip(sizes, indices.unbind(-1), strict=True):
        places = from_front(places, size)
        if bool(((places < 0) | (places >= size)).any()):
            raise IndexError(f"an index is outside of the first {depth} axes of {list(x.shape)}")
        flat = flat * size + places
    rest = math.prod(x.shape[depth:])
    rows = flat.reshape(-1, 1).expand(-1, rest)
    whole = x.reshape(math.prod(sizes), rest)
    return _scattered(whole, 0, rows, updates.reshape(rows.shape), reduction).reshape(x.shape)


def _scattered(x: Value, axis: int, places: Tensor, updates: Value, reduction: str) -> Value:
    if reduction == "none":
        return moved(lambda values, new: values.scatter(axis, places, new), x, updates)
    if is_float(x):
        return x.scatter_reduce(axis, places, updates, _OF_TORCH[reduction], include_self=True)

    def reduced(array: Array, indices: Array, new: Array) -> Array:
        array, where = array.copy(), np.indices(indices.shape)
        where[axis] = indices
        _OF_NUMPY[reduction].at(array, tuple(where), new[tuple(map(slice, indices.shape))])
        return array

    return through_numpy(reduced, x, places, updates)


def tensor_scatter(call: Call, cache: Tensor, update: Tensor, starts: Tensor | None = None) -> Tensor:
    """A cache with new steps written in, for each sample of the batch from its own place on, round the end if asked."""
    axis = axis_in(call.integer("axis", -2), cache.ndim)
    mode, room = call.text("mode", "linear"), cache.shape[axis]
    steps = torch.arange(update.shape[axis])
    starts = torch.zeros(cache.shape[0], dtype=torch.int64) if starts is None else starts
    places = starts.reshape(-1, 1) + steps
    if mode == "circular":
        places = places.remainder(room)
    shape = [1] * cache.ndim
    shape[0], shape[axis] = places.shape
    index = places.reshape(shape).expand(update.shape)
    found: Tensor = moved(lambda values, new: values.scatter(axis, index, new), cache, update)
    return found


ROWS: Rows = {
    "Scatter": {(9, 11): scatter_elements},
    "ScatterElements": {(11, 13, 16, 18): scatter_elements},
    "ScatterND": {(11, 13, 16, 18): scatter_nd},
    "TensorScatter": {(24,): tensor_scatter},
}
