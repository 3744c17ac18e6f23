"""Forms that a graph may come in: constants as nodes, functions, subgraphs, other domains, integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from normfold.analysis.plan import Plan
from tests.support.graphs import FOLDED, build, draw, feeds_for, fold, kept, op_types, outcomes, run, same_function

STATISTICS = ("gamma", "beta", "mean", "var")
CONV = """g (double[B,4,5] x) => (double y) {
    h = Tanh(x)
    n = BatchNormalization(h, gamma, beta, mean, var)
    y = Conv(n, w, c)
}"""


def constants() -> dict[str, np.ndarray]:
    found = {name: draw(name, 4, positive=name == "var") for name in STATISTICS}
    return {**found, "w": draw("w", 3, 4, 2), "c": draw("c", 3)}


def test_parameters_in_constant_nodes() -> None:
    """As some exporters write them: the batch norm's four, the weight and the bias."""
    model = build(CONV, **constants())
    given = {tensor.name: tensor for tensor in model.graph.initializer}
    del model.graph.initializer[:]
    nodes = [onnx.helper.make_node("Constant", [], [name], value=tensor) for name, tensor in given.items()]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    onnx.checker.check_model(model, full_check=True)
    after, plan = fold(model)
    assert outcomes(plan) == [FOLDED]
    assert op_types(after) == ["Tanh", "Conv"] and {t.name for t in after.graph.initializer} == {"w.folded", "c.folded"}
    same_function(model, after)


