"""Operators that make tensors out of nothing, or of a shape."""

from __future__ import annotations

import math

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import DTYPES, Array, ElementType, Tensor, Value, is_float, through_numpy


def constant(call: Call) -> Value:
    """The attribute: a tensor, a number, a string, or a list of them. Sparse ones are dense since the file was read."""
    if call.has("value"):
        return call.tensor("value")
    if call.has("value_float"):
        return torch.tensor(call.number("value_float", 0.0), dtype=torch.float64)
    if call.has("value_int"):
        return torch.tensor(call.integer("value_int", 0), dtype=torch.int64)
    if call.has("value_string"):
        return _texts([call.text("value_string", "")]).reshape(())
    if call.has("value_floats"):
        return torch.tensor(call.numbers("value_floats"), dtype=torch.float64)
    if call.has("value_ints"):
        return torch.tensor(call.integers("value_ints"), dtype=torch.int64)
    return _texts(call.texts("value_strings") or [])


def _texts(items: list[str]) -> Array:
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


def constant_of_shape(call: Call, shape: Tensor) -> Value:
    """One value in a shape."""
    value = call.tensor("value")
    sizes = shape.tolist()
    call.reserve(*sizes)
    if isinstance(value, np.ndarray):
        return np.full(sizes, value.reshape(-1)[0], dtype=object)
    if value is None:
        return torch.zeros(sizes, dtype=torch.float64)
    return value.reshape(()).expand(sizes).clone()


def number_range(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """From start in steps of delta, up to limit, which is left out."""
    call.integer("stash_type", 1)  # how float16 is worked
    first, last, step = (value.reshape(()).item() for value in (start, limit, delta))
    count = max(math.ceil((last - first) / step), 0)
    if not is_float(start):
        count = len(range(int(first), int(last), int(step)))
    call.reserve(count)
    steps = torch.arange(count, dtype=torch.float64 if is_float(start) else torch.int64)
    return (first + steps * step).to(start.dtype)


def eye_like(call: Call, x: Tensor) -> Tensor:
    """Ones on the k-th diagonal of a matrix of the size of X, 0 elsewhere."""
    rows, columns = x.shape
    offset = call.integer("k", 0)
    dtype = DTYPES[call.element_type("dtype", ElementType.FLOAT)] if call.has("dtype") else x.dtype
    target = torch.zeros((), dtype=dtype).numpy().dtype
    found: Tensor = through_numpy(lambda: np.eye(rows, columns, offset, dtype=target))
    return found


ROWS: Rows = {
    "Constant": {(1, 9, 11, 12, 13, 19, 21, 23, 24, 25): constant},
    "ConstantOfShape": {(9, 20, 21, 23, 24, 25): constant_of_shape},
    "EyeLike": {(9, 22): eye_like},
    "Range": {(11, 27): number_range},
}
