"""Weights that several operators read: copied where that is cheap, never with keep_tied, and counted."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from rich.console import Console

from normfold import fold as fold_file
from normfold.analysis.analyse import analyse
from normfold.analysis.plan import Untied
from normfold.graph.prepare import prepare
from normfold.report.render import render
from normfold.rewrite.graph import rewrite
from tests.support.graphs import FOLDED, as_float32, build, check, draw, fold, kept, outcomes, same_function

TIED = """g (int64[B,L] ids) => (double y) {
    e = Gather(table, ids)
    n = Mul(e, a)
    h = MatMul(n, w)
    f = Tanh(h)
    m = Mul(f, b)
    t = Transpose(table)
    y = MatMul(m, t)
}"""
SHAPES = {"table": (3, 4), "a": (4,), "b": (4,), "w": (4, 4)}
KEEP = {"keep_tied": True}


def initializers(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def test_by_default_the_final_norm_unties_the_embedding() -> None:
    after, plan = check(TIED, FOLDED, FOLDED, **SHAPES)
    assert plan.untied == (Untied("table", 3 * 4 * 8),)
    assert {"table", "t.folded"} <= initializers(after)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    np.testing.assert_array_equal(tensors["table"], draw("table", 3, 4))
    assert {name for name in tensors if "table" not in name} == {"w.folded", "t.folded"}
    assert plan.sites[1].into == ("y",)


def test_keep_tied_leaves_the_norm_in_front_of_the_projection() -> None:
    after, plan = check(TIED, FOLDED, kept("shared-weight"), options=KEEP, **SHAPES)
    assert plan.untied == () and plan.sites[1].shift is None
    assert initializers(after) == {"table", "w.folded", "b"}
    # With a projection of its own it folds.
    own = TIED.replace("t = Transpose(table)", "t = Transpose(v)")
    _, plan = check(own, FOLDED, FOLDED, options=KEEP, v=(3, 4), **SHAPES)
    assert plan.untied == ()


def test_keep_tied_takes_another_direction_where_there_is_one() -> None:
    """Towards the producer no weight is shared."""
    text = TIED.replace("f = Tanh(h)", "f = MatMul(h, v)")
    _, plan = check(text, FOLDED, FOLDED, options=KEEP, v=(4, 4), **SHAPES)
    assert plan.sites[1].into == ("f",)


@pytest.mark.parametrize("operator", ["MatMul(n, w)", "Gemm(n, w)", "Conv(n, w)"])
def test_a_layer_called_twice(operator: str) -> None:
    """Behind one norm both calls need the same weight; a caller without a norm needs the old one."""
    text = f"""g (double[B,4] x) => (double y, double z) {{{{
        h = Tanh(x)
        n = Mul(h, a)
        y0 = {operator}
        y = Identity(y0)
        k = Sigmoid(x)
        z = {operator.replace("(n", "({0}")}
    }}}}""".replace("[B,4]", "[B,4,5]" if "Conv" in operator else "[B,4]")
    shapes = {"a": (4, 1) if "Conv" in operator else (4,), "w": (3, 4, 1) if "Conv" in operator else (4, 3)}
    check(text.format("k"), kept("shared-weight"), options=KEEP, **shapes)
    _, plan = check(text.format("k"), FOLDED, **shapes)
    assert plan.untied == (Untied("w", 3 * 4 * 8),)
    for options in (KEEP, {}):
        after, plan = check(text.format("n"), FOLDED, options=options, **shapes)
        assert plan.untied == () and initializers(after) == {"w.folded"}


def test_a_layer_of_many_norms_has_many_copies() -> None:
    """Each norm needs its own; one that folded first keeps what it has."""
    body = "".join(f"n{k} = Mul(h{k}, a{k})\nl{k} = MatMul(n{k}, w)\nh{k + 1} = Tanh(l{k})\n" for k in range(4))
    text = f"g (double[B,4] x) => (double y) {{\nh0 = Tanh(x)\n{body}y = Identity(h4)\n}}"
    shapes = {"w": (4, 4), **{f"a{k}": (4,) for k in range(4)}}
    _, plan = check(text, *[FOLDED] * 4, **shapes)
    assert plan.untied == (Untied("w", 3 * 4 * 4 * 8),)
    # Not one of them can fold without the others, which would need another weight.
    check(text, *[kept("shared-weight")] * 4, options=KEEP, **shapes)


def test_a_shift_in_the_table_unties_it_too() -> None:
    """The embedding would hold the shift of the norm behind it."""
    text = """g (int64[B,L] ids, double[B,L,4] c) => (double y) {
        e = Gather(table, ids)
        n = Add(e, b)
        q = Mul(n, a)
        s = Tanh(q)
        t = Transpose(table)
        y = MatMul(s, t)
    }"""
    check(text, kept("shared-weight"), options=KEEP, table=(3, 4), a=(4,), b=(4,))
    _, plan = check(text, FOLDED, table=(3, 4), a=(4,), b=(4,))
    assert plan.untied == (Untied("table", 3 * 4 * 8),)


@pytest.mark.parametrize("reads", ["Shape(b)", "Size(b)"])
def test_who_asks_for_sizes_reads_no_weight(reads: str) -> None:
    """The target of a Reshape is computed from the shape of an activation, which is written with the weight."""
    text = f"""g (double[1,2,8] x) => (double y) {{
        a = MatMul(x, w)
        b = Mul(a, g)
        s = {reads}
        r = Reshape(s, minus)
        s0 = Slice(r, zero, one)
        t = Concat<axis = 0>({"s0" if reads.startswith("Shape") else "one"}, minus)
        z = Sigmoid(b)
        c = Reshape(z, t)
        y = MatMul(c, v)
    }}"""
    constants = {"minus": np.array([-1]), "zero": np.array([0]), "one": np.array([1])}
    _, plan = check(text, FOLDED, options=KEEP, w=(8, 8), g=(8,), v=(16, 4), **constants)
    assert plan.untied == ()
    _, plan = check(text, FOLDED, w=(8, 8), g=(8,), v=(16, 4), **constants)
    assert plan.untied == ()


def test_a_reader_of_the_shape_is_none_of_the_values() -> None:
    """The writer of a tensor whose shape is asked for has a bias to take a shift, as any other has."""
    text = """g (double[B,L,4] x) => (double y, int64[3] s) {
        k = MatMul(x, v)
        l = Add(k, e)
        h = Tanh(x)
        n = Mul(h, a)
        m = Add(n, b)
        z = Add(m, l)
        s = Shape(l)
        o = MatMul(z, w)
        y = Tanh(o)
    }"""
    constants = {"v": (4, 4), "e": (4,), "a": (4,), "b": (4,), "w": (4, 4)}
    after, plan = check(text, FOLDED, **constants)
    assert plan.sites[0].shift_elements == 0 and len(after.graph.node) == 7


def test_the_parts_of_a_weight_are_no_copies() -> None:
    """One initializer of three projections, cut up in the graph: three weights of a third of it each."""
    text = """g (double[B,4] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        q, k, v = Split<axis = 1>(w, thirds)
        r = MatMul(n, q)
        s = MatMul(n, k)
        t = MatMul(n, v)
        u = Add(r, s)
        y = Mul(u, t)
    }"""
    constants = {"a": (4,), "w": (4, 9), "thirds": np.array([3, 3, 3])}
    _, plan = check(text, FOLDED, options=KEEP, **constants)
    assert plan.untied == ()
    # One part as it was needs the whole as well.
    after, plan = check(text.replace("MatMul(n, v)", "MatMul(x, v)"), FOLDED, **constants)
    assert plan.untied == (Untied("w", 4 * 6 * 8),) and "w" in initializers(after)


def test_vectors_are_no_matter() -> None:
    """Exporters give equal biases one name."""
    text = """g (double[B,4] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        m = Add(n, b)
        k = Gemm(m, w, c)
        l = Tanh(k)
        y = Gemm(l, v, c)
    }"""
    _, plan = check(text, FOLDED, options=KEEP, a=(4,), b=(4,), w=(4, 4), v=(4, 4), c=(4,))
    assert plan.untied == ()


@pytest.mark.parametrize(("rows", "other", "outcome"), [(3000, 3000, kept("shared-weight")), (3000, 9100, FOLDED)])
def test_a_copy_may_be_a_quarter_of_the_weights(rows: int, other: int, outcome: tuple[str, str | None]) -> None:
    """3000 x 64 float64 are 1.5 MB, half of the weights in the one model and a quarter in the other."""
    text = """g (int64[B] ids) => (double y) {
        e = Gather(table, ids)
        h = Tanh(e)
        k = Gather(others, ids)
        f = Add(h, k)
        g0 = Tanh(f)
        m = Mul(g0, a)
        t = Transpose(table)
        y = MatMul(m, t)
    }"""
    rng = np.random.default_rng(0)
    tables = {"table": rng.normal(size=(rows, 64)), "others": rng.normal(size=(other, 64))}
    model = build(text, a=(64,), **tables)
    after, plan = fold(model)
    assert outcomes(plan) == [outcome]
    assert plan.untied == (() if outcome != FOLDED else (Untied("table", rows * 64 * 8),))
    same_function(model, after)


def test_the_report_tells_what_untying_adds(tmp_path: Path) -> None:
    onnx.save(as_float32(build(TIED, **{**SHAPES, "table": (500, 4)})), tmp_path / "tied.onnx")
    loose = fold_file(tmp_path / "tied.onnx", tmp_path / "loose.onnx")
    kept_tied = fold_file(tmp_path / "tied.onnx", tmp_path / "kept.onnx", keep_tied=True)
    assert [site.status for site in loose.sites] == ["folded", "folded"]
    assert [site.code for site in kept_tied.sites] == [None, "shared-weight"]
    assert loose.to_json()["untied"] == [{"graph": None, "name": "table", "bytes": 500 * 4 * 4}]
    assert kept_tied.to_json()["untied"] == []
    assert loose.output is not None and kept_tied.output is not None
    # What else differs are a norm's operator, a Transpose and the manifest: hundreds of bytes.
    assert abs(loose.output.bytes - kept_tied.output.bytes - 8000) < 1500
    page = io.StringIO()
    Console(file=page, width=80).print(render(loose))
    assert "untied: +8.0 kB (table)" in page.getvalue()


def test_the_plan_of_a_tied_model_is_what_is_written() -> None:
    model = build(TIED, **SHAPES)
    graph = prepare(ir.from_proto(model))
    plan = analyse(graph, keep_tied=True)
    after = ir.to_proto(rewrite(graph, plan))
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(next(t for t in after.graph.initializer if t.name == "table")), draw("table", 3, 4)
    )


def test_a_table_of_strings_beside_the_weights_is_no_weight() -> None:
    """A classifier that names its labels: a string has no fixed number of bytes."""
    text = """g (double[B,4] x) => (string y) {
        n = Mul(x, a)
        h = MatMul(n, w)
        i = ArgMax <axis = 1, keepdims = 0> (h)
        y = Gather(labels, i)
    }"""
    labels = np.array(["cat", "dog", "b\u00e4r"], dtype=object)
    after, plan = fold(build(text, a=(4,), w=(4, 3), labels=labels))
    assert outcomes(plan) == [FOLDED]
    assert initializers(after) == {"labels", "w.folded"}
