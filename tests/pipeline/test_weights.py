"""Weights in files of their own, written in blocks; what is left where that stops half way."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from normfold import errors
from normfold.graph import write
from normfold.pipeline import run as pipeline
from normfold.rewrite import copy as rewrite_copy
from tests.pipeline.test_run import CHANNELS, foldable, names, plain


def test_external_data_moves_with_its_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "_SMALL_BYTES", 16)
    source, output = foldable(tmp_path), tmp_path / "out.onnx"
    (tmp_path / "out.onnx.data").write_text("somebody's")
    report = pipeline.fold(source, output, external_data=True)
    assert report.output is not None
    (data,) = map(Path, report.output.data)
    assert re.fullmatch(r"out\.onnx\.[0-9a-f]{16}\.data", data.name) and data.parent == tmp_path
    assert report.output.bytes == output.stat().st_size + data.stat().st_size
    onnx.checker.check_model(output, full_check=True)
    assert names(tmp_path) == sorted(["foldable.onnx", "out.onnx", "out.onnx.data", data.name])
    assert (tmp_path / "out.onnx.data").read_text() == "somebody's"
    output.unlink()
    data.write_text("somebody's")
    with pytest.raises(errors.OutputError, match=r"\.data exists already"):
        pipeline.fold(source, output, external_data=True)


@pytest.mark.parametrize("model", [plain, foldable])
def test_a_small_model_with_external_data_becomes_one_file(model: Callable[[Path], Path], tmp_path: Path) -> None:
    source, elsewhere = model(tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    onnx.save(onnx.load(source), source, save_as_external_data=True, location="weights.data", size_threshold=0)
    report = pipeline.fold(source, elsewhere / "out.onnx")
    assert report.edges and all(edge.passed for edge in report.edges)
    assert names(elsewhere) == ["out.onnx"]
    onnx.checker.check_model(elsewhere / "out.onnx", full_check=True)


def large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`foldable`, with its weights beside it, and small blocks: what a large model goes through."""
    monkeypatch.setattr(write, "_INSIDE_BYTES", 1)
    monkeypatch.setattr(rewrite_copy, "_KEPT_BYTES", 1)
    monkeypatch.setattr(rewrite_copy, "_BLOCK_ELEMENTS", 5 * CHANNELS)
    source = foldable(folder)
    model = onnx.load(source)
    onnx.save(model, source, save_as_external_data=True, location="weights", size_threshold=16)
    return source


def test_weights_are_written_in_blocks_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    pipeline.fold(foldable(whole), whole / "out.onnx")
    report = pipeline.fold(large(parts, monkeypatch), parts / "out.onnx")
    assert report.output is not None and len(report.output.data) == 1
    assert names(parts) == ["foldable.onnx", "out.onnx", Path(report.output.data[0]).name, "weights"]
    one, other = (onnx.load(folder / "out.onnx").graph for folder in (whole, parts))
    found = [{t.name: numpy_helper.to_array(t) for t in graph.initializer} for graph in (one, other)]
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(array, found[1][name]) for name, array in found[0].items())


def test_external_data_of_the_source_is_not_needed_by_the_output(tmp_path: Path) -> None:
    """Small weights outside the file would be looked for beside the output, wherever that is."""
    source, place = tmp_path / "source", tmp_path / "elsewhere"
    for folder in (source, place):
        folder.mkdir()
    for make in (foldable, plain):
        path = make(source)
        onnx.save(onnx.load(path), path, save_as_external_data=True, location=f"{path.stem}.bin", size_threshold=16)
        pipeline.fold(path, place / path.name)
        onnx.checker.check_model(place / path.name)
    assert names(place) == ["foldable.onnx", "plain.onnx"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
def test_a_write_that_stops_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    source = large(tmp_path, monkeypatch)
    written: list[int] = []

    def stopped(self: Any, file: Any) -> None:
        file.flush()
        # onnx-ir writes beside the name that it was given.
        found = [path for path in tmp_path.rglob("*") if path.is_file() and "out.onnx.data" in path.name]
        written.append(found[0].stat().st_size)
        raise error

    monkeypatch.setattr(rewrite_copy._Computed, "tofile", stopped)
    with pytest.raises(errors.OutputError if isinstance(error, OSError) else type(error)) as caught:
        pipeline.fold(source, tmp_path / "out.onnx", verify=False)
    assert written[0] > 0, "part of it was on disk"
    said = f"{tmp_path / 'out.onnx'} cannot be written: No space left on device"
    assert str(caught.value) == said or not isinstance(error, OSError)
    assert names(tmp_path) == ["foldable.onnx", "weights"]


def test_a_move_that_fails_takes_back_what_was_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = large(tmp_path, monkeypatch)
    real = os.replace

    def fails(start: Path, end: Path) -> None:
        if Path(end) == tmp_path / "out.onnx":
            raise OSError(5, "Input/output error")
        real(start, end)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(errors.OutputError, match="Input/output error"):
        pipeline.fold(source, tmp_path / "out.onnx", verify=False)
    assert names(tmp_path) == ["foldable.onnx", "weights"]
