"""Shapes, parts, padding and made tensors against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from normfold.errors import CannotJudgeError
from normfold.graph.evaluator.call import EvaluationError
from normfold.graph.evaluator.operators.layout import slice_10
from tests.graph.evaluator.single import Case, assert_same, check, model_of, name_of, run, run_onnxruntime

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
CUBE = np.arange(2 * 8 * 4 * 6, dtype=np.float32).reshape(2, 8, 4, 6)
EMPTY = np.zeros((0, 3), np.float32)
WORDS = np.array([["a", "b", "c"], ["d", "e", "f"]], object)
WIDE = np.array([[1, 2, 2**63], [4, 5, 6]], np.uint64)


def ints(*items: int) -> Any:
    return np.array(items, np.int64)


SHAPES: list[Case] = [
    *(("Reshape", opset, [x, shape], {}) for opset in (5, 13, 14) for x in (X, X.astype(np.int32))
      for shape in (ints(4, 6), ints(0, -1), ints(-1), ints(2, 0, 4))),
    ("Reshape", 13, [EMPTY, ints(0, 3)], {}),
    ("Reshape", 14, [EMPTY, ints(3, 0)], {"allowzero": 1}),
    ("Reshape", 13, [X[:1, :1, :1], np.zeros(0, np.int64)], {}),
    ("Reshape", 13, [WORDS, ints(3, 2)], {}),
    *(("Flatten", opset, [X], {"axis": axis}) for opset, axis in (
        (7, 0), (7, 1), (7, 2), (7, 3), (13, -1), (13, -3), (13, 1), (13, 3))),
    ("Flatten", 9, [X], {}),
    *(("Transpose", opset, [x], attributes) for opset in (7, 13, 21) for x in (X, X > 3)
      for attributes in ({}, {"perm": [1, 2, 0]})),
    *(("Transpose", 13, [x], {}) for x in (WORDS, WIDE, EMPTY)),
    *(("Squeeze", opset, [X[:1, :, :1]], attributes) for opset in (7, 11) for attributes in ({}, {"axes": [0]})),
    ("Squeeze", 11, [X[:1, :, :1]], {"axes": [-1]}),
    *(("Squeeze", 13, [X[:1, :, :1], *axes], {}) for axes in ([], [ints(0, -1)], [ints(2)])),
    ("Unsqueeze", 7, [X], {"axes": [0, 4]}),
    ("Unsqueeze", 11, [X], {"axes": [3, -5]}),
    *(("Unsqueeze", 13, [x, ints(-1, 1)], {}) for x in (X, WORDS)),
    *(("Concat", opset, [X, X[:, :1]], {"axis": axis}) for opset, axis in ((7, 1), (11, -2), (13, 1))),
    ("Concat", 13, [WORDS, WORDS[:, :1]], {"axis": 1}),
    ("Concat", 13, [WIDE, WIDE[:1]], {"axis": 0}),
    ("Concat", 13, [EMPTY, EMPTY], {"axis": 0}),
    *((op, opset, [x], {}) for op in ("Shape", "Size") for opset in (7, 13, 21)
      for x in (X, X[:1, 0, 0], WORDS, EMPTY)),
    *(("Shape", opset, [CUBE], attributes) for opset in (15, 25) for attributes in (
        {"start": 1}, {"end": -1}, {"start": -2}, {"start": 1, "end": 3}, {"start": 3, "end": 1},
        {"start": -9, "end": 9})),
    *(("Tile", opset, [x, ints(2, 1, 3)], {}) for opset in (7, 13) for x in (X, X > 3)),
    ("Tile", 13, [X, ints(1, 0, 2)], {}),
    *(("Expand", opset, [X[:, :1], shape], {}) for opset in (8, 13)
      for shape in (ints(3, 1), ints(5, 2, 1, 4), ints(1))),
    ("Expand", 13, [EMPTY, ints(2, 1, 3)], {}),
    *(("Identity", opset, [x], {}) for opset in (7, 13, 21) for x in (X, WORDS, EMPTY)),
    *(("DepthToSpace", opset, [CUBE], {"blocksize": 2}) for opset in (7, 11, 13)),
    *(("DepthToSpace", 13, [CUBE], {"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")),
    *(("SpaceToDepth", opset, [CUBE], {"blocksize": 2}) for opset in (7, 13)),
    *(("Trilu", 14, [x, *k], {"upper": upper}) for x in (X, X.astype(np.int64)) for upper in (0, 1)
      for k in ([], [np.array(1, np.int64)], [np.array(-1, np.int64)], [np.array(9, np.int64)])),
    ("ReverseSequence", 10, [CUBE[0], ints(1, 0, 3, 8)], {"time_axis": 0, "batch_axis": 1}),
    ("ReverseSequence", 10, [CUBE[0], ints(1, 4, 3, 2, 0, 1, 4, 2)], {"time_axis": 1, "batch_axis": 0}),
]  # fmt: skip

BIG, SMALL = 2**63 - 1, -(2**63)
PARTS: list[Case] = [
    ("Slice", 7, [X], {"starts": [0, -2], "ends": [1, 100], "axes": [0, 2]}),
    ("Slice", 9, [X], {"starts": [1], "ends": [-1]}),
    *(("Slice", opset, [X, *inputs], {}) for opset in (10, 11, 13) for inputs in (
        [ints(0, 1), ints(1, 3)],
        [ints(1), ints(BIG), ints(2)],
        [ints(-1), ints(SMALL), ints(1), ints(-1)],
        [ints(5), ints(0), ints(2), ints(-2)],
        [ints(3, 0), ints(1, 9), ints(2, 0), ints(-1, 1)],
        [ints(2), ints(1), ints(1)],
        [ints(-9), ints(2), ints(2), ints(3)],
        [ints(9), ints(-9), ints(2), ints(-3)])),
    ("Slice", 13, [X, ints(0), ints(BIG), ints(-1), ints(2)], {}),
    ("Slice", 13, [WORDS, ints(-1), ints(SMALL), ints(1), ints(-1)], {}),
]  # fmt: skip
SPLITS: list[tuple[Case, int]] = [
    (("Split", 7, [X], {"axis": 2}), 2),
    (("Split", 11, [X], {"axis": -1, "split": [1, 3]}), 2),
    (("Split", 13, [X], {"axis": 1}), 3),
    (("Split", 13, [X, ints(0, 2, 2)], {"axis": 2}), 3),
    (("Split", 18, [X, ints(1, 2)], {"axis": 1}), 2),
    (("Split", 18, [X], {"axis": 1, "num_outputs": 2}), 2),
    (("Split", 18, [X], {"axis": 2, "num_outputs": 4}), 4),
    (("Split", 18, [WORDS], {"axis": 1, "num_outputs": 2}), 2),
]  # fmt: skip

PADS = [(0, 1, 2, 1, 0, 2), (0, -1, 1, 0, 1, -2), (0, 0, -1, 0, 1, 1), (0, 2, 3, 1, 2, 3), (0, 0, 0, 0, 0, 0)]
PADDING: list[Case] = [
    *(("Pad", 7, [X], {"pads": pads, "mode": mode}) for pads in PADS[:3] for mode in ("constant", "reflect", "edge")),
    ("Pad", 7, [X], {"pads": PADS[0], "value": 1.5}),
    *(("Pad", opset, [X, ints(*pads)], {"mode": mode}) for opset in (11, 13, 18, 21) for pads in PADS[:3]
      for mode in ("constant", "reflect", "edge")),
    *(("Pad", opset, [X, ints(*pads)], {"mode": "wrap"}) for opset in (19, 25) for pads in PADS),
    *(("Pad", 18, [x, ints(1, -1, 0, 2), x[0, 0, 1:2].reshape(()), ints(-1, 1)], {}) for x in (X, X.astype(np.int64))),
    ("Pad", 18, [X, ints(1, 2), None, ints(2)], {"mode": "reflect"}),
    ("Pad", 13, [X > 4, ints(*PADS[0])], {}),
    ("Pad", 13, [EMPTY, ints(1, 0, 1, 0)], {}),
    *(("CenterCropPad", 18, [x, ints(4, 3)], {"axes": [0, -1]}) for x in (X,)),
    *(("CenterCropPad", 18, [X, ints(*shape)], {}) for shape in ((1, 6, 3), (5, 1, 7), (2, 3, 4))),
]  # fmt: skip

MADE: list[Case] = [
    ("ConstantOfShape", 9, [ints(2, 3)], {}),
    ("ConstantOfShape", 9, [ints(0, 3)], {}),
    ("ConstantOfShape", 21, [np.zeros(0, np.int64)], {"value": helper.make_tensor("v", TensorProto.INT64, [1], [7])}),
    *(("Range", 11, list(map(kind, numbers)), {}) for kind in (np.float32, np.int64, np.int32, np.float64)
      for numbers in ((0, 9, 2), (9, 1, -3), (3, 3, 1), (0, -5, 1), (0, 10, 3))),
    ("Range", 11, [np.array(number, np.float32) for number in (0, 1, 0.1)], {}),
    *(("EyeLike", 9, [X[0]], attributes) for attributes in ({}, {"k": 1}, {"k": -1, "dtype": 7}, {"k": 9})),
]  # fmt: skip
MADE = [(op, opset, [np.asarray(item) for item in inputs], attributes) for op, opset, inputs, attributes in MADE]


@pytest.mark.parametrize("case", [*SHAPES, *PARTS, *PADDING, *MADE], ids=name_of)
def test_as_onnxruntime(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(("case", "outputs"), SPLITS, ids=str)
def test_splits_as_onnxruntime(case: Case, outputs: int) -> None:
    check(case, outputs=outputs)


@pytest.mark.parametrize(
    "attributes",
    [
        {"value": helper.make_tensor("v", TensorProto.FLOAT16, [2], [0.1, 2])},
        {"value_float": 0.1},
        {"value_floats": [0.1, 0.2]},
        {"value_int": 3},
        {"value_ints": [3, 4]},
        {"value_string": "ä"},
        {"value_strings": ["a", "b"]},
    ],
    ids=lambda attributes: next(iter(attributes)),
)
def test_constants_as_onnxruntime(attributes: dict[str, Any]) -> None:
    model = model_of("Constant", 13, [], attributes)
    assert_same(run(model, [])[0], run_onnxruntime(model, [])[0])


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Expand", [X[:, :1], ints(1 << 20, 1 << 20, 2, 1, 4)], {}),
        ("Tile", [X, ints(1 << 20, 1 << 20, 1)], {}),
        ("ConstantOfShape", [ints(1 << 20, 1 << 20)], {}),
        ("Range", [np.array(0, np.int64), np.array(1 << 50, np.int64), np.array(1, np.int64)], {}),
        ("Pad", [X, ints(0, 0, 1 << 40, 0, 0, 0)], {}),
    ],
)
def test_what_is_too_large_is_not_made(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    with pytest.raises(CannotJudgeError, match=operator):
        run(model_of(operator, 13, inputs, attributes), inputs)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Reshape", [X, ints(5, 5)], {}),
        ("Squeeze", [X, ints(0)], {}),
        ("Unsqueeze", [X, ints(0, 0)], {}),
        ("Transpose", [X], {"perm": [0, 1]}),
        ("Slice", [X, ints(0), ints(1), ints(3)], {}),
        ("Slice", [X, ints(0), ints(1), ints(1), ints(0)], {}),
        ("Concat", [X, X[:, :, :2]], {"axis": 1}),
    ],
)
def test_what_does_not_fit_is_an_error(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError, match=operator):
        run(model_of(operator, 13, inputs, attributes), inputs)


def test_a_small_slice_does_not_hold_the_whole() -> None:
    whole = torch.zeros(1000, 1000, dtype=torch.float64)
    found = slice_10(None, whole, *(torch.tensor([place]) for place in (0, 1)))
    assert found.untyped_storage().nbytes() == 8000


def test_space_to_depth_and_back() -> None:
    for mode in ("DCR", "CRD"):
        attributes = {"blocksize": 2, "mode": mode}
        (deep,) = run(model_of("SpaceToDepth", 28, [CUBE], attributes), [CUBE])
        (back,) = run(model_of("DepthToSpace", 28, [deep], attributes), [deep])
        np.testing.assert_array_equal(back, CUBE)
