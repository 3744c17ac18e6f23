from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from rich.console import Console

from normfold.bench.baseline import layer_norm_twin
from normfold.bench.job import Job
from normfold.bench.runners.ort import ORT
from normfold.bench.variants import FOLDED, LAYERNORM, UNFOLDED, Variants, collect, twin_module
from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.options import LoadOptions
from normfold.errors import CannotJudgeError, GraphError, UsageError
from normfold.export.to_onnx import export
from normfold.graph.write import save
from normfold.inputs.spec import draw
from normfold.norms.detect import find_norms
from normfold.norms.kinds import token_norm
from normfold.pipeline.look import inspect
from normfold.pipeline.run import fold
from normfold.report.render import render
from tests.paths import FIXTURES
from tests.support.graphs import parse, run_float32


def operators(path: Path) -> dict[str, int]:
    return dict(ORT.inspect(Job(str(path), (), {}, scratch=str(path.with_suffix(".optimised.onnx"))))[0])


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Variants:
    """The variants of a checkpoint, with an axis renamed."""
    load = LoadOptions(inputs=("x:float32[N,1,8,8]",))
    return collect(FIXTURES / "vit_un.pt", tmp_path_factory.mktemp("variants"), load=load)


@pytest.fixture(scope="module")
def unfolded(three: Variants) -> Path:
    """An ONNX file of unknown architecture."""
    return three.found[1].file


def test_a_checkpoint_has_all_three(three: Variants) -> None:
    assert [variant.name for variant in three.found] == [LAYERNORM, UNFOLDED, FOLDED]
    assert not three.missing
    assert three.inputs[0].dims[0] == "N"
    feeds = draw(three.inputs, {"N": 2}, seed=0)
    twin, before, after = (ort.InferenceSession(variant.file).run(None, feeds)[0] for variant in three.found)
    np.testing.assert_allclose(before, after, atol=1e-3)
    # The twin has random weights: only its time is compared.
    assert twin.shape == after.shape


def test_a_made_baseline_runs_the_operators_of_the_twin_that_an_exporter_writes(
    three: Variants, unfolded: Path, tmp_path: Path
) -> None:
    save(layer_norm_twin(ir.load(unfolded)), tmp_path / "made.onnx")
    assert operators(tmp_path / "made.onnx") == operators(three.found[0].file)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rms"), [("vit_prepbn", False), ("postnorm_un", False), ("char_lm_prepbn", True)])
def test_made_baselines_of_the_other_fixtures(name: str, rms: bool, tmp_path: Path) -> None:
    source = load_checkpoint(FIXTURES / f"{name}.pt")
    twin = twin_module(source)
    assert twin is not None
    save(export(replace(source, module=twin[1], norms=find_norms(twin[1]))), tmp_path / "twin.onnx")
    save(layer_norm_twin(export(source), kind=token_norm(centred=not rms)), tmp_path / "made.onnx")
    assert operators(tmp_path / "made.onnx") == operators(tmp_path / "twin.onnx")


def test_a_baseline_of_channels_first_normalises_the_channels() -> None:
    rng = np.random.default_rng(0)
    model = parse(
        """
        agraph (float[N, 3, H, W] x) => (float[N, 3, H, W] y) {
            h = Relu(x)
            n = BatchNormalization(h, scale, bias, mean, var)
            y = Relu(n)
        }
        """,
        **{name: rng.uniform(0.5, 2.0, 3).astype(np.float32) for name in ("scale", "bias", "mean", "var")},
    )
    twin = ir.to_proto(layer_norm_twin(ir.from_proto(model)))
    assert [node.op_type for node in twin.graph.node] == [
        "Relu",
        "Transpose",
        "LayerNormalization",
        "Transpose",
        "Relu",
    ]
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    weight, bias = (onnx.numpy_helper.to_array(part) for part in twin.graph.initializer)
    h = np.maximum(x, 0.0)
    normal = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    expected = np.maximum(normal * weight[:, None, None] + bias[:, None, None], 0.0)
    np.testing.assert_allclose(run_float32(twin, {"x": x})[0], expected, atol=1e-5)


def test_a_norm_that_is_an_output_keeps_its_name() -> None:
    model = parse(
        "agraph (float[N, 3] x) => (float[N, 3] y) { h = Mul(x, a) y = Add(h, b) }",
        a=np.float32([1, 2, 3]),
        b=np.float32([1, 1, 1]),
    )
    twin = ir.to_proto(layer_norm_twin(ir.from_proto(model)))
    assert [value.name for value in twin.graph.output] == ["y"]
    assert run_float32(twin, {"x": np.float32([[1, 2, 4]])})[0].shape == (1, 3)


def test_no_baseline_of_a_graph_without_norms_or_with_an_old_opset() -> None:
    with pytest.raises(GraphError, match="no norm"):
        layer_norm_twin(ir.from_proto(parse("agraph (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }")))
    old = '<ir_version: 8, opset_import: ["" : 13]> agraph (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }'
    with pytest.raises(GraphError, match="opset 13 has no LayerNormalization"):
        layer_norm_twin(ir.from_proto(parse(old)))


