"""Where files may be written: never in the place of what is no file."""

from __future__ import annotations

import os
import socket
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from normfold.cli.app import app
from normfold.errors import OutputError
from normfold.system.files import check_place, move, scratch, write_text

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes, sockets and devices of POSIX")


def moved(place: Path) -> None:
    draft = place.with_name("draft")
    draft.write_text("new")
    move([(draft, place)])


WRITERS: tuple[Callable[[Path], None], ...] = (check_place, moved, lambda place: write_text(place, "new"))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A pipe, a socket, and links to a device and to what this process has open: as root they could all be replaced."""
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    found = {name: tmp_path / name for name in ("pipe", "socket", "device", "open")}
    os.mkfifo(found["pipe"])
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket")
    found["device"].symlink_to("/dev/null")
    found["open"].symlink_to("/proc/self/fd/0")
    return found


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "open"])
@pytest.mark.parametrize("write", WRITERS, ids=["check", "move", "text"])
def test_what_is_no_file_is_not_replaced(places: dict[str, Path], kind: str, write: Callable[[Path], None]) -> None:
    place = places[kind]
    before = os.lstat(place)
    with pytest.raises(OutputError, match="name a file to write"):
        write(place)
    after = os.lstat(place)
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)


@pytest.mark.parametrize("write", WRITERS[1:], ids=["move", "text"])
def test_files_and_links_to_them_are(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to("old")
    for name in ("old", "link", "none"):
        write(tmp_path / name)
        assert (tmp_path / name).read_text() == "new"


@pytest.mark.parametrize("option", ["-o", "--report", "--html", "--emit-torch"])
def test_a_fold_onto_a_pipe_is_refused_at_once(places: dict[str, Path], option: str) -> None:
    words = ["-o", "out.onnx"] if option != "-o" else []
    Path("a.onnx").write_bytes(b"no model")
    result = CliRunner().invoke(app, ["fold", "a.onnx", *words, option, "pipe", "--force"])
    assert result.exit_code == 2
    assert stat.S_ISFIFO(os.stat(places["pipe"]).st_mode)
    assert "a named pipe" in result.output + str(result.exception)


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    """Nothing that opens graphs takes one; it was found out when the result was verified, in the words of a library."""
    monkeypatch.chdir(tmp_path)
    Path("a.onnx").write_bytes(b"no model")
    words = [] if option == "-o" else ["-o", "out.onnx"]
    result = CliRunner().invoke(app, ["fold", "a.onnx", *words, option, os.fsdecode(b"\xff.onnx")])
    assert result.exit_code == 2 and "is not UTF-8" in result.output
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(OutputError, match="is not UTF-8"):
        check_place(tmp_path / "\u00e9.onnx")
    check_place(tmp_path / "e.onnx")


def test_a_temporary_directory_whose_name_is_not_utf8_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(OutputError, match="set TMPDIR to another"), scratch():
        pass
    assert not list(folder.iterdir())
