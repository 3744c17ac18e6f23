"""`normfold verify` where there is no verdict, and the files that it leaves for CI."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from normfold.cli.app import app
from normfold.errors import UsageError
from normfold.report import verdict_files
from normfold.verify import run as judgement
from normfold.verify.manifest import KEY as MANIFEST_KEY
from normfold.verify.runtime import levels
from tests.verify.command import CHANNELS, RUN, change, graph, said, spoil, verify


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
        (["model.onnx", "--inputs", "gone.npz"], "gone.npz: no such file"),
        (["model.onnx", "--samples", "100000000000"], "100,000 can be judged at once"),
        (["model.onnx", "--seed", "-1"], "a seed is 0 or more"),
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


def test_no_samples_are_no_verdict_in_python_either(folder: Path) -> None:
    with pytest.raises(UsageError, match="--samples 0: a verdict needs at least one sample"):
        judgement.judge(folder / "model.onnx", samples=0)


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
    from normfold.verify import measure

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
    assert "internal error in verify/run.py" in result.stderr and "ZeroDivisionError" not in result.stderr
    assert "internal error in verify/run.py" in (folder / "v.xml").read_text()


@pytest.mark.parametrize(
    "words", [["gone.onnx"], ["model.onnx", "--against", "gone.pt"], ["model.onnx", "--model", "gone:build"]]
)
def test_what_is_refused_at_once_is_told_to_ci_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(folder)
    result = verify(*words, "--junit", "v.xml", "--json", "v.json")
    assert result.exit_code == 2
    error = ElementTree.parse("v.xml").getroot()[0][0].find("error")
    assert error is not None and error.text and error.text in result.stderr
    assert json.loads(Path("v.json").read_text())["error"] == error.text


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
    from normfold.verify.judge import Edge, Judged
    from normfold.verify.metrics import Figures
    from normfold.verify.verdict import Verdict

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
