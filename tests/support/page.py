"""Runs a page of docs: what it says is done, in order, to a copy of the package in a temporary folder.

A block of code is a whole file where its first line is a comment with the file's name, a change where it is a diff, and
commands where it is a console: each has to end well, and what the page shows of its output has to be in it. A block
behind `<!-- needs: PACKAGE -->` counts only where that package is installed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path

from tests.paths import DOCS, ROOT

_BLOCK = re.compile(r"(?:^<!-- needs: (\w+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^## (.*)$", re.MULTILINE)
_NAME = re.compile(r"# (\S+\.py)\n")
_SECONDS = 240


def run_page(name: str, folder: Path, *, sections: Collection[str] = (), needs: Collection[str] = ()) -> int:
    """Do what docs/NAME.md says in a copy of the package in `folder`; how many commands it ran.

    sections: do nothing but these, by their headings. needs: other folders that are copied beside the package.
    """
    for part in ("normfold", *needs):
        shutil.copytree(ROOT / part, folder / part)
    shutil.copy2(ROOT / "pyproject.toml", folder)
    text, commands = (DOCS / f"{name}.md").read_text(encoding="utf-8"), 0
    if sections:
        _, *parts = _SECTION.split(text)
        by_heading = dict(zip(parts[::2], parts[1::2], strict=True))
        text = "\n".join(by_heading[heading] for heading in sections)
    for needed, language, block in _BLOCK.findall(text):
        if needed and find_spec(needed) is None:
            continue
        if language == "python":
            named = _NAME.match(block)
            assert named is not None, f"a file without its name: {block[:60]}"
            place = folder / named[1]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(block[named.end() :].lstrip("\n"), encoding="utf-8")
        elif language == "diff":
            _change(block, folder)
        elif language == "console":
            commands += sum(_run(command, shown, folder) for command, shown in _commands(block))
    return commands


def _change(diff: str, folder: Path) -> None:
    """Apply a diff whose parts are found by what they say, not by line numbers."""
    before, after, *lines = diff.splitlines(keepends=True)
    assert before.startswith("--- ") and after.startswith("+++ ") and before[4:] == after[4:], diff
    place = folder / before[4:].strip()
    text = place.read_text(encoding="utf-8")
    for part in "".join(lines).split("@@\n"):
        rows = part.splitlines(keepends=True)
        old, new = ("".join(row[1:] for row in rows if row[0] in marks) for marks in (" -", " +"))
        assert not rows or text.count(old) == 1, f"{place.name} has {text.count(old)} places like\n{old}"
        text = text.replace(old, new)
    place.write_text(text, encoding="utf-8")


def _commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a console, each with the lines that it prints."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield command, [" ".join(line.split()) for line in shown if line.strip()]


def _run(command: str, shown: list[str], folder: Path) -> bool:
    """Run `pytest ...`, `normfold ...` or `python ...` in `folder`."""
    program, *arguments = shlex.split(command)
    module = [] if program == "python" else ["-m", program]
    done = subprocess.run(
        [sys.executable, *module, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"$ {command}\n{said}"
    # Where lines are broken does not count.
    assert all(line in " ".join(said.split()) for line in shown), f"$ {command}\n{said}"
    return True
