"""Quantisation: numbers to steps of a scale and back, and operators on quantised numbers.

What is rounded to a step is divided in float32, as onnxruntime divides it, so that both round to the same step wherever
both are given the same numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.convolution import convolved
from normfold.graph.evaluator.operators.matrix import matmul, shifted, to_int32
from normfold.graph.evaluator.values import DTYPES, Tensor

# Of types that share a torch dtype with a wider one.
_RANGES = {"INT4": (-8, 7), "UINT4": (0, 15), "INT2": (-2, 1), "UINT2": (0, 3)}

# Eight-bit floats: torch's type, and the largest finite number.
_FLOATS = {
    "FLOAT8E4M3FN": (torch.float8_e4m3fn, 448.0),
    "FLOAT8E4M3FNUZ": (torch.float8_e4m3fnuz, 240.0),
    "FLOAT8E5M2": (torch.float8_e5m2, 57344.0),
    "FLOAT8E5M2FNUZ": (torch.float8_e5m2fnuz, 57344.0),
}


def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """saturate(round(x / scale) + zero), halves to even, for a tensor, an axis or blocks of an axis."""
    axis, block = call.integer("axis", 1), call.integer("block_size", 0)
    saturate = bool(call.integer("saturate", 1))
    call.integer("precision", 0)
    kind = call.attribute("output_dtype")
    if not kind:
        kind = 2 if zero is None else _element_type(call, 2)  # 2: uint8
    steps = x.float() / _spread(scale, x, axis, block).float()
    zero = None if zero is None else _spread(zero, x, axis, block)
    by_number = {int(known): known.name for known in DTYPES}
    name = by_number.get(int(kind)) if kind is not None else None
    if name in _FLOATS:
        return _to_float8(steps if zero is None else steps + zero.float(), name, saturate=saturate)
    if name is None and zero is not None and not zero.is_floating_point():
        return saturated(steps.round(), zero, *_range_of(zero.dtype), zero.dtype)
    known = next((known for known in DTYPES if known.name == name), None)
    if known is None or DTYPES[known].is_floating_point or DTYPES[known] == torch.bool:
        raise call.refuse(f"quantisation to {name or 'an unknown type'}")
    least, most = _RANGES.get(str(name), _range_of(DTYPES[known]))
    return saturated(steps.round(), zero, least, most, DTYPES[known])


def _element_type(call: Call, number: int) -> Any:
    """The element type that the graph states for an input, None where it states none."""
    value = call.node.inputs[number]
    if value is None:
        return None
    if value.dtype is None and value.const_value is not None:
        return value.const_value.dtype
    return call.declared(number)


def _range_of(dtype: torch.dtype) -> tuple[int, int]:
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max


def saturated(steps: Tensor, zero: Tensor | None, least: int, most: int, dtype: torch.dtype) -> Tensor:
    """Steps from a zero point, held within a range."""
    moved = steps.double() if zero is None else steps.double() + zero.double()
    return moved.clamp(least, most).long().to(dtype)


def _to_float8(x: Tensor, name: str, *, saturate: bool) -> Tensor:
    dtype, most = _FLOATS[name]
    y = (x.clamp(-most, most) if saturate else x).to(dtype).double()
    # torch saturates this one in any case: what is rounded up beyond the largest has no value.
    return torch.where(x.abs() > 464, math.nan, y) if name == "FLOAT8E4M3FN" and not saturate else y


def _spread(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point in a shape that broadcasts with x."""
    if parameter.numel() == 1 and parameter.dim() <= 1:
        return parameter.reshape(())
    axis %= x.dim()
    if block:
        return parameter.repeat_interleave(block, dim=axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape(-1, *[1] * (x.dim() - axis - 1))


def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(x - zero) * scale, for a tensor, an axis or blocks of an axis."""
    axis, block = call.integer("axis", 1), call.integer("block_size", 0)
    call.integer("output_dtype", 0)
    moved = x.double() if zero is None else x.double() - _spread(zero, x, axis, block).double()
    return moved * _spread(scale, x, axis, block)


def dynamic_quantize(_: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """To uint8 by the range of x, zero included. Outputs: y, its scale, its zero point."""
    narrow = x.float()
    least, most = (
        end.clamp(max=0) if low else end.clamp(min=0) for end, low in zip(narrow.aminmax(), (True, False), strict=True)
    )
    scale = torch.where(most == least, torch.ones(()), (most - least) / 255)
    zero = (0 - least / scale).clamp(0, 255).round()
    y = saturated((narrow / scale).round(), zero, 0, 255, torch.uint8)
    return y, scale.double(), zero.to(torch.uint8)


def quantised_matmul(
    call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """A product of quantised matrices, summed up in int32 and quantised again."""
    total = matmul(call, shifted(a, a_zero, rows=True), shifted(b, b_zero))
    rows = a_scale[:, None] if a_scale.dim() == 1 and a_scale.numel() > 1 else a_scale
    return requantised(total, rows, b_scale, y_scale, y_zero)


def quantised_conv(
    call: Call,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    b: Tensor | None = None,
) -> Tensor:
    """A convolution of quantised numbers, summed up in int32 and quantised again; w by channel or as one."""
    zero = w_zero.reshape(-1, *[1] * (w.dim() - 1)) if w_zero.numel() > 1 else w_zero.reshape(())
    total = convolved(call, shifted(x, x_zero.reshape(())), shifted(w, zero))
    ones = [1] * (total.dim() - 2)
    if b is not None:
        total += b.reshape(-1, *ones).double()
    scale = w_scale.reshape(-1, *ones) if w_scale.numel() > 1 else w_scale.reshape(())
    return requantised(total, x_scale.reshape(()), scale, y_scale.reshape(()), y_zero.reshape(()))


def requantised(total: Tensor, a_scale: Tensor, b_scale: Tensor, y_scale: Tensor, y_zero: Tensor) -> Tensor:
    """Sums of products of steps, in steps of another scale."""
    factor = a_scale.float() * b_scale.float() / y_scale.float()
    steps = (to_int32(total).float() * factor).round()
    return saturated(steps, y_zero, *_range_of(y_zero.dtype), y_zero.dtype)


ROWS: Rows = {
    "DequantizeLinear": {(10, 13, 19, 21, 23, 24, 25, 28): dequantize},
    "DynamicQuantizeLinear": {(11,): dynamic_quantize},
    "QLinearConv": {(10,): quantised_conv},
    "QLinearMatMul": {(10, 21): quantised_matmul},
    "QuantizeLinear": {(10, 13, 19, 21, 23, 24, 25, 28): quantize},
}
