"""Pooling and means."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.rules.sandwich import DIRECTIONS, Direction, Sandwich
from tests.support.graphs import FOLDED, as_float32, build, check, draw, fold, kept, outcomes, partial, run_float32

IMAGE = "B,4,5,6"


def pool(name: str, attributes: str, target: str, source: str = IMAGE, opset: int = 20) -> Sandwich:
    return Sandwich(f"o = {name}<{attributes}>(i)", source, target, axis=1, opset=opset)


MAX = {
    "plain": pool("MaxPool", "kernel_shape = [2, 2]", "B,4,4,5"),
    "strided": pool("MaxPool", "kernel_shape = [2, 3], strides = [2, 2]", "B,4,2,2"),
    "padded": pool("MaxPool", "kernel_shape = [3, 3], pads = [1, 1, 1, 1]", "B,4,5,6"),
    "one side": pool("MaxPool", "kernel_shape = [2, 2], pads = [0, 0, 1, 1]", "B,4,5,6"),
    "same": pool("MaxPool", 'kernel_shape = [2, 2], strides = [2, 2], auto_pad = "SAME_UPPER"', "B,4,3,3"),
    "ceil": pool("MaxPool", "kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1", "B,4,3,3"),
    "dilated": pool("MaxPool", "kernel_shape = [2, 2], dilations = [2, 2]", "B,4,3,4"),
    "one axis": pool("MaxPool", "kernel_shape = [2]", "B,4,4", "B,4,5"),
    "global": Sandwich("o = GlobalMaxPool(i)", IMAGE, "B,4,1,1", axis=1),
}


@pytest.mark.parametrize("name", MAX)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_max_passes_positive_scales_and_any_shift(name: str, direction: Direction) -> None:
    """What it pads with is less than anything, before and after a shift."""
    MAX[name].fold(FOLDED, direction, "positive")
    MAX[name].fold(kept("negative-scale" if direction == "forward" else "wall"), direction, "affine")


def test_the_places_of_the_maxima_stay() -> None:
    text = """g (double[B,4,6] x) => (double y, int64[B,4,5] places) {
        h = Tanh(x)
        n0 = Mul(h, a)
        n = Add(n0, b)
        p, places = MaxPool<kernel_shape = [2]>(n)
        y = Conv(p, w)
    }"""
    check(text, FOLDED, a=draw("a", 4, 1, positive=True), b=(4, 1), w=(3, 4, 1))
    check(text, kept("negative-scale"), a=(4, 1), b=(4, 1), w=(3, 4, 1))


AVERAGE = {
    "plain": (pool("AveragePool", "kernel_shape = [2, 2]", "B,4,4,5"), False),
    "strided": (pool("AveragePool", "kernel_shape = [2, 2], strides = [2, 2]", "B,4,2,3"), False),
    "padded": (pool("AveragePool", "kernel_shape = [3, 3], pads = [1, 1, 1, 1]", "B,4,5,6"), False),
    "one side": (pool("AveragePool", "kernel_shape = [2, 2], pads = [0, 0, 1, 1]", "B,4,5,6"), False),
    "ceil": (pool("AveragePool", "kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1", "B,4,3,3"), False),
    "counted, no padding": (pool("AveragePool", "kernel_shape = [2, 2], count_include_pad = 1", "B,4,4,5"), False),
    "counted": (
        pool("AveragePool", "kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1", "B,4,5,6"),
        True,
    ),
    "counted ceil": (
        pool("AveragePool", "kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1, count_include_pad = 1", "B,4,3,3"),
        True,
    ),
    "counted same": (
        pool("AveragePool", 'kernel_shape = [3, 3], auto_pad = "SAME_UPPER", count_include_pad = 1', "B,4,5,6"),
        True,
    ),
    "dilated": (pool("AveragePool", "kernel_shape = [2, 2], dilations = [2, 2]", "B,4,3,4"), False),
    "global": (Sandwich("o = GlobalAveragePool(i)", IMAGE, "B,4,1,1", axis=1), False),
}


@pytest.mark.parametrize("name", AVERAGE)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_averages_pass_what_padding_does_not_dilute(name: str, direction: Direction) -> None:
    case, counts = AVERAGE[name]
    code = "shift-meets-padding" if direction == "forward" else "wall"
    case.fold(partial(code) if counts else FOLDED, direction)
    case.fold(FOLDED, direction, "scale")


def test_pooling_the_channels_refuses() -> None:
    case = Sandwich("o = MaxPool<kernel_shape = [2]>(i)", "B,3,4", "B,3,3")
    case.fold(kept("channels-cut"), "forward", "positive")
    case.fold(kept("wall"), "backward", "positive")
    Sandwich("o = GlobalAveragePool(i)", "B,3,4", "B,3,1").fold(kept("across-channels"), "forward")


MEANS = {
    "attribute": ("ReduceMean<axes = [1]>(i)", "B,1,4", 13, None),
    "attribute dropped": ("ReduceMean<axes = [1], keepdims = 0>(i)", "B,4", 13, None),
    "negative attribute": ("ReduceMean<axes = [-2], keepdims = 0>(i)", "B,4", 17, None),
    "input": ("ReduceMean(i, axes)", "B,1,4", 20, [1]),
    "input dropped": ("ReduceMean<keepdims = 0>(i, axes)", "B,4", 20, [1]),
    "negative input": ("ReduceMean<keepdims = 0>(i, axes)", "B,4", 20, [-2]),
    "two axes": ("ReduceMean<keepdims = 1>(i, axes)", "1,1,4", 20, [1, 0]),
    "two axes dropped": ("ReduceMean<keepdims = 0>(i, axes)", "4", 20, [-2, 0]),
    "none": ("ReduceMean<noop_with_empty_axes = 1>(i)", "B,3,4", 20, None),
    "empty": ("ReduceMean<noop_with_empty_axes = 1>(i, axes)", "B,3,4", 20, []),
}


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_means_off_the_channel_axis(name: str, direction: Direction) -> None:
    text, target, opset, axes = MEANS[name]
    constants = {} if axes is None else {"axes": np.array(axes, dtype=np.int64)}
    case = Sandwich(f"o = {text}", "B,3,4", target, opset=opset, constants=constants)
    case.fold(FOLDED, direction)


@pytest.mark.parametrize(
    ("text", "opset", "axes"),
    [
        ("ReduceMean<axes = [2]>(i)", 13, None),
        ("ReduceMean<axes = [-1, 1]>(i)", 13, None),
        ("ReduceMean(i)", 13, None),
        ("ReduceMean(i)", 20, None),
        ("ReduceMean(i, axes)", 20, [2]),
        ("ReduceMean(i, axes)", 20, [-1]),
        ("ReduceMean(i, axes)", 20, []),
    ],
)
def test_means_across_the_channels_refuse(text: str, opset: int, axes: list[int] | None) -> None:
    model = f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
    model += f"g (double[B,3,4] x) => (double y) {{\nh = Tanh(x)\ni = Mul(h, a)\no = {text}\ny = Tanh(o)\n}}"
    constants = {} if axes is None else {"axes": np.array(axes, dtype=np.int64)}
    check(model, kept("across-channels"), a=(4,), **constants)


def test_means_over_axes_known_at_run_time_only_refuse() -> None:
    text = (
        "g (double[B,3,4] x, int64[1] axes) => (double[B,1,5] y) {\nh = Tanh(x)\n"
        "i = Mul(h, a)\no = ReduceMean(i, axes)\ny = MatMul(o, w)\n}"
    )
    _, plan = fold(build(text, a=(4,), w=(4, 5)))
    assert outcomes(plan) == [kept("dynamic-axes")]


REDUCTIONS = {
    "attribute": ("<axes = [1], keepdims = 0>(i)", "B,4", 11, None),
    "input": ("(i, axes)", "B,1,4", 20, [1]),
    "input dropped": ("<keepdims = 0>(i, axes)", "B,4", 20, [-2]),
    "two axes": ("(i, axes)", "1,1,4", 20, [1, 0]),
    "none": ("<noop_with_empty_axes = 1>(i)", "B,3,4", 20, None),
}


def reduction(operator: str, name: str) -> Sandwich:
    text, target, opset, axes = REDUCTIONS[name]
    constants = {} if axes is None else {"axes": np.array(axes, dtype=np.int64)}
    # The count of an axis has to be known.
    source = "5,3,4" if name == "two axes" else "B,3,4"
    return Sandwich(f"o = {operator}{text}", source, target, opset=opset, constants=constants)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sums_multiply_the_shift(name: str, direction: Direction) -> None:
    reduction("ReduceSum", name).fold(FOLDED, direction)
    reduction("ReduceSum", name).fold(FOLDED, direction, "scale")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sums_over_an_axis_of_unknown_size_take_no_shift(direction: Direction) -> None:
    case = Sandwich("o = ReduceSum(i, axes)", "B,L,4", "B,1,4", constants={"axes": np.array([1])})
    case.fold(partial("unknown-shape") if direction == "forward" else partial("wall"), direction)
    case.fold(FOLDED, direction, "scale")


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name not in ("attribute", "none")])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_extremes_pass_positive_scales_and_any_shift(operator: str, name: str, direction: Direction) -> None:
    reduction(operator, name).fold(FOLDED, direction, "positive")
    reduction(operator, name).fold(kept("negative-scale" if direction == "forward" else "wall"), direction)


SIZES = {
    "ReduceL1": ("o = ReduceL1(i, axes)", "B,4,5,6", "B,4,1,1"),
    "ReduceL2": ("o = ReduceL2(i, axes)", "B,4,5,6", "B,4,1,1"),
    "ReduceSumSquare": ("o = ReduceSumSquare(i, axes)", "B,4,5,6", "B,4,1,1"),
    "Abs": ("o = Abs(i)", "B,4,5,6", "B,4,5,6"),
    "LpPool": ("o = LpPool<kernel_shape = [2, 2]>(i)", "B,4,5,6", "B,4,4,5"),
    "LpPool of p": ("o = LpPool<kernel_shape = [2, 3], p = 3, strides = [2, 1]>(i)", "B,4,5,6", "B,4,2,4"),
    "LpPool that pads": ("o = LpPool<kernel_shape = [2, 2], pads = [1, 1, 1, 1]>(i)", "B,4,5,6", "B,4,6,7"),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sizes_pass_the_size_of_a_scale(name: str, direction: Direction) -> None:
    """|s x| = |s| |x|: what comes out has a positive scale, whatever went in."""
    text, source, target = SIZES[name]
    case = Sandwich(text, source, target, axis=1, constants={"axes": np.array([2, 3])})
    case.fold(FOLDED, direction, "positive scale")
    case.fold(FOLDED if direction == "forward" else kept("wall"), direction, "scale")
    case.fold(partial("shift-meets-activation" if direction == "forward" else "wall"), direction, "positive")


def test_a_scale_below_zero_does_not_go_back_through_a_size() -> None:
    text = "g (double[B,4] x) => (double y) {\nh = MatMul(x, w)\no = Abs(h)\nn = Mul(o, a)\ny = Tanh(n)\n}"
    check(text, kept("wall"), a=(4,), w=(4, 4))
    check(text, FOLDED, a=draw("a", 4, positive=True), w=(4, 4))


def test_the_global_size_of_a_channel() -> None:
    """The reference implementation of onnx does not have GlobalLpPool."""
    text = "g (double[B,4,5,6] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\n"
    text += "o = GlobalLpPool<p = {p}>(n)\ny = Conv(o, w)\n}"
    for power in (1, 2, 3):
        model = as_float32(build(text.replace("{p}", str(power)), a=(4, 1, 1), w=(3, 4, 1, 1)))
        after, plan = fold(model)
        assert outcomes(plan) == [FOLDED]
        feeds = {"x": np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)}
        truth, found = (run_float32(each, feeds)[0] for each in (model, after))
        assert np.abs(truth - found).max() < 1e-5 * np.abs(truth).max()


def test_other_reductions_are_walls() -> None:
    for name in ("ReduceProd", "ReduceLogSumExp"):
        text = (
            f"g (double[B,3,4] x) => (double y) {{\nh = Tanh(x)\ni = Mul(h, a)\n"
            f"o = {name}(i, axes)\ny = MatMul(o, w)\n}}"
        )
        check(text, kept("wall"), a=draw("a", 4, positive=True), axes=np.array([1]), w=(4, 5))