def test_a_folded_file_finds_its_source_by_its_manifest(unfolded: Path, tmp_path: Path) -> None:
    source, work = tmp_path / "plain.onnx", tmp_path / "work"
    source.write_bytes(unfolded.read_bytes())
    work.mkdir()
    fold(source, tmp_path / "folded.onnx", verify=False)
    found = collect(tmp_path / "folded.onnx", work)
    assert [variant.name for variant in found.found] == [LAYERNORM, UNFOLDED, FOLDED]
    assert found.found[-1].file == tmp_path / "folded.onnx"
    source.unlink()
    with pytest.raises(CannotJudgeError, match="--against"):
        collect(tmp_path / "folded.onnx", work)
    alone = collect(tmp_path / "folded.onnx", work, baseline=found.found[0].file)
    assert [variant.name for variant in alone.found] == [LAYERNORM, FOLDED]
    assert "--against" in alone.missing[UNFOLDED]


def test_an_unfolded_graph_is_folded_here_and_its_baseline_made(unfolded: Path, tmp_path: Path) -> None:
    found = collect(unfolded, tmp_path)
    assert [variant.name for variant in found.found] == [LAYERNORM, UNFOLDED, FOLDED]
    assert found.found[0].origin.startswith("made of the unfolded graph")
    with pytest.raises(UsageError, match="torch runs a checkpoint"):
        collect(unfolded, tmp_path, runtime="torch")


def test_a_model_without_such_norms_has_nothing_to_compare(tmp_path: Path) -> None:
    onnx.save(parse("agraph (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }"), tmp_path / "plain.onnx")
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(CannotJudgeError, match="no norm with stored statistics"):
        collect(tmp_path / "plain.onnx", work)


def test_norms_are_counted_as_the_report_counts_them(tmp_path: Path) -> None:
    """A constant product is no norm, and a norm per token, which stays, is one."""
    rng = np.random.default_rng(0)
    text = """
        agraph (float[B, 4] x) => (float[B, 4] y) {
            h = MatMul(x, w)
            n = BatchNormalization(h, a, b, m, v)
            g = MatMul(n, w)
            p = Mul(g, gain)
            r = Relu(p)
            s = LayerNormalization(r, a, b)
            y = MatMul(s, w)
        }
    """
    names = {"w": (4, 4), **dict.fromkeys("abmv", 4), "gain": 4}
    constants = {name: rng.uniform(0.5, 2.0, size).astype(np.float32) for name, size in names.items()}
    onnx.save(parse(text, **constants), tmp_path / "model.onnx")
    report = inspect(tmp_path / "model.onnx")
    work = tmp_path / "work"
    work.mkdir()
    origin = collect(tmp_path / "model.onnx", work).found[-1].origin
    assert len(report.sites) == 3 and len(report.norms) == 2
    assert origin == "folded here, 2 norms: 1 folded, 1 kept"
    console = Console(width=200, file=io.StringIO())
    console.print(render(report))
    assert origin.partition(", ")[2] in console.file.getvalue()


def test_what_is_exported_here_has_the_opset_of_the_folded_file(tmp_path: Path) -> None:
    fold(FIXTURES / "convnet_bn.pt", tmp_path / "folded.onnx", opset=18, verify=False)
    work = tmp_path / "work"
    work.mkdir()
    found = collect(tmp_path / "folded.onnx", work, against=FIXTURES / "convnet_bn.pt")
    assert {onnx.load(variant.file).opset_import[0].version for variant in found.found} == {18}
    made = collect(FIXTURES / "convnet_bn.pt", work, runtime="openvino")
    assert {onnx.load(variant.file).opset_import[0].version for variant in made.found} == {20}


@pytest.mark.parametrize("half", [False, True])
def test_what_is_measured_is_what_fold_writes(half: bool, unfolded: Path, tmp_path: Path) -> None:
    found = collect(unfolded, tmp_path, half=half)
    fold(unfolded, tmp_path / "written.onnx", dtype="float16" if half else None, verify=False)
    measured, written = (onnx.load(path).graph for path in (found.found[-1].file, tmp_path / "written.onnx"))
    assert [node.op_type for node in measured.node] == [node.op_type for node in written.node]
    constants = [{tensor.name: tensor for tensor in graph.initializer} for graph in (measured, written)]
    assert constants[0].keys() == constants[1].keys()
    for name, tensor in constants[0].items():
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(tensor), onnx.numpy_helper.to_array(constants[1][name]), name
        )


def test_half_takes_and_runs_float16(unfolded: Path, tmp_path: Path) -> None:
    found = collect(unfolded, tmp_path, half=True)
    assert found.inputs[0].dtype == "float16"
    for variant in found.found:
        feeds = draw(found.inputs, dict.fromkeys(found.inputs[0].letters, 1), seed=0)
        assert ort.InferenceSession(variant.file).run(None, feeds)[0].dtype == np.float16


def test_torch_variants_compute_the_same(tmp_path: Path) -> None:
    found = collect(FIXTURES / "convnet_bn.pt", tmp_path, runtime="torch")
    assert [variant.name for variant in found.found] == [UNFOLDED, FOLDED]
    assert "convnet" in found.missing[LAYERNORM]
    x = torch.from_numpy(draw(found.inputs, dict.fromkeys(found.inputs[0].letters, 3), seed=0)["x"])
    before, after = (pickle.loads(variant.file.read_bytes())(x) for variant in found.found)
    assert torch.allclose(before, after, atol=1e-3)
