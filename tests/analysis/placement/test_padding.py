"""A shift in front of zero padding: one Add, or a map of biases behind the convolution where that is less."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.support.graphs import (
    FOLDED,
    as_float32,
    build,
    check,
    feeds_for,
    fold,
    kept,
    op_types,
    partial,
    run,
    run_float32,
    same_function,
)

Constant = NDArray[np.generic] | tuple[int, ...]
# Behind a ReLU-like wall a norm folds forward only.
NORM = "h = Tanh(x)\nm = Mul(h, a)\nn = Add(m, b)\n"
A: dict[str, Constant] = {"a": (4, 1, 1), "b": (4, 1, 1)}


def graph(body: str, size: str = "7,5", outputs: str = "double y") -> str:
    return f"g (double[B,4,{size}] x) => ({outputs}) {{\n{NORM}{body}\n}}"


def contents(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def test_a_convolution_that_makes_its_tensor_smaller_takes_the_shift() -> None:
    text = graph("y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(n, w, c)")
    after, plan = check(text, FOLDED, w=(6, 4, 3, 3), c=(6,), **A)
    assert op_types(after) == ["Tanh", "Conv", "Add"]
    # 6 x 4 x 3 outputs, and half of a quarter for the map, against 4 x 7 x 5.
    assert (plan.sites[0].shift, plan.sites[0].shift_elements) == ("map", 90)
    assert (6, 4, 3) in {array.shape for array in contents(after).values()}


@pytest.mark.parametrize("outputs", [3, 4])
def test_the_map_has_to_cost_less_than_the_add(outputs: int) -> None:
    text = graph("y = Conv<pads = [1, 1, 1, 1]>(n, w)")
    after, plan = check(text, FOLDED if outputs == 3 else partial("shift-meets-padding"), w=(outputs, 4, 3, 3), **A)
    assert plan.sites[0].shift == ("map" if outputs == 3 else "add")
    assert op_types(after) == (["Tanh", "Conv", "Add"] if outputs == 3 else ["Tanh", "Add", "Conv"])


def test_sizes_that_are_not_known_leave_one_add() -> None:
    text = graph("y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(n, w)", size="H,W")
    after, plan = check(text, partial("shift-meets-padding"), w=(3, 4, 3, 3), **A)
    assert op_types(after) == ["Tanh", "Add", "Conv"] and plan.sites[0].shift == "add"
    # Without padding every position has the same.
    unpadded = text.replace("pads = [1, 1, 1, 1], ", "")
    after, plan = check(unpadded, FOLDED, sizes=(6, 3), w=(3, 4, 3, 3), **A)
    assert op_types(after) == ["Tanh", "Conv"] and plan.sites[0].shift == "reader"


@pytest.mark.parametrize(
    "pads", ["pads = [1, 1, 1, 1]", "pads = [0, 2, 2, 0]", 'auto_pad = "SAME_UPPER"', 'auto_pad = "SAME_LOWER"']
)
@pytest.mark.parametrize("group", [1, 2, 4])
def test_every_pixel_of_the_border_is_exact(group: int, pads: str) -> None:
    checked = 0
    for stride, dilation in product((1, 2), (1, 2)):
        if "auto_pad" in pads and dilation > 1:
            continue  # onnx's reference implementation pads these otherwise
        attributes = f"group = {group}, strides = [{stride}, {stride}], dilations = [{dilation}, {dilation}], {pads}"
        # A mean to one channel in front of the wall: whatever the convolution does, the Add in front costs more.
        text = graph(f"k = Conv<{attributes}>(n, w, c)\nk0 = Mul(k, e)\ny = Add(k0, f)")
        model = build(text, w=(4, 4 // group, 3, 3), c=(4,), e=np.array(2.0), f=(4, 1, 1), **A)
        after, plan = fold(model)
        assert plan.sites[0].status == "folded" and plan.sites[0].shift == "map"
        assert op_types(after) == ["Tanh", "Conv", "Mul", "Add"]
        feeds = feeds_for(model, 2)
        truth, result = run(model, feeds)[0], run(after, feeds)[0]
        for row, column in product((0, 1, -2, -1), (0, 1, -2, -1)):
            np.testing.assert_allclose(result[..., row, column], truth[..., row, column], rtol=1e-10, atol=1e-10)
        checked += 1
    assert checked >= 2


@pytest.mark.parametrize("rank", [1, 3])
def test_other_numbers_of_dimensions(rank: int) -> None:
    size = ",".join(["5", "4", "7"][:rank])
    tail = (1,) * rank
    text = graph(f"y = Conv<pads = {[1] * 2 * rank}, strides = {[2] * rank}>(n, w)", size=size)
    _, plan = check(text, FOLDED, a=(4, *tail), b=(4, *tail), w=(3, 4, *(3,) * rank))
    assert plan.sites[0].shift == "map"


def test_an_add_that_is_there_takes_the_map() -> None:
    """It only becomes larger: a quarter more than one value for each channel."""
    text = graph("k = Conv<pads = [1, 1, 1, 1]>(n, w)\ny = Add(k, c)")
    after, plan = check(text, FOLDED, w=(4, 4, 3, 3), c=(4, 1, 1), **A)
    assert op_types(after) == ["Tanh", "Conv", "Add"]
    assert (plan.sites[0].shift, plan.sites[0].shift_elements) == ("map", 35)
    # One that is a map already costs nothing more.
    after, plan = check(text, FOLDED, w=(4, 4, 3, 3), c=(4, 7, 5), **A)
    assert op_types(after) == ["Tanh", "Conv", "Add"]
    assert (plan.sites[0].shift, plan.sites[0].shift_elements) == ("map", 0)


def test_a_norm_behind_the_convolution_is_no_place_for_a_map() -> None:
    """It is to go itself: towards the producer, whose bias it fits."""
    text = graph("k = Conv<pads = [1, 1, 1, 1]>(n, w)\np = Mul(k, e)\nq = Add(p, f)\ny = Relu(q)")
    after, plan = check(text, partial("shift-meets-padding"), FOLDED, w=(4, 4, 3, 3), e=(4, 1, 1), f=(4, 1, 1), **A)
    assert op_types(after) == ["Tanh", "Add", "Conv", "Relu"] and plan.sites[1].shift == "writer"


def test_several_convolutions_pay_together() -> None:
    text = graph(
        "y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(n, w)\nz = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(n, v)",
        outputs="double y, double z",
    )
    _, plan = check(text, FOLDED, w=(4, 4, 3, 3), v=(4, 4, 3, 3), **A)
    assert plan.sites[0].shift_elements == 2 * 60
    after, plan = check(text, partial("narrow-add"), w=(6, 4, 3, 3), v=(6, 4, 3, 3), **A)
    assert op_types(after) == ["Tanh", "Add", "Conv", "Conv"]


PAD = "p = Pad(n, pads)\ny = Conv<strides = [2, 2]>(p, w, c)"
AROUND = np.array([0, 0, 1, 0, 0, 0, 2, 1])


def test_padding_of_its_own_is_padding() -> None:
    for size, expected in (("7,5", FOLDED), ("H,5", partial("shift-meets-padding"))):
        after, plan = check(graph(PAD, size=size), expected, sizes=(3, 1), w=(6, 4, 3, 3), c=(6,), pads=AROUND, **A)
        assert plan.sites[0].shift == ("map" if expected == FOLDED else "add")
        assert "Mul" not in op_types(after)
    # Where the map costs more, one Add stays.
    dear = PAD.replace("<strides = [2, 2]>", "")
    check(graph(dear), partial("shift-meets-padding"), w=(6, 4, 3, 3), c=(6,), pads=AROUND, **A)
    # Anything else behind the padding cannot take a shift of each position.
    check(graph(PAD.replace("Conv<strides = [2, 2]>(p, w, c)", "Tanh(p)")), kept("wall"), pads=AROUND, **A)
    other = graph("p = Pad(n, pads)\nq = MaxPool<kernel_shape = [2, 2]>(p)\ny = Conv<strides = [2, 2]>(q, w, c)")
    positive: dict[str, Constant] = {**A, "a": np.array([0.5, 1.5, 0.8, 1.1]).reshape(4, 1, 1)}
    check(other, partial("shift-meets-padding"), w=(3, 4, 2, 2), c=(3,), pads=AROUND, **positive)


def test_a_pitch_tracker_block() -> None:
    """torchcrepe's layers: pad, convolution, ReLU, norm, pooling, and again; the pooling makes the map pay."""
    text = """g (double[B,1,1,33] x) => (double y) {
        p0 = Pad(x, pads)
        k0 = Conv<strides = [1, 4]>(p0, u, d)
        r0 = Relu(k0)
        n0 = BatchNormalization(r0, gamma, beta, mean, var)
        q0 = MaxPool<kernel_shape = [1, 2], strides = [1, 2]>(n0)
        p1 = Pad(q0, pads)
        k1 = Conv(p1, w, c)
        y = Relu(k1)
    }"""
    rng = np.random.default_rng(0)
    statistics = {name: rng.uniform(0.5, 1.5, 4) for name in ("gamma", "beta", "mean", "var")}
    constants: dict[str, Constant] = {"u": (4, 1, 1, 8), "d": (4,), "w": (6, 4, 1, 5), "c": (6,), **statistics}
    pads = np.array([0, 0, 0, 2, 0, 0, 0, 2])
    after, plan = check(text, FOLDED, pads=pads, **constants)
    assert plan.sites[0].shift == "map" and op_types(after).count("BatchNormalization") == 0
    # A norm whose gamma is negative somewhere does not pass the pooling.
    bent = {**constants, "gamma": -statistics["gamma"]}
    check(text, kept("negative-scale"), pads=pads, **bent)


