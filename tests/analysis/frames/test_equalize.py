"""Free scales between weights: which there are, that they balance, and what they leave alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from normfold.analysis.plan import Plan
from tests.support.graphs import build, draw, fold, op_types, same_function

RNG = np.random.default_rng(5)
# Ranges of channels from 1/100 to 100 beside each other.
UNEVEN = 10.0 ** np.linspace(-2.0, 2.0, 6)
WRITES, READS = RNG.normal(size=(4, 6)) * UNEVEN, RNG.normal(size=(6, 3))
MATRICES = {"w": WRITES, "r": READS}
# Of what lies between: `h` is written by w and read by r.
CARRIED = {
    "relu": "h = Relu(a)",
    "leaky": "h = LeakyRelu<alpha = 0.1>(a)",
    "prelu": "h = PRelu(a, slope)",
    "shifted": "b = Add(a, bias)\nh = Relu(b)",
    "layout": "b = Unsqueeze(a, first)\nc = Transpose<perm = [0, 3, 2, 1]>(b)\nd = Transpose<perm = [0, 3, 2, 1]>(c)\n"
    "h = Squeeze(d, first)",
    "maximum": "b = Relu(a)\nh = Max(a, b)",
    "residual": "b = Relu(a)\nh = Add(a, b)",
}
STOPPED = {
    "tanh": "h = Tanh(a)",
    "gelu": "h = Gelu(a)",
    "softmax": "h = Softmax(a)",
    "cut": "b = Clip(a, low, high)\nh = Relu(b)",
}
OTHERS = {
    "slope": np.full(6, 0.25),
    "bias": draw("bias", 6),
    "first": np.array([1]),
    "low": np.array(-1.0),
    "high": np.array(1.0),
}


def model(between: str, after: str = "y = MatMul(h, r)") -> onnx.ModelProto:
    used = {
        name: array
        for name, array in {**MATRICES, **OTHERS}.items()
        if name in f"{between} {after} w r".split()
        or f" {name})" in f"{between}{after}"
        or f" {name}," in f"{between}{after}"
    }
    return build(f"g (double[B,2,4] x) => (double y) {{\na = MatMul(x, w)\n{between}\n{after}\n}}", **used)


def weight(graph: onnx.ModelProto, which: int) -> NDArray[np.float64]:
    """What the MatMul of this number reads."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    return [stored[node.input[1]] for node in graph.graph.node if node.op_type == "MatMul"][which]


def equalized(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, Plan]:
    after, plan = fold(graph, equalize=True)
    same_function(graph, after)
    assert Counter(op_types(after)) == Counter(op_types(graph))
    return after, plan


@pytest.mark.parametrize("between", CARRIED)
def test_the_ranges_on_both_sides_balance(between: str) -> None:
    after, _ = equalized(model(CARRIED[between]))
    writes, reads = np.abs(weight(after, 0)).max(axis=0), np.abs(weight(after, 1)).max(axis=1)
    shares = (writes / writes.max()) / (reads / reads.max())
    # What the tensor holds, a bias of order 1 above all, counts beside the range of the weight that writes it.
    assert shares.max() / shares.min() < (1.5 if between != "shifted" else 100.0)
    assert writes.max() / writes.min() < 0.1 * UNEVEN.max() / UNEVEN.min()


@pytest.mark.parametrize("between", STOPPED)
def test_where_nothing_is_free_nothing_changes(between: str) -> None:
    graph = model(STOPPED[between])
    _, plan = fold(graph, equalize=True)
    assert plan.is_empty and not plan.spreads


def test_nobody_asked() -> None:
    assert fold(model(CARRIED["relu"]))[1].is_empty


def test_through_convolutions_and_pools() -> None:
    kernel = draw("k", 6, 3, 3, 3) * UNEVEN.reshape(-1, 1, 1, 1)
    graph = build(
        "g (double[B,3,8,8] x) => (double y) {\na = Conv<pads = [1, 1, 1, 1]>(x, k, b)\nc = Relu(a)\n"
        "d = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)\n"
        "e = Conv<group = 6, pads = [1, 1, 1, 1]>(d, l)\nf = GlobalAveragePool(e)\n"
        "h = Flatten(f)\ny = Gemm<transB = 1>(h, w)\n}",
        k=kernel, b=draw("b", 6) * UNEVEN, l=(6, 1, 3, 3), w=(2, 6),
    )  # fmt: skip
    after, plan = equalized(graph)
    spread = {one.name: one for one in plan.spreads}
    assert spread["k"].before > 50.0 > 7.0 > (spread["k"].equalized or np.inf)
    assert len(plan.frames) >= 4
    assert fold(after, equalize=True)[1].is_empty


def test_two_readers_count() -> None:
    graph = build(
        "g (double[B,4] x) => (double y, double z) {\na = MatMul(x, w)\nh = Relu(a)\n"
        "y = MatMul(h, r)\nz = MatMul(h, q)\n}",
        w=WRITES, r=READS, q=READS[::-1] * 100.0,
    )  # fmt: skip
    after, _ = equalized(graph)
    reads = [np.abs(weight(after, which)).max(axis=1) for which in (1, 2)]
    assert max(range_.max() / range_.min() for range_ in reads) < 1e3


def test_a_dead_channel_keeps_its_bias() -> None:
    """Its weights are nothing beside the others; its bias would be divided by what they are multiplied with."""
    dead, bias = WRITES.copy(), np.ones(6)
    dead[:, 2] *= 1e-9
    graph = build(
        "g (double[B,4] x) => (double y) {\na = MatMul(x, w)\nb = Add(a, c)\nh = Relu(b)\ny = MatMul(h, r)\n}",
        w=dead, c=bias, r=READS,
    )  # fmt: skip
    after, _ = equalized(graph)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    added = next(stored[node.input[1]] for node in after.graph.node if node.op_type == "Add")
    assert abs(added[2]) <= np.abs(added).max() < 200.0
    assert not np.allclose(added, bias)


def test_a_number_stays_one_number() -> None:
    """A scalar product between the weights would have to become one for each channel."""
    graph = build("g (double[B,4] x) => (double y) {\na = MatMul(x, w)\nh = Mul(a, two)\ny = MatMul(h, r)\n}",
                  w=WRITES, r=READS, two=np.array(2.0))  # fmt: skip
    assert fold(graph, equalize=True)[1].is_empty


def test_a_quantised_graph_is_left_whole() -> None:
    graph = build(
        "g (double[B,4] x) => (double y) {\na = MatMul(x, w)\nh = Relu(a)\nf = Cast<to = 1>(h)\n"
        "q = QuantizeLinear(f, s)\nd = DequantizeLinear(q, s)\ne = Cast<to = 11>(d)\nb = MatMul(e, r)\n"
        "c = Relu(b)\ny = MatMul(c, v)\n}",
        w=WRITES, r=READS, v=(3, 3), s=np.array(0.5, np.float32),
    )  # fmt: skip
    assert fold(graph, equalize=True)[1].is_empty
