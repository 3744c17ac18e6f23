"""`normfold verify` as its users meet it: exit codes, the source it finds, what it says and what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from normfold.pipeline import run as pipeline
from normfold.verify import run as judgement
from normfold.verify.runtime import levels, version
from tests.verify.command import CHANNELS, change, graph, said, spoil, verify
from tests.verify.test_no_verdict import manifest_of


def without_manifest(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def test_a_folded_model_passes_against_the_source_that_its_manifest_names(folder: Path) -> None:
    result = verify(folder / "model.onnx", "--json", folder / "v.json")
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.stdout
    assert result.stderr == ""
    verdict = json.loads((folder / "v.json").read_text())
    assert verdict["passed"] is True
    assert verdict["source"].endswith("source.onnx")
    assert len(verdict["samples"]) == judgement.SAMPLES
    assert verdict["fault"] is None
    names = [edge["name"] for edge in verdict["edges"]]
    assert names[0] == "original -> folded"
    assert len(names) == 1 + len(levels())
    (output,) = verdict["edges"][0]["outputs"]
    assert output["name"] == "y"
    assert 0 < output["median"] <= output["worst"]["relative"] <= output["bound"] < 1e-5
    assert output["worst"]["sample"] in verdict["samples"]
    assert output["worst"]["ulps"] == pytest.approx(output["worst"]["relative"] / 2**-23)
    assert len(output["samples"]) == judgement.SAMPLES
    assert output["worst"]["top1"] == 1.0


def test_a_changed_weight_fails_and_is_found(folder: Path) -> None:
    change(folder / "model.onnx", spoil)
    result = verify(folder / "model.onnx", "--json", folder / "v.json")
    assert result.exit_code == 1
    assert "FAILED: the model differs from its source." in said(result)
    fault = json.loads((folder / "v.json").read_text())["fault"]
    assert (fault["tensor"], fault["after"]) == ("u (Gemm)", "h")
    assert fault["relative"] > fault["bound"]
    assert fault["tolerance"] > 1e-4
    assert fault["site"] is None
    assert "model.onnx was changed since" in fault["note"] and "W2" in fault["note"]


def test_a_model_that_normfold_did_not_make_is_judged_against_a_source(folder: Path) -> None:
    model = change(folder / "model.onnx", without_manifest)
    assert verify(model, "--against", folder / "source.onnx").exit_code == 0
    result = verify(change(model, spoil), "--against", folder / "source.onnx")
    assert result.exit_code == 1
    assert "First tensor past its bound: u (Gemm)" in said(result)
    result = verify(model)
    assert result.exit_code == 2
    assert "has no manifest that names its source" in result.stderr


def test_without_the_source_the_recorded_outputs_decide(folder: Path) -> None:
    (folder / "source.onnx").unlink()
    result = verify(folder / "model.onnx")
    assert result.exit_code == 0, result.output
    assert "outputs recorded in it alone" in said(result)
    result = verify(change(folder / "model.onnx", spoil))
    assert result.exit_code == 1
    assert "recorded -> model: output 'y' is worst at" in said(result)
    np.savez(folder / "x.npz", x=np.ones((2, CHANNELS), "f4"))
    for words in (("--inputs", folder / "x.npz"), ("--atol", 1)):
        result = verify(folder / "model.onnx", *words)
        assert (result.exit_code, "--atol need the source" in result.stderr) == (2, True)


def test_a_source_below_the_models_folder_is_found_by_its_relative_path(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    source = graph(tmp_path / "weights" / "source.onnx")
    pipeline.fold(source, tmp_path / "model.onnx")
    (props,) = onnx.load(tmp_path / "model.onnx").metadata_props
    assert json.loads(props.value)["source"]["path"] == "weights/source.onnx"
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    result = verify(moved / "model.onnx")
    assert (result.exit_code, "against its recorded" in result.stdout) == (0, False)


def test_a_source_outside_the_models_folder_has_to_be_named(tmp_path: Path) -> None:
    """A manifest may be a stranger's, and then its path would be to any file of this disk."""
    (tmp_path / "out").mkdir()
    source = graph(tmp_path / "source.onnx")
    pipeline.fold(source, tmp_path / "out" / "model.onnx")
    result = verify(tmp_path / "out" / "model.onnx")
    assert (result.exit_code, "against its recorded" in result.stdout) == (0, True)
    assert "--against" in " ".join(result.stdout.split())
    result = verify(tmp_path / "out" / "model.onnx", "--against", source)
    assert (result.exit_code, "against its recorded" in result.stdout) == (0, False)