def test_a_map_takes_the_scale_behind_it() -> None:
    """Two padded convolutions in a row: the first one's map is counted in the frame of its output."""
    text = graph(
        "k = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(n, w)\np = Mul(k, e)\n"
        "y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(p, v)"
    )
    after, _ = check(text, FOLDED, FOLDED, w=(5, 4, 3, 3), e=(5, 1, 1), v=(3, 5, 3, 3), **A)
    assert op_types(after) == ["Tanh", "Conv", "Add", "Conv"]


def test_a_folded_map_is_left_alone() -> None:
    model = build(graph("y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(n, w)"), w=(6, 4, 3, 3), **A)
    after, _ = fold(model)
    again, plan = fold(after)
    assert plan.is_empty and again.SerializeToString() == after.SerializeToString()


def test_a_map_holds_in_float32() -> None:
    model = build(graph("y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(n, w)"), w=(6, 4, 3, 3), **A)
    narrow = as_float32(model)
    feeds = {name: array.astype(np.float32).astype(np.float64) for name, array in feeds_for(model, 8).items()}
    truth = run(model, feeds)[0]
    original, folded = (run_float32(one, feeds)[0] for one in (narrow, fold(narrow)[0]))
    floor = 16 * np.finfo(np.float32).eps * float(np.abs(truth).max())
    assert np.abs(folded - truth).max() <= 2.0 * np.abs(original - truth).max() + floor
    same_function(model, fold(model)[0])
