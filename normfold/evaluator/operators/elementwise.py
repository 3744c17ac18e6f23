"""Operators that work on each element: arithmetic, activations, rounding, comparison."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from normfold.evaluator.call import Call, Rows
from normfold.evaluator.values import Tensor, broadcast


def add(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """A + B with broadcasting."""
    call.reserve(*broadcast(a, b))
    return a + b


def relu(call: Call, x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.clamp_min(x, 0)


def gelu(call: Call, x: Tensor) -> Tensor:
    """x * Phi(x), or its approximation by tanh."""
    return F.gelu(x, approximate=call.text("approximate", "none"))


ROWS: Rows = {
    "Add": {(7, 13, 14): add},
    "Gelu": {(20,): gelu},
    "Relu": {(6, 13, 14): relu},
}
