"""docs/guides/graphsurgeon.md does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.page import run_page


@pytest.mark.slow
def test_a_graph_is_folded_between_two_edits(tmp_path: Path) -> None:
    assert run_page("guides/graphsurgeon", tmp_path) == 2
