"""Reductions, arguments of extremes and running sums against onnxruntime."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.graph.evaluator.single import Case, check, model_of, name_of, run

RNG = np.random.default_rng(5)
X = RNG.uniform(0.2, 2, (2, 3, 4)).astype(np.float32)
TIES = np.array([[3, 1, 3, 2], [0, 0, 0, 0], [5, -1, 5, -1]], np.float32)
EMPTY = np.zeros((2, 0, 3), np.float32)
INTEGERS = RNG.integers(1, 6, (2, 3, 4)).astype(np.int32)
POSITIVE = ("ReduceLogSum", "ReduceLogSumExp", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd", "ReduceMean")
ALL = (*POSITIVE, "ReduceSum", "ReduceMax", "ReduceMin")


def ints(*items: int) -> Any:
    return np.array(items, np.int64)


def by_input(operator: str) -> int:
    return 13 if operator == "ReduceSum" else 18


CASES: list[Case] = [
    *((op, opset, [X], attributes) for op, opset, attributes in product(ALL, (7, 11), (
        {}, {"keepdims": 0}, {"axes": [1]}, {"axes": [0, 2], "keepdims": 0}))),
    *((op, 11, [X], {"axes": [-1]}) for op in ALL),
    *((op, by_input(op), [X, *axes], attributes) for op, axes, attributes in product(
        ALL, ([], [ints(1)], [ints(-1, 0)], [ints()]), ({}, {"keepdims": 0}))),
    *((op, by_input(op), [X, *axes], {"noop_with_empty_axes": 1}) for op, axes in product(
        ALL, ([], [ints()], [ints(1)]))),
    *((op, by_input(op), [np.array(0.7, np.float32)], {}) for op in ALL),
    *((op, 18, [EMPTY, ints(1)], {}) for op in ALL if op != "ReduceSum"),
    ("ReduceSum", 13, [EMPTY, ints(1)], {}),
    *((op, by_input(op), [INTEGERS, ints(1)], {}) for op in ALL),
    *((op, 18, [INTEGERS.astype(kind), ints(0)], {}) for op in ("ReduceMax", "ReduceMin")
      for kind in (np.int8, np.uint8, np.int64)),
    *((op, 20, [X > 1, ints(1)], {}) for op in ("ReduceMax", "ReduceMin")),
    *((op, opset, [x], attributes) for op, opset, x, attributes in product(
        ("ArgMax", "ArgMin"), (7, 11, 13), (TIES, X, TIES.astype(np.int32)), ({}, {"axis": 1, "keepdims": 0}))),
    *((op, opset, [TIES], {"axis": -1, "select_last_index": 1}) for op in ("ArgMax", "ArgMin") for opset in (12, 13)),
    *(("CumSum", opset, [x, np.array(axis, np.int32)], {"exclusive": exclusive, "reverse": reverse})
      for opset, x, axis, exclusive, reverse in product((11, 14), (X, INTEGERS), (1, -1), (0, 1), (0, 1))),
    ("CumSum", 14, [EMPTY, ints(1)], {"exclusive": 1}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_as_onnxruntime(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(("exclusive", "reverse"), list(product((0, 1), (0, 1))))
def test_running_products(exclusive: int, reverse: int) -> None:
    inputs = [np.array([1, 2, 3, 4], np.float32), np.array(0, np.int64)]
    expected = {(0, 0): [1, 2, 6, 24], (1, 0): [1, 1, 2, 6], (0, 1): [24, 24, 12, 4], (1, 1): [24, 12, 4, 1]}
    model = model_of("CumProd", 26, inputs, {"exclusive": exclusive, "reverse": reverse})
    assert run(model, inputs)[0].tolist() == expected[exclusive, reverse]


def test_sums_of_integers_wrap() -> None:
    inputs = [np.array([2**31 - 1, 1], np.int32)]
    assert run(model_of("ReduceSum", 13, inputs, {"keepdims": 0}), inputs)[0] == -(2**31)
