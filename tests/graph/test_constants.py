"""What is the same for every input: rounded as the graph rounds it, of the sizes that are stored, within bounds."""

from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from normfold.errors import GraphError
from normfold.graph import constants
from normfold.graph.constants import LARGEST_COMPUTED
from normfold.graph.view import Graph
from tests.support.graphs import FOLDED, build, check, draw, fold, graph_of, outcomes, parse, same_function


def value(graph: Graph, name: str) -> ir.Value:
    return next(output for node in graph.model.graph for output in node.outputs if output.name == name)


@pytest.mark.parametrize(("to", "dtype"), [(10, np.float16), (1, np.float32)])
def test_a_cast_rounds_a_constant(to: int, dtype: type) -> None:
    """There and back it is another number than before."""
    text = (
        "g (double[B,4] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\n"
        f"v = Cast<to = {to}>(w)\nu = Cast<to = 11>(v)\ny = MatMul(n, u)\n}}"
    )
    after, _ = check(text, FOLDED, a=(4,), w=(4, 3))
    a, w = draw("a", 4), draw("w", 4, 3)
    written = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    np.testing.assert_array_equal(written["u.folded"], a[:, None] * w.astype(dtype).astype(np.float64))
    assert np.any(w.astype(dtype) != w)


def test_a_cast_beyond_the_range_of_its_type_is_infinite() -> None:
    graph = graph_of(
        build(
            "g (double[B,1] x) => (double y) {\nh = Cast<to = 10>(w)\nk = Cast<to = 11>(h)\ny = Mul(x, k)\n}",
            w=np.array([7e4]),
        )
    )
    assert np.isinf(graph.constant(value(graph, "k")))


def test_numbers_of_a_byte_saturate() -> None:
    """1000 is 448 in float8e4m3fn, the largest that it holds."""
    text = "g (double[B,1] x) => (double y) {\nh = Cast<to = 17>(w)\nk = Cast<to = 11>(h)\ny = Mul(x, k)\n}"
    graph = graph_of(build(text, w=np.array([1000.0, 0.3])))
    np.testing.assert_array_equal(graph.constant(value(graph, "k")), [448.0, 0.3125])


def test_an_initializer_has_sizes_of_its_own() -> None:
    """An output of its name may leave them open."""
    text = "g (double[B,3,4] x) => (double[B,5,4] y, double[p,q,r] w) {\nh = Tanh(x)\nn = Mul(h, a)\ny = Conv(n, w)\n}"
    after, _ = check(text, FOLDED, a=(3, 1), w=(5, 3, 1))
    assert [value.name for value in after.graph.output] == ["y", "w"]


def test_a_kernel_that_is_an_output_merges_by_its_own_sizes() -> None:
    text = """g (double[B,2,5,5] x) => (double[B,2,5,5] y, double[p,q,r,s] u) {
        a = Conv<pads = [1, 1, 1, 1]>(x, u)
        b = Conv(x, v)
        m = Mul(b, k)
        t = Add(a, m)
        y = Tanh(t)
    }"""
    after, plan = check(text, FOLDED, u=(2, 2, 3, 3), v=(2, 2, 1, 1), k=(2, 1, 1))
    assert plan.merges and sum(node.op_type == "Conv" for node in after.graph.node) == 1


def test_a_large_lookup_is_a_constant() -> None:
    """512 rows of a table of (512, 768): 393,216 elements, however many the two operands have together."""
    text = (
        "g (double[B,768] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\nr = Gather(table, rows)\ny = MatMul(n, r)\n}"
    )
    text = text.replace("(n, r)", "(n, t)").replace("y =", "t = Transpose(r)\ny =")
    model = build(text, a=(768,), table=(512, 768), rows=np.arange(512)[::-1].copy())
    after, plan = fold(model)
    assert outcomes(plan) == [FOLDED]
    same_function(model, after)


def test_sizes_alone_are_constants_too() -> None:
    text = (
        "g (double[2,4] x) => (double y) {\nh = Tanh(x)\ns = Size(h)\nf = Cast<to = 11>(s)\nn = Mul(h, a)\n"
        "m = Mul(n, f)\ny = MatMul(m, w)\n}"
    )
    check(text, FOLDED, sizes=(2,), a=(4,), w=(4, 3))


