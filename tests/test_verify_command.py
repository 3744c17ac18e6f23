"""`normfold verify` as its users meet it: exit codes, the source it finds, what it says and what it writes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from normfold import judgement, localise, pipeline, verdict_files
from normfold.cli import app
from normfold.origin import MANIFEST_KEY
from normfold.runtime import levels, version

RUN = CliRunner()
CHANNELS = 16


def graph(path: Path, *, seed: int = 0, batch: int | str = "B", channels: int = CHANNELS, name: str = "x") -> Path:
    """x W1, BatchNormalization, W2 + b2, Gelu, W3: one norm that folds."""
    rng = np.random.default_rng(seed)
    tensors = {
        "W1": rng.standard_normal((channels, CHANNELS)) / 4,
        "gamma": rng.uniform(0.3, 2.0, CHANNELS) * rng.choice([-1, 1], CHANNELS),
        "beta": rng.standard_normal(CHANNELS),
        "mean": rng.standard_normal(CHANNELS),
        "var": rng.uniform(0.3, 2.0, CHANNELS),
        "W2": rng.standard_normal((CHANNELS, CHANNELS)) / 4,
        "b2": rng.standard_normal(CHANNELS),
        "W3": rng.standard_normal((CHANNELS, 8)) / 4,
    }
    node = helper.make_node
    nodes = [
        node("MatMul", [name, "W1"], ["h"], "first"),
        node("BatchNormalization", ["h", "gamma", "beta", "mean", "var"], ["n"], "norm"),
        node("Gemm", ["n", "W2", "b2"], ["u"], "second"),
        node("Gelu", ["u"], ["v"], "gelu"),
        node("MatMul", ["v", "W3"], ["y"], "third"),
    ]
    model = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8])],
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in tensors.items()],
    )
    onnx.save(helper.make_model(model, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source and what fold made of it."""
    folder = tmp_path_factory.mktemp("made")
    pipeline.fold(graph(folder / "source.onnx"), folder / "model.onnx")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    for name in ("source.onnx", "model.onnx"):
        shutil.copy(made / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def no_refolding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds for each failure that are not what a test is about: see test_verify_localise.py."""
    monkeypatch.setattr(localise, "first_site", lambda *_: (None, ""))


def change(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return path


def spoil(model: onnx.ModelProto) -> None:
    """The largest entry of the folded weight, one percent off."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("W2"))
    values = numpy_helper.to_array(tensor).copy()
    values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def without_manifest(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def verify(*words: object) -> Result:
    return RUN.invoke(app, ["verify", *map(str, words)])


def said(result: Result) -> str:
    """What was printed, with the line breaks of a narrow terminal taken out."""
    return " ".join((result.stdout + result.stderr).split())


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
    from normfold import measure

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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.onnx"], "gone.onnx: no such file"),
        (["text.onnx"], "cannot be read as an ONNX model"),
        (["refused.onnx", "--against", "source.onnx"], "onnxruntime does not accept this graph"),
        (["source.pt"], "verify judges one, against a checkpoint"),
        (["model.onnx", "--against", "gone.pt"], "gone.pt: no such file"),
        (["model.onnx", "--against", "wide.onnx"], "the inputs differ, so nothing can be compared"),
        (["model.onnx", "--against", "named.onnx"], "the inputs differ, so nothing can be compared"),
        (["model.onnx", "--against", "nan.onnx"], "the source itself yields NaN"),
        (["model.onnx", "--inputs", "gone.npz"], "gone.npz cannot be read"),
        (["model.onnx", "--samples", "0"], "needs at least one sample"),
        (["model.onnx", "--providers", "tpu"], "'tpu' is not known"),
        (["model.onnx", "--providers", ","], "names none"),
        (["model.onnx", "--rtol", "-1"], "a tolerance is a finite number"),
        (["model.onnx", "--atol", "nan"], "a tolerance is a finite number"),
        (["model.onnx", "--junit", "gone/v.xml"], "there is no directory"),
        (["model.onnx", "--junit", "v", "--json", "v"], "have to name different files"),
        (["damaged.onnx"], "its manifest .* is not one that normfold writes"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    Path("text.onnx").write_text("hello")
    Path("source.pt").write_text("hello")
    graph(Path("wide.onnx"), channels=2 * CHANNELS)
    graph(Path("named.onnx"), name="image")
    shutil.copy("source.onnx", "nan.onnx")
    change(Path("nan.onnx"), lambda m: poison(m, "b2"))
    shutil.copy("source.onnx", "refused.onnx")
    change(Path("refused.onnx"), lambda m: setattr(m.graph.node[3], "op_type", "Gone"))
    shutil.copy("model.onnx", "damaged.onnx")
    change(Path("damaged.onnx"), lambda m: setattr(manifest_of(m), "value", '{"source": 1}'))
    result = verify(*words)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.startswith("normfold: ") and result.stderr.count("\n") == 1
    assert result.stdout == ""


def poison(model: onnx.ModelProto, name: str) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def manifest_of(model: onnx.ModelProto) -> onnx.StringStringEntryProto:
    return next(entry for entry in model.metadata_props if entry.key == MANIFEST_KEY)


def test_a_missing_provider_is_no_verdict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    result = verify(folder / "model.onnx", "--providers", "cpu,cuda")
    assert result.exit_code == 2
    assert "has no CUDAExecutionProvider" in result.stderr


def test_memory_that_runs_out_is_no_verdict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from normfold import measure

    class Full:
        def __init__(self, session: Any) -> None:
            self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

        def run(self, *_: object) -> None:
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfcarena: Failed to allocate memory")

    real = measure.open_session
    monkeypatch.setattr(measure, "open_session", lambda path, runtime: Full(real(path, runtime)))
    result = verify(folder / "model.onnx")
    assert result.exit_code == 2
    assert "memory ran out" in result.stderr


def test_a_judge_that_breaks_down_is_no_verdict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of its own")

    monkeypatch.setattr(judgement, "establish", broken)
    result = verify(folder / "model.onnx", "--junit", folder / "v.xml")
    assert result.exit_code == 4
    assert "internal error in judgement.py" in result.stderr and "ZeroDivisionError" not in result.stderr
    assert "internal error in judgement.py" in (folder / "v.xml").read_text()


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


@pytest.mark.usefixtures("no_refolding")
def test_files_for_ci_of_a_pass_a_failure_and_no_verdict(folder: Path) -> None:
    files = [word for name in ("junit", "summary", "json") for word in (f"--{name}", folder / f"v.{name}")]
    assert verify(folder / "model.onnx", *files).exit_code == 0
    suite = ElementTree.parse(folder / "v.junit").getroot()[0]
    assert suite.attrib["tests"] == str(1 + len(levels()))
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "0")
    assert suite[0].attrib == {"classname": "original -> folded", "name": "y"}
    assert (folder / "v.summary").read_text().startswith("### ✅ normfold verify: PASSED")

    change(folder / "model.onnx", spoil)
    assert verify(folder / "model.onnx", *files).exit_code == 1
    suite = ElementTree.parse(folder / "v.junit").getroot()[0]
    assert suite.attrib["failures"] == "1"
    failure = suite[0].find("failure")
    assert failure is not None and failure.attrib["type"] == "model"
    assert "First tensor past its bound: u (Gemm)" in (failure.text or "")
    assert "❌" in (folder / "v.summary").read_text()

    graph(folder / "source.onnx", seed=1)
    assert verify(folder / "model.onnx", *files).exit_code == 2
    suite = ElementTree.parse(folder / "v.junit").getroot()[0]
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "1")
    assert "no verdict" in (folder / "v.summary").read_text()
    assert json.loads((folder / "v.json").read_text())["passed"] is None
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.onnx",
        "source.onnx",
        "v.json",
        "v.junit",
        "v.summary",
    ]


