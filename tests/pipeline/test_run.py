"""The whole run on small ONNX files, and on one checkpoint; what is left on disk when a run does not end well."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from normfold import errors
from normfold.checkpoint.load import load_checkpoint
from normfold.errors import DifferenceError, NotFoldedError
from normfold.export.to_onnx import export
from normfold.pipeline import fold_graph, look, outputs
from normfold.pipeline import run as pipeline
from normfold.report.report import Report
from normfold.verify import demand
from normfold.verify.judge import EXPORT_EDGE, FOLD_EDGE, RUNTIME_EDGE
from normfold.verify.yardstick import Yardstick
from tests.paths import FIXTURES

CHANNELS = 12


def save(path: Path, nodes: list[onnx.NodeProto]) -> Path:
    rng = np.random.default_rng(0)
    tensors = {
        "W1": rng.standard_normal((CHANNELS, CHANNELS)),
        "W2": rng.standard_normal((CHANNELS, CHANNELS)),
        "b2": rng.standard_normal(CHANNELS),
        "gamma": rng.uniform(-2.0, 2.0, CHANNELS),
        "beta": rng.standard_normal(CHANNELS),
        "mean": rng.standard_normal(CHANNELS),
        "var": rng.uniform(0.2, 3.0, CHANNELS),
    }
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", CHANNELS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", CHANNELS])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in tensors.items() if k in read],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


NORM = ["gamma", "beta", "mean", "var"]


def foldable(folder: Path) -> Path:
    """Linear, BatchNorm, Linear."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "W1"], ["h"]),
        node("BatchNormalization", ["h", *NORM], ["n"], name="norm", epsilon=1e-5),
        node("Gemm", ["n", "W2", "b2"], ["y"]),
    ]
    return save(folder / "foldable.onnx", nodes)


def stuck(folder: Path) -> Path:
    """A BatchNorm between the graph's input and two nonlinearities: nothing can take it."""
    node = helper.make_node
    nodes = [
        node("Tanh", ["x"], ["h"]),
        node("BatchNormalization", ["h", *NORM], ["n"], name="norm", epsilon=1e-5),
        node("Tanh", ["n"], ["y"]),
    ]
    return save(folder / "stuck.onnx", nodes)


def plain(folder: Path) -> Path:
    return save(folder / "plain.onnx", [helper.make_node("MatMul", ["x", "W1"], ["y"])])


