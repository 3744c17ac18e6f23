"""LayerNorm to RMSNorm: exact where every writer of the stream is linear, and left alone where one is not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfold.analysis.centre import Centring, plan_centring
from normfold.graph.prepare import prepare
from normfold.pipeline import run as pipeline
from normfold.rewrite.centre import centre
from tests.paths import FIXTURES
from tests.support.graphs import EXACT, as_float32, build, draw, feeds_for, run

HEAD = '<ir_version: 10, opset_import: ["" : {opset}]>\n'
SHAPES: dict[str, tuple[int, ...]] = {
    "w_in": (4, 6),
    "b_in": (6,),
    "p": (5, 6),
    "w1": (6, 7),
    "w2": (7, 6),
    "c2": (6,),
    "g1": (6,),
    "h1": (6,),
    "g2": (6,),
    "h2": (6,),
    "w_out": (6, 3),
}
BODY = """
    e0 = MatMul(x, w_in)
    e1 = Add(e0, b_in)
    s0 = Add(e1, p)
    n1 = LayerNormalization<axis = -1, epsilon = 0.01>(s0, g1, h1)
    f0 = MatMul(n1, w1)
    f1 = Tanh(f0)
    f2 = MatMul(f1, w2)
    f3 = Add(f2, c2)
    s1 = Add(f3, s0)
    n2 = LayerNormalization<axis = 2>(s1, g2, h2)
    y = MatMul(n2, w_out)
