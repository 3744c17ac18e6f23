"""What the folded graph keeps of the original, and what it leaves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfold.analysis.analyse import analyse
from normfold.analysis.plan import Plan
from normfold.errors import GraphError
from normfold.graph.prepare import prepare
from normfold.graph.scopes import SCOPES
from normfold.graph.types import Model
from normfold.graph.write import save
from normfold.rewrite.graph import rewrite
from tests.random.random_graphs import network
from tests.support.graphs import (
    FOLDED,
    build,
    check,
    draw,
    fold,
    kept,
    op_types,
    outcomes,
    parse,
    partial,
    same_function,
)

TEXT = """g (double[B,4] x) => (double y, double z) {
    h = Gemm(x, v, d)
    m = Mul(h, a)
    n = Add(m, b)
    y = Gemm(n, w, c)
    z = Gemm(x, u)
}"""
SHAPES = {"v": (4, 4), "d": (4,), "a": (4,), "b": (4,), "w": (4, 3), "c": (3,), "u": (4, 2), "unused": (5,)}


def folded(model: onnx.ModelProto) -> tuple[Model, Model, Plan]:
    before = prepare(ir.from_proto(model))
    plan = analyse(before)
    return before, rewrite(before, plan), plan


def test_the_input_model_is_untouched() -> None:
    for model in (build(TEXT, **SHAPES), network(1).model, network(3).model):
        before = prepare(ir.from_proto(model))
        text = ir.to_proto(before).SerializeToString()
        plan = analyse(before)
        assert ir.to_proto(before).SerializeToString() == text
        assert not plan.is_empty
        after = rewrite(before, plan)
        assert ir.to_proto(after).SerializeToString() != text
        assert ir.to_proto(before).SerializeToString() == text


def test_untouched_tensors_are_shared_and_unused_ones_gone() -> None:
    before, after, _ = folded(build(TEXT, **SHAPES))
    old, new = before.graph.initializers, after.graph.initializers
    assert set(new) == {"v", "d", "u", "w.folded", "c.folded"}
    for name in ("v", "d", "u"):
        assert new[name].const_value is old[name].const_value


def test_new_weights_are_rounded_once() -> None:
    """float32: the nearest to the float64 product, bit for bit."""
    shapes = {name: draw(name, *shape).astype(np.float32) for name, shape in SHAPES.items()}
    model = build(TEXT.replace("double", "float"), **shapes)
    after, plan = fold(model)
    assert outcomes(plan) == [FOLDED]
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    wide = {name: array.astype(np.float64) for name, array in shapes.items()}
    weight = (wide["w"] * wide["a"][:, None]).astype(np.float32)
    bias = (wide["c"] + wide["b"] @ wide["w"]).astype(np.float32)
    np.testing.assert_array_equal(tensors["w.folded"], weight)
    np.testing.assert_array_equal(tensors["c.folded"], bias)


def test_metadata_is_kept() -> None:
    model = build(TEXT, **SHAPES)
    onnx.helper.set_model_props(model, {"author": "somebody"})
    model.doc_string, model.producer_name, model.model_version = "what it does", "exporter", 7
    model.graph.metadata_props.add(key="graph", value="kept")
    for node in model.graph.node:
        node.metadata_props.add(key="of", value=node.output[0])
    described = model.graph.value_info.add()
    described.CopyFrom(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.DOUBLE, ["B", 4], doc_string="hidden"))
    described.metadata_props.add(key="layer", value="first")
    model.graph.output[0].metadata_props.add(key="unit", value="metres")
    model.graph.output[0].doc_string = "the answer"
    after, _ = fold(model)
    assert {p.key: p.value for p in after.metadata_props} == {"author": "somebody"}
    assert (after.doc_string, after.producer_name, after.model_version) == ("what it does", "exporter", 7)
    assert after.ir_version == model.ir_version and after.opset_import == model.opset_import
    assert {p.key: p.value for p in after.graph.metadata_props} == {"graph": "kept"}
    assert {n.output[0]: n.metadata_props[0].value for n in after.graph.node} == {k: k for k in ("h", "y", "z")}
    (info,) = (value for value in after.graph.value_info if value.name == "h")
    assert info.metadata_props[0].value == "first" and info.doc_string == "hidden"
    assert (
        after.graph.output[0].metadata_props[0].value == "metres" and after.graph.output[0].doc_string == "the answer"
    )


def test_the_interface_is_kept() -> None:
    """Also where a folded norm writes an output, and the operator that now writes it wrote something else."""
    text = (
        "g (double[B,4] x) => (double z, double n, double y) {\nh = Gemm(x, v, d)\n"
        "m = Mul(h, a)\nn = Add(m, b)\ny = Gemm(n, w, c)\nz = Gemm(x, u)\n}"
    )
    model = build(text, **SHAPES)
    model.graph.output[1].metadata_props.add(key="unit", value="metres")
    after, plan = fold(model)
    assert outcomes(plan) == [FOLDED]
    assert [(v.name, v.type) for v in after.graph.output] == [(v.name, v.type) for v in model.graph.output]
    assert [(v.name, v.type) for v in after.graph.input] == [(v.name, v.type) for v in model.graph.input]
    assert after.graph.output[1].metadata_props[0].value == "metres"
    same_function(model, after)


def test_a_norm_from_an_input_to_an_output() -> None:
    """What is left of an identity norm is a copy; any other stays."""
    text = "g (double[B,4] x) => (double y) {\nm = Mul(x, a)\ny = Add(m, b)\n}"
    after, _ = check(text, FOLDED, a=np.ones(4), b=np.zeros(4))
    assert op_types(after) == ["Identity"]
    after, _ = check(text, kept("graph-output"), a=(4,), b=(4,))
    assert op_types(after) == ["Mul", "Add"]
    twice = text.replace("double y)", "double y, double z)").replace("y = Add(m, b)", "y = Add(m, b)\nz = Add(m, b)")
    after, _ = check(twice, FOLDED, FOLDED, a=np.ones(4), b=np.zeros(4))
    between = "g (double[B,4] x) => (double h, double y) {\nh = Tanh(x)\nm = Mul(h, a)\ny = Add(m, b)\n}"
    after, _ = check(between, FOLDED, a=np.ones(4), b=np.zeros(4))
    assert [value.name for value in after.graph.output] == ["h", "y"]


def test_one_tensor_that_is_two_outputs_is_an_error_or_stays() -> None:
    model = build("g (double[B,4] x) => (double y) {\nh = Gemm(x, v, d)\nm = Mul(h, a)\ny = Add(m, b)\n}", **SHAPES)
    model.graph.output.add().CopyFrom(model.graph.output[0])
    before = prepare(ir.from_proto(model))
    with pytest.raises(GraphError, match="output y twice"):
        analyse(before)


def test_an_empty_plan_leaves_the_graph_byte_identical() -> None:
    model = build("g (double[B,4] x) => (double y) {\nh = Tanh(x)\nm = Mul(h, a)\ny = Softmax(m)\n}", a=(4,))
    before, after, plan = folded(model)
    assert plan.is_empty and outcomes(plan) == [kept("wall")]
    assert ir.to_proto(after).SerializeToString() == ir.to_proto(before).SerializeToString()
    assert after is not before


def test_an_empty_constant_stays_empty() -> None:
    """What a cache of no positions holds: a constant of size 0 is no constant of an unknown size."""
    text = """g (double[B,4] x) => (double y) {
        m = Mul(x, a)
        n = Add(m, b)
        p = Concat <axis = 0> (none, n)
        y = MatMul(p, w)
    }"""
    after, plan = fold(build(text, a=(4,), b=(4,), none=(0, 4), w=(4, 3)))
    assert outcomes(plan) == [FOLDED]
    assert [0, 4] in [list(tensor.dims) for tensor in after.graph.initializer]
    same_function(build(text, a=(4,), b=(4,), none=(0, 4), w=(4, 3)), after)


def test_the_output_is_deterministic() -> None:
    for seed in (2, 11):
        model = network(seed).model
        first, second = (ir.to_proto(folded(model)[1]).SerializeToString() for _ in range(2))
        assert first == second


def test_large_weights_are_made_when_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time, and not kept: a model of many gigabytes folds in the memory of its largest tensor."""
    size = 420  # 1.4 MB of float64
    text = f"g (double[B,{size}] x) => (double y) {{\nh = Tanh(x)\nm = Mul(h, a)\nk = MatMul(m, w)\ny = Tanh(k)\n}}"
    model = build(text, a=(size,), w=(size, size))
    _, after, _ = folded(model)
    value = after.graph.initializers["w.folded"]
    lazy = value.const_value
    assert isinstance(lazy, ir.LazyTensor)
    assert lazy.shape.numpy() == (size, size) and lazy.dtype == ir.DataType.DOUBLE
    first = lazy.numpy()
    np.testing.assert_allclose(first, draw("w", size, size) * draw("a", size)[:, None], rtol=1e-15)
    assert lazy.numpy() is not first
    save(after, tmp_path / "after.onnx")
    same_function(model, onnx.load(tmp_path / "after.onnx"))


