"""stdout and stderr that are closed, full, or a terminal; and signals: each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.paths import ROOT
from tests.pipeline.test_run import foldable, names
from tests.system.test_text import assert_inert

POSIX = pytest.mark.skipif(os.name == "nt", reason="devices and descriptors of POSIX")


def slow(*values: object) -> Any:
    """A case that needs a process of its own: seconds of importing."""
    return pytest.param(*values, marks=pytest.mark.slow)


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    arguments = [sys.executable, "-m", "normfold", *command]
    return subprocess.run(arguments, env=environment, text=True, check=False, timeout=120, **options)


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command line with redirections; `normfold` is this one. Its pipe fails where any part of it does."""
    line = f"set -o pipefail; {line.replace('normfold', f'{sys.executable} -m normfold')}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@POSIX
@pytest.mark.parametrize(
    ("redirected", "code", "says"),
    [
        ("> /dev/full", 74, "stdout cannot be written (No space left on device)"),
        slow("| true", 141, ""),
        slow("<&- >&- 2>&-", 0, ""),
        slow(">&-", 0, ""),
        slow("2>&-", 0, ""),
        slow("2> /dev/full", 0, ""),
        slow("> /dev/full 2> /dev/full", 74, ""),
    ],
)
def test_a_fold_that_cannot_print_has_folded(tmp_path: Path, redirected: str, code: int, says: str) -> None:
    foldable(tmp_path)
    # `true` has gone by the time there is something to print.
    done = shell(f"normfold fold foldable.onnx -o out.onnx --report r.json --no-verify {redirected}", tmp_path)
    assert done.returncode == code, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert names(tmp_path) == ["foldable.onnx", "out.onnx", "r.json"]
    onnx.checker.check_model(tmp_path / "out.onnx")
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == 1


@POSIX
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("models > /dev/full", 74),
        ("models | true", 141),
        ("models <&- >&- 2>&-", 0),
        ("--help > /dev/full", 74),
        ("--version > /dev/full", 74),
        ("fold --nonsense 2> /dev/full", 2),
        slow("inspect foldable.onnx --json > /dev/full", 74),
        slow("inspect foldable.onnx | true", 141),
        slow("inspect gone.onnx 2> /dev/full", 2),
        slow("inspect gone.onnx 2>&-", 2),
        slow("inspect gone.onnx > /dev/full", 2),
        slow("fold foldable.onnx -o /dev/full/x.onnx", 2),
        slow("verify /dev/null --against foldable.onnx --json > /dev/full", 2),
        # Found while it is verified, not before.
        slow("verify foldable.onnx --against foldable.onnx --data foldable.onnx --json > /dev/full", 2),
    ],
)
def test_what_cannot_be_printed_changes_no_other_code(tmp_path: Path, command: str, code: int) -> None:
    foldable(tmp_path)
    done = shell(f"normfold {command}", tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert done.stderr.count("\n") <= 1


@POSIX
@pytest.mark.slow
def test_a_verdict_that_cannot_be_printed_stands(tmp_path: Path) -> None:
    source = foldable(tmp_path)
    model = onnx.load(source)
    weight = next(t for t in model.graph.initializer if t.name == "W2")
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(model, tmp_path / "wrong.onnx")
    done = shell("normfold verify wrong.onnx --against foldable.onnx --samples 2 --json v.json > /dev/full", tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "v.json").read_text())["passed"] is False


@POSIX
@pytest.mark.slow
def test_a_hangup_ends_the_run_and_nohup_keeps_it(tmp_path: Path) -> None:
    source = foldable(tmp_path)
    code = (
        "import os, signal, sys\nfrom normfold.cli import app as cli\nfrom normfold.pipeline import fold_graph\n"
        "prepare = fold_graph.prepare\n"
        "def hung_up(model):\n    os.kill(os.getpid(), signal.SIGHUP)\n    return prepare(model)\n"
        "fold_graph.prepare = hung_up\n"
        f"sys.argv = ['normfold', 'fold', {str(source)!r}, '-o', {str(tmp_path / 'out.onnx')!r}]\ncli.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for ignored, expected in ((False, 128 + signal.SIGHUP), (True, 0)):
        prefix = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" if ignored else ""
        done = subprocess.run(
            [sys.executable, "-c", prefix + code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == expected, done.stderr
        assert "Traceback" not in done.stderr
        assert names(tmp_path) == (["foldable.onnx", "out.onnx"] if ignored else ["foldable.onnx"])


@pytest.mark.slow
def test_warnings_and_logs_of_libraries_are_text_too(tmp_path: Path) -> None:
    code = (
        "import logging, sys, warnings\nfrom normfold.cli import app as cli\n"
        "from normfold.pipeline import look\nfrom normfold import errors\n"
        "def inspect(*args, **options):\n"
        "    warnings.warn('\\x1b[31mred\\n::error::x')\n    logging.getLogger('x').warning('\\x9b31m\\n##[error]y')\n"
        "    print('\\u202e', file=sys.stderr)\n    raise errors.NormfoldError('\\x1b[0m')\n"
        f"look.look = inspect\nsys.argv = ['normfold', 'inspect', {__file__!r}]\ncli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    assert done.returncode == 2
    said = done.stderr.decode("utf-8")
    assert_inert(said)
    assert r"\x1b[31mred" in said and r"\x9b31m" in said and r"\u202e" in said


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_terminal_is_shown_text_too(command: str) -> None:
    """While a spinner or a bar is drawn, whose escape sequences are meant."""
    code = (
        "import sys\nfrom normfold import errors\nfrom normfold.cli import app as cli\n"
        "from normfold.pipeline import look\nfrom normfold.verify import run as judgement\n"
        "def work(*args, progress=None, **options):\n    progress = progress or args[3]\n"
        f"    progress('\\x1b]0;title\\x07[/b][bold]', *{(1, 2) if command == 'verify' else ()})\n"
        "    print('\\x1b]52;c;x\\x07\\n\\x9b31m', file=sys.stderr)\n    raise errors.GraphError('\\x1b[8m')\n"
        "look.look = judgement.judge = work\n"
        f"sys.argv = ['normfold', {command!r}, {__file__!r}]\ncli.main()\n"
    )
    ours, theirs = os.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 1000):
                shown += part
    os.close(ours)
    assert process.returncode == 2
    text = shown.decode("utf-8")
    assert "\x1b[?25l" in text, "nothing was drawn"
    # What rich itself writes: cursor, lines and colours.
    assert_inert(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", ""))
    assert "\x1b[8m" not in text
    for part in (r"\x1b]0;title\x07[/b][bold]", r"\x1b]52;c;x\x07", r"\x9b31m", r"normfold: \x1b[8m"):
        assert part in text


@pytest.mark.slow
def test_a_terminal_without_unicode_gets_escapes(tmp_path: Path) -> None:
    (tmp_path / "é.onnx").write_bytes(foldable(tmp_path).read_bytes())
    done = run("inspect", str(tmp_path / "é.onnx"), env={"PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert done.returncode == 0, done.stderr
    done = run("inspect", str(tmp_path / "è.onnx"), env={"PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert done.returncode == 2 and r"\xe8.onnx" in done.stderr
