"""ONNX files that nobody here wrote, folded and judged by the plain commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from normfold.cli.app import app
from tests.external.onnx_files import FILES, OnnxFile


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_plain_commands_fold_and_judge(file: OnnxFile, tmp_path: Path) -> None:
    output, report, figures = (tmp_path / name for name in ("out.onnx", "fold.json", "verify.json"))
    run = CliRunner().invoke(app, ["fold", str(file.path), "-o", str(output), "--report", str(report)])
    if file.no_verdict:
        assert run.exit_code == 2 and re.search(file.no_verdict, run.output) and not output.exists()
        return
    assert run.exit_code == 0, run.output
    told = json.loads(report.read_text(encoding="utf-8"))
    statuses = [site["status"] for site in told["sites"]]
    assert statuses.count("folded") + statuses.count("partial") == file.norms
    assert statuses.count("kept") == file.kept
    run = CliRunner().invoke(app, ["verify", str(output), "--against", str(file.path), "--json", str(figures)])
    assert run.exit_code == 0, run.output
    assert json.loads(figures.read_text(encoding="utf-8"))["passed"]
