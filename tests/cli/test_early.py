"""What is refused at once: in a process that has imported nothing heavy."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from normfold.errors import UsageError
from normfold.pipeline.early import check_only
from tests.paths import FIXTURES, ROOT

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
        (["fold", "a.pt", "-o", "out.onnx", "--only", "blocks.0.norm9"], "a.pt has no norm blocks.0.norm9"),
        (["fold", "taken.onnx", "-o", "out.onnx", "--only", "norm"], "taken.onnx has no norm norm"),
        (["fold", "a.pt", "-o", "out.onnx", "--target", "npu"], "--target npu: choose from"),
        (["fold", "a.pt", "-o", "out.onnx", "--dtype", "bfloat16"], "--dtype bfloat16"),
        (["fold", "a.pt", "-o", "out.onnx", "--dtype", "float16", "--emit-torch", "f.pt"], "leave out --dtype"),
        (["fold", "a.pt", "-o", "out.onnx", "--model-args", "{"], "--model-args is not JSON"),
        (["fold", "a.pt", "-o", "out.onnx", "--arch", "vitt"], "--arch 'vitt' is not built in; did you mean vit"),
        (["fold", "a.pt", "-o", "o.onnx", "--dtype", "float16", "--calibrate", "gone.npz"], "gone.npz: no such file"),
        (["inspect", "a.pt", "--arch", "vitt"], "--arch 'vitt' is not built in"),
        (["verify", "taken.onnx", "--arch", "vitt"], "--arch 'vitt' is not built in"),
        (["verify", "taken.onnx", "--data", "gone.npz"], "gone.npz: no such file"),
        (["verify", "taken.onnx", "--samples", "0"], "Invalid value for '--samples': give 1 or more"),
        (["inspect", "gone.onnx"], "gone.onnx: no such file"),
        (["verify", "gone.onnx"], "gone.onnx: no such file"),
        (["verify", "taken.onnx", "--against", "gone.pt"], "gone.pt: no such file"),
        (["bench", "gone.onnx"], "gone.onnx: no such file"),
    ],
)
def test_refused_before_anything_heavy_is_imported(tmp_path: Path, words: list[str], complaint: str) -> None:
    for name in ("a.pt", "taken.onnx"):
        (tmp_path / name).write_bytes(b"\x80 not looked at")
    os.mkfifo(tmp_path / "pipe.pt")
    code, errors = said(tmp_path, *words)
    assert code == 2, errors
    assert complaint in errors
    assert errors.splitlines()[-1] == "heavy:", errors


@pytest.mark.parametrize("command", [["fold", "a.pt", "-o", "out.onnx"], ["inspect", "a.pt"], ["verify", "a.onnx"]])
def test_a_specification_that_says_nothing_costs_no_torch(tmp_path: Path, command: list[str]) -> None:
    for name in ("a.pt", "a.onnx"):
        (tmp_path / name).write_bytes(b"not looked at")
    code, errors = said(tmp_path, *command, "--input", "x:float3[B,3]")
    assert code == 2, errors
    assert "unknown dtype 'float3'" in errors
    assert errors.splitlines()[-1] == "heavy: numpy", errors


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.pt")), ids=lambda path: path.stem)
def test_no_name_that_a_norm_can_have_is_refused(path: Path, tmp_path: Path) -> None:
    names = {key.rpartition(".")[0] for key in torch.load(path, weights_only=True)["state_dict"]} - {""}
    assert len(names) > 5
    safe, plain = tmp_path / "a.safetensors", tmp_path / "plain.pt"
    save_file({f"{name}.weight": torch.zeros(1) for name in names}, safe)
    torch.save({f"{name}.weight": 0 for name in names}, plain, _use_new_zipfile_serialization=False)
    for source in (path, safe, plain):
        check_only(source, [*names, *(f"{name}.alpha" for name in names), "12"])
        with pytest.raises(UsageError, match=r"has no norm blocks\.7\.nosuchname"):
            check_only(source, ["blocks.7.nosuchname"])
    # Nobody knows the names of a folder, or of what is too large to look through; and a broken file says so itself.
    check_only(tmp_path, ["nosuchname"])
    (tmp_path / "b.safetensors").write_bytes((1 << 40).to_bytes(8, "little"))
    check_only(tmp_path / "b.safetensors", ["nosuchname"])
    # Nor those of a format of one's own, which may be compressed.
    (tmp_path / "c.weights.gz").write_bytes(gzip.compress(b"norm1.weight"))
    check_only(tmp_path / "c.weights.gz", ["norm1"])
