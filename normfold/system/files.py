"""Atomic writes: a file appears whole or not at all, together with the files that it needs.

A file is written beside its place, under its own name, in a folder that only this run knows, and renamed. Of several
files the ONNX graph is renamed last: its data lies under a name made of its content, which no other graph uses, so that
this one rename decides whether the old model is there or the new one. The data of the old one is removed only then.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from normfold.errors import OutputError
from normfold.system.plain import MISSING, irregular, is_utf8

_FULL = {errno.ENOSPC, errno.EDQUOT}


def remove(*paths: Path) -> None:
    """Remove files, of which some may not be there, or not even possible."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


def check_place(place: Path) -> None:
    """Raise OutputError where nothing can be written: no folder, no permission, a directory of that name."""
    folder = place.parent
    with writing(place):
        is_folder, has_folder = place.is_dir(), folder.is_dir()
        # A name that is too long is an error only where it is looked for.
        place.exists()
    _check_kind(place)
    if not is_utf8(place):
        raise OutputError(f"{place}: its name is not UTF-8, and neither onnxruntime nor ONNX takes it; choose another")
    if is_folder:
        raise OutputError(f"{place} is a directory; name the file to write in it")
    if not has_folder:
        raise OutputError(f"{place}: there is no directory {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{place}: the directory {folder} is not writable")


def _check_kind(place: Path) -> None:
    """Raise OutputError for a pipe, a socket or a device: a rename would put a file where it was, /dev/null for one."""
    with writing(place):
        why = irregular(place) if place.exists() else MISSING
        open_already = place.is_symlink() and os.readlink(place).startswith("/proc/")
    if why not in (None, MISSING):
        raise OutputError(f"{place}: {why}; name a file to write")
    if open_already:
        raise OutputError(f"{place} is what a process has open, and no place for a file; name a file to write")


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn an OSError inside into an OutputError that names `place`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{place} cannot be written: {reason_of(error)}") from error


@contextmanager
def beside(place: Path) -> Iterator[Path]:
    """Where to write a file that is to be moved to `place`: on the same disk, under its own name."""
    with writing(place):
        folder = tempfile.TemporaryDirectory(prefix=".normfold-", dir=place.parent)
    with folder:
        yield Path(folder.name) / place.name


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, removed afterwards. Raises OutputError where there is no room for one, or no more in it."""
    try:
        # A full disk has no usable temporary directory.
        folder = tempfile.TemporaryDirectory(prefix="normfold-")
    except OSError as error:
        raise OutputError(
            f"no temporary directory can be made ({reason_of(error)}); set TMPDIR to a directory with room in it"
        ) from error
    with folder:
        if not is_utf8(Path(folder.name)):
            raise OutputError(f"{folder.name}: the name of this directory is not UTF-8; set TMPDIR to another")
        try:
            yield Path(folder.name)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise OutputError(
                f"the temporary directory {tempfile.gettempdir()} is full; make room in it, or set TMPDIR to another"
            ) from error


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A draft of `place`, on the same disk, that takes its place when this ends well. Raises OutputError."""
    _check_kind(place)
    with beside(place) as draft, writing(place):
        yield draft
        os.replace(draft, place)


def write_text(place: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all. Raises OutputError."""
    with replacing(place) as draft:
        draft.write_text(text, encoding="utf-8")


def move(files: Sequence[tuple[Path, Path]], *, replaced: Sequence[Path] = ()) -> None:
    """Rename drafts to their places, in this order, then remove what they replaced.

    A rename that fails takes back those before it. Raises OutputError.
    """
    old = {place: draft.with_name(f"{draft.name}.old") for draft, place in files}
    for place, kept in old.items():
        _check_kind(place)
        with writing(place):
            _keep(place, kept)
    try:
        for draft, place in files:
            with writing(place):
                os.replace(draft, place)
    except BaseException:
        for place, kept in reversed(old.items()):
            if kept.exists():
                os.replace(kept, place)
            else:
                remove(place)
        raise
    remove(*replaced)


def _keep(place: Path, kept: Path) -> None:
    """A second name for the file at `place`, if there is one."""
    with suppress(FileNotFoundError):
        try:
            os.link(place, kept, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except (OSError, NotImplementedError):  # not on this file system
            shutil.copy2(place, kept)


def reason_of(error: OSError) -> str:
    """Why the system refused, in its words."""
    return error.strerror or str(error)
