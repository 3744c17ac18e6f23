from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from tests.graph.evaluator.one_node import agrees, grid
from tests.graph.evaluator.single import of_type

own = partial(agrees, domain="com.microsoft")
KINDS = [np.uint8, np.int8]


def scale(value: float) -> np.ndarray:
    return np.array(value, np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_two_inputs_and_their_halves(kind: type) -> None:
    zeros = [np.array(3, kind), np.array(5, kind), np.array(4, kind)]
    for scales in ((0.1, 0.4, 0.4), (0.05, 0.03, 0.1), (0.5, 0.25, 1.0)):
        pairs = [part for pair in zip(map(scale, scales), zeros, strict=True) for part in pair]
        for left, right in (((30, 40), (30, 40)), ((4, 1), (3, 1, 5))):
            inputs = [of_type(kind, *left), *pairs[:2], of_type(kind, *right, seed=1), *pairs[2:]]
            own("QLinearAdd", 17, inputs)
            own("QLinearMul", 17, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_one_input(kind: type) -> None:
    zero, least = np.array(5, kind), np.array(np.iinfo(kind).min, kind)
    x = of_type(kind, 3, 4, 50)
    own("QLinearSigmoid", 17, [x, scale(0.05), zero, scale(1 / 256), least])
    own("QLinearLeakyRelu", 17, [x, scale(0.1), zero, scale(0.4), np.array(3, kind)], {"alpha": 0.2})
    for axis, opset in ((1, 11), (2, 11), (-1, 13), (0, 13)):
        own("QLinearSoftmax", 17, [x, scale(0.05), zero, scale(1 / 256), least], {"axis": axis, "opset": opset})
    own("QuantizeLinear", 17, [np.linspace(-3, 9, 24, dtype=np.float32), scale(0.05), zero])
    own("DequantizeLinear", 17, [x, scale(0.05), zero])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [0, 1])
def test_pools(kind: type, last: int) -> None:
    x = of_type(kind, 2, 5, 6, 3) if last else of_type(kind, 2, 3, 5, 6)
    rest = [scale(0.1), np.array(3, kind), scale(0.4), np.array(4, kind)]
    own("QLinearGlobalAveragePool", 17, [x, *rest], {"channels_last": last})
    for form in grid(count_include_pad=[0, 1], pads=[None, [1, 0, 1, 1]]):
        own("QLinearAveragePool", 17, [x, *rest], {**form, "kernel_shape": [2, 3], "channels_last": last})
    if last:
        own("NhwcMaxPool", 17, [x], {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 0, 1, 1]})


@pytest.mark.parametrize("kind", KINDS)
def test_several_inputs(kind: type) -> None:
    zero = np.array(5, kind)
    parts = [of_type(kind, 2, 3), scale(0.05), zero, of_type(kind, 2, 5), scale(0.02), zero]
    own("QLinearConcat", 17, [scale(0.05), zero, *parts], {"axis": 1})
    condition = np.random.default_rng(17).random((3, 4)) < 0.5
    either = [of_type(kind, 3, 4), scale(0.05), zero, of_type(kind, 4), scale(0.02), zero]
    own("QLinearWhere", 17, [condition, *either, scale(0.06), np.array(4, kind)])
    for turned in (0, 1):
        for c in (None, np.arange(-60, 60, 30, dtype=np.int32)):
            product = [
                of_type(kind, 5, 8),
                scale(0.05),
                zero,
                of_type(kind, *((4, 8) if turned else (8, 4))),
                scale(0.02),
                zero,
            ]
            form = {"transB": turned, "alpha": 1.0}
            own("QGemm", 17, [*product, c, scale(0.2), np.array(4, kind)], form)
            own("QGemm", 17, [*product, c], form)