MANY = {"edge": np.array([2**13, 2**12], np.int64)}  # 2^25 elements
ONE, HUGE = np.ones(1), np.array([2**20, 2**20])
BOMBS = {
    "ConstantOfShape": ("n = ConstantOfShape(huge)", {"huge": HUGE}),
    "Expand": ("n = Expand(one, huge)", {"huge": HUGE, "one": ONE}),
    "Expand to known sizes": ("e = Expand(one, huge)\nn = Neg(e)", {"huge": HUGE, "one": ONE}),
    "Tile": ("n = Tile(one, huge)", {"huge": np.array([2**40]), "one": ONE}),
    "Range": ("n = Range(zero, huge, one)", {"huge": np.array(2.0**40), "zero": np.array(0.0), "one": np.array(1.0)}),
    "Range of tiny steps": (
        "n = Range(zero, one, tiny)",
        {"tiny": np.array(1e-300), "zero": np.array(0.0), "one": np.array(1.0)},
    ),
    "Gather": ("n = Gather(wide, rows)", {"wide": np.ones((1, 2**18)), "rows": np.zeros(2**18, np.int64)}),
    "products": (
        "c = ConstantOfShape(row)\nd = ConstantOfShape(column)\nn = Mul(c, d)",
        {"row": np.array([1, 2**20]), "column": np.array([2**20, 1])},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_few_bytes_make_no_giant(name: str) -> None:
    body, given = BOMBS[name]
    graph = graph_of(parse(f"g (double x) => (double y) {{\n{body}\ny = Mul(x, n)\n}}", **given))
    with pytest.raises(GraphError, match="more than normfold computes"):
        graph.constant(value(graph, "n"))


def test_many_constants_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is small enough; all that are in memory at once, or that are made at all, are not."""
    monkeypatch.setattr(constants, "LARGEST_COMPUTED", 1 << 10)
    monkeypatch.setattr(constants, "_MOST_MADE", 1 << 14)
    each = 1 << 10
    wide = (
        "".join(f"c{k} = ConstantOfShape(size)\n" for k in range(8))
        + "n = Concat<axis = 0>(c0, c1, c2, c3, c4, c5, c6, c7)"
    )
    deep = "c0 = ConstantOfShape(size)\n" + "".join(f"c{k + 1} = Neg(c{k})\n" for k in range(30)) + "n = Neg(c30)"
    short = "c0 = ConstantOfShape(size)\n" + "".join(f"c{k + 1} = Neg(c{k})\n" for k in range(8)) + "n = Neg(c8)"
    size = {"size": np.array([each])}
    for body in (wide, deep):
        graph = graph_of(parse(f"g (double x) => (double y) {{\n{body}\ny = Mul(x, n)\n}}", **size))
        with pytest.raises(GraphError, match="more than normfold computes"):
            graph.constant(value(graph, "n"))
    graph = graph_of(parse(f"g (double x) => (double y) {{\n{short}\ny = Mul(x, n)\n}}", **size))
    assert graph.constant(value(graph, "n")).shape == (each,)
    # Of stored weights as much is made as there is.
    stored = "".join(f"c{k + 1} = Neg(c{k})\n" for k in range(30)) + "n = Neg(c30)"
    graph = graph_of(parse(f"g (double x) => (double y) {{\n{stored}\ny = Mul(x, n)\n}}", c0=np.ones(each * 4)))
    assert graph.constant(value(graph, "n")).shape == (each * 4,)


@pytest.mark.slow
def test_a_chain_of_giants_ends_within_a_minute() -> None:
    nodes = [helper.make_node("ConstantOfShape", ["edge"], ["c0"])]
    nodes += [helper.make_node("Neg", [f"c{k}"], [f"c{k + 1}"]) for k in range(2000)]
    nodes.append(helper.make_node("Mul", ["x", "c2000"], ["y"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, None)], [info("y", 1, None)], [numpy_helper.from_array(a, k) for k, a in MANY.items()]
    )
    found = graph_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    start = time.monotonic()
    with pytest.raises(GraphError, match="more than normfold computes"):
        found.constant(value(found, "c2000"))
    assert time.monotonic() - start < 120 and LARGEST_COMPUTED > 1 << 25
