"""Models in memory: modules, programs and ONNX models, folded without a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.checkpoint.in_memory import source_of
from normfold.checkpoint.options import LoadOptions
from normfold.errors import InputSpecError, NormfoldError, UsageError
from normfold.nn.repbn import RepBN
from tests.checkpoint.files import settled
from tests.pipeline.test_run import foldable


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.norm, self.last = RepBN(8), nn.Linear(8, 3)

    def forward(self, x: Tensor, ids: Tensor, *, scale: Tensor | None = None) -> Tensor:
        y: Tensor = self.last(self.norm(x + self.table(ids)))
        return y if scale is None else y * scale


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return settled(Net())


X, IDS = torch.randn(2, 5, 8), torch.randint(0, 11, (2, 5))
BATCH = {"x": {0: "batch", 1: "L"}, "ids": {0: "batch", 1: "L"}}


def check(path: Path, module: nn.Module, *arguments: Tensor) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, dict(zip(names, (a.numpy() for a in arguments), strict=True)))[0]
    with torch.no_grad():
        assert np.abs(found - module(*arguments).numpy()).max() < 1e-5


def test_a_module_goes_in_and_stays_as_it_was(net: nn.Module, tmp_path: Path) -> None:
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    report = normfold.fold(net, tmp_path / "out.onnx", example_inputs=(X, IDS), dynamic=BATCH)
    assert net.training and all(part.training for part in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert [site.status for site in report.norms] == ["folded"]
    assert report.source.format == "module" and report.source.inputs[1] == "ids:int64[batch,L]<11"
    check(tmp_path / "out.onnx", net.eval(), torch.randn(3, 4, 8), torch.randint(0, 11, (3, 4)))
    assert report.to_torch()(X, IDS).shape == (2, 5, 3)


def test_what_it_was_made_of_is_recorded_without_a_path(net: nn.Module, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    normfold.fold(net, output, example_inputs={"x": X, "ids": IDS})
    manifest = onnx.load(output).metadata_props[0].value
    assert '"name": "Net (in memory)"' in manifest and '"path"' not in manifest
    again = normfold.fold(net, tmp_path / "again.onnx", example_inputs=[X, IDS])
    assert output.read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert again.source.sha256 in manifest
    from normfold.verify.run import judge

    assert judge(output, samples=4).passed, "the recorded outputs decide"


def test_inputs_may_be_specified_instead(net: nn.Module) -> None:
    report = normfold.inspect(net, inputs=["x:float32[B,L,8]", "ids:int64[B,L]<11"])
    assert [site.status for site in report.norms] == ["folded"]
    fixed = normfold.inspect(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), example_inputs=torch.zeros(4, 8))
    assert fixed.source.inputs == ("input:float32[4,8]",), "an axis that is not called dynamic is fixed"
    assert normfold.inspect(nn.Linear(8, 2), inputs="input:float32[B,8]").source.inputs == ("input:float32[B,8]",)


def test_a_program_and_onnx_models_go_in(net: nn.Module, tmp_path: Path) -> None:
    program = torch.export.export(net.eval(), (X, IDS))
    report = normfold.fold(program, tmp_path / "program.onnx")
    assert [site.status for site in report.norms] == ["folded"]
    check(tmp_path / "program.onnx", net, X, IDS)
    path = foldable(tmp_path)
    file = normfold.fold(path, tmp_path / "file.onnx")
    proto = onnx.load(path)
    bytes_before = proto.SerializeToString(deterministic=True)
    for number, model in enumerate((proto, ir.load(path))):
        output = tmp_path / f"{number}.onnx"
        report = normfold.fold(model, output)
        assert report.nodes_after == file.nodes_after
        assert onnx.load(output).graph == onnx.load(tmp_path / "file.onnx").graph
    assert proto.SerializeToString(deterministic=True) == bytes_before


def test_a_graph_with_nothing_to_fold_is_written_all_the_same(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[N,4] x) => (float[N,4] y) {y = Relu(x)}'
    )
    report = normfold.fold(model, tmp_path / "out.onnx")
    assert not report.norms and onnx.load(tmp_path / "out.onnx").graph.node[0].op_type == "Relu"


class Stuck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Parameter(torch.ones(2)) * 2  # no leaf: it cannot be copied

    def forward(self, x: Tensor) -> Tensor:
        return x * self.kept


ONE = {"example_inputs": (torch.ones(1, 2),)}


@pytest.mark.parametrize(
    ("source", "options", "complaint"),
    [
        (3, {}, r"the source is of type int; give the path .*normfold\.fold\(module"),
        (nn.Linear(2, 2), {}, "does not say what it takes: give example inputs"),
        (nn.Linear(2, 2), {"example_inputs": (torch.ones(1, 2), 3)}, "2 example inputs .* forward of Linear takes 1"),
        (nn.Linear(2, 2), {"example_inputs": ([1.0],)}, "is a list, not a torch.Tensor"),
        (nn.Linear(2, 2), {**ONE, "dynamic": {"x": {0: "B"}}}, "dynamic names x; the inputs are input"),
        (nn.Linear(2, 2), {**ONE, "dynamic": {"input": {5: "B"}}}, "no axis 5"),
        (nn.Linear(2, 2), {**ONE, "dynamic": {"input": {0: "a b"}}}, "cannot name an axis"),
        (nn.Linear(2, 2), {"inputs": ["input:float32[B,2]"], "arch": "vit"}, "a model in memory is what it is"),
        (Stuck(), {"inputs": ["x:float32[B,2]"]}, "cannot be copied"),
        ("model.pt", {"example_inputs": (torch.ones(1),)}, "model.pt is a file"),
        (onnx.ModelProto(), {"dynamic": {}}, "says what it takes"),
    ],
)
def test_a_wrong_call_shows_the_right_one(tmp_path: Path, source: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(NormfoldError) as caught:
        normfold.fold(source, tmp_path / "out.onnx", **options)
    assert re.search(complaint, str(caught.value), re.DOTALL), caught.value
    assert not (tmp_path / "out.onnx").exists()


def test_half_precision_is_said(net: nn.Module) -> None:
    report = normfold.inspect(net.half(), example_inputs=(X.half(), IDS))
    assert any("half precision" in warning for warning in report.warnings)
    # Its input is converted with it: the module runs on what is said to be its input.
    source = source_of(net, LoadOptions(), examples=(X.half(), IDS))
    assert [spec.dtype for spec in source.inputs] == ["float32", "int64"]
    assert next(net.parameters()).dtype == torch.float16


def test_unusable_statistics_are_refused(net: nn.Module) -> None:
    net.get_buffer("norm.bn.running_var")[0] = -1.0
    with pytest.raises(NormfoldError, match=r"Net \(in memory\): norm\.bn\.running_var is negative"):
        source_of(net, LoadOptions(), examples=(X, IDS))
    assert issubclass(InputSpecError, NormfoldError) and issubclass(UsageError, NormfoldError)
