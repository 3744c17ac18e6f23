"""A folded model beside its source, made once and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from normfold.pipeline import run as pipeline
from normfold.verify import localise
from tests.verify.command import graph


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
