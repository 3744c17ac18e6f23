"""Quantised operators of onnxruntime's own domain: as if their inputs were numbers, and the result quantised again.

Where a number lies at a half between two steps, onnxruntime's operators differ in whether the zero point counts for
what is even; so do these.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from normfold.graph.evaluator.call import Call, Function, Rows
from normfold.graph.evaluator.operators.matrix import matmul, shifted, to_int32
from normfold.graph.evaluator.operators.pooling import average_pool, max_pool
from normfold.graph.evaluator.operators.quantised import dequantize, quantize, requantised, saturated
from normfold.graph.evaluator.values import Tensor


def _numbers(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    return (x.double() if zero is None else x.double() - zero.double()) * scale


def _steps(y: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    info = torch.iinfo(dtype)
    return saturated((y.float() / scale.float()).round(), zero, info.min, info.max, dtype)


def _rounded(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Halves to even after the zero point has been added."""
    info = torch.iinfo(dtype)
    return saturated(y.round(), None, info.min, info.max, dtype)


def of_one(inner: Callable[[Call, Tensor], Tensor]) -> Function:
    """An operator of one input."""

    def function(
        call: Call, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
    ) -> Tensor:
        return _steps(inner(call, _numbers(x, x_scale, x_zero).float()), y_scale, y_zero, x.dtype)

    return function


def mean_pool(
    call: Call, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """AveragePool; with channels_last the channels are the last axis."""
    y = (
        _channels_first(partial(average_pool, in_order=True))(call, _numbers(x, x_scale, x_zero).float())
        / y_scale.float()
    )
    return _rounded(y if y_zero is None else y + y_zero.float(), x.dtype)


def add(
    _: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
) -> Tensor:
    """A + B with broadcasting, in float32 as onnxruntime adds them."""
    of_a, of_b = (scale.float() / y_scale.float() for scale in (a_scale, b_scale))
    none = torch.zeros((), dtype=torch.float32)
    at_a, at_b, at_y = (none if zero is None else zero.float() for zero in (a_zero, b_zero, y_zero))
    return _rounded(a.float() * of_a + (b.float() * of_b + (at_y - (of_a * at_a + of_b * at_b))), a.dtype)


def multiply(
    _: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
) -> Tensor:
    """A * B with broadcasting, in float32 as onnxruntime multiplies them."""
    factor = a_scale.float() * b_scale.float() / y_scale.float()
    y = shifted(a, a_zero).float() * shifted(b, b_zero).float() * factor
    return _rounded(y if y_zero is None else y + y_zero.float(), a.dtype)


def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.number("alpha", 0.01))


def _softmax(call: Call, x: Tensor) -> Tensor:
    axis = call.integer("axis", -1) % x.dim()
    if call.integer("opset", 13) < 13:
        return F.softmax(x.flatten(axis), dim=-1).reshape(x.shape)
    return F.softmax(x, dim=axis)


def _channels_first(inner: Callable[[Call, Tensor], Tensor]) -> Callable[[Call, Tensor], Tensor]:
    """With channels_last the channels are the last axis."""

    def function(call: Call, x: Tensor) -> Tensor:
        if not call.integer("channels_last", 0):
            return inner(call, x)
        return inner(call, x.movedim(-1, 1)).movedim(1, -1)

    return function


def _global_average(_: Call, x: Tensor) -> Tensor:
    return x.mean(dim=list(range(2, x.dim())), keepdim=True)


def concat(call: Call, y_scale: Tensor, y_zero: Tensor, *inputs: Tensor) -> Tensor:
    """Tensors (each with its scale and zero point) behind one another, all brought to one scale."""
    parts = [_numbers(*inputs[first : first + 3]) for first in range(0, len(inputs), 3)]
    return _steps(torch.cat(parts, dim=call.integer("axis", 0)), y_scale, y_zero, inputs[0].dtype)


def where(
    _: Call,
    condition: Tensor,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    z_scale: Tensor,
    z_zero: Tensor,
) -> Tensor:
    """One or the other, brought to one scale."""
    chosen = torch.where(condition, _numbers(x, x_scale, x_zero), _numbers(y, y_scale, y_zero))
    return _steps(chosen, z_scale, z_zero, x.dtype)


def gemm(
    call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
) -> Tensor:
    """alpha * A' B' + C in int32, quantised again or, without a scale for it, as numbers."""
    alpha = call.number("alpha", 1.0)
    left, right = shifted(a, a_zero), shifted(b.T if call.integer("transB", 0) else b, b_zero)
    total = to_int32(matmul(call, left.T if call.integer("transA", 0) else left, right)).double()
    if c is not None:
        total += c.double()
    if y_scale is None or y_zero is None:
        return total * (alpha * a_scale * b_scale)
    return requantised(total, alpha * a_scale, b_scale, y_scale, y_zero)


def max_pool_last(call: Call, x: Tensor) -> Tensor:
    """MaxPool with the channels as the last axis."""
    y: Tensor = max_pool(call, x.movedim(-1, 1))
    return y.movedim(1, -1)


ROWS: Rows = {
    "DequantizeLinear": {(1,): dequantize},
    "NhwcMaxPool": {(1,): max_pool_last},
    "QGemm": {(1,): gemm},
    "QLinearAdd": {(1,): add},
    "QLinearAveragePool": {(1,): mean_pool},
    "QLinearConcat": {(1,): concat},
    "QLinearGlobalAveragePool": {(1,): of_one(_channels_first(_global_average))},
    "QLinearLeakyRelu": {(1,): of_one(_leaky_relu)},
    "QLinearMul": {(1,): multiply},
    "QLinearSigmoid": {(1,): of_one(lambda _, x: torch.sigmoid(x))},
    "QLinearSoftmax": {(1,): of_one(_softmax)},
    "QLinearWhere": {(1,): where},
    "QuantizeLinear": {(1,): quantize},
}
