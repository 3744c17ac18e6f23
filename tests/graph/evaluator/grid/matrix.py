"""Products: MatMul, Gemm, Einsum, Det, and their integer forms."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import F, N, U, V, const, row

EQUATIONS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    ("ba,cb", (2, 3), (4, 2)),
    ("i,j->ij", (2,), (3,)),
    ("i,i->", (3,), (3,)),
    ("i,i", (3,), (3,)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("...ij,...jk->...ik", (2, 3, 4), (2, 4, 5)),
    ("...ij,...jk", (2, 3, 4), (2, 4, 5)),
    ("...ij,jk->...ik", (2, 2, 3, 4), (4, 5)),
    ("i...,i...->...", (3, 4), (3, 4)),
    ("bhid,bhjd->bhij", (2, 2, 3, 4), (2, 2, 5, 4)),
    ("b i j , b j k -> b i k", (2, 3, 4), (2, 4, 5)),
    ("ij,kl->", (2, 3), (3, 4)),
    ("ij,ij->j", (2, 3), (2, 3)),
    ("ii->i", (3, 3)),
    ("ii", (3, 3)),
    ("iij->ij", (3, 3, 2)),
    ("...ii->...i", (2, 3, 3)),
    ("ij->ji", (2, 3)),
    ("ij", (2, 3)),
    ("ba", (2, 3)),
    ("ij->", (2, 3)),
    ("i...->...", (2, 3)),
    ("...->...", (2, 3)),
    ("ijk->kij", (2, 3, 4)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
    ("i,ij,j->", (2,), (2, 3), (3,)),
    ("ij,j->i", (2, 1), (3,)),
    ("bn,anm,bm->ba", (2, 3), (4, 3, 5), (2, 5)),
    ("Ij,jK->IK", (2, 3), (3, 4)),
    ("...i,...i->...", (2, 3, 4), (3, 4)),
    ("ij,ij->ij", (2, 3), (2, 3)),
]


def cases() -> Iterator[Case]:
    for left, right in [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((4,), (4,)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((2, 3, 4), (4,)),
        ((4,), (2, 4, 5)),
        ((0, 4), (4, 5)),
        ((3, 0), (0, 5)),
        ((2, 3, 4), (2, 4, 0)),
    ]:
        yield row("MatMul", F(*left), F(*right))
    for dtype in (np.int32, np.int64, np.uint32, np.uint64):
        yield row("MatMul", N(0, 9, 2, 3, 4, dtype=dtype), N(0, 9, 4, 5, dtype=dtype))
    yield from gemm()
    for equation, *shapes in EQUATIONS:
        yield row("Einsum", *(F(*shape) for shape in shapes), equation=equation)
    yield row("Einsum", N(0, 9, 2, 3), N(0, 9, 3, 4), equation="ij,jk->ik")
    for shape in ((3, 3), (2, 3, 3), (1, 1), (2, 2, 4, 4)):
        yield row("Det", F(*shape))
    yield from integer()


def gemm() -> Iterator[Case]:
    for a, b, bias in product((None, 1), (None, 1), (None, (5,), (3, 5), (3, 1), (1, 5), (), (1,), (1, 1))):
        left, right = F(*((4, 3) if a else (3, 4))), F(*((5, 4) if b else (4, 5)))
        operands = [left, right] if bias is None else [left, right, F(*bias)]
        yield row("Gemm", *operands, transA=a, transB=b)
        yield row("Gemm", *operands, transA=a, transB=b, alpha=0.7, beta=-1.3)
    yield row("Gemm", F(3, 4), F(4, 5), F(5), beta=0.0)
    yield row("Gemm", F(3, 4), F(4, 5), F(5), alpha=0.0)
    yield row("Gemm", F(3, 0), F(0, 5), F(5))
    yield row("Gemm", F(0, 4), F(4, 5), F(5))
    yield row("Gemm", N(0, 9, 3, 4, dtype=np.int32), N(0, 9, 4, 5, dtype=np.int32), N(0, 9, 5, dtype=np.int32))


def integer() -> Iterator[Case]:
    for left, right in product((np.uint8, np.int8), (np.uint8, np.int8)):
        a, b = N(0, 90, 2, 3, 4, dtype=left), N(0, 90, 4, 5, dtype=right)
        yield row("MatMulInteger", a, b)
        yield row("MatMulInteger", a, b, np.asarray(3, left), np.asarray(2, right))
        yield row(
            "MatMulInteger", N(0, 90, 3, 4, dtype=left), b, V(3, dtype=left), const(V(1, 2, 3, 4, 5, dtype=right))
        )
        scale, point = np.asarray(0.1, np.float32), np.asarray(3, left)
        weights = [np.asarray(0.05, np.float32), np.asarray(2, right)]
        yield row(
            "QLinearMatMul",
            a,
            const(scale),
            const(point),
            const(b),
            *map(const, weights),
            const(scale * 7),
            const(point),
        )
    each = [const(U(0.01, 0.1, 5)), const(V(0, 1, 2, 3, 4, dtype=np.int8))]
    fixed = [const(np.asarray(0.1, np.float32)), const(np.asarray(3, np.uint8))]
    yield row(
        "QLinearMatMul", N(0, 200, 3, 4, dtype=np.uint8), *fixed, const(N(-90, 90, 4, 5, dtype=np.int8)), *each, *fixed
    )
