"""The checkpoint formats: one file each, one row each in FORMATS. How to add one: docs/extending/format.md.

The table imports no torch: a format does, when it reads a file.
"""

from __future__ import annotations

from pathlib import Path

from normfold.checkpoint.formats.base import Format, sha256_of_file
from normfold.checkpoint.formats.hub import HUB
from normfold.checkpoint.formats.onnx import ONNX
from normfold.checkpoint.formats.pt2 import PT2
from normfold.checkpoint.formats.safetensors import SAFETENSORS
from normfold.checkpoint.formats.torch import TORCH
from normfold.errors import CheckpointError
from normfold.system.plain import check_source

# The first that fits is the one.
FORMATS: tuple[Format, ...] = (HUB, TORCH, SAFETENSORS, PT2, ONNX)


def format_of(path: Path) -> Format:
    """The format of a file that exists and is not empty, or of a folder. Raises CheckpointError.

    Pipes, devices and sockets are not opened.
    """
    check_source(path)
    found = next((format for format in FORMATS if format.fits(path)), None)
    if found is None:
        suffixes = [suffix for format in FORMATS for suffix in format.suffixes]
        raise CheckpointError(f"{path}: unknown suffix; a checkpoint ends in {', '.join(suffixes)}.")
    found.check(path)
    return found


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, whatever it is; of a folder, what its format says."""
    folder = next((format for format in FORMATS if format.is_folder and format.fits(path)), None)
    return sha256_of_file(path) if folder is None else folder.digest(path)