@pytest.mark.usefixtures("no_refolding")
def test_a_changed_source_is_an_error(folder: Path) -> None:
    graph(folder / "source.onnx", seed=1)
    result = verify(folder / "model.onnx")
    assert result.exit_code == 2
    assert "is not the file that" in result.stderr and "SHA-256" in result.stderr
    assert verify(folder / "model.onnx", "--against", folder / "source.onnx").exit_code == 1


def test_real_inputs_come_first(folder: Path) -> None:
    x = np.random.default_rng(0).standard_normal((100, CHANNELS)).astype("f4")
    np.savez(folder / "real.npz", x=x)
    result = verify(folder / "model.onnx", "--inputs", folder / "real.npz", "--json", folder / "v.json")
    assert result.exit_code == 0
    samples = json.loads((folder / "v.json").read_text())["samples"]
    assert [sample.startswith("real.npz row") for sample in samples] == [True] * 32 + [False] * (len(samples) - 32)
    assert {"B=1", "B=2", "B=3", "B=4", "B=7", "B=513"} == {sample.split(" ")[0] for sample in samples[32:]}


def test_outputs_are_matched_by_name(folder: Path) -> None:
    """In another order they are the same outputs; one that is called something else is missing."""

    def with_outputs(names: list[str], place: Path) -> Path:
        shutil.copy(folder / "source.onnx", place)

        def change_outputs(model: onnx.ModelProto) -> None:
            kept = {output.name: output for output in model.graph.output}
            model.graph.node.add(op_type="Neg", input=["y"], output=["negative"])
            model.graph.ClearField("output")
            for name in names:
                model.graph.output.append(kept.get(name, onnx.ValueInfoProto(name=name)))
            if "renamed" in names:
                model.graph.node[-1].output[0] = "renamed"

        change(place, change_outputs)
        return place

    source = with_outputs(["y", "negative"], folder / "two.onnx")
    swapped = with_outputs(["negative", "y"], folder / "swapped.onnx")
    renamed = with_outputs(["y", "renamed"], folder / "renamed.onnx")
    assert verify(swapped, "--against", source).exit_code == 0
    result = verify(renamed, "--against", source)
    assert result.exit_code == 1
    assert "has no output 'negative', which its source has" in said(result)


@pytest.mark.usefixtures("no_refolding")
def test_a_bound_of_ones_own_is_kept_on_top(folder: Path) -> None:
    assert verify(folder / "model.onnx", "--rtol", "1e-3", "--atol", "1e-3").exit_code == 0
    result = verify(folder / "model.onnx", "--rtol", "0", "--atol", "1e-12", "--json", folder / "v.json")
    assert result.exit_code == 1
    assert "needs an absolute tolerance of" in said(result)
    edges = json.loads((folder / "v.json").read_text())["edges"]
    assert [edge["passed"] for edge in edges] == [False] + [True] * (len(edges) - 1)
    # No tolerance, however wide, lets a wrong model pass.
    change(folder / "model.onnx", spoil)
    assert verify(folder / "model.onnx", "--rtol", "10", "--atol", "10").exit_code == 1


