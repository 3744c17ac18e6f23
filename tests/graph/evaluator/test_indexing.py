"""Gathering, scattering and sorting against onnxruntime."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from normfold.graph.evaluator.call import EvaluationError
from tests.graph.evaluator.single import Case, check, model_of, name_of, run

RNG = np.random.default_rng(7)
X = RNG.normal(0, 1, (3, 4, 5)).astype(np.float32)
WORDS = np.array([["b", "a", "c"], ["d", "a", "b"]], object)
TIES = np.array([[3, 1, 3, 2, 3], [0, 0, 0, 0, 0], [5, -1, 5, 4, -1]], np.float32)
EMPTY = np.zeros((0, 3), np.float32)


def ints(*items: int, kind: Any = np.int64) -> Any:
    return np.array(items, kind)


def small(kind: Any, *shape: int) -> Any:
    return RNG.integers(1, 5, shape).astype(kind)


PICKED: list[Case] = [
    *(("Gather", opset, [X, ints(2, 0, 1, 2).reshape(2, 2)], {"axis": axis}) for opset in (7, 11, 13)
      for axis in (0, 1, 2)),
    *(("Gather", 13, [x, np.array(-1, np.int32)], {"axis": -1}) for x in (X, WORDS, X > 0, small(np.uint32, 2, 3))),
    ("Gather", 13, [X, np.zeros((0, 2), np.int64)], {}),
    *(("GatherElements", opset, [X, small(np.int64, 2, 4, 3) % 3 - 1], {"axis": axis}) for opset in (11, 13)
      for axis in (0, 1, -1)),
    ("GatherElements", 13, [WORDS, ints(1, 0, -1).reshape(1, 3)], {"axis": 0}),
    *(("GatherND", opset, [X, index], {}) for opset in (11, 12, 13) for index in (
        ints(0, 1, 2, -1).reshape(2, 2), ints(2).reshape(1, 1), ints(0, 1, 2, 2, 3, 4).reshape(2, 1, 3))),
    ("GatherND", 12, [X, small(np.int64, 3, 2, 1) % 4], {"batch_dims": 1}),
    ("GatherND", 13, [X, small(np.int64, 3, 4, 1)], {"batch_dims": 2}),
    ("GatherND", 13, [WORDS, ints(0, 1, 1, 2).reshape(2, 2)], {}),
    *(("Compress", opset, [X, np.array([False, True, True])], attributes) for opset in (9, 11)
      for attributes in ({}, {"axis": 0}, {"axis": 1})),
    ("Compress", 11, [WORDS, np.array([False, True])], {"axis": -1}),
    *(("NonZero", opset, [x], {}) for opset in (9, 13) for x in (X > 0, small(np.int64, 2, 3) - 1, X[0], EMPTY)),
    *(("NonZero", 13, [np.array(value, np.float32)], {}) for value in (0, 3)),
    *(("OneHot", opset, [ints(0, 2, -1, 7, -9), np.array(4, np.int64), values], {"axis": axis}) for opset in (9, 11)
      for axis in (-1, 0) for values in (ints(0, 5, kind=np.float32), ints(2, 3))),
    ("OneHot", 11, [ints(0, 2, -1, kind=np.float32), ints(3, kind=np.float32), ints(0, 1, kind=np.float32)], {}),
    ("OneHot", 11, [ints(0, 2, 1), np.array(3, np.int64), np.array(["off", "on"], object)], {}),
]  # fmt: skip

UPDATES = RNG.normal(0, 1, (2, 2, 5)).astype(np.float32)
PLACES = np.stack([np.full((2, 5), 0), np.full((2, 5), -1)]).astype(np.int64)
SCATTERED: list[Case] = [
    *((op, opset, [X, PLACES, UPDATES], {"axis": axis}) for op, opset in (
        ("Scatter", 9), ("ScatterElements", 11), ("ScatterElements", 13)) for axis in (0, 1, -1)[:1]),
    ("ScatterElements", 11, [X, ints(1, 3).reshape(1, 1, 2), UPDATES[:1, :1, :2]], {"axis": 2}),
    *(("ScatterElements", opset, [X.astype(kind), PLACES * 0 + 1, UPDATES.astype(kind)], {"reduction": reduction})
      for kind in (np.float32, np.int64) for opset, reduction in ((16, "add"), (16, "mul"), (18, "max"), (18, "min"))),
    *(("ScatterND", opset, [X, ints(0, 1, 2, -1).reshape(2, 2), UPDATES[0]], {}) for opset in (11, 13)),
    ("ScatterND", 13, [X, ints(2, 0).reshape(2, 1), np.concatenate([UPDATES, UPDATES], 1)], {}),
    *(("ScatterND", opset, [(4 * X).astype(kind), ints(0, 1, 0, 1).reshape(2, 2), (4 * UPDATES[0]).astype(kind)],
       {"reduction": reduction})
      for kind in (np.float32, np.int32) for opset, reduction in ((16, "add"), (16, "mul"), (18, "max"), (18, "min"))),
    ("ScatterElements", 13, [WORDS, ints(1, 0).reshape(1, 2), WORDS[:1, :2]], {"axis": 1}),
    ("ScatterND", 13, [WORDS, ints(1, 0).reshape(1, 2), WORDS[0, :1]], {}),
    ("ScatterElements", 18, [X, np.zeros((0, 4, 5), np.int64), X[:0]], {"reduction": "add"}),
]  # fmt: skip

SORTED: list[tuple[Case, int]] = [
    *((("TopK", 7, [TIES], {"k": 2, "axis": axis}), 2) for axis in (0, 1)),
    *((("TopK", 10, [x, ints(3)], {}), 2) for x in (TIES, X)),
    *((("TopK", opset, [x, ints(2)], {"axis": axis, "largest": largest}), 2) for opset, axis, largest, x in product(
        (11, 24), (0, -1), (0, 1), (TIES, TIES.astype(np.int64), TIES.astype(np.int32)))),
    (("TopK", 11, [TIES, ints(0)], {}), 2),
    *((("Unique", 11, [x], {"sorted": is_sorted, **axis}), 4) for is_sorted in (0, 1)
      for x, axis in ((TIES, {}), (TIES.astype(np.int64), {}), (WORDS, {}), (TIES[[0, 1, 0]], {"axis": 0}),
                      (TIES[:, [2, 0, 1, 2]], {"axis": -1}), (TIES[[0, 1, 0], :, None], {"axis": 0}))),
]  # fmt: skip


@pytest.mark.parametrize("case", [*PICKED, *SCATTERED], ids=name_of)
def test_as_onnxruntime(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(("case", "outputs"), SORTED, ids=str)
def test_sorted_as_onnxruntime(case: Case, outputs: int) -> None:
    check(case, outputs=outputs)


def test_the_last_update_stays() -> None:
    many = np.zeros(100_000, np.int64)
    updates = np.arange(100_000, dtype=np.float32)
    inputs = [np.zeros(1, np.float32), many, updates]
    assert run(model_of("ScatterElements", 13, inputs, {}), inputs)[0].tolist() == [99_999]
    inputs = [np.zeros(1, np.float32), many[:, None], updates]
    assert run(model_of("ScatterND", 13, inputs, {}), inputs)[0].tolist() == [99_999]


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_tensor_scatter_writes_from_each_sample_s_own_place(mode: str) -> None:
    cache, new = RNG.normal(0, 1, (2, 3, 6, 4)).astype(np.float32), RNG.normal(0, 1, (2, 3, 2, 4)).astype(np.float32)
    starts = ints(1, 5 if mode == "circular" else 4)
    expected = cache.copy()
    for sample, start in enumerate(starts):
        for step in range(2):
            expected[sample, :, (start + step) % 6] = new[sample, :, step]
    inputs = [cache, new, starts]
    np.testing.assert_array_equal(run(model_of("TensorScatter", 24, inputs, {"mode": mode}), inputs)[0], expected)


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [
        ("Gather", [X, ints(3)]),
        ("Gather", [X, ints(-4)]),
        ("GatherElements", [X, np.full((1, 1, 1), 9)]),
        ("GatherND", [X, ints(3).reshape(1, 1)]),
        ("ScatterND", [X, ints(3, 0).reshape(1, 2), UPDATES[0, :1]]),
        ("TopK", [X, ints(6)]),
        ("TensorScatter", [X, X[:, :2], ints(0, 3, 0)]),
    ],
)
def test_an_index_out_of_range_is_an_error(operator: str, inputs: list[Any]) -> None:
    with pytest.raises(EvaluationError, match=operator):
        run(model_of(operator, 24 if operator == "TensorScatter" else 13, inputs, {}), inputs)
