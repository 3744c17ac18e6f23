"""Arithmetic and elementary functions, element by element, with numpy's broadcasting.

Integers wrap as in C. Where torch has no kernel for them (the wide unsigned ones) or another idea of a division,
numpy's are used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Function, Rows
from normfold.graph.evaluator.operators.casts import truncated
from normfold.graph.evaluator.values import Array, Tensor, broadcast, by_bits, is_float, through_numpy

Binary = Callable[[Tensor, Tensor], Tensor]

# What Clip keeps to where a bound is left out: numeric_limits<float>.
_LARGEST = float(np.finfo(np.float32).max)


def add(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """A + B."""
    call.reserve(*broadcast(a, b))
    found: Tensor = by_bits(torch.add, a, b)
    return found


def subtract(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """A - B."""
    call.reserve(*broadcast(a, b))
    found: Tensor = by_bits(torch.sub, a, b)
    return found


def multiply(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """A * B."""
    call.reserve(*broadcast(a, b))
    found: Tensor = by_bits(torch.mul, a, b)
    return found


def divide(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """A / B; integers towards zero, as in C."""
    call.reserve(*broadcast(a, b))
    if is_float(a):
        return a / b
    found: Tensor = through_numpy(_towards_zero, a, b)
    return found


def _towards_zero(a: Array, b: Array) -> Array:
    floor = a // b
    rest = a - floor * b
    found: Array = floor + ((rest != 0) & ((a < 0) != (b < 0))).astype(a.dtype)
    return found


def modulo(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """The rest of A / B, with the sign of B, or with that of A where `fmod` is 1.

    Before opset 28 floats are for fmod alone; onnxruntime refuses the rest, and any model that has it.
    """
    call.reserve(*broadcast(a, b))
    of_dividend = call.integer("fmod", 0)
    if is_float(a):
        return torch.fmod(a, b) if of_dividend else torch.remainder(a, b)
    found: Tensor = through_numpy(np.fmod if of_dividend else np.mod, a, b)
    return found


def power(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """A to the power B, in the type of A. Integers go through double, as in onnxruntime, but for its own short cuts:
    a scalar exponent of 2 or 3.
    """
    call.reserve(*broadcast(a, b))
    if is_float(a):
        return torch.pow(a, b.to(a.dtype))
    if b.numel() == 1 and float(b) in (2.0, 3.0):
        found: Tensor = by_bits(lambda base: base**2 if float(b) == 2.0 else base**3, a)
        return found.expand(broadcast(a, b))
    return truncated(torch.pow(a.to(torch.float64), b.to(torch.float64)), a.dtype)


def larger(a: Tensor, b: Tensor) -> Tensor:
    """The larger of two, NaN where one of them is."""
    found: Tensor = torch.maximum(a, b) if is_float(a) else through_numpy(np.maximum, a, b)
    return found


def smaller(a: Tensor, b: Tensor) -> Tensor:
    """The smaller of two, NaN where one of them is."""
    found: Tensor = torch.minimum(a, b) if is_float(a) else through_numpy(np.minimum, a, b)
    return found


def _variadic(function: Binary) -> Function:
    def run(call: Call, *tensors: Tensor) -> Tensor:
        call.reserve(*broadcast(*tensors))
        return reduce(function, tensors)

    return run


def mean(call: Call, *tensors: Tensor) -> Tensor:
    """The mean of all inputs."""
    call.reserve(*broadcast(*tensors))
    return reduce(torch.add, tensors) / len(tensors)


def clip_6(call: Call, x: Tensor) -> Tensor:
    """min(max(X, min), max), the bounds being attributes."""
    return torch.clamp(x, call.number("min", -_LARGEST), call.number("max", _LARGEST))


def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """min(max(X, min), max): where min > max, all is max. A float bound that is left out is the largest of float32,
    as in onnxruntime, so that no infinity passes.
    """
    if (low is None or high is None) and is_float(x) and x.isinf().any():
        wide = torch.finfo(torch.float64).max if str(call.declared(0)) == "DOUBLE" else _LARGEST
        low = torch.full((), -wide, dtype=x.dtype) if low is None else low
        high = torch.full((), wide, dtype=x.dtype) if high is None else high
    if low is not None and high is not None and is_float(x):
        return torch.clamp(x, low.reshape(()), high.reshape(()))
    x = x if low is None else larger(x, low.reshape(()))
    return x if high is None else smaller(x, high.reshape(()))


def absolute(call: Call, x: Tensor) -> Tensor:
    """|X|; the smallest integer stays as it is."""
    return torch.abs(x) if x.dtype.is_signed else x


def sign(call: Call, x: Tensor) -> Tensor:
    """-1, 0 or 1; NaN stays NaN."""
    if is_float(x):
        return torch.where(x.isnan(), x, torch.sign(x))
    found: Tensor = through_numpy(np.sign, x)
    return found


def _unary(function: Callable[[Tensor], Tensor]) -> Function:
    def run(call: Call, x: Tensor) -> Tensor:
        return function(x)

    return run


ROWS: Rows = {
    "Abs": {(6, 13): absolute},
    "Acos": {(7, 22): _unary(torch.acos)},
    "Acosh": {(9, 22): _unary(torch.acosh)},
    "Add": {(7, 13, 14): add},
    "Asin": {(7, 22): _unary(torch.asin)},
    "Asinh": {(9, 22): _unary(torch.asinh)},
    "Atan": {(7, 22): _unary(torch.atan)},
    "Atanh": {(9, 22): _unary(torch.atanh)},
    "Ceil": {(6, 13): _unary(torch.ceil)},
    "Clip": {(6,): clip_6, (11, 12, 13): clip},
    "Cos": {(7, 22): _unary(torch.cos)},
    "Cosh": {(9, 22): _unary(torch.cosh)},
    "Div": {(7, 13, 14): divide},
    "Erf": {(9, 13): _unary(torch.erf)},
    "Exp": {(6, 13): _unary(torch.exp)},
    "Floor": {(6, 13): _unary(torch.floor)},
    "Log": {(6, 13): _unary(torch.log)},
    "Max": {(6, 8, 12, 13): _variadic(larger)},
    "Mean": {(6, 8, 13): mean},
    "Min": {(6, 8, 12, 13): _variadic(smaller)},
    "Mod": {(10, 13, 28): modulo},
    "Mul": {(7, 13, 14): multiply},
    "Neg": {(6, 13): _unary(torch.neg)},
    "Pow": {(7, 12, 13, 15): power},
    "Reciprocal": {(6, 13): _unary(torch.reciprocal)},
    "Round": {(11, 22): _unary(torch.round)},
    "Sign": {(9, 13): sign},
    "Sin": {(7, 22): _unary(torch.sin)},
    "Sinh": {(9, 22): _unary(torch.sinh)},
    "Sqrt": {(6, 13): _unary(torch.sqrt)},
    "Sub": {(7, 13, 14): subtract},
    "Sum": {(6, 8, 13): _variadic(torch.add)},
    "Tan": {(7, 22): _unary(torch.tan)},
    "Tanh": {(6, 13): _unary(torch.tanh)},
}
