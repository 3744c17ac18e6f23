"""A sample of every experiment, and docs/experiments.md, which shows what the records beside it hold."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from experiments.common import main, table
from tests.paths import DOCS, ROOT

NAMES = ["vit", "convert", "outliers", "deepnorm200", "char_lm", "translation"]
PAGE = (DOCS / "experiments.md").read_text(encoding="utf-8")
RECORDS = sorted((DOCS / "experiments").glob("*.json"))


def test_every_experiment_is_here_and_on_the_page() -> None:
    scripts = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"common", "plot"}
    assert scripts == set(NAMES)
    assert {path.stem for path in RECORDS} <= scripts
    assert all(f"experiments.{name}" in PAGE for name in NAMES)


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_the_page_shows_the_record(record: Path) -> None:
    found = json.loads(record.read_text(encoding="utf-8"))
    assert table(found) in PAGE
    assert f"{found['command']}`" in PAGE
    assert f"experiments/{record.stem}.svg" in PAGE and record.with_suffix(".svg").is_file()
    for figures in found["results"].values():
        for figure in figures.values():
            assert len(figure["values"]) == len(found["cpu_seconds"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_runs_and_folds_to_the_same_predictions(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "translation":
        pytest.importorskip("django")
        pytest.importorskip("polib")
    module = importlib.import_module(f"experiments.{name}")
    main(name, module.run, ["--quick", "-o", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert table(found) in capsys.readouterr().out
    assert found["command"] == f"python -m experiments.{name} --quick" and len(found["cpu_seconds"]) == 1
    trained = [figures for figures in found["results"].values() if "apart" in figures]
    assert len(trained) >= 2
    assert any(figures["folded"]["mean"] for figures in trained)
    assert all(0 <= figures["accuracy"]["mean"] <= 100 for figures in trained)
