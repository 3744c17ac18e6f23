"""Graphs as other tools write them: subgraphs, functions, constants as nodes, axes of no element."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest

from normfold.analysis.analyse import analyse
from normfold.errors import GraphError
from normfold.graph.prepare import prepare
from tests.analysis.test_analyse import network
from tests.support.graphs import (
    FOLDED,
    build,
    check,
    draw,
    feeds_for,
    fold,
    kept,
    op_types,
    outcomes,
    run,
    same_function,
)

CAPTURED = """g (double[B,4] x, bool[] yes) => (double y{more}) {{
    h = Tanh(x)
    n = Mul(h, a)
    m = Add(n, b)
    q = If (yes) <
        then_branch = t () => (double[B,4] u) {{ u = Sigmoid({inside}) }},
        else_branch = e () => (double[B,4] v) {{ v = Tanh(x) }}
    >
    p = Gemm(m, w, c)
    r = Gemm(q, w)
    y = Add(p, r)
}}"""


@pytest.mark.parametrize(("inside", "outcome"), [("m", kept("wall")), ("h", FOLDED), ("x", FOLDED), ("n", None)])
def test_subgraphs_that_read_the_tensor_are_walls(inside: str, outcome: tuple[str, str | None] | None) -> None:
    model = build(
        CAPTURED.format(more="", inside=inside).replace("bool[] yes", "bool[1] yes"), a=(4,), b=(4,), w=(4, 3), c=(3,)
    )
    after, plan = fold(model)
    assert outcomes(plan) == [outcome or kept("wall")]
    for yes in (True, False):
        feeds = {"x": feeds_for(model, 2)["x"], "yes": np.array([yes])}
        np.testing.assert_allclose(run(after, feeds)[0], run(model, feeds)[0], rtol=1e-10)


def test_subgraphs_keep_the_weight_they_share() -> None:
    """The weight that a branch reads stays, whatever the main graph makes of it."""
    text = CAPTURED.format(more="", inside="x").replace("Sigmoid(x)", "MatMul(x, w)").replace("[] yes", "[1] yes")
    text = (
        text.replace("Tanh(x) }", "MatMul(h, w) }")
        .replace("r = Gemm(q, w)", "r = Identity(q)")
        .replace("[B,4] u", "[B,4] u")
    )
    model = build(text, a=(4,), b=(4,), w=(4, 4), c=(4,))
    after, plan = fold(model)
    assert outcomes(plan) == [FOLDED]
    assert "w" in {tensor.name for tensor in after.graph.initializer}
    for yes in (True, False):
        feeds = {"x": feeds_for(model, 2)["x"], "yes": np.array([yes])}
        np.testing.assert_allclose(run(after, feeds)[0], run(model, feeds)[0], rtol=1e-10)


def test_local_functions_are_inlined() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
    g (double[B,4] x) => (double[B,3] y) { h = Tanh(x)
        n = local.norm(h, a, b)
        y = Gemm(n, w, c) }
    <domain: "local", opset_import: ["" : 20]>
    norm (x, a, b) => (y) { m = Mul(x, a)
        y = Add(m, b) }"""
    model = onnx.parser.parse_model(text)
    shapes = {"a": (4,), "b": (4,), "w": (4, 3), "c": (3,)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(draw(n, *s), n) for n, s in shapes.items())
    after, plan = fold(model)
    assert outcomes(plan) == [FOLDED]
    same_function(model, after)


def test_malformed_graphs_are_errors() -> None:
    model = build("g (double[B,4] x) => (double y) {\nh = Tanh(x)\ny = Mul(h, a)\n}", a=(4,))
    graph = prepare(ir.from_proto(model))
    first, second = graph.graph
    second.outputs[0].name = first.outputs[0].name
    with pytest.raises(GraphError, match="tensors of one name"):
        analyse(graph)


