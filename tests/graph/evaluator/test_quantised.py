from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from normfold.graph.evaluator.call import NotCoveredError
from tests.graph.evaluator.one_node import agrees, evaluated, floats, grid, initializer
from tests.graph.evaluator.single import of_type

# Element type -> its range.
KINDS = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
}
FOUR_BITS = {TensorProto.INT4: (-8, 7), TensorProto.UINT4: (0, 15)}
EIGHT_BITS = list(itertools.product((np.uint8, np.int8), repeat=2))


def integers(kind: int, *shape: int) -> onnx.TensorProto:
    least, most = (KINDS | FOUR_BITS)[kind]
    return initializer(np.random.default_rng((kind, *shape)).integers(least, most + 1, shape), kind)


def scales(*shape: int, most: float = 0.1) -> np.ndarray:
    return np.asarray(np.random.default_rng(len(shape)).uniform(0.2, 1, shape) * most, np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_quantize_and_back(kind: int) -> None:
    x, quantised = 4 * floats(3, 4, 5), integers(kind, 3, 4, 5)
    narrow = kind in (TensorProto.INT8, TensorProto.UINT8)
    for opset in (10, 13, 19, 21, 25) if narrow else (21, 25):
        if opset >= 21 or kind in (TensorProto.INT8, TensorProto.UINT8):
            agrees("QuantizeLinear", opset, [x, scales(), integers(kind)])
            agrees("DequantizeLinear", opset, [quantised, scales(), integers(kind)])
        for axis, size in ((0, 3), (1, 4), (-1, 5)) if opset >= 13 else ():
            agrees("QuantizeLinear", opset, [x, scales(size), integers(kind, size)], {"axis": axis})
            agrees("DequantizeLinear", opset, [quantised, scales(size), integers(kind, size)], {"axis": axis})
    for shape, form in (((3, 2, 5), {"axis": 1, "block_size": 2}), ((3, 4, 2), {"axis": -1, "block_size": 3})):
        agrees("QuantizeLinear", 21, [x, scales(*shape), integers(kind, *shape)], form)
        agrees("DequantizeLinear", 21, [quantised, scales(*shape), integers(kind, *shape)], form)
    agrees("QuantizeLinear", 21, [x, scales()], {"output_dtype": kind})


@pytest.mark.parametrize("kind", FOUR_BITS)
def test_four_bits(kind: int) -> None:
    """onnxruntime runs them, and its Python cannot return them."""
    x, quantised, scale = 4 * floats(3, 4, 5), integers(kind, 3, 4, 5), scales()
    agrees("DequantizeLinear", 21, [quantised, scales(4), integers(kind, 4)])
    agrees("DequantizeLinear", 21, [quantised, scales(3, 2, 5), integers(kind, 3, 2, 5)], {"block_size": 2})
    expected = np.clip(np.rint(x / scale) + 1, *FOUR_BITS[kind])
    for inputs, form in (([x, scale, initializer(np.array(1), kind)], {}), ([x, scale], {"output_dtype": kind})):
        (found,) = evaluated("QuantizeLinear", 21, inputs, form)
        np.testing.assert_array_equal(
            found, expected if len(inputs) == 3 else np.clip(np.rint(x / scale), *FOUR_BITS[kind])
        )


def test_halves_go_to_even_and_division_is_float32() -> None:
    for scale in (0.5, 0.1):
        x = np.arange(-20, 20, dtype=np.float32) / 4
        agrees("QuantizeLinear", 13, [x, np.array(scale, np.float32), np.array(3, np.int8)])
        agrees("QuantizeLinear", 13, [x, np.array(scale, np.float32)])
    agrees("DequantizeLinear", 13, [np.arange(-5, 5, dtype=np.int32), np.array(0.1, np.float32)])


@pytest.mark.parametrize(
    ("kind", "values", "saturated", "open_ended"),
    [
        (TensorProto.FLOAT8E4M3FN, [1.06, 449, 1e6], [1.0, 448, 448], [1.0, 448, np.nan]),
        (TensorProto.FLOAT8E5M2, [1.2, 57345, 1e6], [1.25, 57344, 57344], [1.25, 57344, np.inf]),
        (TensorProto.FLOAT8E4M3FNUZ, [1.06, 239, 1e6], [1.0, 240, 240], [1.0, 240, np.nan]),
    ],
)
def test_eight_bit_floats(kind: int, values: list[float], saturated: list[float], open_ended: list[float]) -> None:
    inputs = [np.array(values, np.float32), np.array(1, np.float32), initializer(np.zeros(()), kind)]
    for saturate, expected in ((1, saturated), (0, open_ended)):
        (found,) = evaluated("QuantizeLinear", 19, inputs, {"saturate": saturate})
        np.testing.assert_array_equal(found, expected)


def test_four_bit_floats_are_not_covered() -> None:
    form = {"output_dtype": TensorProto.FLOAT4E2M1}
    with pytest.raises(NotCoveredError, match="quantisation to FLOAT4E2M1"):
        evaluated("QuantizeLinear", 23, [floats(3), np.array(1, np.float32)], form)


def test_dynamic_quantize() -> None:
    for shift in (0, 5, -5):
        agrees("DynamicQuantizeLinear", 11, [np.float32(3) * floats(3, 4) + np.float32(shift)], outputs=3)
    agrees("DynamicQuantizeLinear", 11, [np.zeros((3, 4), np.float32)], outputs=3)


@pytest.mark.parametrize("kinds", EIGHT_BITS, ids=str)
def test_quantised_products(kinds: tuple[type, type]) -> None:
    first, second = kinds
    if (first, second) == (np.int8, np.uint8):
        pytest.skip("onnxruntime does not run it")
    for left, right in (((2, 30), (30, 4)), ((5, 2, 30), (30, 4))):
        for by_column in ((), (4,)):
            inputs = [of_type(first, *left), scales(), of_type(first), of_type(second, *right), scales(*by_column)]
            inputs += [of_type(second, *by_column), scales(most=0.8), of_type(first, seed=1)]
            agrees("QLinearMatMul", 10, inputs)
            agrees("QLinearMatMul", 21, inputs)
    for form in grid(pads=[None, [1, 0, 2, 1]], group=[None, 2, 4], dilations=[None, [2, 1]]):
        for by_channel in ((), (8,)):
            zero = np.zeros(by_channel, second) if by_channel else of_type(second)
            inputs = [of_type(first, 2, 4, 6, 7), scales(), of_type(first)]
            inputs += [of_type(second, 8, 4 // form.get("group", 1), 3, 2), scales(*by_channel), zero]
            inputs += [scales(most=0.8), of_type(first, seed=1), np.arange(-400, 400, 100, dtype=np.int32)]
            agrees("QLinearConv", 10, inputs, form)
