"""Every file of examples/ runs as its first line says, and the page lists them all."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import FIXTURES, ROOT

FOLDER = ROOT / "examples"
SAID = {
    "fold_a_checkpoint.py": r"the folded torch module differs by \d\.\de-0[5-9]",
    "own_model.py": r"3 norms, not folded: 0\nonnxruntime and torch differ by \d\.\de-0[5-9]",
    "foreign_onnx.py": r"'BatchNormalization': 1.* -> \{'Conv': 1, 'Relu': 1\}",
    "graphsurgeon.py": r"1 norm, not folded: 0\n\['Mul', 'Conv', 'Relu', 'GlobalAveragePool'\]",
    "strict_in_ci.py": r"7 norms folded, \d+ bytes",
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(FOLDER))


def run(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(f"examples/{name}", run_name="__main__")


def test_the_page_lists_every_example() -> None:
    listed = re.findall(r"^\| `([\w.]+)` \|", (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".sh"))
    assert {*SAID, "command_line.sh"} == set(listed)


@pytest.mark.parametrize("name", ["fold_a_checkpoint.py", "own_model.py", "foreign_onnx.py", "graphsurgeon.py"])
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, name, tmp_path)
    said = capsys.readouterr().out
    assert re.search(SAID[name], said), said


def test_the_gate_lets_a_folded_model_pass_and_stops_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, code in ((FIXTURES / "vit_un.pt", 0), (tmp_path / "missing.pt", 2)):
        with pytest.raises(SystemExit) as ended:
            run(monkeypatch, "strict_in_ci.py", source, tmp_path / "out.onnx")
        assert ended.value.code == code
    said = capsys.readouterr()
    assert re.search(SAID["strict_in_ci.py"], said.out), said.out
    assert "no such file" in said.err


@pytest.mark.slow
def test_the_command_line_runs(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "examples/command_line.sh", tmp_path],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["verify.xml", "vit.json", "vit.onnx"]
