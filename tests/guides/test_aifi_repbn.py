from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.page import run_page


@pytest.mark.slow
def test_repbn_in_a_detector(tmp_path: Path) -> None:
    assert run_page("guides/aifi-repbn", tmp_path) == 5