def test_new_names_do_not_collide() -> None:
    """A model may hold every name that the rewriting would choose, also inside its subgraphs."""
    text = """g (double[B,4] x, bool[1] yes) => (double y, double z) {
        h = Tanh(x)
        m = Mul(h, a)
        n = Add(m, b)
        k = MatMul(n, w)
        y = Tanh(k)
        q = If (yes) <
            then_branch = t () => (double[B,3] u) { u0 = MatMul(x, w)
                k_shifted = Identity(u0)
                u = Tanh(k_shifted) },
            else_branch = e () => (double[B,3] s) { s = MatMul(x, w) }
        >
        l = Add(q, taken)
        z = Identity(l)
    }"""
    for name in ("w.folded", "k.shifted", "normfold_Add", "k.bias.folded"):
        model = build(text, a=(4,), b=(4,), w=(4, 3), taken=(3,))
        for place in ("inside", "initializer"):
            renamed = onnx.ModelProto()
            renamed.CopyFrom(model)
            branch = renamed.graph.node[5].attribute[0].g
            if place == "inside":
                branch.node[1].output[0] = branch.node[2].input[0] = name
            else:
                renamed.graph.initializer[3].name = name
                renamed.graph.node[6].input[1] = name
            after, plan = fold(renamed)
            assert outcomes(plan)[0][0] in ("folded", "partial")
            written = [*(t.name for t in after.graph.initializer)]
            graphs = [after.graph, *(a.g for n in after.graph.node for a in n.attribute if a.HasField("g"))]
            written += [output for graph in graphs for node in graph.node for output in node.output]
            assert len(set(written)) == len(written)
            onnx.checker.check_model(after, full_check=True)


