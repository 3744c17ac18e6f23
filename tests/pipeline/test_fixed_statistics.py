"""`--fixed-statistics`: LayerNorms whose epsilon dwarfs what they read, as networks without LayerNorm are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from normfold import fold
from normfold.analysis.fixed import NOTHING
from normfold.errors import UsageError
from tests.support.graphs import parse

VOCABULARY, WIDTH, LENGTH = 29, 16, 6


class Block(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=eps) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(torch.softmax(q @ k.transpose(-2, -1) * 0.25, dim=-1) @ v)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """A block between a table and the output projection that is tied to it."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.block, self.norm = Block(eps), nn.LayerNorm(WIDTH, eps=eps)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        for norm in (self.block.norm1, self.block.norm2, self.norm):
            norm.weight = nn.Parameter((1.0 + 0.3 * torch.randn(WIDTH)) * eps**0.5)
            norm.bias = nn.Parameter(0.2 * torch.randn(WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.embedding(ids))))


def test_norms_whose_epsilon_dwarfs_what_they_read_fold(tmp_path: Path) -> None:
    report = fold(
        Decoder(1e12).eval(),
        tmp_path / "out.onnx",
        example_inputs={"ids": torch.arange(LENGTH).reshape(1, LENGTH)},
        inputs=f"ids:int64[B,L]<{VOCABULARY}",
        fixed_statistics=True,
    )
    (graph,) = report.graphs
    assert [site.name for site in report.sites] == ["block.norm1", "block.norm2", "norm"]
    assert {(site.status, site.kind) for site in report.sites} == {("folded", "LayerNorm (fixed)")}
    assert not {"LayerNormalization", "ReduceMean", "Sub"} & set(graph.nodes_after)
    assert all(0.0 < one.variance <= NOTHING and one.bound == one.variance / 2.0 for one in graph.fixed)
    assert all(edge.passed for edge in graph.edges) and not report.warnings
    entries = report.to_json()["graphs"][0]["fixed"]
    assert [entry["name"] for entry in entries] == ["block.norm1", "block.norm2", "norm"]
    assert {key for entry in entries for key in entry} == {"name", "variance", "bound"}


GRAPH = """<ir_version: 10, opset_import: ["" : {opset}]>
g (float[B,3,4] x) => (float[B,3,5] y) {{
    h = MatMul(x, u)
    n = {norm}
    {between}
    y = MatMul(m, w)
}}"""
LAYER = "LayerNormalization<axis = -1, epsilon = {}>(h, a, b)"


def one_norm(norm: str = LAYER.format("1e12"), between: str = "m = Identity(n)", opset: int = 20) -> onnx.ModelProto:
    text = GRAPH.format(norm=norm, between=between, opset=opset)
    rng = np.random.default_rng(0)
    constants = {"u": rng.normal(size=(4, 4)), "w": rng.normal(size=(4, 5)), "a": 1e6 * rng.uniform(0.5, 2.0, 4)}
    constants["b"] = rng.normal(size=4)
    return parse(text, **{name: value.astype(np.float32) for name, value in constants.items() if f" {name}" in text})


@pytest.mark.parametrize(
    ("norm", "between", "opset"),
    [
        (LAYER.format("1e12"), "m = Identity(n)", 20),
        (LAYER.format("1e12"), "m = Identity(n)", 17),
        ("RMSNormalization<axis = -1, epsilon = 1e12>(h, a)", "m = Identity(n)", 23),
        (LAYER.format("1e12"), "r = Reshape(n, s)\nm = Reshape(r, s)", 20),
    ],
)
def test_a_fixed_norm_goes_into_the_weight_behind_it(norm: str, between: str, opset: int, tmp_path: Path) -> None:
    model = one_norm(norm, between, opset)
    if "s)" in between:
        model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 4]), "s"))
    report = fold(model, tmp_path / "out.onnx", fixed_statistics=True)
    (site,) = report.sites
    assert site.status == "folded" and not report.failed
    assert {"MatMul"} <= set(report.nodes_after) <= {"MatMul", "Add", "Identity", "Reshape"}


@pytest.mark.parametrize(
    ("norm", "between", "why"),
    [
        (LAYER.format("1e3"), "m = Identity(n)", "times its epsilon"),
        (LAYER.format("1e12"), "m = Tanh(n)", "no per-channel map passes"),
        ("LayerNormalization<axis = 1, epsilon = 1e12>(h, c, d)", "m = Identity(n)", "more than the channels"),
        ("LayerNormalization<axis = -1, epsilon = 1e12>(h, e)", "m = Relu(n)", "cannot go into a weight"),
    ],
)
def test_a_norm_stays_one_operator_where_something_of_it_would_be_left(
    norm: str, between: str, why: str, tmp_path: Path
) -> None:
    model = one_norm(norm, between)
    for name, shape in (("c", (3, 4)), ("d", (3, 4)), ("e", (4,))):
        if f" {name}" in norm:
            model.graph.initializer.append(numpy_helper.from_array(np.full(shape, 2e6, np.float32), name))
    report = fold(model, tmp_path / "out.onnx", fixed_statistics=True)
    assert report.nodes_after["LayerNormalization"] == 1 and not report.failed and not report.graphs[0].fixed
    (warning,) = report.warnings
    assert warning.startswith("--fixed-statistics: ") and why in warning


def test_real_inputs_say_what_a_norm_reads(tmp_path: Path) -> None:
    """Drawn inputs are of order 1; those of the file reach a variance that the epsilon does not dwarf."""
    model, data = one_norm(LAYER.format("1e9")), tmp_path / "real.npz"
    report = fold(model, tmp_path / "out.onnx", fixed_statistics=True)
    assert report.sites[0].status == "folded"
    np.savez(data, x=np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32) * 100.0)
    report = fold(model, tmp_path / "kept.onnx", fixed_statistics=True, calibrate=data)
    assert report.nodes_after["LayerNormalization"] == 1


def test_a_tied_weight_is_not_copied_where_that_is_forbidden(tmp_path: Path) -> None:
    model = one_norm(between="m = Identity(n)\nk = MatMul(x, w)\nz = ReduceSum(k)").graph
    tied = one_norm(between="m = Identity(n)")
    tied.graph.node.extend(node for node in model.node if node.output[0] in "kz")
    tied.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    for keep, left in ((True, 1), (False, 0)):
        report = fold(tied, tmp_path / f"{keep}.onnx", fixed_statistics=True, keep_tied=keep)
        assert report.nodes_after.get("LayerNormalization", 0) == left


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"emit_torch": "folded.pt"}])
def test_options_that_do_not_go_with_it_are_refused(options: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--fixed-statistics"):
        fold(one_norm(), tmp_path / "out.onnx", fixed_statistics=True, **options)
    with pytest.raises(UsageError, match="--fixed-statistics"):
        fold(one_norm(), tmp_path / "out.onnx", calibrate="real.npz")