@pytest.mark.parametrize("written", ["value_floats = [0.5, -1.5, 2.0, 0.25]", "value_float = 0.5"])
def test_numbers_in_constant_nodes(written: str) -> None:
    text = (
        f"g (float[B,4] x) => (float y) {{\nh = Tanh(x)\nk = Constant<{written}>()\n"
        f"n = Mul(h, k)\nm = Mul(n, a)\ny = MatMul(m, w)\n}}"
    )
    model = build(text, a=draw("a", 4).astype(np.float32), w=draw("w", 4, 3).astype(np.float32))
    after, plan = fold(model)
    assert outcomes(plan) == [FOLDED] and op_types(after) == ["Tanh", "MatMul"]
    feeds = feeds_for(model, 2)
    np.testing.assert_allclose(run(after, feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-5)


FUNCTION = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
g (double[B,4] x) => (double[B,3] y) {
    h = Tanh(x)
    n = local.norm(h, a, b)
    k = Relu(n)
    m = local.norm(k, d, b)
    y = MatMul(m, w)
}
<domain: "local", opset_import: ["" : 20]>
norm (v, scale, shift) => (out) {
    scaled = Mul(v, scale)
    out = Add(scaled, shift)
}"""


def test_functions_are_seen_through() -> None:
    given = {"a": draw("a", 4), "b": draw("b", 4), "d": draw("d", 4), "w": draw("w", 4, 3)}
    model = build(FUNCTION, **given)
    after, plan = fold(model)
    assert outcomes(plan) == [kept("negative-scale"), FOLDED]
    assert not after.functions and all(node.domain in ("", "ai.onnx") for node in after.graph.node)
    same_function(model, after)
    model = build(FUNCTION, **{**given, "a": draw("a", 4, positive=True), "b": np.zeros(4)})
    after, plan = fold(model)
    assert outcomes(plan) == [FOLDED, FOLDED]
    same_function(model, after)


LOOP = """g (double[2,4] x) => (double[2,3] y) {{
    h = Tanh(x)
    n = Mul(h, a)
    times = Constant<value = int64 {{3}}>()
    go = Constant<value = bool {{1}}>()
    q = Loop (times, go, {carried}) <
        body = b (int64 i, bool c, double[2,4] v) => (bool d, double[2,4] u) {{ d = Identity(c)
        u = Add(v, {read}) }}
    >
    r = Tanh(q)
    p = MatMul(n, w)
    s = MatMul(r, w)
    y = Add(p, s)
}}"""


@pytest.mark.parametrize(
    ("carried", "read", "outcome"),
    [("h", "h", FOLDED), ("x", "h", FOLDED), ("n", "h", kept("wall")), ("h", "n", kept("wall"))],
)
def test_loops_are_walls(carried: str, read: str, outcome: tuple[str, str | None]) -> None:
    """What a body reads, as an input or from around it, keeps its values."""
    model = build(LOOP.format(carried=carried, read=read), a=draw("a", 4), w=draw("w", 4, 3))
    after, plan = fold(model)
    assert outcomes(plan) == [outcome]
    same_function(model, after, sizes=(2,))


@pytest.mark.parametrize("domain", ["com.microsoft", "com.example"])
def test_operators_of_other_domains_are_walls(domain: str) -> None:
    """Even under a name that the standard has too."""
    text = f'<ir_version: 10, opset_import: ["" : 20, "{domain}" : 1]>\ng (double[B,4] x) => (double[B,3] y) '
    text += "<double[B,4] o> {\nh = Tanh(x)\nn = Mul(h, a)\no = {0}\ny = MatMul(o, w)\n}"
    for operator in ("Identity(n)", "MatMul(n, v)", "Mul(n, h)"):
        for prefix, outcome in ((f"{domain}.", kept("wall")), ("", FOLDED)):
            model = build(text.replace("{0}", prefix + operator), a=draw("a", 4), w=draw("w", 4, 3), v=draw("v", 4, 4))
            _, plan = fold(model)
            assert outcomes(plan) == [outcome]


# Quantised graphs.

QUANTISED = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g (float[B,4] x) => (float[B,3] y) <float[B,3] z> {{
    h = Tanh(x)
    n = Mul(h, a)
    {quantised}
    m = Mul(z, d)
    y = MatMul(m, u)
}}"""
INTEGERS = {
    "activations": "q = QuantizeLinear(n, step, zero)\nf = DequantizeLinear(q, step, zero)\nz = MatMul(f, w)",
    "weights": "f = DequantizeLinear(wq, step, zero)\nz = MatMul(n, f)",
    "dynamic": (
        "q, s, p = DynamicQuantizeLinear(n)\nk = MatMulInteger(q, wq, p, zero)\nf = Cast<to = 1>(k)\nz = Mul(f, s)"
    ),
    "QLinear": "q = QuantizeLinear(n, step, zero)\nk = QLinearMatMul(q, step, zero, wq, step, zero, step, zero)\n"
    "z = DequantizeLinear(k, step, zero)",
    "runtime's": "z = com.microsoft.DynamicQuantizeMatMul(n, wq, step, zero)",
    "in a subgraph": "yes = Constant<value = bool {1}>()\nz0 = MatMul(n, w)\nz = If(yes) <\n"
    "then_branch = t () => (float[B,3] v) { v0 = QuantizeLinear(z0, step, zero)\n"
    "v = DequantizeLinear(v0, step, zero) },\nelse_branch = e () => (float[B,3] u) { u = Identity(z0) }>",
    "blocks": "z = com.microsoft.MatMulNBits<K = 4, N = 3>(n, wq, step)",
}


def quantised(name: str) -> tuple[onnx.ModelProto, Plan]:
    given = {"a": draw("a", 4), "w": draw("w", 4, 3), "d": draw("d", 3), "u": draw("u", 3, 3), "step": np.array(0.02)}
    single = {key: array.astype(np.float32) for key, array in given.items()}
    integers = {"wq": (draw("wq", 4, 3, positive=True) * 100).astype(np.uint8), "zero": np.array(128, np.uint8)}
    model = build(QUANTISED.format(quantised=INTEGERS.get(name, "z = MatMul(n, w)")), **single, **integers)
    after, plan = fold(model)
    assert plan.is_empty == (name in INTEGERS) and (op_types(after) == op_types(model)) == (name in INTEGERS)
    return model, plan


@pytest.mark.parametrize("name", INTEGERS)
def test_quantised_graphs_stay_whole(name: str) -> None:
    """Also the norm far from the integers: its frame could reach them, and the steps were measured as it is."""
    _, plan = quantised(name)
    assert outcomes(plan) == [kept("quantised")] * len(plan.sites) and len(plan.sites) == 2
    assert all("fold before quantising" in str(site.reason) for site in plan.sites)


def test_its_twin_without_integers_folds() -> None:
    _, plan = quantised("none")
    assert outcomes(plan) == [FOLDED, FOLDED]
