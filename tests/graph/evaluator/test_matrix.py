from __future__ import annotations

import numpy as np
import pytest

from normfold.graph.evaluator.call import EvaluationError
from tests.graph.evaluator.one_node import agrees, evaluated, floats

SHAPES = [
    ((3,), (3,)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((6, 1, 2, 3), (5, 3, 4)),
    ((0, 3), (3, 4)),
    ((2, 0), (0, 4)),
]
EQUATIONS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    ("bA,A", (2, 3), (3,)),
    ("ii->i", (3, 3)),
    ("...ii", (5, 3, 3)),
    ("iij,j->i", (2, 2, 3), (3,)),
    ("...ij , ...jk", (5, 2, 3), (1, 3, 4)),
    ("i...->...", (3, 2, 4)),
    ("ab,bc,cd->ad", (2, 3), (3, 4), (4, 5)),
    ("i,j->ij", (3,), (4,)),
    ("ij->", (2, 3)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_matmul(shapes: tuple[tuple[int, ...], ...]) -> None:
    left, right = (floats(*shape) for shape in shapes)
    for opset in (7, 9, 13):
        agrees("MatMul", opset, [left, right])
    for kind in (np.int32, np.uint32, np.int64, np.uint64) if left.size and right.size else ():
        agrees("MatMul", 13, [(9 * left).astype(kind), (9 * right).astype(kind)])


@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(turned: tuple[int, int]) -> None:
    a, b = floats(*((3, 2) if turned[0] else (2, 3))), floats(*((4, 3) if turned[1] else (3, 4)))
    for opset in (7, 9, 11, 13):
        for shape in ((4,), (2, 4), (2, 1), (1,), ()):
            attributes = {"transA": turned[0], "transB": turned[1], "alpha": 0.5, "beta": 2.5}
            agrees("Gemm", opset, [a, b, floats(*shape)], attributes)
    agrees("Gemm", 13, [a, b], {"transA": turned[0], "transB": turned[1]})


def test_gemm_does_not_read_c_where_beta_is_zero() -> None:
    agrees("Gemm", 13, [floats(2, 3), floats(3, 4), np.full(4, np.nan, np.float32)], {"beta": 0.0})


@pytest.mark.parametrize("case", EQUATIONS, ids=lambda case: case[0])
def test_einsum(case: tuple[str, *tuple[tuple[int, ...], ...]]) -> None:
    agrees("Einsum", 12, [floats(*shape) for shape in case[1:]], {"equation": case[0]})


def test_det() -> None:
    for opset in (11, 22):
        agrees("Det", opset, [floats(2, 5, 3, 3)])


@pytest.mark.parametrize("zeros", [(None, None), ((), ()), ((1,), (4,)), (None, (4,))])
def test_matmul_integer(zeros: tuple[tuple[int, ...] | None, ...]) -> None:
    random = np.random.default_rng(1)
    for left, right in (((2, 3), (3, 4)), ((5, 2, 3), (3, 4))):
        for kind in (np.int8, np.uint8):
            low, high = (-128, 128) if kind is np.int8 else (0, 256)
            a = random.integers(0, 256, left).astype(np.uint8)
            b = random.integers(low, high, right).astype(kind)
            points = [
                None if shape is None else np.asarray(random.integers(0, 100, shape), dtype=of)
                for shape, of in zip(zeros, (np.uint8, kind), strict=True)
            ]
            agrees("MatMulInteger", 10, [a, b, *points])


def test_matmul_integer_with_a_zero_point_for_every_row() -> None:
    a, b = np.array([[3, 5], [7, 9]], np.uint8), np.array([[1, 2], [3, 4]], np.uint8)
    (found,) = evaluated("MatMulInteger", 10, [a, b, np.array([1, 2], np.uint8)])
    np.testing.assert_array_equal(found, np.array([[2 * 1 + 4 * 3, 2 * 2 + 4 * 4], [5 + 21, 10 + 28]], np.int32))


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_flattens_before_opset_13(operator: str) -> None:
    x = floats(2, 3, 4)
    for opset in (7, 11, 12, 13):
        for axis in (0, 1, 2, -1, -2):
            agrees(operator, opset, [x], {"axis": axis})
        agrees(operator, opset, [x])
        agrees(operator, opset, [np.zeros((2, 0, 3), np.float32)])
    assert not np.allclose(evaluated(operator, 11, [x])[0], evaluated(operator, 13, [x])[0])


def test_shapes_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(EvaluationError, match="cannot take what it is given"):
        evaluated("MatMul", 13, [floats(2, 3), floats(4, 5)])
