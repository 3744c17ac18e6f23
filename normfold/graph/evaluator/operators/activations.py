"""Activations, and Dropout, which does nothing at inference."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.casts import truncated
from normfold.graph.evaluator.values import Tensor, broadcast, is_float

# ONNX's HardSwish is HardSigmoid with these, which are float32 there.
_SIXTH = float(np.float32(1 / 6))


def relu(call: Call, x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.clamp_min(x, 0)


def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """x where it is positive, else alpha * x."""
    return F.leaky_relu(x, call.number("alpha", 0.01))


def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """x where it is positive, else slope * x; slope is broadcast to x."""
    if broadcast(x, slope) != tuple(x.shape):
        raise ValueError(f"the slope {list(slope.shape)} does not fit the input {list(x.shape)}")
    if x.dtype.is_signed:
        return torch.where(x < 0, x * slope, x)
    return x


def elu(call: Call, x: Tensor) -> Tensor:
    """x where it is positive, else alpha * (exp(x) - 1)."""
    return F.elu(x, call.number("alpha", 1.0))


def selu(call: Call, x: Tensor) -> Tensor:
    """gamma * x where x is positive, else gamma * alpha * (exp(x) - 1)."""
    alpha = call.number("alpha", 1.67326319217681884765625)
    return call.number("gamma", 1.05070102214813232421875) * F.elu(x, alpha)


def celu(call: Call, x: Tensor) -> Tensor:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    alpha = call.number("alpha", 1.0)
    return torch.clamp_min(x, 0) + torch.clamp_max(alpha * torch.expm1(x / alpha), 0)


def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """x where it is above alpha, else 0."""
    return torch.where(x > call.number("alpha", 1.0), x, torch.zeros_like(x))


def sigmoid(call: Call, x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """max(0, min(1, alpha * x + beta))."""
    return torch.clamp(call.number("alpha", 0.2) * x + call.number("beta", 0.5), 0, 1)


def hard_swish(call: Call, x: Tensor) -> Tensor:
    """x * max(0, min(1, x / 6 + 1 / 2))."""
    return x * torch.clamp(_SIXTH * x + 0.5, 0, 1)


def softplus(call: Call, x: Tensor) -> Tensor:
    """log(1 + exp(x)). torch's own is the identity from 20 on, which is wrong in the tenth digit."""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))


def mish(call: Call, x: Tensor) -> Tensor:
    """x * tanh(softplus(x))."""
    return x * torch.tanh(softplus(call, x))


def softsign(call: Call, x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1 + torch.abs(x))


def gelu(call: Call, x: Tensor) -> Tensor:
    """x * Phi(x), or its approximation by tanh."""
    return F.gelu(x, approximate=call.text("approximate", "none"))


def swish(call: Call, x: Tensor) -> Tensor:
    """x * sigmoid(alpha * x)."""
    return x * torch.sigmoid(call.number("alpha", 1.0) * x)


def swiglu(call: Call, gate: Tensor, linear: Tensor) -> Tensor:
    """swish(gate) * linear, of one shape."""
    if gate.shape != linear.shape:
        raise ValueError(f"the shapes {list(gate.shape)} and {list(linear.shape)} are not the same")
    return swish(call, gate) * linear


def shrink(call: Call, x: Tensor) -> Tensor:
    """x + bias below -lambd, x - bias above lambd, 0 between. Integers are worked in floats, then truncated."""
    lambd, bias = call.number("lambd", 0.5), call.number("bias", 0.0)
    wide = x.to(torch.float64)
    low, high = wide < -lambd, wide > lambd
    found = torch.where(low, wide + bias, torch.where(high, wide - bias, torch.zeros_like(wide)))
    return found if is_float(x) else truncated(found, x.dtype)


def dropout(call: Call, x: Tensor) -> tuple[Tensor, ...]:
    """x as it is. The mask is the one that onnxruntime writes before opset 12: nothing but zeros."""
    call.number("ratio", 0.5)
    if not call.wants(1):
        return (x,)
    return x, torch.zeros(x.shape, dtype=x.dtype if call.version == 7 else torch.bool)


def dropout_12(
    call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, ...]:
    """x as it is, and a mask of ones. Refused in training, where it is random, unless the ratio is 0."""
    call.integer("seed", 0)
    if training is not None and bool(training) and (ratio is None or float(ratio) != 0):
        raise call.refuse("it is in training mode, and so random")
    return (x, torch.ones(x.shape, dtype=torch.bool)) if call.wants(1) else (x,)


def is_nan(call: Call, x: Tensor) -> Tensor:
    """Whether an element is NaN."""
    return torch.isnan(x)


def is_infinite(call: Call, x: Tensor) -> Tensor:
    """Whether an element is infinite, of the signs that are asked for."""
    none = torch.zeros(x.shape, dtype=torch.bool)
    above = torch.isposinf(x) if call.integer("detect_positive", 1) else none
    below = torch.isneginf(x) if call.integer("detect_negative", 1) else none
    return above | below


ROWS: Rows = {
    "Celu": {(12, 28): celu},
    "Dropout": {(7, 10): dropout, (12, 13, 22): dropout_12},
    "Elu": {(6, 22): elu},
    "Gelu": {(20,): gelu},
    "HardSigmoid": {(6, 22): hard_sigmoid},
    "HardSwish": {(14, 22): hard_swish},
    "IsInf": {(10, 20): is_infinite},
    "IsNaN": {(9, 13, 20): is_nan},
    "LeakyRelu": {(6, 16): leaky_relu},
    "Mish": {(18, 22): mish},
    "PRelu": {(7, 9, 16): prelu},
    "Relu": {(6, 13, 14): relu},
    "Selu": {(6, 22): selu},
    "Shrink": {(9,): shrink},
    "Sigmoid": {(6, 13): sigmoid},
    "Softplus": {(1, 22): softplus},
    "Softsign": {(1, 22): softsign},
    "SwiGLU": {(28,): swiglu},
    "Swish": {(24,): swish},
    "ThresholdedRelu": {(1, 10, 22): thresholded_relu},
}
