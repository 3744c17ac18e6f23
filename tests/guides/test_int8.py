"""docs/guides/int8.md does what it says, and what it is for: without `--equalize` its own check fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import normfold
from tests.paths import FIXTURES
from tests.support.page import run_page


@pytest.mark.slow
def test_int8_is_as_good_as_float32_again(tmp_path: Path) -> None:
    assert run_page("guides/int8", tmp_path, needs=("fixtures",)) == 2
    normfold.fold(FIXTURES / "convnet_bn.pt", tmp_path / "folded.onnx", verify=False)
    done = subprocess.run(
        [sys.executable, "quantise.py", "folded.onnx"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "more than half a point" in done.stderr