"""


def stream(body: str = BODY, *, x: str = "B,5,4", opset: int = 23, **constants: object) -> onnx.ModelProto:
    """A pre-norm block around a stream of six channels, in float64."""
    read = set(re.split(r"\W+", body))
    used = {name: value for name, value in {**SHAPES, **constants}.items() if name in read}
    return build(HEAD.format(opset=opset) + f"g (double[{x}] x) => (double[] y) {{{body}}}", **used)


def centred(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Centring]:
    graph = prepare(ir.from_proto(model))
    centring = plan_centring(graph)
    return ir.to_proto(centre(graph, centring)), centring


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def check(model: onnx.ModelProto, norms: int = 2) -> onnx.ModelProto:
    """All of `norms` norms lose their mean, and nothing changes at two sizes of the batch."""
    before = model.SerializeToString()
    after, centring = centred(model)
    assert len(centring.norms) == norms and not centring.kept
    assert "LayerNormalization" not in kinds(after) and kinds(after).count("RMSNormalization") == norms
    onnx.checker.check_model(after, full_check=True)
    for size in (1, 3):
        feeds = feeds_for(model, size)
        for expected, found in zip(run(model, feeds), run(after, feeds), strict=True):
            np.testing.assert_allclose(found, expected, atol=EXACT)
    assert model.SerializeToString() == before
    return after


def refused(model: onnx.ModelProto, says: str) -> None:
    after, centring = centred(model)
    assert not centring.norms and centring.kept
    for _, why in centring.kept:
        assert says in why.reason, why.reason
    assert kinds(after).count("LayerNormalization") == len(centring.kept)


def test_a_pre_norm_stream_loses_its_mean() -> None:
    after = check(stream())
    # A bias that nobody took up follows as an Add.
    assert len(after.graph.node) == len(stream().graph.node) + 2
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    for name, axis in {"w_in": 1, "b_in": 0, "p": 1, "w2": 1, "c2": 0}.items():
        np.testing.assert_allclose(arrays[f"{name}.centred"].mean(axis), 0.0, atol=1e-15)
        assert name not in arrays


def test_a_bias_of_zeros_goes() -> None:
    model = stream(h1=np.zeros(6), h2=np.zeros(6))
    assert len(check(model).graph.node) == len(model.graph.node)


VARIANTS: dict[str, tuple[str, str, dict[str, object]]] = {
    # what stands instead of the embedding, the input, and more constants
    "conv": (
        "k = Conv<strides = [2, 2]>(x, wc, b_in)\nr = Reshape(k, to)\ne1 = Transpose<perm = [0, 2, 1]>(r)",
        "B,3,2,10",
        {"wc": (6, 3, 2, 2), "to": np.array([0, 6, 5])},
    ),
    "gemm": (
        "r = Reshape(x, flat)\nk = Gemm<transB = 1, beta = 0.5>(r, wt, b_in)\ne1 = Reshape(k, back)",
        "B,5,4",
        {"wt": (6, 4), "flat": np.array([-1, 4]), "back": np.array([-1, 5, 6])},
    ),
    "class token": (
        "k = MatMul(x, w_in)\nh = Shape<start = 0, end = 1>(x)\nd = Concat<axis = 0>(h, tail)\nt = Expand(token, d)\n"
        "e1 = Concat<axis = 1>(t, k)",
        "B,4,4",
        {"token": (1, 1, 6), "tail": np.array([1, 6])},
    ),
    "embedding": (
        "z = Cast<to = 7>(x)\nm = Abs(z)\nq = Min(m, top)\ne1 = Gather(table, q)",
        "B,5",
        {"table": (9, 6), "top": np.array(8)},
    ),
    "split": (
        "k = MatMul(x, w_in)\nu, v = Split<axis = 1, num_outputs = 2>(k)\ne1 = Sub(u, v)",
        "B,10,4",
        {},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_may_write_a_stream(name: str) -> None:
    text, x, constants = VARIANTS[name]
    body = text + BODY.split("e1 = Add(e0, b_in)")[1]
    check(stream("\n" + body, x=x, **constants))


@pytest.mark.parametrize(
    "pooled",
    [
        "t = Gather<axis = 1>(s1, first)\nn2 = LayerNormalization<axis = -1>(t, g2, h2)",
        "t = ReduceMean<keepdims = 0>(s1, one)\nn2 = LayerNormalization<axis = -1>(t, g2, h2)",
        "t = Slice(s1, one, two, one)\nn2 = LayerNormalization<axis = -1>(t, g2, h2)",
        "t = Identity(s1)\nn2 = LayerNormalization<axis = -1>(t, g2, h2)",
    ],
)
def test_what_may_stand_before_a_norm(pooled: str) -> None:
    body = BODY.replace("n2 = LayerNormalization<axis = 2>(s1, g2, h2)", pooled)
    check(stream(body, first=np.array(0), one=np.array([1]), two=np.array([3])))


def test_a_weight_that_others_use_too_is_not_touched() -> None:
    """One Linear writes the stream and is read elsewhere: there it keeps its mean."""
    behind = "a = MatMul(n2, w_out)\nb = Tanh(a)\nc = MatMul(b, w_back)\nd = MatMul(c, w_in)\ny = Tanh(d)"
    body = BODY.replace("y = MatMul(n2, w_out)", behind)
    after = check(stream(body, w_back=(3, 4)))
    assert {"w_in", "w_in.centred"} <= {tensor.name for tensor in after.graph.initializer}


# One operator of the stream changes: what it becomes, what the reason says, the input, more constants.
STOPPERS: dict[str, tuple[str, str, str, dict[str, object]]] = {
    "bends": ("f3 = Add(f2, c2)", "f4 = Add(f2, c2)\nf3 = Relu(f4)", "(Relu): it writes f3", {}),
    "scales": ("s1 = Add(f3, s0)", "f4 = Mul(f3, c2)\ns1 = Add(f4, s0)", "(Mul): it writes f4", {}),
    "multiplies": ("f0 = MatMul(n1, w1)", "a0 = MatMul(s0, w1)\na1 = MatMul(n1, w1)\nf0 = Add(a0, a1)", "reads s0", {}),
    "broadcasts": ("e1 = Add(e0, b_in)", "e1 = Add(e0, one)", "broadcast", {"one": np.array([[1.0]])}),
    "reorders": (
        "e1 = Add(e0, b_in)",
        "e2 = Add(e0, b_in)\ne1 = Gather<axis = 2>(e2, order)",
        "channels",
        {"order": np.arange(6)[::-1].copy()},
    ),
    "cuts": (
        "e1 = Add(e0, b_in)",
        "e2, e3 = Split<axis = 2, num_outputs = 2>(e0)\ne1 = Concat<axis = 2>(e3, e2)",
        "cuts or joins",
        {},
    ),
    "averages": (
        "y = MatMul(n2, w_out)",
        "v = MatMul(n2, w_out)\nt = ReduceMean<keepdims = 1>(s1, two)\ny = Add(v, t)",
        "(ReduceMean)",
        {"two": np.array([2])},
    ),
    "other axes": ("n2 = LayerNormalization<axis = 2>", "n2 = LayerNormalization<axis = 1>", "other axes",
                   {"g2": (5, 6), "h2": (5, 6)}),
    "statistic": (
        "n2 = LayerNormalization<axis = 2>(s1, g2, h2)\n    y = MatMul(n2, w_out)",
        "n2, m2 = LayerNormalization<axis = 2>(s1, g2, h2)\nv = MatMul(n2, w_out)\ny = Add(v, m2)",
        "is read",
        {},
    ),
    "two tensors": ("e0 = MatMul(x, w_in)", "x1 = MatMul(x, w_in)\nx2 = Slice(x1, zero, four, one)\n"
                    "x3 = Expand(x2, to)\ne0 = MatMul(x, x3)", "no constant weight",
                    {"zero": np.array([0]), "four": np.array([4]), "one": np.array([1]), "to": np.array([1, 1, 1])}),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPPERS)
def test_what_keeps_the_mean(name: str) -> None:
    """The twin is the stream as it stands, which loses it."""
    old, new, says, constants = STOPPERS[name]
    body = BODY.replace(old, new)
    assert body != BODY
    refused(stream(body, **constants), says)


def test_an_input_of_the_model_keeps_its_mean() -> None:
    refused(stream(BODY.replace("e1 = Add(e0, b_in)", "e1 = Add(e0, x)"), x="B,5,6", w_in=(6, 6)), "x: it is an input")


def test_a_norm_in_the_stream_stops_the_stream_behind_it() -> None:
    """Post-norm: n1 is written by a norm. What is before it is a stream of its own."""
    after, centring = centred(stream(BODY.replace("s1 = Add(f3, s0)", "s1 = Add(f3, n1)")))
    assert [output for output, _ in centring.norms] == ["n1"]
    (_, why), *others = centring.kept
    assert not others and "(LayerNormalization): it writes n1" in why.reason
    assert kinds(after).count("RMSNormalization") == 1


def test_a_grouped_convolution_keeps_the_mean() -> None:
    text, x, constants = VARIANTS["conv"]
    grouped = text.replace("Conv<", "Conv<group = 3, ")
    body = "\n" + grouped + BODY.split("e1 = Add(e0, b_in)")[1]
    refused(stream(body, x=x, **{**constants, "wc": (6, 1, 2, 2)}), "no constant weight")


def test_an_output_of_the_model_keeps_its_mean() -> None:
    model = stream()
    model.graph.output.append(onnx.helper.make_tensor_value_info("s1", onnx.TensorProto.DOUBLE, ["B", 5, 6]))
    refused(model, "s1: it is an output")


def test_before_opset_23_there_is_no_rmsnorm() -> None:
    refused(stream(opset=22), "needs opset 23")


def test_streams_are_decided_one_by_one() -> None:
    behind = "q = MatMul(n2, w_back)\nr = Tanh(q)\nn3 = LayerNormalization(r, g1, h1)\ny = MatMul(n3, w_out)"
    body = BODY.replace("y = MatMul(n2, w_out)", behind)
    after, centring = centred(stream(body, w_back=(6, 6)))
    assert [output for output, _ in centring.norms] == ["n1", "n2"] and len(centring.kept) == 1
    assert kinds(after).count("LayerNormalization") == 1


def test_folding_clears_the_way_and_the_report_says_what_happened(tmp_path: Path) -> None:
    """LayerScale does not commute with the mean; folded into the Linear before it, it is gone."""
    body = BODY.replace("s1 = Add(f3, s0)", "f4 = Mul(f3, scale)\ns1 = Add(f4, s0)")
    model = stream(body, scale=draw("scale", 6))
    refused(model, "(Mul): it writes f4")
    onnx.save(as_float32(model), tmp_path / "in.onnx")
    report = pipeline.fold(tmp_path / "in.onnx", tmp_path / "out.onnx", center=True)
    assert not report.failed and report.nodes_after["RMSNormalization"] == 2 and not report.warnings
    assert (
        report.to_json()["graphs"][0]["centred"] == list(report.graphs[0].centred)
        and len(report.graphs[0].centred) == 2
    )
    plain = pipeline.fold(tmp_path / "in.onnx", tmp_path / "plain.onnx")
    assert plain.nodes_after["LayerNormalization"] == 2 and not plain.graphs[0].centred


def test_what_stays_is_said(tmp_path: Path) -> None:
    onnx.save(
        as_float32(stream(BODY.replace("f3 = Add(f2, c2)", "f4 = Add(f2, c2)\nf3 = Relu(f4)"))), tmp_path / "in.onnx"
    )
    report = pipeline.fold(tmp_path / "in.onnx", tmp_path / "out.onnx", center=True)
    assert len(report.warnings) == 2 and all("stays a LayerNorm" in text and "Relu" in text for text in report.warnings)


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_the_fixture_with_layernorms(tmp_path: Path, dtype: str | None) -> None:
    report = pipeline.fold(FIXTURES / "vit_ln.pt", tmp_path / "out.onnx", center=True, dtype=dtype)
    assert not report.failed and len(report.graphs[0].centred) == 7
    assert report.nodes_after.get("LayerNormalization", 0) == 0
    assert sum(report.nodes_after.values()) == sum(report.nodes_before.values())


@pytest.mark.parametrize("bias", [(), (1,), (5, 1), None])
def test_a_bias_that_is_no_constant_of_one_entry_a_channel_keeps_the_mean(bias: tuple[int, ...] | None) -> None:
    """Centred over its own last axis it would vanish."""
    body = """
    b = {made}
    s = Gemm(x, w_in, {name})
    n = LayerNormalization<axis = -1, epsilon = 0.01>(s, g1, h1)
    y = MatMul(n, w_out)
    """.format(made="Identity(x)" if bias is not None else "MatMul(x, w_in)", name="b" if bias is None else "c")
    after, centring = centred(stream(body, x="5,4", c=draw("c", *(bias or ()))))
    assert not centring.norms and "RMSNormalization" not in kinds(after)
    (kept,) = centring.kept
    assert "its bias is no constant of one entry per channel" in str(kept)


@pytest.mark.parametrize("reader", ["MatMul(s, w_out)", "Gemm(s, w_out)", 'Einsum<equation = "ij,jk->ik">(s, w_out)'])
def test_who_reads_the_stream_itself_keeps_its_mean(reader: str) -> None:
    body = f"""
    s = Gemm(x, w_in, b_in)
    n = LayerNormalization<axis = -1, epsilon = 0.01>(s, g1, h1)
    v = MatMul(n, w_out)
    u = {reader}
    y = Add(v, u)
    """
    refused(stream(body, x="5,4"), "would see that the mean is gone")


@pytest.mark.parametrize("reader", ["Conv(s, kernel)", "ConvTranspose(s, kernel)"])
def test_a_convolution_that_reads_the_stream_keeps_its_mean(reader: str) -> None:
    body = f"""
    s = Conv(x, first)
    t = Transpose<perm = [0, 2, 1]>(s)
    n = LayerNormalization<axis = -1, epsilon = 0.01>(t, g1, h1)
    y = MatMul(n, w_out)
    z = {reader}
    """
    text = HEAD.format(opset=23) + f"g (double[2,4,5] x) => (double[] y, double[] z) {{{body}}}"
    used = {name: SHAPES[name] for name in ("g1", "h1", "w_out")}
    refused(build(text, first=(6, 4, 1), kernel=(6, 6, 1), **used), "would see that the mean is gone")
