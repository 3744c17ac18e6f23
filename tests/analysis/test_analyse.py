"""Whole graphs: post-norm and pre-norm networks, and every trap that folding tools have fallen into."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.support.graphs import (
    FOLDED,
    as_float32,
    build,
    check,
    draw,
    feeds_for,
    fold,
    kept,
    op_types,
    outcomes,
    partial,
    run,
    run_float32,
)

# A few hundred float64 operations on values of order 1.
DEEP_TOLERANCE = 1e-12
# The contract: twice the original's own float32 error, and a few units in the last place of the output's scale.
FLOAT32_FACTOR, FLOAT32_FLOOR_ULP = 2.0, 16.0


def network(
    blocks: int, *, post: bool, head: bool, bias: bool = True, channels: int = 8, seed: int = 0
) -> onnx.ModelProto:
    """Blocks of a norm and an MLP around a residual stream: norm(x + f(x)), or x + f(norm(x))."""
    rng = np.random.default_rng(seed)
    constants: dict[str, NDArray[np.float64]] = {}
    lines: list[str] = []

    def constant(name: str, *shape: int) -> str:
        constants[name] = rng.normal(size=shape) / np.sqrt(shape[0])
        return name

    def linear(x: str, y: str, out: int, width: int) -> None:
        lines.append(f"{y}_product = MatMul({x}, {constant(f'{y}_weight', width, out)})")
        if bias:
            lines.append(f"{y} = Add({y}_product, {constant(f'{y}_bias', out)})")
        else:
            lines.append(f"{y} = Identity({y}_product)")

    def norm(x: str, y: str) -> None:
        constants[f"{y}_a"] = rng.uniform(0.4, 1.6, channels) * rng.choice([-1.0, 1.0], channels, p=[0.2, 0.8])
        constants[f"{y}_b"] = rng.normal(size=channels) * 0.3
        lines.extend([f"{y}_m = Mul({x}, {y}_a)", f"{y} = Add({y}_m, {y}_b)"])

    linear("x", "s", channels, channels)
    stream = "s"
    for k in range(blocks):
        source = stream
        if not post:
            norm(stream, f"n{k}")
            source = f"n{k}"
        linear(source, f"u{k}", 2 * channels, channels)
        lines.append(f"v{k} = {('Relu', 'Tanh', 'Gelu')[k % 3]}(u{k})")
        linear(f"v{k}", f"f{k}", channels, 2 * channels)
        lines.append(f"r{k} = Add({stream}, f{k})")
        stream = f"r{k}"
        if post:
            norm(stream, f"n{k}")
            stream = f"n{k}"
    if not post:
        norm(stream, "last")
        stream = "last"
    if head:
        linear(stream, "y", 3, channels)
    else:
        lines.append(f"y = Identity({stream})")
    text = f"g (double[B,{channels}] x) => (double y) {{\n" + "\n".join(lines) + "\n}"
    return build(text, **constants)


def relative_error(model: onnx.ModelProto, after: onnx.ModelProto) -> float:
    feeds = feeds_for(model, 16)
    truth, result = run(model, feeds)[0], run(after, feeds)[0]
    return float(np.abs(truth - result).max() / np.abs(truth).max())


def holds_in_float32(model: onnx.ModelProto) -> None:
    feeds = {name: array.astype(np.float32).astype(np.float64) for name, array in feeds_for(model, 16).items()}
    exact = run(model, feeds)[0]
    narrow = as_float32(model)
    original, folded = (run_float32(graph, feeds)[0] for graph in (narrow, fold(narrow)[0]))
    floor = FLOAT32_FLOOR_ULP * np.finfo(np.float32).eps * float(np.abs(exact).max())
    assert np.abs(folded - exact).max() <= FLOAT32_FACTOR * np.abs(original - exact).max() + floor


@pytest.mark.parametrize("blocks", [6, 24, 48])
@pytest.mark.parametrize("head", [True, False])
def test_post_norm_networks_fold_whole(blocks: int, head: bool) -> None:
    """Without a head the last norm is the output: it folds towards the producer."""
    for seed in range(2 if blocks < 48 else 1):
        model = network(blocks, post=True, head=head, seed=seed)
        after, plan = fold(model)
        assert outcomes(plan) == [FOLDED] * blocks
        assert "Mul" not in op_types(after)
        assert op_types(after).count("Add") == op_types(model).count("Add") - blocks
        assert relative_error(model, after) < DEEP_TOLERANCE
        holds_in_float32(model)


@pytest.mark.parametrize("blocks", [6, 24])
def test_pre_norm_networks_fold_whole(blocks: int) -> None:
    model = network(blocks, post=False, head=True)
    after, plan = fold(model)
    assert outcomes(plan) == [FOLDED] * (blocks + 1)
    assert "Mul" not in op_types(after)
    assert op_types(after).count("Add") == op_types(model).count("Add") - blocks - 1
    assert relative_error(model, after) < DEEP_TOLERANCE
    holds_in_float32(model)


@pytest.mark.parametrize("seed", range(3))
def test_without_biases_a_pre_norm_network_does_not_grow(seed: int) -> None:
    """The residual stream, or one narrow Add, carries what no bias takes."""
    model = network(6, post=False, head=True, bias=False, seed=seed)
    after, plan = fold(model)
    assert {status for status, _ in outcomes(plan)} <= {"folded", "partial"}
    assert "Mul" not in op_types(after)
    # The residual sums were there before.
    assert op_types(after).count("Add") - 6 <= 7
    assert relative_error(model, after) < DEEP_TOLERANCE
    holds_in_float32(model)


# Traps.


def test_the_norms_output_is_also_an_output() -> None:
    text = "g (double[B,4] x) => (double y, double n) {\nh = {0}\nm = Mul(h, a)\nn = Add(m, b)\ny = Gemm(n, w, c)\n}"
    constants = {"a": (4,), "b": (4,), "w": (4, 3), "c": (3,), "v": (4, 4), "d": (4,)}
    check(text.replace("{0}", "Tanh(x)"), kept("graph-output"), **constants)
    after, _ = check(text.replace("{0}", "Gemm(x, v, d)"), FOLDED, **constants)
    assert [value.name for value in after.graph.output] == ["y", "n"]
    check(text.replace("{0}", "Tanh(x)").replace(", double n)", ")"), FOLDED, **constants)


def test_the_norms_input_is_also_an_output() -> None:
    text = "g (double[B,4] x) => (double y, double h) {\nh = Gemm(x, v, d)\nm = Mul(h, a)\nn = Add(m, b)\ny = {0}(n)\n}"
    constants = {"a": (4,), "b": (4,), "w": (4, 3), "v": (4, 4), "d": (4,)}
    check(text.replace("{0}(n)", "Gemm(n, w)"), FOLDED, **constants)
    check(text.replace("{0}", "Tanh"), kept("wall"), **constants)


@pytest.mark.parametrize("operator", ["MatMul(n, w)", "Gemm(n, w)", "Conv(n, w)"])
def test_a_layer_called_twice_serves_both_callers(operator: str) -> None:
    """The other caller has no norm: the shared weight must not change for it."""
    text = f"""g (double[B,4,5] x) => (double y, double z) {{{{
        h = Tanh(x)
        n = Mul(h, a)
        y0 = {operator}
        y = Identity(y0)
        k = Sigmoid(x)
        z = {operator.replace("(n", "({0}")}
    }}}}""".replace("[B,4,5]", "[B,4,5]" if "Conv" in operator else "[B,4]")
    shapes = {"a": (4, 1) if "Conv" in operator else (4,), "w": (3, 4, 1) if "Conv" in operator else (4, 3)}
    after, _ = check(text.format("k"), FOLDED, **shapes)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    assert sorted(tensors) == ["w", "w.folded"]
    np.testing.assert_array_equal(tensors["w"], draw("w", *shapes["w"]))
    # Both callers behind the norm: one new weight, and the old one is gone.
    after, _ = check(text.format("n"), FOLDED, **shapes)
    assert [t.name for t in after.graph.initializer] == ["w.folded"]


def test_symbolic_products_are_followed() -> None:
    """Swin's windows: `64*B` rows are B times 64."""
    text = """g (double[B,8,8,3] x) => (double y) {
        p = MatMul(x, v)
        n = Mul(p, a)
        m = Add(n, b)
        r = Reshape(m, s)
        t = Transpose<perm = [0, 1, 3, 2, 4, 5]>(r)
        u = Reshape(t, q)
        k = MatMul(u, w)
        l = Add(k, c)
        o = Reshape(l, e)
        y = Tanh(o)
    }"""
    constants = {"s": np.array([-1, 2, 4, 2, 4, 3]), "q": np.array([-1, 16, 3]), "e": np.array([-1, 4, 16, 5])}
    after, _ = check(text, FOLDED, a=(3,), b=(3,), v=(3, 3), w=(3, 5), c=(5,), **constants)
    assert "Mul" not in op_types(after)


