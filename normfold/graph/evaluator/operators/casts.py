"""Casts.

Between floats of 16 bits and more a cast is the identity: the truth is the model without rounding. Two casts round:
that of a constant, whose stored form is part of the model, and that to eight or four bits, which is a quantisation.
What C leaves undefined is what onnxruntime gets on x86.
"""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import (
    DTYPES,
    Array,
    ElementType,
    Tensor,
    Value,
    from_numpy,
    is_float,
    strings,
    through_numpy,
    to_numpy,
)

_T = ElementType
_ROUNDED = {_T.FLOAT: np.float32, _T.FLOAT16: np.float16, _T.BFLOAT16: ml_dtypes.bfloat16}
_NARROW = {
    _T.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    _T.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    _T.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    _T.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    _T.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
}
_LARGEST = {
    _T.FLOAT8E4M3FN: 448.0,
    _T.FLOAT8E4M3FNUZ: 240.0,
    _T.FLOAT8E5M2: 57344.0,
    _T.FLOAT8E5M2FNUZ: 57344.0,
    _T.FLOAT4E2M1: 6.0,
}
_NIBBLES = {_T.INT4: (4, True), _T.UINT4: (4, False), _T.INT2: (2, True), _T.UINT2: (2, False)}
# Digits that onnxruntime prints of a float, of a double too.
_DIGITS = 8


def cast(call: Call, x: Value) -> Value:
    """X in the element type `to`."""
    return _cast(call, x, call.element_type("to", _T.UNDEFINED))


def cast_like(call: Call, x: Value, like: Value) -> Value:
    """X in the element type of the second input."""
    kind = call.declared(1)
    if kind is None or not isinstance(like, Tensor) or DTYPES.get(kind) != like.dtype:
        kind = _type_of(like)
    return _cast(call, x, kind)


def _type_of(value: Value) -> ElementType:
    """The first element type that is held as this value is: FLOAT of all floats."""
    if not isinstance(value, Tensor):
        return _T.STRING
    return next(kind for kind, dtype in DTYPES.items() if dtype == value.dtype)


def _cast(call: Call, x: Value, to: ElementType) -> Value:
    saturate, mode = bool(call.integer("saturate", 1)), call.text("round_mode", "up")
    if to == _T.STRING:
        return _printed(call, x)
    if to not in DTYPES:
        raise call.refuse(f"it casts to {to}")
    if not isinstance(x, Tensor):
        x = _parsed(x, is_target_float=DTYPES[to] == torch.float64)
    if to == _T.BOOL:
        return x if x.dtype == torch.bool else x != 0
    if to in _NIBBLES:
        return _nibble(x, *_NIBBLES[to])
    if DTYPES[to] != torch.float64:
        return truncated(x, DTYPES[to]) if is_float(x) else _wrapped(x, DTYPES[to])
    x = x.to(torch.float64)
    if to == _T.FLOAT8E8M0:
        return power_of_two(x, saturate=saturate, mode=mode)
    if to in _NARROW:
        return on_grid(x, to, saturate=saturate)
    return rounded(x, to) if call.constant else x


def rounded(x: Tensor, to: ElementType) -> Tensor:
    """Floats as this type of 16 bits or more stores them."""
    if to not in _ROUNDED:
        return x
    with np.errstate(over="ignore", invalid="ignore"):
        found: Tensor = from_numpy(x.numpy().astype(_ROUNDED[to]))
    return found


def on_grid(x: Tensor, to: ElementType, *, saturate: bool = True) -> Tensor:
    """Floats as an eight-bit (or four-bit) type stores them, half to even; out of range they are its largest, with
    their sign, or without `saturate` infinite, and NaN in the types that have no infinity.
    """
    dtype = _NARROW[to]
    if saturate:
        largest = _LARGEST[to]
        x = torch.clamp(x, -largest, largest)
    found: Tensor = from_numpy(x.numpy().astype(dtype))
    return found


def power_of_two(x: Tensor, *, saturate: bool = True, mode: str = "up") -> Tensor:
    """Floats as FLOAT8E8M0 stores them, which has powers of two from -127 to 127 only, and NaN."""
    mantissa, exponent = torch.frexp(x)  # of 0.5 to 1
    up = {"up": mantissa > 0.5, "down": mantissa > 1, "nearest": mantissa >= 0.75}[mode]
    exponent = exponent - 1 + up.to(exponent.dtype)
    exponent = torch.where(x.isposinf(), 200, torch.where(x == 0, -200, exponent))
    outside = (x.isnan()) if saturate else (exponent.abs() > 127) | x.isnan()
    found = torch.ldexp(torch.ones_like(x), exponent.clamp(-127, 127))
    return torch.where(outside, torch.nan, found)


