"""What stays is said: a norm that runs is in the report, and `--strict` objects to it and to no other operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from normfold.errors import GraphError, NotFoldedError
from normfold.graph.read import read_graph
from normfold.pipeline import look
from normfold.pipeline import run as pipeline
from normfold.report.render import render
from normfold.report.report import Report
from tests.support.graphs import FOLDED, as_float32, build, check, draw, fold, kept, outcomes, parse, same_function

STATISTICS = {name: draw(name, 4, positive=name == "var") for name in ("gamma", "beta", "mean", "var")}
NORM = "BatchNormalization(h, gamma, beta, mean, var)"
GEMM = {"w": draw("w", 4, 3), "c": draw("c", 3)}


def branch(then: str, mark: str = "") -> str:
    """An If with `then` in one of its branches; mark: tells the names of nested ones apart."""
    one, other = f"o{mark} = {then}", f"p{mark} = Exp(h)"
    return (
        f"If(k) <then_branch = t{mark} () => (double[B,4] o{mark}) {{ {one} }}, "
        f"else_branch = e{mark} () => (double[B,4] p{mark}) {{ {other} }}>"
    )


FUNCTION = """
<domain: "own", opset_import: ["" : 20]>
norm (x, g, b, m, v) => (y) { y = BatchNormalization(x, g, b, m, v) }"""
HEADER = '<ir_version: 10, opset_import: ["" : 20, "own" : 1, "com.microsoft" : 1]>\n'
OWN = "own.norm(h, gamma, beta, mean, var)"

# How the norm is written, the inputs beside x, and the code that says why it stays.
STAYS = {
    "in a branch": (branch(NORM), ", bool k", "in-subgraph"),
    "in a branch of a branch": (branch(branch(NORM, "2")), ", bool k", "in-subgraph"),
    "in a loop": (
        "Loop(trips, k, h) <body = l (int64 i, bool go, double[B,4] s) => (bool on, double[B,4] r) "
        "{ on = Identity(go) r = BatchNormalization(s, gamma, beta, mean, var) }>",
        ", bool k, int64 trips",
        "in-subgraph",
    ),
    "in a function in a branch": (branch(OWN), ", bool k", "in-subgraph"),
    "behind an operator of another domain": ("BatchNormalization(f, gamma, beta, mean, var)", "", "unknown-shape"),
    "statistics that can be overridden": (NORM, ", double[4] mean, double[4] var", "not-stored"),
    "statistics that are inputs": (NORM.replace("mean, var", "m, v"), ", double[4] m, double[4] v", "not-stored"),
    "statistics that are computed": (NORM.replace("var", "v2"), "", "not-stored"),
    "in training mode": (NORM.replace("Normalization(", "Normalization<training_mode = 1>("), "", "training-mode"),
    "without a finite scale": (
        "BatchNormalization<epsilon = 0.0>(h, gamma, beta, mean, none)", "", "infinite-map"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_every_norm_that_runs_is_said_and_counts(name: str, tmp_path: Path) -> None:
    written, inputs, code = STAYS[name]
    text = (
        f"{HEADER}g (double[B,4] x{inputs}) => (double[B,3] y) {{\nh = Tanh(x)\nf = com.microsoft.Gelu(x)\n"
        f"v2 = ReduceMean<keepdims = 0>(x, first)\nn = {written}\nz = Add(n, f)\ny = Gemm(z, w, c)\n}}{FUNCTION}"
    )
    extra = {"none": np.zeros(4), "first": np.array([0])}
    save(tmp_path / "m.onnx", text.replace("double", "float"), **STATISTICS, **GEMM, **extra)
    with pytest.raises(NotFoldedError, match="1 of 1 norms not folded") as caught:
        pipeline.fold(tmp_path / "m.onnx", tmp_path / "out.onnx", strict=True, verify=False)
    (site,) = caught.value.report.sites
    assert (site.kind, site.status, site.code, site.channels) == ("BatchNorm", "kept", code, 4)
    assert site.reason is not None and "BatchNormalization" in site.reason
    # Without --strict it is left as it is, with all the rest.
    report = pipeline.fold(tmp_path / "m.onnx", tmp_path / "out.onnx", verify=False)
    assert outcomes_of(report) == [kept(code)]


def save(path: Path, text: str, **constants: NDArray[np.generic]) -> None:
    """The model of `text`, its floating constants in float32."""
    single = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in constants.items()}
    path.write_bytes(parse(text, **single).SerializeToString())


def outcomes_of(report: Report) -> list[tuple[str, str | None]]:
    return [(site.status, site.code) for site in report.sites]


def test_a_norm_that_never_runs_is_not_said() -> None:
    text = f"g (double[B,4] x) => (double y) {{\nh = Tanh(x)\nn = {NORM.replace('(h', '(rows')}\ny = Gemm(h, w, c)\n}}"
    check(text, rows=draw("rows", 2, 4), **STATISTICS, **GEMM)


SPELLED = """v0 = Add(var, eps)
v1 = Sqrt(v0)
m0 = Sub(x, mean)
m1 = Div(m0, v1)
m2 = Mul(m1, gamma)
n = Add(m2, beta)"""


@pytest.mark.parametrize(("body", "outcome"), [
    ("r = Reshape(n, s)\ny = Gemm(r, w, c)", FOLDED),
    ("y = MatMul(n, v)", kept("not-contracted")),
])  # fmt: skip
def test_statistics_of_each_position(body: str, outcome: tuple[str, str | None], tmp_path: Path) -> None:
    """Before opset 9, spatial = 0: where a Gemm reads every position, it takes them up."""
    text = (
        '<ir_version: 4, opset_import: ["" : 7]>\ng (double[2,3,4] x) => (double y) {\n'
        f"n = BatchNormalization<spatial = 0>(x, gamma, beta, mean, var)\n{body}\n}}"
    )
    statistics = {name: draw(name, 3, 4, positive=name == "var") for name in STATISTICS}
    model = build(text, **statistics, s=np.array([2, 12]), w=(12, 5), c=(5,), v=(4, 5))
    after, plan = fold(model)
    assert outcomes(plan) == [outcome]
    plain = build(
        text.replace("n = BatchNormalization<spatial = 0>(x, gamma, beta, mean, var)", SPELLED),
        **statistics,
        s=np.array([2, 12]),
        w=(12, 5),
        c=(5,),
        v=(4, 5),
        eps=np.float64(np.float32(1e-5)),
    )
    if outcome == FOLDED:
        same_function(plain, after)
    onnx.save(as_float32(model), tmp_path / "m.onnx")
    assert outcomes_of(look.inspect(tmp_path / "m.onnx")) == [outcome]


class Decoder(nn.Module):
    """A box decoder: a constant product at the output."""

    def __init__(self, decode: str) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        self.decode, self.aux = decode, nn.BatchNorm2d(4)
        self.register_buffer("stride", torch.linspace(8, 32, 36))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(torch.relu(self.norm(self.conv(x)))).flatten(2).sigmoid()
        if self.decode == "factor":
            y = y.mean(1) * self.stride
        elif self.decode == "cells":
            y = (y * 2 - 0.5) * self.stride
        elif self.decode == "stride":
            y = y * self.stride
        return y.tanh()


@pytest.mark.parametrize("decode", ["", "stride", "cells", "factor"])
def test_what_is_no_norm_does_not_count(decode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Decoder(decode).eval().state_dict(), tmp_path / "m.pt")
    report = pipeline.fold(
        tmp_path / "m.pt",
        tmp_path / "out.onnx",
        model="tests.analysis.test_stays:Decoder",
        model_args={"decode": decode},
        inputs=["x:float32[B,3,8,8]"],
        strict=True,
        verify=False,
    )
    assert [site.name for site in report.norms] == ["norm"] and not report.unfolded
    assert {site.name: site.code for site in report.sites}["aux"] == "not-in-graph"
    products = [site for site in report.sites if not site.counts and site.name != "aux"]
    assert [(site.kind, site.status) for site in products] == ([("scale", "kept")] if decode else [])
    said = str(next(iter(render(report).renderables)))  # type: ignore[attr-defined]
    besides = " Besides, 1 constant product: 1 kept." if decode else ""
    assert said == f"1 norm: 1 folded.{besides} Besides, 1 norm module that the model never calls."


def test_a_scale_and_a_shift_of_each_channel_count_as_a_norm() -> None:
    """The file does not tell what they were: stored statistics look like this."""
    text = "g (double[B,4] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, gamma)\nm = Add(n, beta)\ny = Tanh(m)\n}"
    _, plan = check(text, kept("wall"), gamma=STATISTICS["gamma"], beta=STATISTICS["beta"])
    assert plan.sites[0].counts
    _, plan = check(text, kept("wall"), gamma=STATISTICS["gamma"], beta=np.array(0.5))
    assert not plan.sites[0].counts


def test_a_map_as_output_is_named(tmp_path: Path) -> None:
    """What scikit-learn's converter writes by default."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>\n'
        "g (float[N,4] x) => (float[N,3] y, seq(map(int64, float)) z) {\nh = Identity(x)\n"
        f"n = {NORM}\ny = Gemm(n, w)\nz = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2]> (y)\n}}"
    )
    save(tmp_path / "m.onnx", text, **STATISTICS, w=GEMM["w"])
    with pytest.raises(GraphError, match=r"'z' holds a map .* zipmap=False"):
        read_graph(tmp_path / "m.onnx")
    text = text.replace(", seq(map(int64, float)) z", "").replace(
        "z = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2]> (y)", ""
    )
    save(tmp_path / "m.onnx", text, **STATISTICS, w=GEMM["w"])
    assert outcomes_of(look.inspect(tmp_path / "m.onnx")) == [FOLDED]


def test_types_that_inference_does_not_know_are_no_contradiction(tmp_path: Path) -> None:
    """Behind a Scaler of ai.onnx.ml no tensor has a type; the file is right all the same."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>\ng (float[N,4] x) => (float[N,3] y) {\n'
        "h = ai.onnx.ml.Scaler <offset = [0.1, 0.2, 0.3, 0.4], scale = [1.0, 2.0, 3.0, 4.0]> (x)\n"
        f"n = {NORM}\ny = Gemm(n, w)\n}}"
    )
    save(tmp_path / "m.onnx", text, **STATISTICS, w=GEMM["w"])
    assert outcomes_of(look.inspect(tmp_path / "m.onnx")) == [kept("unknown-shape")]