def test_a_shape_is_not_a_reader() -> None:
    text = """g (double[B,L,4] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        m = Add(n, b)
        s = Shape(m)
        k = Gather(s, zero)
        i = Size(n)
        p = MatMul(m, w)
        q = Add(p, c)
        r = Cast<to = 11>(k)
        t = Cast<to = 11>(i)
        u = Mul(q, r)
        y = Mul(u, t)
    }"""
    after, _ = check(text, FOLDED, a=(4,), b=(4,), w=(4, 3), c=(3,), zero=np.array(0))
    assert op_types(after).count("Mul") == 2


def test_half_precision_weights_with_single_precision_statistics() -> None:
    text = """g (float16[B,4,5] x) => (float16[B,3,5] y) {
        h = Tanh(x)
        n = BatchNormalization(h, gamma, beta, mean, var)
        y = Conv(n, w, c)
    }"""
    half = {name: draw(name, *shape).astype(np.float16) for name, shape in {"w": (3, 4, 1), "c": (3,)}.items()}
    single = {
        name: draw(name, 4, positive=name == "var").astype(np.float32) for name in ("gamma", "beta", "mean", "var")
    }
    model = build(text, **half, **single)
    after, plan = fold(model)
    assert outcomes(plan) == [FOLDED]
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float16)}
    # Computed in float64 and rounded once: the half-precision weight is the nearest to the exact one.
    scale = single["gamma"].astype(float) / np.sqrt(single["var"].astype(float) + 1e-5)
    exact = half["w"].astype(float) * scale[:, None]
    np.testing.assert_array_equal(tensors["w.folded"], exact.astype(np.float16))


