from __future__ import annotations

from pathlib import Path

from tests.support.page import run_page


def test_an_operator_of_ones_own(tmp_path: Path) -> None:
    assert run_page("extending/operator", tmp_path) == 1
