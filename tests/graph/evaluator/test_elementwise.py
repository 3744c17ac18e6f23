"""Arithmetic, activations, logic and casts against onnxruntime."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from normfold.graph.evaluator.call import EvaluationError, NotCoveredError
from normfold.graph.evaluator.evaluator import Evaluator
from tests.graph.evaluator.single import Case, check, model_of, name_of, run, run_onnxruntime, run_session

RNG = np.random.default_rng(13)
X = RNG.normal(0.3, 1.7, (2, 3, 4)).astype(np.float32)
SMALL = RNG.uniform(-0.9, 0.9, (3, 4)).astype(np.float32)
LARGE = RNG.uniform(1.1, 5, (3, 4)).astype(np.float32)
ROW = np.array([0.5, -2, 3, 1], np.float32)
LOW, HIGH = np.array(-0.4, np.float32), np.array(0.9, np.float32)
EMPTY = np.zeros((0, 4), np.float32)
ODD = np.array([np.nan, np.inf, -np.inf, -0.0, 1.5, -2.5, 2.5, 0.5], np.float32)
SIGNED = [np.array([7, -7, 7, -7, 127], kind) for kind in (np.int8, np.int32, np.int64)]
UNSIGNED = [np.array([7, 200, 3, 255, 16], kind) for kind in (np.uint8, np.uint32, np.uint64)]


def like(array: Any, *items: float) -> Any:
    return np.array(items, array.dtype)


UNARY: list[Case] = [
    *((op, opset, [x], {}) for op in ("Abs", "Neg", "Sign") for opset in (9, 13) for x in (X, ODD, EMPTY, *SIGNED)),
    *(("Abs", 13, [x], {}) for x in UNSIGNED),
    *((op, 13, [x], {}) for op in ("Ceil", "Floor", "Round", "Exp", "Relu") for x in (X, ODD, EMPTY)),
    *((op, opset, [x], {}) for op in ("Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Tanh", "Erf", "Sigmoid", "Asinh")
      for opset in (9, 22) for x in (X, X[0, :1, 0].reshape(()))),
    *((op, 22, [SMALL], {}) for op in ("Asin", "Acos", "Atanh")),
    *((op, 22, [LARGE], {}) for op in ("Acosh", "Log", "Sqrt", "Reciprocal")),
    *((op, 22, [x], {}) for op in ("Softplus", "Softsign", "HardSwish", "Mish", "Elu", "Selu") for x in (X, 30 * X)),
    *(("LeakyRelu", opset, [X], attributes) for opset in (7, 16) for attributes in ({}, {"alpha": 0.3})),
    *((op, 7, [X], {"alpha": 0.7}) for op in ("Elu", "Selu", "HardSigmoid", "ThresholdedRelu")),
    ("Selu", 22, [X], {"gamma": 1.5, "alpha": 0.4}),
    ("HardSigmoid", 22, [X], {}),
    ("HardSigmoid", 22, [X], {"alpha": 0.3, "beta": 0.1}),
    ("Celu", 12, [X], {}),
    ("Celu", 12, [X], {"alpha": 0.4}),
    ("ThresholdedRelu", 10, [X], {}),
    *(("Gelu", 20, [X], {"approximate": kind}) for kind in ("none", "tanh")),
    ("Swish", 24, [X], {"alpha": 1.5}),
    ("Shrink", 9, [X], {}),
    ("Shrink", 9, [X], {"lambd": 1.2, "bias": 0.4}),
    ("Shrink", 9, [SIGNED[1]], {"lambd": 1.5, "bias": 1.5}),
    *(("IsNaN", opset, [ODD], {}) for opset in (9, 20)),
    *(("IsInf", opset, [ODD], attributes) for opset in (10, 20) for attributes in (
        {}, {"detect_negative": 0}, {"detect_positive": 0}, {"detect_negative": 0, "detect_positive": 0})),
    ("Not", 7, [X > 0], {}),
    *(("BitwiseNot", 18, [x], {}) for x in (SIGNED[1], UNSIGNED[1])),
    ("Clip", 7, [X], {}),
    ("Clip", 6, [X], {"min": -0.5, "max": 0.75}),
]  # fmt: skip

BINARY: list[Case] = [
    *((op, opset, [X, ROW], {}) for op in ("Add", "Sub", "Mul", "Div") for opset in (7, 13, 14)),
    *((op, 14, [x, x[::-1].copy()], {}) for op in ("Add", "Sub", "Mul") for x in (*SIGNED, *UNSIGNED)),
    *(("Div", 14, [x, like(x, 2, 2, -2, -2, 3)], {}) for x in SIGNED),
    *(("Div", 14, [x, like(x, 2, 3, 2, 7, 5)], {}) for x in UNSIGNED),
    *(("Mod", 13, [x, like(x, 2, 2, -2, -2, 3)], {"fmod": fmod}) for x in SIGNED for fmod in (0, 1)),
    *(("Mod", 13, [x, like(x, 2, 3, 2, 7, 5)], {}) for x in UNSIGNED),
    ("Mod", 10, [X, ROW], {"fmod": 1}),
    ("Mod", 28, [X, ROW], {}),
    *(("Pow", opset, [abs(X), ROW], {}) for opset in (7, 12, 15)),
    *(("Pow", 15, [abs(SIGNED[1]), exponent], {}) for exponent in (
        np.array(2.5, np.float32), np.array(3, np.int64), np.array([0, 1, 2, -1, 30], np.int32))),
    *(("PRelu", opset, [X, ROW], {}) for opset in (7, 9, 16)),
    *(("Clip", opset, [X, *bounds], {}) for opset in (11, 13) for bounds in (
        [LOW], [None, LOW], [LOW, HIGH], [HIGH, LOW], [])),
    ("Clip", 13, [ODD], {}),
    ("Clip", 13, [SIGNED[1], like(SIGNED[1], -2).reshape(()), like(SIGNED[1], 5).reshape(())], {}),
    *((op, opset, [X, ROW, X[0]], {}) for op in ("Sum", "Mean", "Max", "Min") for opset in (8, 13)),
    *((op, 13, [x, x[::-1].copy()], {}) for op in ("Max", "Min") for x in (ODD, SIGNED[2], UNSIGNED[1], UNSIGNED[2])),
    *((op, 7, [X > 0, ROW > 0], {}) for op in ("And", "Or", "Xor")),
    *((op, opset, [X, ROW], {}) for op in ("Greater", "Less") for opset in (7, 9, 13)),
    *((op, opset, [X, X[0]], {}) for op in ("GreaterOrEqual", "LessOrEqual") for opset in (12, 16)),
    *((op, 13, [x, x[::-1].copy()], {}) for op in ("Greater", "Less", "Equal") for x in (SIGNED[1], UNSIGNED[2])),
    ("Equal", 7, [X > 0, ROW > 0], {}),
    ("Equal", 19, [np.array([["a", "b"]], object), np.array(["a"], object)], {}),
    *((op, 18, [x, x[::-1].copy()], {}) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
      for x in (SIGNED[1], UNSIGNED[1])),
    *(("BitShift", 11, [x, like(x, 1, 3, 0, 2, 2)], {"direction": d}) for x in UNSIGNED for d in ("LEFT", "RIGHT")),
    *(("BitShift", 28, [x, like(x, 1, 3, 70, -1, 2)], {"direction": d}) for x in SIGNED[1:] for d in ("LEFT", "RIGHT")),
    *(("Where", opset, [X > 0, X, ROW], {}) for opset in (9, 16)),
    ("Where", 16, [np.array([True, False]), np.array(["a", "b"], object), np.array(["c"], object)], {}),
    ("Add", 14, [EMPTY, ROW], {}),
]  # fmt: skip

NUMBERS = np.array([0.4, 0.5, 1.5, -0.5, -1.7, 3.5, 200, 300, -200, 70000, -70000, 3e9, -3e9, 1e19, -1e19, np.inf,
                    -np.inf, np.nan, 0, -0.0, 2**31, -(2**31), 0.1, 1e-7, 123456789])  # fmt: skip
SOURCES = [
    NUMBERS,
    NUMBERS.astype(np.float32),
    np.clip(NUMBERS, -60000, 60000).astype(np.float16),
    NUMBERS > 1,
    *(np.array([0, 1, 100, 127], kind) for kind in (np.int8, np.uint8)),
    *(np.array([0, 1, -1, 300, 70000, -70000, 2**31 - 1], kind) for kind in (np.int32, np.int64)),
    *(np.array([0, 1, 255, 65535], kind) for kind in (np.uint16, np.uint32, np.uint64)),
    np.array(["1", "-3", "7"], object),
]
TARGETS = ["FLOAT", "DOUBLE", "BOOL", "STRING", *(f"{u}INT{bits}" for u in ("", "U") for bits in (8, 16, 32, 64))]
CASTS: list[Case] = [
    ("Cast", 13, [source], {"to": getattr(TensorProto, target)})
    for source, target in product(SOURCES, TARGETS)
    # of NaN onnxruntime's vectors make another uint32 than what is left over behind the last one
    if target != "UINT32" or source.dtype.kind != "f"
]


@pytest.mark.parametrize("case", [*UNARY, *BINARY], ids=name_of)
def test_as_onnxruntime(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", CASTS, ids=name_of)
def test_casts_as_onnxruntime(case: Case) -> None:
    check(case, tolerance=1e-7)


@pytest.mark.parametrize("opset", [7, 10, 12, 22])
def test_dropout_is_the_identity(opset: int) -> None:
    check(("Dropout", opset, [X], {}), outputs=2)


def test_dropout_in_training_has_no_value() -> None:
    inputs = [X, np.array(0.5, np.float32), np.array(True)]
    with pytest.raises(NotCoveredError, match=r"Dropout.*training.*--no-verify"):
        run(model_of("Dropout", 13, inputs, {}), inputs)
    inputs[1] = np.array(0, np.float32)
    assert np.array_equal(run(model_of("Dropout", 13, inputs, {}), inputs)[0], X)


@pytest.mark.parametrize("target", ["FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "INT4", "UINT4"])
@pytest.mark.parametrize("saturate", [1, 0])
def test_narrow_targets_as_onnxruntime(target: str, saturate: int) -> None:
    attributes = {"saturate": saturate} if "FLOAT" in target else {}
    there = onnx.helper.make_node("Cast", ["i0"], ["narrow"], to=getattr(TensorProto, target), **attributes)
    back = onnx.helper.make_node("Cast", ["narrow"], ["o0"], to=TensorProto.FLOAT)
    # 3 is a tie between 2 and 4 nowhere, 2.5 and 17 are ties of the narrow mantissas.
    values = np.concatenate([NUMBERS, [2.5, 3, 17, 18, 247, 248, 463, 465, 6e4]]).astype(np.float32)
    model = model_of("Cast", 23, [values], {"to": TensorProto.FLOAT})
    model.graph.ClearField("node")
    model.graph.node.extend([there, back])
    np.testing.assert_array_equal(run(model, [values])[0], run_onnxruntime(model, [values])[0])


def test_casts_to_uint32_as_onnxruntime() -> None:
    check(("Cast", 13, [NUMBERS[np.isfinite(NUMBERS) & (abs(NUMBERS) <= 2.0**31)]], {"to": TensorProto.UINT32}))


def test_a_cast_rounds_constants_and_nothing_else() -> None:
    third = np.array([1 / 3], np.float64)
    for target, stored in (("FLOAT", np.float32), ("FLOAT16", np.float16)):
        attributes = {"to": getattr(TensorProto, target)}
        assert run(model_of("Cast", 13, [third], attributes), [third])[0] == third
        found = run(model_of("Cast", 13, [third], attributes, constant=[0]), [third])[0]
        assert found == third.astype(stored).astype(np.float64)


def test_scales_are_powers_of_two() -> None:
    values = np.array([1, 1.2, 1.5, 3, 0, 1e-40, np.inf, np.nan], np.float32)
    expected = {
        "up": [1, 2, 2, 4, 2.0**-127, 2.0**-127, 2.0**127, np.nan],
        "down": [1, 1, 1, 2, 2.0**-127, 2.0**-127, 2.0**127, np.nan],
        "nearest": [1, 1, 2, 4, 2.0**-127, 2.0**-127, 2.0**127, np.nan],
    }
    for mode, wanted in expected.items():
        attributes = {"to": TensorProto.FLOAT8E8M0, "round_mode": mode}
        np.testing.assert_array_equal(run(model_of("Cast", 24, [values], attributes), [values])[0], wanted)
    attributes = {"to": TensorProto.FLOAT8E8M0, "saturate": 0}
    found = run(model_of("Cast", 24, [values], attributes), [values])[0]
    np.testing.assert_array_equal(found, [1, 2, 2, 4, np.nan, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("source", [np.array([1.5, -2], np.float32), np.array([1.5, -2]), np.array([3, -4], np.int32)])
def test_cast_like_and_bit_cast(source: Any) -> None:
    like_type = np.array(0, np.int64)
    model = model_of("CastLike", 15, [source, like_type], {})
    assert run(model, [source, like_type])[0].tolist() == source.astype(np.int64).tolist()
    kind = np.dtype(f"uint{8 * source.itemsize}")
    model = model_of("BitCast", 26, [source], {"to": onnx.helper.np_dtype_to_tensor_dtype(kind)})
    np.testing.assert_array_equal(run(model, [source])[0], source.view(kind))


@pytest.mark.parametrize("target", ["FLOAT8E5M2", "FLOAT16", "BOOL", "INT32"])
def test_cast_like_what_no_declaration_names(target: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 21]>
    main (float[3] x) => (r) {{
      a = Cast<to = {getattr(TensorProto, target)}>(x)
      like = Identity(a)
      y = CastLike(x, like)
      r = Cast<to = 1>(y)
    }}"""
    model = onnx.parser.parse_model(text)
    values = np.array([0.0, 1.3, 2.9], np.float32)
    found = Evaluator(ir.from_proto(model)).run({"x": values})[0]
    np.testing.assert_allclose(found, run_session(model, {"x": values})[0], rtol=1e-3)  # float16 is not rounded here


def test_swiglu_is_swish_times_the_other() -> None:
    model = model_of("SwiGLU", 28, [X, X + 1], {"alpha": 2.0})
    wide = X.astype(np.float64)
    np.testing.assert_allclose(run(model, [X, X + 1])[0], wide / (1 + np.exp(-2 * wide)) * (X + 1), rtol=1e-12)


def test_division_of_integers_by_zero_is_an_error() -> None:
    inputs = [SIGNED[1], np.zeros(5, np.int32)]
    with pytest.raises(EvaluationError, match="divide by zero"):
        run(model_of("Div", 14, inputs, {}), inputs)


@pytest.mark.parametrize(
    "operator", ["RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"]
)
def test_random_operators_have_no_verdict(operator: str) -> None:
    from_nothing = operator in ("RandomNormal", "RandomUniform")
    inputs, attributes = ([], {"shape": [2]}) if from_nothing else ([X[0]], {})
    with pytest.raises(NotCoveredError, match=rf"{operator}.*--no-verify"):
        run(model_of(operator, 15, inputs, attributes), inputs)
