from __future__ import annotations

import resource
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from normfold.graph.evaluator.call import EvaluationError
from normfold.graph.evaluator.evaluator import Evaluator
from tests.graph.evaluator.one_node import agrees, evaluated, feeds_of, floats, grid, model_of

FORMS = [
    *grid(pads=[None, [1, 2, 0, 1], [-1, 0, 2, -2]], strides=[None, [2, 3]], dilations=[None, [2, 1]], group=[None, 4]),
    *grid(auto_pad=["SAME_UPPER", "SAME_LOWER", "VALID"], strides=[None, [2, 3]], group=[None, 2]),
]
TRANSPOSED = [
    *grid(pads=[None, [1, 0, 0, 2]], strides=[None, [2, 3]], dilations=[None, [2, 1]], group=[None, 2]),
    *grid(strides=[[2, 3]], output_padding=[None, [1, 0]], auto_pad=["SAME_UPPER", "SAME_LOWER", "VALID", None]),
    *grid(strides=[[2, 3]], output_shape=[[10, 16], [10, 17]], auto_pad=["SAME_UPPER", "SAME_LOWER", None]),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_conv(form: dict[str, Any]) -> None:
    for kernel in ((3, 2), (1, 1)):
        weight = floats(8, 4 // form.get("group", 1), *kernel)
        agrees("Conv", 11, [floats(2, 4, 9, 8), weight, floats(8)], form)
    for opset in (7, 22):
        agrees("Conv", opset, [floats(2, 4, 9, 8), weight], form)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("axes", [1, 3, 4])
def test_conv_of_other_ranks(axes: int, group: int) -> None:
    x, w = floats(2, 4, *(5, 6, 4, 5)[:axes]), floats(8, 4 // group, *(3, 2, 2, 1)[:axes])
    form = {"strides": [2, 1, 1, 2][:axes], "pads": [1] * axes + [0] * axes, "group": group}
    agrees("Conv", 11, [x, w, floats(8)], form, absolute=2e-5)


def test_conv_of_nothing_and_of_too_little() -> None:
    agrees("Conv", 11, [floats(0, 4, 8), floats(8, 4, 3)])
    with pytest.raises(EvaluationError, match="larger than the padded input"):
        evaluated("Conv", 11, [floats(1, 4, 2), floats(8, 4, 3)])


def test_a_convolution_in_pieces_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        ([floats(3, 4, 11, 9), floats(8, 4 // group, 3, 2)], {"strides": [2, 1], "group": group}) for group in (1, 2)
    ]
    whole = [evaluated("Conv", 11, inputs, form)[0] for inputs, form in cases]
    for pieces in (1, 4 * 6 * 8 * 2, 4 * 6 * 8 * 5 * 2):
        monkeypatch.setattr("normfold.graph.evaluator.operators.convolution._COLUMNS", pieces)
        for (inputs, form), expected in zip(cases, whole, strict=True):
            np.testing.assert_allclose(evaluated("Conv", 11, inputs, form)[0], expected, rtol=1e-12, atol=1e-12)


def test_wide_dilation_needs_no_dense_kernel() -> None:
    inputs = [floats(1, 128, 15000), floats(64, 128, 3)]
    model = model_of("Conv", 11, inputs, {"dilations": [4096], "pads": [4096, 4096]}, "", 1)
    evaluator = Evaluator(ir.from_proto(model))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (found,) = evaluator.run(feeds_of(inputs))
    assert found.shape == (1, 64, 15000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("form", TRANSPOSED, ids=str)
def test_conv_transpose(form: dict[str, Any]) -> None:
    weight = floats(4, 6 // form.get("group", 1), 3, 2)
    for opset in (7, 11, 22):
        agrees("ConvTranspose", opset, [floats(2, 4, 5, 6), weight, floats(6)], form)


@pytest.mark.parametrize("axes", [1, 3])
def test_conv_transpose_of_other_ranks(axes: int) -> None:
    form = {"strides": [2, 1, 3][:axes], "pads": [1, 0, 1, 0, 1, 0][: 2 * axes], "group": 2}
    agrees("ConvTranspose", 11, [floats(2, 4, *(5, 6, 3)[:axes]), floats(4, 3, *(3, 2, 2)[:axes]), floats(6)], form)


@pytest.mark.parametrize("zeros", [(None, None), ((), ()), ((1,), (1,))], ids=str)
def test_conv_integer(zeros: tuple[tuple[int, ...] | None, ...]) -> None:
    random = np.random.default_rng(2)
    x = random.integers(0, 256, (2, 4, 6, 7)).astype(np.uint8)
    for form in grid(pads=[None, [1, 0, 2, 1]], group=[None, 2]):
        w = random.integers(0, 256, (6, 4 // form.get("group", 1), 3, 2)).astype(np.uint8)
        points = [None if shape is None else np.asarray(random.integers(0, 256, shape), np.uint8) for shape in zeros]
        agrees("ConvInteger", 10, [x, w, *points], form)


def test_conv_integer_with_a_zero_point_for_every_channel() -> None:
    x, w = np.arange(30, dtype=np.uint8).reshape(1, 1, 30), np.array([[[3, 9]], [[5, 1]]], np.uint8)
    (found,) = evaluated("ConvInteger", 10, [x, w, np.array(2, np.uint8), np.array([1, 4], np.uint8)])
    for channel, zero in enumerate((1, 4)):
        (alone,) = evaluated(
            "ConvInteger", 10, [x, w[channel : channel + 1], np.array(2, np.uint8), np.array(zero, np.uint8)]
        )
        np.testing.assert_array_equal(found[:, channel], alone[:, 0])


@pytest.mark.parametrize(
    "form", grid(pads=[None, [1, 0, 2, 1]], strides=[None, [2, 1]], dilations=[None, [1, 2]]), ids=str
)
def test_windows_that_are_bent_or_put_back(form: dict[str, Any]) -> None:
    (height, width) = evaluated("Conv", 11, [floats(1, 1, 6, 7), floats(1, 1, 3, 2)], form)[0].shape[2:]
    columns = floats(2, 3 * 6, height * width)
    agrees("Col2Im", 18, [columns, np.array([6, 7]), np.array([3, 2])], form)
    for bent, group, bias in ((1, 1, None), (2, 2, floats(6))):
        offset, mask = 3 * floats(2, bent * 12, height, width), floats(2, bent * 6, height, width)
        inputs = [floats(2, 4, 6, 7), floats(6, 4 // group, 3, 2), offset, bias, mask]
        agrees("DeformConv", 19, inputs, {**form, "group": group, "offset_group": bent})


def test_col2im_of_other_ranks() -> None:
    agrees("Col2Im", 18, [floats(2, 12, 9), np.array([10]), np.array([4])], {"pads": [1, 1], "strides": [1]})
    agrees("Col2Im", 18, [floats(2, 12, 27), np.array([4, 4, 3]), np.array([2, 2, 1])])