def truncated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats as integers, as x86 casts them: towards zero, in 32 bits, or in 64 for a wide target, of which the low
    ones are kept; what has no place in those is their smallest number.
    """
    if dtype in (torch.uint64, torch.uint32):
        signed = torch.int64 if dtype == torch.uint64 else torch.int32
        middle = -torch.iinfo(signed).min
        low = _of_x86(torch.where(x >= middle, x - middle, x), signed)
        return torch.where(x >= middle, low ^ -middle, low).view(dtype)
    return _wrapped(_of_x86(x, torch.int64 if dtype == torch.int64 else torch.int32), dtype)


def _of_x86(x: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    edge = -float(limits.min)
    fits = (x > -edge - 1) & (x < edge) | (x == -edge)
    return torch.where(fits, torch.where(fits, x, 0).to(dtype), limits.min)


def _wrapped(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers with the bits that the new type has room for."""
    target = torch.zeros((), dtype=dtype).numpy().dtype
    found: Tensor = through_numpy(lambda array: array.astype(target), x)
    return found


def _nibble(x: Tensor, bits: int, signed: bool) -> Tensor:
    """The low bits; floats are rounded before, halves away from zero, as onnxruntime does for these types only."""
    if is_float(x):
        x = _of_x86(torch.trunc(x + torch.copysign(torch.tensor(0.5, dtype=x.dtype), x)), torch.int32)
    low = x.to(torch.int64) & ((1 << bits) - 1)
    if not signed:
        return low.to(torch.uint8)
    return torch.where(low >= 1 << (bits - 1), low - (1 << bits), low).to(torch.int8)


def _printed(call: Call, x: Value) -> Value:
    """Numbers as onnxruntime prints them: floats of the type that the file declares, with 8 digits."""
    if not isinstance(x, Tensor):
        return x
    if not is_float(x):
        return strings(to_numpy(x.to(torch.uint8) if x.dtype == torch.bool else x))
    kind = call.declared(0) or _T.FLOAT
    named = {"nan": "NaN", "inf": "INF", "-inf": "-INF"}
    texts = [f"{float(item):.{_DIGITS}g}" for item in rounded(x, kind).reshape(-1).tolist()]
    return strings(np.array([named.get(text, text) for text in texts], dtype=object).reshape(x.shape))


def _parsed(x: Array, *, is_target_float: bool) -> Tensor:
    """Strings as numbers, the longest beginning that is one."""
    pattern = r"\s*[+-]?(?:inf|nan|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)" if is_target_float else r"\s*[+-]?\d+"
    found: list[float | int] = []
    for item in x.reshape(-1):
        start = re.match(pattern, item, re.IGNORECASE)
        if start is None:
            raise ValueError(f"{item!r} is not a number")
        found.append(float(start[0]) if is_target_float else int(start[0]))
    dtype = torch.float64 if is_target_float else torch.int64
    return torch.tensor(found, dtype=dtype).reshape(x.shape)


def bit_cast(call: Call, x: Tensor) -> Tensor:
    """The bits of X, read as another type: of a float, those that its type in the file would hold."""
    to, kind = call.element_type("to", _T.UNDEFINED), call.declared(0)
    if is_float(x) and kind not in (*_ROUNDED, _T.DOUBLE):
        raise call.refuse(f"it reads the bits of {kind or 'an undeclared type'}")
    if to not in DTYPES or to in _NIBBLES or to in _NARROW:
        raise call.refuse(f"it reads bits as {to}")
    with np.errstate(over="ignore"):
        stored = x.numpy().astype(kind.numpy()) if is_float(x) and kind is not None else x.numpy()
    found: Tensor = from_numpy(stored.view(to.numpy()))
    return found


ROWS: Rows = {
    "BitCast": {(26,): bit_cast},
    "Cast": {(6, 9, 13, 19, 21, 23, 24, 25, 28): cast},
    "CastLike": {(15, 19, 21, 23, 24, 25): cast_like},
}
