"""Logic, comparisons, bits and Where, with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Function, Rows
from normfold.graph.evaluator.values import Tensor, Value, broadcast, by_bits, is_float, moved, through_numpy


def equal(call: Call, a: Value, b: Value) -> Tensor:
    """A == B, of strings too."""
    call.reserve(*broadcast(a, b))
    found: Tensor = torch.eq(a, b) if isinstance(a, Tensor) else through_numpy(_same, a, b)
    return found


def _same(a: Any, b: Any) -> Any:
    return np.equal(a, b).astype(bool)


def _compared(of_torch: Callable[..., Tensor], of_numpy: Callable[..., Any]) -> Function:
    def run(call: Call, a: Tensor, b: Tensor) -> Tensor:
        call.reserve(*broadcast(a, b))
        found: Tensor = of_torch(a, b) if is_float(a) else through_numpy(of_numpy, a, b)
        return found

    return run


def _bits(function: Callable[..., Tensor]) -> Function:
    def run(call: Call, *tensors: Tensor) -> Tensor:
        call.reserve(*broadcast(*tensors))
        found: Tensor = by_bits(function, *tensors)
        return found

    return run


def bit_shift(call: Call, x: Tensor, by: Tensor) -> Tensor:
    """X << Y or X >> Y. A shift by all the bits, or by a negative number, leaves what the sign alone would."""
    call.reserve(*broadcast(x, by))
    left = call.text("direction", "") == "LEFT"
    found: Tensor = through_numpy(np.left_shift if left else np.right_shift, x, by)
    return found


def where(call: Call, condition: Tensor, x: Value, y: Value) -> Value:
    """X where the condition holds, else Y."""
    call.reserve(*np.broadcast_shapes(tuple(condition.shape), tuple(x.shape), tuple(y.shape)))
    return moved(lambda a, b: torch.where(condition, a, b), x, y)


ROWS: Rows = {
    "And": {(7,): _bits(torch.logical_and)},
    "BitShift": {(11, 28): bit_shift},
    "BitwiseAnd": {(18,): _bits(torch.bitwise_and)},
    "BitwiseNot": {(18,): _bits(torch.bitwise_not)},
    "BitwiseOr": {(18,): _bits(torch.bitwise_or)},
    "BitwiseXor": {(18,): _bits(torch.bitwise_xor)},
    "Equal": {(7, 11, 13, 19): equal},
    "Greater": {(7, 9, 13): _compared(torch.gt, np.greater)},
    "GreaterOrEqual": {(12, 16): _compared(torch.ge, np.greater_equal)},
    "Less": {(7, 9, 13): _compared(torch.lt, np.less)},
    "LessOrEqual": {(12, 16): _compared(torch.le, np.less_equal)},
    "Not": {(1,): _bits(torch.logical_not)},
    "Or": {(7,): _bits(torch.logical_or)},
    "Where": {(9, 16): where},
    "Xor": {(7,): _bits(torch.logical_xor)},
}
