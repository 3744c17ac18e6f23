"""docs/guides/float16.md does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.page import run_page


@pytest.mark.slow
def test_float16_that_does_not_overflow(tmp_path: Path) -> None:
    assert run_page("guides/float16", tmp_path) == 3