def test_a_summary_stays_below_what_github_takes_and_names_stay_text() -> None:
    from normfold.figures import Figures
    from normfold.verdict import Verdict
    from normfold.verify import Edge, Judged

    sample = Figures(1.0, 1.0, 1.0)
    name = "a|b`<img src=x>\x00" * 50
    outputs = tuple(Judged(f"{name}{i}", (sample,), 1.0, 0.0, 0.5) for i in range(500))
    edges = tuple(Edge(f"edge {name} {i}", 1.0, 1.0, 0.5, False, name * 5, outputs) for i in range(4))
    verdict = Verdict("0", "1", name, "ab", name, "torch", ("case",), edges, notes=(name,) * 2000)
    text = verdict_files.summary(verdict)
    assert len(text.encode()) <= verdict_files.SUMMARY_BYTES < 2**20
    assert "| edge" in text
    assert not re.search(r"(?<!\\)<img", re.sub("`[^`]*`", "", text)), "a name is text, or code"
    parsed = ElementTree.fromstring(verdict_files.junit(verdict))
    assert len(parsed[0]) == 2000


def test_help_names_every_option_and_the_exit_codes() -> None:
    result = RUN.invoke(app, ["verify", "--help"], terminal_width=200)
    assert result.exit_code == 0
    for option in ("--against", "--inputs", "--samples", "--seed", "--providers", "--junit", "--summary", "--json"):
        assert option in result.stdout
    assert "Exit codes: 0" in said(result)