TORCHSCRIPT = """g (double[B,L,4] x) => (double y) {
    h = MatMul(x, v)
    h1 = Add(h, d)
    t = Transpose<perm = [0, 2, 1]>(h1)
    s = Shape(t)
    b0 = Gather(s, zero)
    c0 = Gather(s, one)
    l0 = Gather(s, two)
    b1 = Unsqueeze(b0, first)
    c1 = Unsqueeze(c0, first)
    l1 = Unsqueeze(l0, first)
    s4 = Concat<axis = 0>(b1, c1, l1, ones)
    t4 = Reshape(t, s4)
    cs = Concat<axis = 0>(ones, c1, ones, ones)
    var = Reshape(running_var, cs)
    e = Add(var, eps)
    root = Sqrt(e)
    p = Div(t4, root)
    weight = Reshape(w, cs)
    q = Mul(weight, p)
    bias = Reshape(b, cs)
    r = Add(q, bias)
    sr = Shape(r)
    br = Gather(sr, zero)
    br1 = Unsqueeze(br, first)
    s3 = Concat<axis = 0>(br1, c1, minus)
    r3 = Reshape(r, s3)
    n = Transpose<perm = [0, 2, 1]>(r3)
    so = Shape(n)
    lo = Gather(so, one)
    f = Cast<to = 11>(lo)
    k = MatMul(n, u)
    k1 = Add(k, c)
    k2 = Tanh(k1)
    y = Mul(k2, f)
}"""


def test_unified_normalization_as_torchscript_writes_it() -> None:
    """Parameters reshaped by shapes that are read from the input, and Shape nodes on the norm's output."""
    constants = {
        "zero": np.array(0),
        "one": np.array(1),
        "two": np.array(2),
        "first": np.array([0]),
        "ones": np.array([1]),
        "minus": np.array([-1]),
        "eps": np.array(1e-5),
        "running_var": draw("var", 4, positive=True),
        "w": (4,),
        "b": (4,),
        "v": (4, 4),
        "d": (4,),
        "u": (4, 3),
        "c": (3,),
    }
    after, _ = check(TORCHSCRIPT, FOLDED, sizes=(2, 4, 1), **constants)
    assert not {"Div", "Sqrt"} & set(op_types(after))
    assert op_types(after).count("Mul") == 1 and op_types(after).count("Add") == 2


@pytest.mark.parametrize("post", [True, False])
def test_graphs_that_onnx_graphsurgeon_wrote(post: bool) -> None:
    """It drops names' metadata and shapes; what it leaves is enough."""
    model = network(3, post=post, head=True)
    written = gs.export_onnx(gs.import_onnx(model))
    del written.graph.value_info[:]
    after, plan = fold(written)
    assert outcomes(plan) == [FOLDED] * (3 if post else 4)
    assert "Mul" not in op_types(after)
    same_function(model, after)


def test_weights_in_constant_nodes() -> None:
    text = """g (double[B,4] x) => (double y) {
        a = Constant<value = double[4] {1.5, -2.0, 0.5, 3.0}>()
        w = Constant<value = double[4,2] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5}>()
        h = Tanh(x)
        n = Mul(h, a)
        y = MatMul(n, w)
    }"""
    after, _ = check(text, FOLDED)
    assert op_types(after) == ["Tanh", "MatMul"]


def test_overridable_constants_are_not_constant() -> None:
    for name in ("a", "b"):
        text = (
            f"g (double[B,4] x, double[4] {name}) => (double y) {{\nh = Tanh(x)\n"
            f"m = Mul(h, a)\nn = Add(m, b)\ny = Gemm(n, w, c)\n}}"
        )
        model = build(text, a=(4,), b=(4,), w=(4, 3), c=(3,))
        after, plan = fold(model)
        assert FOLDED not in outcomes(plan) or name == "b"
        same_function(model, after)
        feeds = {**feeds_for(model, 2), name: np.array([3.0, -1.0, 0.5, 2.0])}
        np.testing.assert_allclose(run(after, feeds)[0], run(model, feeds)[0], rtol=1e-10)


def test_zero_sized_axes() -> None:
    text = (
        "g (double[B,L,4] x) => (double y) {\nh = Tanh(x)\nm = Mul(h, a)\nn = Add(m, b)\n"
        "p = MatMul(n, w)\ny = Add(p, c)\n}"
    )
    model = build(text, a=(4,), b=(4,), w=(4, 3), c=(3,))
    after, _ = fold(model)
    assert run(after, {"x": np.zeros((2, 0, 4))})[0].shape == (2, 0, 3)
    text = text.replace("double[B,L,4]", "double[0,2,4]")
    model = build(text.replace("double y", "double[0,2,3] y"), a=(4,), b=(4,), w=(4, 3), c=(3,))
    assert run(fold(model)[0], {"x": np.zeros((0, 2, 4))})[0].shape == (0, 2, 3)
