from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.page import run_page

PAGE = "guides/from-layernorm"


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    assert run_page(PAGE, tmp_path, sections=["Your training", "A model of your own"]) == 2


@pytest.mark.slow
def test_the_whole_page(tmp_path: Path) -> None:
    assert run_page(PAGE, tmp_path) == 5 + (find_spec("timm") is not None)
