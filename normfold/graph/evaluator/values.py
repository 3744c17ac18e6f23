"""What the tensors of a graph are while it runs in float64.

Floats of any width are torch.float64; integers and booleans are torch tensors of their own dtype, the four- and two-bit
ones in eight bits; strings are numpy arrays of dtype object that hold str; sequences are lists and maps dicts; an
optional that holds nothing is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

Array = npt.NDArray[Any]
Tensor = torch.Tensor
Value = Any
ElementType = ir.DataType

_NARROW_INTEGERS = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8}

# ONNX's element types, by the torch dtype that holds them here.
DTYPES: Mapping[ElementType, torch.dtype] = {
    ElementType.FLOAT: torch.float64,
    ElementType.FLOAT16: torch.float64,
    ElementType.BFLOAT16: torch.float64,
    ElementType.DOUBLE: torch.float64,
    ElementType.FLOAT8E4M3FN: torch.float64,
    ElementType.FLOAT8E4M3FNUZ: torch.float64,
    ElementType.FLOAT8E5M2: torch.float64,
    ElementType.FLOAT8E5M2FNUZ: torch.float64,
    ElementType.FLOAT8E8M0: torch.float64,
    ElementType.FLOAT4E2M1: torch.float64,
    ElementType.BOOL: torch.bool,
    ElementType.INT8: torch.int8,
    ElementType.INT16: torch.int16,
    ElementType.INT32: torch.int32,
    ElementType.INT64: torch.int64,
    ElementType.UINT8: torch.uint8,
    ElementType.UINT16: torch.uint16,
    ElementType.UINT32: torch.uint32,
    ElementType.UINT64: torch.uint64,
    ElementType.INT4: torch.int8,
    ElementType.UINT4: torch.uint8,
    ElementType.INT2: torch.int8,
    ElementType.UINT2: torch.uint8,
}

# torch has few kernels for wide unsigned integers; these have the same bits.
_SIGNED: Mapping[torch.dtype, torch.dtype] = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}


def from_numpy(array: Array) -> Value:
    """A numpy array as a value: floats of any width in float64, the rest as it is. The array is copied."""
    array = np.asarray(array)
    if array.dtype.kind in "OSU":
        return strings(array)
    name = array.dtype.name
    if array.dtype.kind == "f" or name.startswith(("bfloat", "float")):
        return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
    return torch.from_numpy(np.array(array, dtype=_NARROW_INTEGERS.get(name, array.dtype), order="C"))


def to_numpy(value: Value) -> Any:
    """A value as numpy holds it; sequences become lists and maps dicts of such values."""
    if isinstance(value, Tensor):
        return value.detach().contiguous().numpy()
    if isinstance(value, list):
        return [to_numpy(item) for item in value]
    if isinstance(value, dict):
        return {key: to_numpy(item) if isinstance(item, Tensor) else item for key, item in value.items()}
    return value


def strings(array: Array) -> Array:
    """An array of str."""
    found = np.empty(array.shape, dtype=object)
    found.reshape(-1)[:] = [
        item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in array.reshape(-1)
    ]
    return found


def empty(sizes: Sequence[int], kind: ElementType | None) -> Value:
    """A tensor without elements; floating where no type is known."""
    if kind == ElementType.STRING:
        return np.empty(tuple(sizes), dtype=object)
    return torch.zeros(tuple(sizes), dtype=DTYPES.get(kind or ElementType.FLOAT, torch.float64))


def size_of(value: Value) -> int:
    """How many elements a value has, of all its parts."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, list):
        return sum(map(size_of, value))
    return 0


def broadcast(*tensors: Tensor) -> tuple[int, ...]:
    """The shape that these tensors have together. Raises ValueError where they do not fit."""
    return tuple(np.broadcast_shapes(*(tuple(tensor.shape) for tensor in tensors)))


def axis_in(axis: int, rank: int) -> int:
    """An axis counted from the front. Raises ValueError where there is none of this number."""
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} in {rank} dimensions")
    return axis % rank


def is_float(value: Value) -> bool:
    """Whether this is a floating tensor."""
    return isinstance(value, Tensor) and value.dtype == torch.float64


def through_numpy(function: Callable[..., Any], *values: Value) -> Any:
    """What a function of numpy makes of these values. Integers wrap as in C; a division by zero raises."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="raise"):
        return _each(_adopted, function(*map(to_numpy, values)))


def by_bits(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Run a function for which signed integers of the same bits do as well: one that moves elements, or adds them."""
    dtype = tensors[0].dtype
    if dtype not in _SIGNED:
        return function(*tensors)
    return _each(lambda found: found.view(dtype), function(*(tensor.view(_SIGNED[dtype]) for tensor in tensors)))


def moved(function: Callable[..., Any], *values: Value) -> Any:
    """Run a function of torch that only moves elements about, on tensors of any type: strings too, by their places."""
    if not isinstance(values[0], np.ndarray):
        return by_bits(function, *values)
    table = np.concatenate([value.reshape(-1) for value in values])
    places = torch.split(torch.arange(len(table)), [value.size for value in values])
    found = function(*(place.reshape(value.shape) for place, value in zip(places, values, strict=True)))
    return _each(lambda place: _taken(table, place), found)


def _each(function: Callable[[Any], Any], found: Any) -> Any:
    return type(found)(map(function, found)) if isinstance(found, tuple | list) else function(found)


def _adopted(array: Any) -> Value:
    """A new array as a value, without a copy where torch can do without."""
    array = np.asarray(array)
    if array.dtype == object:
        return array
    floating = array.dtype.kind == "f"
    if min(array.strides, default=0) < 0:  # also where numpy takes a turned axis of one element for contiguous
        array = array.copy()
    return torch.from_numpy(np.require(array, np.float64 if floating else None, requirements=["C", "W"]))


def _taken(table: Array, places: Tensor) -> Array:
    found = np.empty(tuple(places.shape), dtype=object)
    found[...] = table[places.numpy()]
    return found
