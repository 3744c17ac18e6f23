from __future__ import annotations

from pathlib import Path

from tests.support.page import run_page


def test_a_runtime_of_ones_own(tmp_path: Path) -> None:
    assert run_page("extending/runtime", tmp_path) == 2
