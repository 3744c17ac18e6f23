"""The table of start-up times: what is counted, and what is refused to be counted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import start_up
from benchmarks.fill_in import filled_in
from tests.paths import DOCS


def test_what_a_process_takes_of_the_processors_is_counted(tmp_path: Path) -> None:
    idle = start_up.seconds([sys.executable, "-c", "import time; time.sleep(0.3)"], tmp_path)
    busy = "import time\nwhile time.process_time() < 0.4: pass"
    assert idle < 0.3 < 0.4 <= start_up.seconds([sys.executable, "-c", busy], tmp_path)


@pytest.mark.parametrize(("code", "word"), [(1, start_up.FILE), (0, start_up.MISSING)])
def test_a_command_that_does_not_end_as_it_should_is_no_figure(tmp_path: Path, code: int, word: str) -> None:
    with pytest.raises(SystemExit, match=f"exit code {code}"):
        start_up.seconds([sys.executable, "-c", f"raise SystemExit({code})", word], tmp_path)


def test_the_page_has_a_row_for_every_tool() -> None:
    rows = [line for line in filled_in(DOCS / "benchmarks.md", start_up.PART).splitlines() if line.endswith("|")]
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == list(start_up.COMMANDS)
    assert all(row.count("|") == len(start_up.TASKS) + 2 for row in rows)
