"""Products of matrices, and the softmax family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import Tensor

# torch has no products for these; modulo 2**n they are those of the signed type of the same width.
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """numpy.matmul: vectors, matrices, and stacks of matrices that are broadcast."""
    if a.dim() > 1 and b.dim() > 1:
        stack = np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
        call.reserve(*stack, a.shape[-2], b.shape[-1])
    signed = _SIGNED.get(a.dtype)
    return torch.matmul(a, b) if signed is None else torch.matmul(a.view(signed), b.view(signed)).view(a.dtype)


def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha * A' B' + beta * C; C is broadcast, and not read where beta is 0."""
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    a = a.T if call.integer("transA", 0) else a
    b = b.T if call.integer("transB", 0) else b
    if not a.is_floating_point() and (alpha, beta) != (1.0, 1.0):
        raise call.refuse("alpha or beta beside integers")
    call.reserve(a.shape[0], b.shape[1])
    y = a @ b
    if alpha != 1.0:
        y *= alpha
    if c is not None and beta != 0.0:
        y += c.expand(y.shape) if beta == 1.0 else beta * c
    return y


def einsum(call: Call, *operands: Tensor) -> Tensor:
    """Sums of products by an equation, explicit or implicit, with ellipses and repeated indices."""
    equation = call.text("equation", "")
    call.reserve(*torch.einsum(equation, *(torch.empty_like(operand, device="meta") for operand in operands)).shape)
    return torch.einsum(equation, *operands)


def det(_: Call, x: Tensor) -> Tensor:
    """Determinants of square matrices."""
    found: Tensor = torch.linalg.det(x)
    return found


def integer_matmul(
    call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """(A - a_zero) (B - b_zero) of eight-bit integers, in int32 that wraps.

    A zero point is one number, one for every row of A or column of B, or one for every row or column of every matrix
    of a stack. float64 holds these sums exactly.
    """
    return to_int32(matmul(call, shifted(a, a_zero, rows=True), shifted(b, b_zero)))


def shifted(x: Tensor, zero: Tensor | None, *, rows: bool = False) -> Tensor:
    """Integers less their zero point, in float64. rows: a vector of zero points has one for every row."""
    if zero is None:
        return x.double()
    by_row = rows and zero.dim() == 1 and zero.numel() != 1
    return x.double() - (zero[:, None] if by_row else zero.double())


def to_int32(x: Tensor) -> Tensor:
    """Whole numbers in float64 to int32, modulo 2**32."""
    return x.to(torch.int64).to(torch.int32)


def flattened(inner: Callable[[Tensor, int], Tensor]) -> Callable[[Call, Tensor], Tensor]:
    """The form before opset 13: all axes from `axis` on are one."""

    def function(call: Call, x: Tensor) -> Tensor:
        axis = call.integer("axis", 1)
        axis += x.dim() if axis < 0 else 0
        return inner(x.flatten(axis), -1).reshape(x.shape)

    return function


def along_axis(inner: Callable[[Tensor, int], Tensor]) -> Callable[[Call, Tensor], Tensor]:
    """The form of opset 13: one axis, the last by default."""

    def function(call: Call, x: Tensor) -> Tensor:
        return inner(x, call.integer("axis", -1))

    return function


def _softmax(x: Tensor, axis: int) -> Tensor:
    return F.softmax(x, dim=axis)


def _log_softmax(x: Tensor, axis: int) -> Tensor:
    return F.log_softmax(x, dim=axis)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    """1 at the first of the largest, else 0."""
    if x.numel() == 0:
        return x.clone()
    return torch.zeros_like(x).scatter_(axis, x.argmax(dim=axis, keepdim=True), 1.0)


ROWS: Rows = {
    "Det": {(11, 22): det},
    "Einsum": {(12, 28): einsum},
    "Gemm": {(7, 9, 11, 13): gemm},
    "Hardmax": {(1, 11): flattened(_hardmax), (13,): along_axis(_hardmax)},
    "LogSoftmax": {(1, 11): flattened(_log_softmax), (13,): along_axis(_log_softmax)},
    "MatMul": {(1, 9, 13): matmul},
    "MatMulInteger": {(10,): integer_matmul},
    "Softmax": {(1, 11): flattened(_softmax), (13,): along_axis(_softmax)},
}
