"""stdout and stderr as they really are: closed, full, at the end of a pipe that nobody reads, or a CI system's log.

What cannot be written to stdout ends the run by the convention of the shell; the files of the run are in their places
by then. What cannot be written to stderr is dropped: it is no reason to fail.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from normfold.errors import OutputError
from normfold.system.files import check_place, write_text
from normfold.system.text import printable

# As a shell reports a process that SIGPIPE ended; and EX_IOERR of sysexits.h.
PIPE_CLOSED = 141
STDOUT_FULL = 74


class StdoutError(Exception):
    """stdout cannot be written. Not an OSError, so that no handler takes it for the error of a file."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or "it is closed")
        self.exit_code = PIPE_CLOSED if error.errno == errno.EPIPE else STDOUT_FULL


class _Stream:
    """A text stream whose failures go to `failed`; what is not written here is the stream's own."""

    def __init__(self, beneath: TextIO, failed: Callable[[OSError], None], shown: Callable[[str], str]) -> None:
        self.beneath, self._failed, self._shown = beneath, failed, shown

    def write(self, text: str) -> int:
        try:
            self.beneath.write(self._shown(text))
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            self.beneath.flush()
        except OSError as error:
            self._failed(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)


def _refuse(error: OSError) -> None:
    raise StdoutError(error) from error


def _drop(error: OSError) -> None:
    pass


def _as_it_is(text: str) -> str:
    return text


def _lines(text: str) -> str:
    """Warnings and logs of libraries quote names from files; their newlines are their own."""
    return "\n".join(printable(line) for line in text.split("\n"))


@contextmanager
def guarded() -> Iterator[None]:
    """Run with streams that can be written to, in one way or another."""
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    streams = [open(number, "w", closefd=False) if s is None else s for number, s in enumerate(before, 1)]  # noqa: SIM115
    for stream in streams:
        # A terminal of another encoding gets escapes for what it lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = _Stream(streams[0], _refuse, _as_it_is)
    sys.stderr = _Stream(streams[1], _drop, _lines)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except StdoutError:
            _to_nowhere(streams[0])
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def for_rich() -> TextIO:
    """stderr for bars and spinners, whose escape sequences are meant."""
    stream: Any = sys.stderr
    return _Stream(stream.beneath, _drop, _as_it_is) if isinstance(stream, _Stream) else stream  # type: ignore[return-value]


def _fill_descriptors() -> None:
    """Open what the caller closed: the next file would get its number, and whatever libraries print with it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _to_nowhere(stream: TextIO) -> None:
    """Let go of what is still to be written, which Python would try again, and complain about, at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


# What --json takes for the place where a result for people would be.
STDOUT = Path("-")


def file_of(place: Path | None) -> Path | None:
    """The file that --json names; None where it is stdout."""
    return None if place == STDOUT else place


def check_json_place(place: Path | None) -> None:
    """Raise OutputError now for a JSON file that could not be written, or that exists."""
    file = file_of(place)
    if file is not None:
        check_place(file)
        if file.exists():
            raise OutputError(f"{file} exists already; choose another name")


def tell(place: Path | None, dumps: Callable[[], str], show: Callable[[], None], *, quiet: bool = False) -> None:
    """A result on stdout: as JSON where that is its place, otherwise for people. quiet: not for people."""
    if place == STDOUT:
        print(dumps(), end="")
    elif not quiet:
        show()


def keep_and_tell(
    place: Path | None, dumps: Callable[[], str], show: Callable[[], None], *, quiet: bool = False
) -> None:
    """`tell`, and the JSON in its file where that is its place."""
    file = file_of(place)
    if file is not None:
        write_text(file, dumps())
    tell(place, dumps, show, quiet=quiet)