# Graphs of other writers.


def test_two_norms_in_a_row_become_one() -> None:
    text = (
        "g (double[B,4] x) => (double y) {\nh = Tanh(x)\nm = Mul(h, a)\nn = Add(m, b)\n"
        "p = Mul(n, d)\nq = Add(p, e)\ny = {0}\n}"
    )
    constants = {"a": (4,), "b": (4,), "d": (4,), "e": (4,), "w": (4, 3), "c": (3,)}
    after, _ = check(text.replace("{0}", "Gemm(q, w, c)"), FOLDED, **constants)
    assert op_types(after) == ["Tanh", "Gemm"]


def test_folding_twice_changes_nothing() -> None:
    for model in (network(4, post=True, head=True), network(4, post=False, head=False)):
        after, _ = fold(model)
        again, plan = fold(after)
        assert plan.is_empty
        assert again.SerializeToString() == after.SerializeToString()
    check(
        (
            "g (double[B,4,5] x) => (double y) {\nh = Tanh(x)\nm = Mul(h, a)\nn = Add(m, b)\n"
            "y = Conv<pads = [1, 1]>(n, w)\n}"
        ),
        partial("shift-meets-padding"),
        a=(4, 1),
        b=(4, 1),
        w=(4, 4, 3),
    )


@pytest.mark.parametrize("scalars", [1, 3])
def test_a_scalar_that_takes_up_a_norm_goes_with_it(scalars: int) -> None:
    """Else it is left as one per channel, which a second fold takes for a norm."""
    steps = "".join(f"r{k + 1} = Relu(s{k})\ns{k + 1} = Mul(r{k + 1}, half)\n" for k in range(scalars))
    text = f"g (double[B,4] x) => (double y) {{\nh = Tanh(x)\ns0 = Mul(h, a)\n{steps}y = MatMul(s{scalars}, w)\n}}"
    after, plan = check(text, FOLDED, a=draw("a", 4, positive=True), w=(4, 3), half=np.array(0.5))
    assert op_types(after) == ["Tanh", *["Relu"] * scalars, "MatMul"] and plan.sites[0].into == ("y",)
    assert fold(after)[1].is_empty
    # Where it cannot go on, it stays, and a second fold leaves it too.
    stuck = text.replace(f"MatMul(s{scalars}, w)", f"Tanh(s{scalars})")
    after, _ = check(stuck, FOLDED, a=draw("a", 4, positive=True), half=np.array(0.5))
    assert op_types(after).count("Mul") == 1 and fold(after)[1].is_empty
