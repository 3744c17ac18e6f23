"""Weights in other places than most have them, and weights that are written out in operators."""

from __future__ import annotations

import numpy as np
import pytest

from normfold.analysis.rules import rule_of
from tests.support.graphs import FOLDED, build, check, graph_of, kept, op_types

GEMM_LEFT = """g (double[{x}] x) => (double y) {{
    {before}
    o = Gemm<alpha = {alpha}, beta = {beta}, transA = {trans_a}, transB = {trans_b}>(w, i{c})
    {behind}
}}"""


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (3,), (5, 1), (5, 3)])
def test_gemm_with_the_weight_on_the_left(bias: tuple[int, ...] | None, trans_a: int, trans_b: int) -> None:
    w, x = ((4, 5) if trans_a else (5, 4)), "3,4" if trans_b else "4,3"
    alpha, beta = 0.5, 1.0 if bias is None else 2.0
    given = {"x": x, "alpha": alpha, "beta": beta, "trans_a": trans_a, "trans_b": trans_b}
    given["c"] = "" if bias is None else ", c"
    constants = {"w": w} if bias is None else {"w": w, "c": np.array(0.7) if bias == () else bias}
    channels = (4,) if trans_b else (4, 1)
    text = GEMM_LEFT.format(before="h = Tanh(x)\nn = Mul(h, a)\ni = Add(n, b)", behind="y = Tanh(o)", **given)
    model, _ = check(text, FOLDED, a=channels, b=channels, **constants)
    assert op_types(model) == ["Tanh", "Gemm", "Tanh"]
    text = GEMM_LEFT.format(before="i = Identity(x)", behind="n = Mul(o, a)\nm = Add(n, b)\ny = Tanh(m)", **given)
    model, _ = check(text, FOLDED, a=(5, 1), b=(5, 1), **constants)
    assert "Mul" not in op_types(model) and "Add" not in op_types(model)
    across = (3, 1) if trans_b else (3,)
    text = GEMM_LEFT.format(before="h = Tanh(x)\ni = Mul(h, a)", behind="y = Tanh(o)", **given)
    check(text, kept("not-contracted"), a=across, **constants)


COMPUTED = {
    "weight norm": "q = ReduceL2<keepdims = 1>(w, axis)\nr = Div(g, q)\nu = Mul(w, r)",
    "weight norm by hand": "p = Mul(w, w)\nr = ReduceSum<keepdims = 1>(p, axis)\nq = Sqrt(r)\nu = Div(w, q)",
    "bounded": "u = Tanh(w)",
    "standardised": "m = ReduceMean<keepdims = 1>(w, axis)\nu = Sub(w, m)",
    "shares": "u = Softmax<axis = 0>(w)",
    "pruned": "z = CastLike(zero, w)\nk = Abs(w)\np = Sub(k, g)\nq = Relu(p)\ns = Sign(w)\nu = Mul(q, s)",
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_weight_that_is_written_out(name: str) -> None:
    text = f"g (double[B,4] x) => (double y) {{\nh = Tanh(x)\nn = Mul(h, a)\n{COMPUTED[name]}\ny = MatMul(n, u)\n}}"
    constants = {"a": (4,), "w": (4, 5), "g": (5,), "axis": np.array([0]), "zero": np.array(0.0)}
    model, _ = check(text, FOLDED, **{key: value for key, value in constants.items() if key in "aw" or key in text})
    assert op_types(model) == ["Tanh", "MatMul"]


@pytest.mark.parametrize(("attributes", "axis"), [("", 0), ("<transB = 0>", 0), ("<transB = 1>", 1)])
def test_how_large_a_gemm_writes_its_channels(attributes: str, axis: int) -> None:
    weight = np.arange(1.0, 17.0).reshape(4, 4)
    model = build(f"g (double[B,4] x) => (double y) {{ y = Gemm{attributes}(x, w) }}", w=weight)
    graph = graph_of(model)
    (op,) = graph.ops
    found = rule_of("Gemm").magnitude(graph, op, lambda value: None)
    assert found is not None
    np.testing.assert_allclose(found, [np.linalg.norm(weight, axis=axis)])
