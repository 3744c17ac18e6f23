"""`normfold check`: the configuration of a repository, several models, one exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from normfold.cli.app import app
from normfold.errors import UsageError
from normfold.pipeline import run as pipeline
from normfold.verify.check import Checked, Entry, exit_code, read_config
from tests.pipeline.test_run import foldable
from tests.report.test_html import checked
from tests.verify.command import change, spoil

RUN = CliRunner()


def config(folder: Path, text: str) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_entry_becomes_a_command(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        """
        [tool.normfold]
        samples = 8
        [[tool.normfold.models]]
        model = "a.onnx"
        [[tool.normfold.models]]
        model = "sub/b.onnx"
        against = "b.pt"
        inputs = ["x.npz", "y.npz"]
        samples = 4
        options = ["--arch", "vit"]
        """,
    )
    first, second = read_config(path)
    assert first == Entry(tmp_path / "a.onnx", ("--samples", "8"))
    assert second.path == tmp_path / "sub" / "b.onnx"
    assert second.arguments == (
        "--samples", "4", "--against", str(tmp_path / "b.pt"), "--data", str(tmp_path / "x.npz"),
        "--data", str(tmp_path / "y.npz"), "--arch", "vit",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[tool.other]", "has no [[tool.normfold.models]]"),
        ("[tool.normfold]\nmodels = 3", "has no [[tool.normfold.models]]"),
        ("[[tool.normfold.models]]\nfile = 'a.onnx'", "model 1 of [[tool.normfold.models]] does not name its file"),
        ("[[tool.normfold.models]]\nmodel = 'a.onnx'\nsample = 3", "has no sample; it has"),
        ("[[tool.normfold.models]]\nmodel = 'a.onnx'\ninputs = 'x.npz'", "inputs is a list of strings"),
        ("[tool.normfold]\nsampels = 3\n[[tool.normfold.models]]\nmodel = 'a.onnx'", "has no sampels"),
        ("[tool", "is no TOML file"),
    ],
)
def test_a_bad_configuration_is_one_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    path = config(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_config(path)
    assert complaint in str(caught.value)
    result = RUN.invoke(app, ["check", "--config", str(path)])
    assert result.exit_code == 2


def test_the_worst_code_is_the_code() -> None:
    def code(*codes: int) -> int:
        return exit_code([Checked(Entry(Path("a"), ()), each, "", None, 0.0) for each in codes])

    assert (code(), code(0, 0), code(0, 2), code(2, 1), code(1, 4), code(0, -9)) == (0, 0, 2, 1, 4, 4)


def test_models_are_verified_side_by_side(tmp_path: Path) -> None:
    pipeline.fold(foldable(tmp_path), tmp_path / "right.onnx", verify=False)
    shutil.copy(tmp_path / "right.onnx", tmp_path / "wrong.onnx")
    change(tmp_path / "wrong.onnx", lambda model: spoil(model, prefix=""))
    path = config(
        tmp_path,
        '[tool.normfold]\nsamples = 4\n[[tool.normfold.models]]\nmodel = "right.onnx"\n'
        '[[tool.normfold.models]]\nmodel = "wrong.onnx"\n[[tool.normfold.models]]\nmodel = "gone.onnx"\n',
    )
    summary, suites, data, page = (tmp_path / f"s.{suffix}" for suffix in ("md", "xml", "json", "html"))
    words = ["--summary", str(summary), "--junit", str(suites), "--json", str(data), "--html", str(page)]
    result = RUN.invoke(app, ["check", "--config", str(path), *words, "-v", "-j", "2"])
    assert result.exit_code == 1, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == "1 of 3 models passed."
    told = "".join(line.split("  ")[0] for line in lines)
    assert told.index("right.onnx") < told.index("wrong.onnx") < told.index("gone.onnx")
    assert "wrong.onnx: FAILED" in result.stderr and "gone.onnx: no verdict" in result.stderr
    written = summary.read_text(encoding="utf-8")
    assert written.startswith("### normfold: 1 of 3 models passed") and written.count("❌") == 2
    # A suite for each model, with the cases that `verify --junit` writes.
    found = ElementTree.parse(suites).getroot()
    assert [Path(suite.attrib["name"]).name for suite in found] == ["right.onnx", "wrong.onnx", "gone.onnx"]
    assert [suite.attrib["failures"] != "0" for suite in found] == [False, True, False]
    assert [suite.attrib["errors"] for suite in found] == ["0", "0", "1"]
    assert all(suite.find("testcase") is not None for suite in found)
    content = json.loads(data.read_text(encoding="utf-8"))
    assert not content["passed"]
    told_of = [(Path(one["model"]).name, one["exit_code"], one["result"]) for one in content["models"]]
    assert told_of == [("right.onnx", 0, "passed"), ("wrong.onnx", 1, "FAILED"), ("gone.onnx", 2, "no verdict")]
    assert content["models"][0]["verdict"]["passed"]
    assert content["models"][2]["verdict"]["error"].endswith("gone.onnx: no such file.")
    shown = checked(page.read_text(encoding="utf-8"))
    assert shown.tags.count("h2") == 3 and "1 of 3 models passed." in page.read_text(encoding="utf-8")
    # What each process logged, behind its model.
    logged = [line for line in result.stderr.splitlines() if "right.onnx: [" in line]
    assert len(logged) > 1, result.stderr


def test_json_takes_the_place_of_the_table(tmp_path: Path) -> None:
    path = config(tmp_path, '[[tool.normfold.models]]\nmodel = "gone.onnx"\n')
    result = RUN.invoke(app, ["check", "--config", str(path), "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["models"][0]["said"] in result.stderr
    taken = RUN.invoke(app, ["check", "--config", str(path), "--json", "a", "--html", "a"])
    assert taken.exit_code == 2 and "have to name different files" in taken.stderr
