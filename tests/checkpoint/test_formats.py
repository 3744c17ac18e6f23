"""The table of formats: who is asked for which file, and what the records say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from normfold.checkpoint.formats import FORMATS, format_of, sha256_of
from normfold.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "expected", "whole", "code"),
    [
        ("a.pt", "torch", False, True),
        ("a.PTH", "torch", False, True),
        ("a.pth.tar", "torch", False, True),
        ("pytorch_model.bin", "torch", False, True),
        ("last.ckpt", "torch", False, True),
        ("a.safetensors", "safetensors", False, False),
        ("a.pt2", "pt2", True, True),
        ("a.onnx", "onnx", True, False),
    ],
)
def test_a_file_is_of_the_format_of_its_suffix(
    name: str, expected: str, whole: bool, code: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"something")
    found = format_of(tmp_path / name)
    assert (found.name, found.is_whole, found.holds_code) == (expected, whole, code)
    assert sha256_of(tmp_path / name) == hashlib.sha256(b"something").hexdigest()


def test_a_folder_has_the_format_of_its_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="directory without"):
        format_of(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"something")
    found = format_of(tmp_path)
    assert found.weights is not None and found.weights(tmp_path).name == "torch"
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is empty"):
        format_of(tmp_path)


def test_no_two_formats_are_called_alike() -> None:
    suffixes = [suffix for each in FORMATS for suffix in each.suffixes]
    assert len(set(suffixes)) == len(suffixes) == 8
    assert len({each.name for each in FORMATS}) == len(FORMATS)