def test_a_batch_size_that_was_baked_in_is_caught(tmp_path: Path) -> None:
    """The mean over the batch as a sum over the traced three rows: right at one size only."""
    node = helper.make_node
    batch = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    axis, three = numpy_helper.from_array(np.array([0]), "axis"), numpy_helper.from_array(np.float32([3]), "three")
    right = helper.make_graph([node("ReduceMean", ["x", "axis"], ["y"])], "g", [batch], [out], [axis])
    nodes = [node("ReduceSum", ["x", "axis"], ["s"]), node("Div", ["s", "three"], ["y"])]
    baked = helper.make_graph(nodes, "g", [batch], [out], [axis, three])
    for name, model in (("right", right), ("baked", baked)):
        made = helper.make_model(model, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(made, tmp_path / f"{name}.onnx")
    result = verify(tmp_path / "baked.onnx", "--against", tmp_path / "right.onnx")
    assert result.exit_code == 1
    assert "disagrees at B=1; B=2; B=4; B=7; B=513; B=129 and agrees at B=3" in said(result)


def test_a_model_with_a_static_batch_is_judged_at_that_size(folder: Path) -> None:
    source = graph(folder / "source.onnx", seed=1)
    static = graph(folder / "static.onnx", seed=1, batch=5)
    result = verify(static, "--against", source, "--json", folder / "v.json")
    assert result.exit_code == 0, result.output
    assert all(sample.startswith("static sizes") for sample in json.loads((folder / "v.json").read_text())["samples"])


def test_the_runtime_is_blamed_for_what_only_its_optimisations_break(tmp_path: Path) -> None:
    """onnxruntime up to 1.31 fuses MatMul, Transpose and BatchNormalization as if the Transpose were not there."""
    rng = np.random.default_rng(0)
    size = 8
    constants = {"w": rng.standard_normal((16, size))} | {
        name: rng.uniform(0.5, 2.0, size) for name in ("gamma", "beta", "mean", "var")
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Transpose", ["h"], ["t"], perm=[1, 0]),
        helper.make_node("BatchNormalization", ["t", "gamma", "beta", "mean", "var"], ["y"]),
    ]
    square = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, size])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    path = tmp_path / "square.onnx"
    onnx.save(helper.make_model(square, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    result = verify(path, "--against", path, "--json", tmp_path / "v.json")
    edges = json.loads((tmp_path / "v.json").read_text())["edges"]
    assert edges[0]["passed"], "without optimisations it is right"
    if tuple(int(part) for part in version().split(".")[:2]) >= (1, 32):
        assert result.exit_code == 0
        return
    assert result.exit_code == 1
    assert {edge["blamed"] for edge in edges[1:]} == {"runtime"}
    assert "computes it wrongly, and the unfolded original too" in said(result)
    assert "onnxruntime's optimisations break the model, which is right without them" in said(result)


def test_a_broken_runtime_is_blamed_whatever_its_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from normfold.verify import measure

    real = measure.open_session
    wrong = change(Path(shutil.copy(folder / "model.onnx", folder / "wrong.onnx")), spoil)

    def fusing(path: Path, runtime: Any) -> Any:
        return real(wrong if runtime.level == "extended" and path.name == "model.onnx" else path, runtime)

    monkeypatch.setattr(measure, "open_session", fusing)
    result = verify(folder / "model.onnx", "--json", folder / "v.json")
    assert result.exit_code == 1
    edges = json.loads((folder / "v.json").read_text())["edges"]
    assert [edge["name"] for edge in edges if not edge["passed"]] == ["unoptimised -> optimised (extended)"]
    assert "the unfolded original it computes rightly" in said(result)


def test_a_manifest_does_not_choose_code_to_run(folder: Path) -> None:
    """The source is there and the manifest names a factory: a model from a stranger must not start it."""

    def named(model: onnx.ModelProto) -> None:
        entry = manifest_of(model)
        content = json.loads(entry.value)
        content["arch"], content["arch_args"] = "os:system", {"command": "touch gone"}
        entry.value = json.dumps(content)

    result = verify(change(folder / "model.onnx", named))
    assert result.exit_code == 2
    assert "--model os:system" in result.stderr