def content(path: Path) -> list[bytes]:
    """Nodes, weights, inputs and outputs. Not value_info, to which saving adds what the weights say themselves."""
    graph = onnx.load(path).graph
    return [part.SerializeToString() for part in (*graph.node, *graph.initializer, *graph.input, *graph.output)]


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def manifest(path: Path) -> dict[str, Any]:
    found = [entry.value for entry in onnx.load(path).metadata_props if entry.key == "normfold"]
    assert len(found) == 1
    told = json.loads(found[0])
    assert isinstance(told, dict)
    return told


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fold_writes_a_verified_graph_with_a_manifest_and_a_report(tmp_path: Path) -> None:
    source, output, place = foldable(tmp_path), tmp_path / "out.onnx", tmp_path / "r.json"
    said: list[str] = []
    report = pipeline.fold(source, output, report=place, progress=said.append)
    assert ops(output) == ["Gemm", "Gemm"] or ops(output) == ["MatMul", "Gemm"]
    assert [site.status for site in report.sites] == ["folded"]
    assert [edge.name for edge in report.edges] == [FOLD_EDGE, RUNTIME_EDGE]
    assert all(edge.passed for edge in report.edges)
    assert report.nodes_before["BatchNormalization"] == 1
    assert "BatchNormalization" not in report.nodes_after
    assert list(report.seconds) == ["load", "analyse", "rewrite", "verify", "save"]
    assert len(said) == len(report.seconds) + 1  # verifying has two parts
    assert report.output is not None
    assert report.output.bytes == output.stat().st_size
    assert report.output.unfolded_bytes == source.stat().st_size
    assert json.loads(place.read_text(encoding="utf-8")) == report.to_json()
    told = manifest(output)
    assert told["source"] == {"name": "foldable.onnx", "path": "foldable.onnx", "sha256": report.source.sha256}
    assert told["sites"][0]["status"] == "folded"
    assert told["inputs"] == list(report.source.inputs)
    assert names(tmp_path) == ["foldable.onnx", "out.onnx", "r.json"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source = foldable(tmp_path)
    first, second = (pipeline.fold(source, tmp_path / name) for name in ("a.onnx", "b.onnx"))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert first.output is not None
    assert second.output is not None
    assert first.output.sha256 == second.output.sha256


def test_folding_twice_changes_nothing(tmp_path: Path) -> None:
    pipeline.fold(foldable(tmp_path), tmp_path / "once.onnx")
    report = pipeline.fold(tmp_path / "once.onnx", tmp_path / "twice.onnx")
    assert not report.changed
    assert content(tmp_path / "once.onnx") == content(tmp_path / "twice.onnx")


@pytest.mark.parametrize("make", [plain, stuck])
def test_a_graph_with_nothing_to_fold_is_left_as_it_is(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = make(tmp_path)
    report = pipeline.fold(source, tmp_path / "out.onnx")
    assert not report.changed
    assert report.nodes_before == report.nodes_after
    assert content(tmp_path / "out.onnx") == content(source)
    assert manifest(tmp_path / "out.onnx")["source"]["name"] == source.name


def test_inspect_and_a_dry_run_write_nothing(tmp_path: Path) -> None:
    source = foldable(tmp_path)
    seen = look.inspect(source)
    dry = pipeline.fold(source, tmp_path / "out.onnx", dry_run=True)
    assert names(tmp_path) == ["foldable.onnx"]
    done = pipeline.fold(source, tmp_path / "out.onnx")
    assert seen.sites == dry.sites == done.sites
    assert seen.nodes_after == dry.nodes_after == done.nodes_after
    assert seen.output is dry.output is None
    assert seen.edges == dry.edges == ()


def test_without_verification_the_report_says_so(tmp_path: Path) -> None:
    report = pipeline.fold(foldable(tmp_path), tmp_path / "out.onnx", verify=False)
    assert report.edges == ()
    assert "verify" not in report.seconds
    assert any("not been verified" in warning for warning in report.warnings)
    assert (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_strict_leaves_no_output(tmp_path: Path, dry_run: bool) -> None:
    place = tmp_path / "r.json"
    with pytest.raises(NotFoldedError, match="1 of 1 norms not folded, nothing written") as caught:
        pipeline.fold(stuck(tmp_path), tmp_path / "out.onnx", strict=True, dry_run=dry_run, report=place)
    assert caught.value.exit_code == 3
    assert names(tmp_path) == ["r.json", "stuck.onnx"]
    assert json.loads(place.read_text(encoding="utf-8")) == caught.value.report.to_json()
    pipeline.fold(foldable(tmp_path), tmp_path / "out.onnx", strict=True)
    assert (tmp_path / "out.onnx").exists()


def test_a_wrong_fold_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fold_graph.rewrite

    def wrong(*args: Any) -> ir.Model:
        model = real(*args)
        value = max(model.graph.initializers.values(), key=lambda v: v.const_value.size)
        weight = value.const_value.numpy().copy()
        weight.flat[np.argmax(np.abs(weight))] *= 1.001
        value.const_value = ir.tensor(weight, name=value.name)
        return model

    monkeypatch.setattr(fold_graph, "rewrite", wrong)
    place = tmp_path / "r.json"
    with pytest.raises(DifferenceError, match="original -> folded") as caught:
        pipeline.fold(foldable(tmp_path), tmp_path / "out.onnx", report=place)
    assert caught.value.exit_code == 1
    assert names(tmp_path) == ["foldable.onnx", "r.json"]
    data = json.loads(place.read_text(encoding="utf-8"))
    assert data["output"] is None
    assert not data["verification"]["edges"][0]["passed"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        assert any(path.name.startswith(".normfold-") for path in tmp_path.iterdir()), "the draft lies beside its place"
        raise KeyboardInterrupt

    monkeypatch.setattr(Yardstick, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.fold(foldable(tmp_path), tmp_path / "out.onnx")
    assert names(tmp_path) == ["foldable.onnx"]


def test_nothing_is_loaded_for_an_output_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*args: object, **options: object) -> None:
        raise AssertionError("loaded before the output was checked")

    source, taken = foldable(tmp_path), tmp_path / "taken.onnx"
    taken.write_text("precious")
    monkeypatch.setattr(look, "load", unexpected)
    output = tmp_path / "out.onnx"
    wrong: list[tuple[str, Path, Path | None, bool]] = [
        ("exists already", taken, None, False),
        ("exists already", output, taken, False),
        ("no directory", tmp_path / "gone" / "out.onnx", None, False),
        ("no directory", output, tmp_path / "gone" / "r.json", False),
        ("is a directory", tmp_path, None, True),
        ("is the source itself", source, None, True),
        ("both an output and the report", output, output, True),
    ]
    for message, place, report, force in wrong:
        with pytest.raises(errors.OutputError, match=message):
            pipeline.fold(source, place, report=report, force=force)
    # Permission bits do not stop root, who may well be running the tests.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(errors.OutputError, match="is not writable"):
        pipeline.fold(source, output)
    assert taken.read_text() == "precious"
    assert names(tmp_path) == ["foldable.onnx", "taken.onnx"]


def test_force_replaces_what_exists(tmp_path: Path) -> None:
    source, output, place = foldable(tmp_path), tmp_path / "out.onnx", tmp_path / "r.json"
    output.write_text("old")
    place.write_text("old")
    pipeline.fold(source, output, report=place, force=True)
    assert manifest(output)["sites"]
    assert json.loads(place.read_text(encoding="utf-8"))["schema"] == 1


def test_an_onnx_file_keeps_its_opset(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="--opset"):
        pipeline.fold(foldable(tmp_path), tmp_path / "out.onnx", opset=21)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    output = tmp_path_factory.mktemp("vit") / "vit.onnx"
    return output, pipeline.fold(FIXTURES / "vit_un.pt", output)


def test_a_trained_checkpoint_folds_completely(vit: tuple[Path, Report]) -> None:
    output, report = vit
    assert len(report.sites) > 3
    assert {site.kind for site in report.sites} == {"UN"}
    assert report.unfolded == ()
    assert all(site.into for site in report.sites)
    assert [edge.name for edge in report.edges] == [EXPORT_EDGE, FOLD_EDGE, RUNTIME_EDGE]
    assert all(edge.passed for edge in report.edges)
    assert all("torch in float64" in edge.detail for edge in report.edges)
    assert sum(report.nodes_after.values()) < sum(report.nodes_before.values())
    assert manifest(output)["arch"] == report.source.arch


def test_a_trained_checkpoint_and_its_unfolded_graph_have_the_same_truth(tmp_path: Path) -> None:
    """The two independent ways to float64 agree: torch, and the evaluator on the export."""
    from normfold.verify.truth import establish

    source = load_checkpoint(FIXTURES / "vit_un.pt")
    outputs.save(export(source), tmp_path / "a.onnx")
    truth = establish(source.module, tmp_path / "a.onnx", source.inputs)
    assert truth.from_module
    graph = establish(None, tmp_path / "a.onnx", (), cases=truth.cases)
    checked = 0
    for ours, theirs in zip(truth.outputs, graph.outputs, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            # The exporter stores what it folds as float32, which this model amplifies.
            assert np.sqrt(np.mean(np.square(mine - other))) <= 2e-6 * truth.magnitudes().scales[0]
            checked += 1
    assert checked >= 5


def test_a_file_with_nothing_to_fold_stays_byte_for_byte(tmp_path: Path) -> None:
    source, once, twice = stuck(tmp_path), tmp_path / "once.onnx", tmp_path / "twice.onnx"
    before = onnx.load(source)
    before.metadata_props.add(key="author", value="somebody")
    before.graph.node[1].attribute.add(name="momentum", f=0.5, type=onnx.AttributeProto.FLOAT)
    onnx.save(before, source)
    pipeline.fold(source, once)
    pipeline.fold(once, twice)
    for output, name in ((once, "stuck.onnx"), (twice, "once.onnx")):
        assert manifest(output)["source"]["name"] == name
        after = onnx.load(output)
        assert [entry.key for entry in after.metadata_props] == ["author", "normfold"]
        del after.metadata_props[1]
        assert after.SerializeToString() == source.read_bytes()


def test_a_model_too_large_for_its_truth_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 GB of weights do not run in float64 on most machines: said before they are read, with what to do."""
    monkeypatch.setattr(demand, "_COPIES", 1e12)
    source = foldable(tmp_path)
    with pytest.raises(errors.CannotJudgeError, match=r"GB of memory to run in float64.*--no-verify") as caught:
        pipeline.fold(source, tmp_path / "out.onnx")
    assert caught.value.exit_code == 2
    assert names(tmp_path) == ["foldable.onnx"]
    assert pipeline.fold(source, tmp_path / "out.onnx", verify=False).output is not None
