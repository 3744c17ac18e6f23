"""A gamma of exactly 0: nothing is divided by it, whatever is behind it, and what others read stays as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfold.graph.prepare import prepare
from tests.support.graphs import FOLDED, build, check, draw, kept, op_types

GAMMA = np.array([0.0, 1.3, 0.0, 0.7])
STATISTICS = {"gamma": GAMMA, "beta": draw("beta", 4), "mean": draw("mean", 4), "var": draw("var", 4, positive=True)}
NORM = "n = BatchNormalization<epsilon = 0.01>(h, gamma, beta, mean, var)  y = Relu(n) }"


@pytest.mark.parametrize(
    ("writer", "constants"),
    [
        ("h = Conv(x, w)", {"w": (4, 3, 3, 3)}),
        ("h = Conv<pads = [1, 1, 1, 1]>(x, w, b)", {"w": (4, 3, 3, 3), "b": (4,)}),
        ("h = ConvTranspose<strides = [2, 2]>(x, w, b)", {"w": (3, 4, 2, 2), "b": (4,)}),
        ("h = ConvTranspose<strides = [2, 2]>(x, w)", {"w": (3, 4, 2, 2)}),
    ],
)
def test_it_folds_into_the_convolution_in_front(writer: str, constants: dict[str, tuple[int, ...]]) -> None:
    after, _ = check(f"g (double[B,3,5,5] x) => (double y) {{ {writer} {NORM}", FOLDED, **constants, **STATISTICS)
    assert "BatchNormalization" not in op_types(after)


@pytest.mark.parametrize("layout", ["", "<transB = 1>"])
@pytest.mark.parametrize("bias", [(4,), (1, 4), None])
def test_it_folds_into_a_gemm(layout: str, bias: tuple[int, ...] | None) -> None:
    text = f"g (double[B,3] x) => (double y) {{ h = Gemm{layout}(x, w{', b' if bias else ''}) {NORM}"
    constants = {"w": (4, 3) if layout else (3, 4)} | ({"b": bias} if bias else {})
    after, _ = check(text, FOLDED, **constants, **STATISTICS)
    assert op_types(after) == ["Gemm", "Relu"]


def test_a_residual_branch_that_begins_at_zero_folds() -> None:
    zero = {**STATISTICS, "gamma": np.zeros(4)}
    text = f"g (double[B,4,5,5] x) => (double y) {{ c = Conv<pads = [1,1,1,1]>(x, w)  h = Identity(c) {NORM}"
    text = (
        text.replace("y = Relu(n)", "s = Add(n, x)  y = Relu(s)")
        .replace("h = Identity(c)", "")
        .replace("c = Conv", "h = Conv")
    )
    check(text, FOLDED, w=(4, 4, 3, 3), **zero)


@pytest.mark.parametrize(
    "text",
    [
        # Somebody else reads what the convolution writes, or it is an output.
        "g (double[B,3,5,5] x) => (double y, double z) { h = Conv(x, w) z = Sigmoid(h) %s",
        "g (double[B,3,5,5] x) => (double y, double h) { h = Conv(x, w) %s",
    ],
)
def test_what_others_read_stays(text: str) -> None:
    check(text % NORM, kept("negative-scale"), w=(4, 3, 3, 3), **STATISTICS)


def test_a_weight_that_two_read_is_copied() -> None:
    text = f"g (double[B,4,5,5] x) => (double y, double z) {{ h = Conv(x, w) z = Conv(x, w) {NORM}"
    after, plan = check(text, FOLDED, w=(4, 4, 3, 3), **STATISTICS)
    assert op_types(after) == ["Conv", "Conv", "Relu"]
    assert len({name for node in after.graph.node for name in node.input if "w" in name}) == 2
    assert plan.sites[0].status == "folded"


def test_the_model_that_comes_in_stays_as_it_was() -> None:
    model = ir.from_proto(
        build(f"g (double[B,3,5,5] x) => (double y) {{ h = Conv(x, w) {NORM}", w=(4, 3, 3, 3), **STATISTICS)
    )
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    copy = prepare(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    found = copy.graph.initializers["w"].const_value
    assert found is not None and not found.numpy()[[0, 2]].any() and found.numpy()[[1, 3]].all()
    assert isinstance(ir.to_proto(copy), onnx.ModelProto)
