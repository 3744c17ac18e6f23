"""-v: what is decided and how long it takes, on stderr; without it nothing, and a library's user has the logger.

-q: nothing but what is wrong.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

import normfold
from normfold.cli.app import app
from tests.support.graphs import as_float32, build, draw

TEXT = """g (float[B,4] x) => (float[B,3] y) {
    h = Tanh(x)
    n = BatchNormalization(h, g, b, m, v)
    y = MatMul(n, w)
}"""


MODEL = as_float32(build(TEXT, **{name: draw(name, 4, positive=name in "gv") for name in "gbmv"}, w=(4, 3)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(MODEL, tmp_path / "x.onnx")
    return tmp_path / "x.onnx"


def stderr_of(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.stderr


def test_stages_and_decisions_are_lines_with_a_time(model: Path) -> None:
    assert stderr_of("inspect", str(model)) == ""
    lines = stderr_of("inspect", str(model), "-v").splitlines()
    assert all(re.match(r"\[ *\d+\.\d{3} s\] \S", line) for line in lines)
    said = "\n".join(lines)
    for stage in ("load", "analyse", "rewrite"):
        assert re.search(rf"{stage}: took \d+\.\d+ s", said), stage
    assert "format onnx" in said and "(BatchNorm, 4 channels): folded into" in said
    more = stderr_of("inspect", str(model), "-vv")
    assert "its shift goes to its reader" in more and "its shift goes to" not in said
    # The next one is as quiet as the first.
    assert stderr_of("inspect", str(model)) == ""


def test_the_users_of_the_library_hear_of_it_where_they_listen(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    normfold.inspect(model)
    assert not caplog.records
    with caplog.at_level(logging.INFO, logger="normfold"):
        normfold.inspect(model)
    assert {record.name for record in caplog.records} >= {"normfold.system.clock", "normfold.pipeline.look"}
    assert all(record.levelno == logging.INFO for record in caplog.records)


def test_names_out_of_the_file_are_text(tmp_path: Path) -> None:
    made = onnx.ModelProto()
    made.CopyFrom(MODEL)
    made.graph.node[1].name = "\x1b[31m\nred"
    onnx.save(made, tmp_path / "x.onnx")
    said = stderr_of("inspect", str(tmp_path / "x.onnx"), "-vv")
    assert "\x1b" not in said and r"\x1b[31m" in said


def test_the_time_of_a_command_counts_its_start(model: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(model)])
    assert re.search(r"^Time: start \d+\.\d s, load", result.stdout, flags=re.MULTILINE)
    assert "start" not in normfold.inspect(model).seconds


def test_quiet_is_silent_where_nothing_is_wrong(model: Path, tmp_path: Path) -> None:
    folded = tmp_path / "y.onnx"
    report = tmp_path / "r.json"
    result = CliRunner().invoke(app, ["fold", str(model), "-o", str(folded), "--report", str(report), "-q"])
    assert (result.exit_code, result.output) == (0, "")
    assert folded.exists() and report.exists()
    result = CliRunner().invoke(app, ["verify", str(folded), "--against", str(model), "--quiet"])
    assert (result.exit_code, result.output) == (0, "")
    table = '[[tool.normfold.models]]\nmodel = "y.onnx"\nagainst = "x.onnx"\n'
    (tmp_path / "pyproject.toml").write_text(table, encoding="utf-8")
    result = CliRunner().invoke(app, ["check", "--config", str(tmp_path / "pyproject.toml"), "-q"])
    assert (result.exit_code, result.output) == (0, "")


def test_quiet_says_what_is_wrong_on_stderr_alone(model: Path, tmp_path: Path) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(MODEL)
    weight = next(tensor for tensor in broken.graph.initializer if tensor.name == "w")
    weight.CopyFrom(onnx.numpy_helper.from_array(2.0 * onnx.numpy_helper.to_array(weight), "w"))
    onnx.save(broken, tmp_path / "y.onnx")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "y.onnx"), "--against", str(model), "-q"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("normfold: ") and "FAILED: the model differs from its source." in result.stderr
    (tmp_path / "z.onnx").write_bytes(MODEL.SerializeToString())
    result = CliRunner().invoke(app, ["fold", str(tmp_path / "z.onnx"), "-o", str(tmp_path / "z.onnx"), "-q", "-v"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--quiet and --verbose exclude each other" in result.stderr
