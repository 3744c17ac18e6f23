"""What is refused at once: in a process that has imported nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

# Says in its last line what it would have cost.
SCRIPT = """
import sys
from normfold.cli.app import app
try:
    app()
finally:
    heavy = [name for name in ("torch", "onnx", "onnxruntime", "onnx_ir", "numpy") if name in sys.modules]
    print("heavy:", *heavy, file=sys.stderr)
"""


def said(folder: Path, *words: str) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["fold", "gone.pt", "-o", "out.onnx"], "gone.pt: no such file"),
        (["fold", "pipe.pt", "-o", "out.onnx"], "pipe.pt: it is a named pipe, not a file"),
        (["fold", "a.pt", "-o", "taken.onnx"], "taken.onnx exists already"),
        (["fold", "a.pt", "-o", "nowhere/out.onnx"], "there is no directory nowhere"),
        (["fold", "a.pt", "-o", "out.onnx", "--report", "taken.onnx"], "taken.onnx exists already"),
        (["fold", "a.pt", "-o", "out.onnx", "--model", "nosuchmodule:build"], "there is no module nosuchmodule"),
        (["fold", "a.pt", "-o", "out.onnx", "--model", "nocolon"], "expected pkg.module:factory"),
        (["fold", "a.pt", "-o", "out.onnx", "--target", "npu"], "--target npu: choose from"),
        (["fold", "a.pt", "-o", "out.onnx", "--dtype", "bfloat16"], "--dtype bfloat16"),
        (["fold", "a.pt", "-o", "out.onnx", "--dtype", "float16", "--emit-torch", "f.pt"], "leave out --dtype"),
        (["fold", "a.pt", "-o", "out.onnx", "--model-args", "{"], "--model-args is not JSON"),
        (["inspect", "gone.onnx"], "gone.onnx: no such file"),
        (["verify", "gone.onnx"], "gone.onnx: no such file"),
        (["verify", "taken.onnx", "--against", "gone.pt"], "gone.pt: no such file"),
        (["bench", "gone.onnx"], "gone.onnx: no such file"),
    ],
)
def test_refused_before_anything_heavy_is_imported(tmp_path: Path, words: list[str], complaint: str) -> None:
    for name in ("a.pt", "taken.onnx"):
        (tmp_path / name).write_bytes(b"not looked at")
    os.mkfifo(tmp_path / "pipe.pt")
    code, errors = said(tmp_path, *words)
    assert code == 2, errors
    assert complaint in errors
    assert errors.splitlines()[-1] == "heavy:", errors
