"""The record of a checkpoint format: how it is recognised, how it is read, and what reading it can do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from normfold.checkpoint.contents import Contents
from normfold.errors import CheckpointError


class Read(Protocol):
    """Reads a checkpoint without running anything in it.

    trust: the user trusts the file, and reading it may run code in it. ema: the averaged weights are wanted.
    Raises CheckpointError for what is no such file.
    """

    def __call__(self, path: Path, *, trust: bool, ema: bool) -> Contents: ...


def check_file(path: Path) -> None:
    """Raise CheckpointError for a file that cannot be read, is empty, or only stands for one."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror or e}.") from e
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes); was the download or the training interrupted?")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`.")


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Format:
    """One checkpoint format.

    name: in reports. suffixes: of its files, in lower case; is_folder: it is a folder, of whatever name.
    read: see `Read`. check: raises CheckpointError before anything is read.
    holds_code: reading it can run code in it, where --trust-checkpoint allows that; without it, what cannot be read
    safely is refused. is_graph, is_program: it brings its own architecture, an ONNX graph or a torch.export program.
    digest: what a manifest records of it. weights: of a folder, the format of its weights, which reports name.
    """

    name: str
    read: Read
    suffixes: tuple[str, ...] = ()
    is_folder: bool = False
    check: Callable[[Path], object] = check_file
    holds_code: bool = False
    is_graph: bool = False
    is_program: bool = False
    digest: Callable[[Path], str] = sha256_of_file
    weights: Callable[[Path], Format] | None = None

    def fits(self, path: Path) -> bool:
        """Whether `path` is called as such a file, or is such a folder."""
        return path.is_dir() if self.is_folder else path.name.lower().endswith(self.suffixes)

    @property
    def is_whole(self) -> bool:
        """Whether it holds its own architecture: nothing has to be built for its weights."""
        return self.is_graph or self.is_program
