"""What the tensors of a graph are while it runs in float64.

Floats of any width are torch.float64; integers and booleans are torch tensors of their own dtype, the four- and two-bit
ones in eight bits; strings are numpy arrays of dtype object that hold str; sequences are lists and maps dicts; an
optional that holds nothing is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

Array = npt.NDArray[Any]
Tensor = torch.Tensor
Value = Any

_NARROW_INTEGERS = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8}

# ONNX's element types, by the torch dtype that holds them here.
DTYPES: Mapping[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float64,
    ir.DataType.FLOAT16: torch.float64,
    ir.DataType.BFLOAT16: torch.float64,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT8E4M3FN: torch.float64,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float64,
    ir.DataType.FLOAT8E5M2: torch.float64,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float64,
    ir.DataType.FLOAT4E2M1: torch.float64,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
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