def test_a_norm_of_which_only_a_part_folds_is_written_anew() -> None:
    text = (
        "g (double[B,4,5] x) => (double y) {\nh = Conv(x, v)\n"
        "n = BatchNormalization(h, gamma, beta, mean, var)\n"
        "y = Conv<pads = [1, 1]>(n, w)\n}"
    )
    statistics = {name: draw(name, 4, positive=name == "var") for name in ("gamma", "beta", "mean", "var")}
    after, _ = check(text.replace("Conv(x, v)", "Tanh(x)"), partial("shift-meets-padding"), w=(4, 4, 3), **statistics)
    assert op_types(after) == ["Tanh", "Add", "Conv"]
    # Towards the producer nothing is in the way.
    after, _ = check(text, FOLDED, v=(4, 4, 1), w=(3, 4, 3), **statistics)
    assert op_types(after) == ["Conv", "Conv"]


def test_a_kept_batch_norm_that_takes_up_a_frame_stays_one_operator() -> None:
    text = """g (double[B,4,5] x) => (double y) {
        h = Tanh(x)
        m = Mul(h, a)
        k = Conv(m, v, d)
        p = Identity(m)
        n = BatchNormalization(p, gamma, beta, mean, var)
        y = Softmax(n)
    }"""
    statistics = {name: draw(name, 4, positive=name == "var") for name in ("gamma", "beta", "mean", "var")}
    text = text.replace("k = Conv(m, v, d)\n", "")
    after, plan = fold(build(text, a=(4, 1), **statistics))
    same_function(build(text, a=(4, 1), **statistics), after)
    assert outcomes(plan) == [kept("wall")]
    assert op_types(after).count("BatchNormalization") <= 1


def test_new_constants_have_the_type_of_the_graph_where_the_file_does_not_tell() -> None:
    """Shape inference gives up behind an operator that it does not know: its output has neither shape nor type."""
    text = """<ir_version: 10, opset_import: ["" : 20, "com.example" : 1]>
    g (float16[B,4] x) => (float16[B,5] z) {
        h = Tanh(x)
        m = Mul(h, a)
        n = Add(m, b)
        y = MatMul(n, w)
        z = com.example.Opaque(y)
    }"""
    half = {name: draw(name, *shape).astype(np.float16) for name, shape in {"a": (4,), "b": (4,), "w": (4, 3)}.items()}
    model = build(text, **half)
    graph = prepare(ir.from_proto(model))
    for value in graph.graph[3].outputs:
        value.type = None
    after = ir.to_proto(rewrite(graph, analyse(graph)))
    assert {tensor.data_type for tensor in after.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_a_rewritten_bias_still_fuses_with_the_activation_behind_it() -> None:
    # onnxruntime fuses Add and Gelu into BiasGelu for a bias of one axis only.
    rng = np.random.default_rng(0)
    names = {"scale": 4, "shift": 4, "weight": (4, 6), "bias": 6}
    model = parse(
        """
        agraph (float[N, L, 4] x) => (float[N, L, 6] y) {
            s = Mul(x, scale)
            n = Add(s, shift)
            h = MatMul(n, weight)
            b = Add(h, bias)
            y = Gelu(b)
        }
        """,
        **{name: rng.standard_normal(size).astype(np.float32) for name, size in names.items()},
    )
    folded, plan = fold(model)
    assert [site.status for site in plan.sites] == ["folded"]
    added = next(node.input[1] for node in folded.graph.node if node.op_type == "Add")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in folded.graph.initializer}
    assert shapes[added] == (6,)


@pytest.mark.parametrize(
    ("name", "scope", "called"), [("", "", "y"), ("second", "", "second"), ("s", "net.head", "net.head")]
)
def test_what_is_new_is_called_after_its_operator(name: str, scope: str, called: str) -> None:
    model = build(TEXT.replace("Gemm(n, w, c)", "Gemm(n, w)"), **{key: SHAPES[key] for key in SHAPES if key != "c"})
    node = model.graph.node[3]
    node.name = name
    if scope:
        node.metadata_props.add(key=SCOPES, value=str(["net", scope, "Gemm"]))
    _, after, _ = folded(model)
    assert set(after.graph.initializers) == {"v", "d", "u", "w.folded", f"{called}.bias.folded"}
