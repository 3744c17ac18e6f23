"""docs/security.md: each promise names a test that is there, and its choke points are the only ones."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.paths import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
# Where strings become text for people.
TEXT = "normfold/report/render.py"
# What makes the JSON that is printed or written.
WRITERS = ("bench/result.py", "cli/app.py", "report/report.py", "verify/verdict.py")


def test_every_promise_names_a_test_that_is_there() -> None:
    rows = re.findall(r"^\| ([^|]+) \| `(tests/[\w/]+\.py)::(test_\w+)` \|$", PAGE, re.MULTILINE)
    assert len(rows) == PAGE.count("::test_") > 25
    for promise, path, name in rows:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, promise


def calls(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_text_for_people_is_made_in_one_place() -> None:
    """rich's Text from a string, and rows of a table, only where `printable` is called; JSON through `json_text`."""
    checked = 0
    for path in sorted((ROOT / "normfold").rglob("*.py")):
        name, found = path.relative_to(ROOT).as_posix(), calls(path)
        if name != TEXT:
            assert not {call for call in found if call.endswith((".add_row", ".add_column"))}, name
            texts = re.findall(r"\bText\(([^)]*)\)?", path.read_text(encoding="utf-8"))
            assert all(argument in ("", "printable(sentence") for argument in texts), (name, texts)
        checked += 1
    assert checked > 60
    assert all("json_text" in calls(ROOT / "normfold" / name) for name in WRITERS)


def test_no_process_is_started_from_the_current_directory() -> None:
    """`python -m` looks there first."""
    for path in sorted((ROOT / "normfold").rglob("*.py")):
        assert not re.search(r'sys\.executable, "-[mc]"', path.read_text(encoding="utf-8")), path
