"""One onnxruntime, and a quiet one."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
from typer.testing import CliRunner

from normfold.cli.app import app
from normfold.errors import UsageError
from normfold.system import ort
from tests.pipeline.test_run import foldable, names


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    ort.onnxruntime.cache_clear()
    yield
    ort.onnxruntime.cache_clear()


def installed(folder: Path, *builds: str) -> None:
    """Packages of these names, as far as pip's records go."""
    for name in builds:
        record = folder / f"{name.replace('-', '_')}-1.32.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.32.0\n")


def test_two_builds_in_one_folder_are_refused_with_the_commands_that_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    installed(tmp_path / "site", "onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    with pytest.raises(
        UsageError, match="pip uninstall -y onnxruntime onnxruntime-gpu`, then `pip install onnxruntime-gpu"
    ):
        ort.onnxruntime()
    source = foldable(tmp_path)
    for words in (
        ["fold", str(source), "-o", str(tmp_path / "out.onnx")],
        ["verify", str(source), "--against", str(source)],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2 and "pip uninstall" in result.stderr
    assert names(tmp_path) == ["foldable.onnx", "site"]
    # Nothing is compared here, so either will do.
    assert CliRunner().invoke(app, ["inspect", str(source)]).exit_code == 0


@pytest.mark.parametrize("build", ["onnxruntime", "onnxruntime-gpu"])
def test_one_build_is_taken_whichever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str) -> None:
    installed(tmp_path, build)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: ort_distribution(tmp_path, name))
    assert ort.onnxruntime() is onnxruntime


def ort_distribution(folder: Path, name: str) -> object:
    for found in importlib.metadata.distributions(path=[str(folder)]):
        if found.metadata["Name"] == name:
            return found
    raise importlib.metadata.PackageNotFoundError(name)


def test_telemetry_is_off_before_anybody_opens_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: told.append("off"))
    ort.onnxruntime()
    ort.onnxruntime()
    assert told == ["off"]


@pytest.mark.parametrize(
    "code",
    [
        "from normfold.system.ort import onnxruntime; onnxruntime()",
        "import sys; from normfold.cli.app import main; sys.argv = ['normfold', '--version']\ntry: main()\n"
        "finally: import onnxruntime",
    ],
    ids=["in Python", "in a command"],
)
def test_nothing_is_kept_or_sent_by_onnxruntime(tmp_path: Path, code: str) -> None:
    """What its telemetry is made of: an identifier in the cache, a session in the temporary directory."""
    places = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    own = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", code], env={**own, **places}, check=True, capture_output=True)
    assert not list(tmp_path.rglob("*"))
