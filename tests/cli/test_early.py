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

from normfold.errors import ArchitectureError, UsageError
from normfold.pipeline.early import check_factory, check_only
from normfold.pipeline.run import fold
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


MODULE = """
raise SystemExit("imported")
try:
    import torch.nn as layers
except ImportError:
    layers = None
else:
    from functools import partial as bound

def build_vit():
    global late
    inner = 1

class Net:
    method = 1

if layers:
    small, (large, *rest) = 1, (2, 3)
for each in ():
    pass
"""


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        ("mynet:bild_vit", "mynet has no 'bild_vit'; did you mean build_vit?"),
        ("mynet:Nett", "mynet has no 'Nett'; did you mean Net?"),
        ("mynet:inner", "mynet has no 'inner'."),
        ("mynet:method", "mynet has no 'method'."),
        ("pack.deep:bild", "pack.deep has no 'bild'; did you mean build?"),
        ("pack:build", "pack has no 'build'."),
    ],
)
def test_a_misspelt_factory_is_found_in_the_source_which_is_not_run(
    tmp_path: Path, factory: str, complaint: str
) -> None:
    (tmp_path / "mynet.py").write_text(MODULE)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "pack" / "deep.py").write_text("build = 3")
    (tmp_path / "a.pt").write_bytes(b"\x80 not looked at")
    code, errors = said(tmp_path, "fold", "a.pt", "-o", "out.onnx", "--model", factory)
    assert code == 2, errors
    assert complaint in errors
    assert errors.splitlines()[-1] == "heavy:", errors


@pytest.mark.parametrize(
    "text",
    [
        "from other import *",
        "def __getattr__(name): return 1",
        "globals()['build'] = 1",
        "import sys; setattr(sys.modules[__name__], 'build', 1)",
        "def f():\n    global build\n    build = 1",
        "if (build := 3): pass",
        "with open('x') as build: pass",
        "for build in (): pass",
        "try:\n    pass\nexcept ImportError:\n    from x import y as build",
        "match 3:\n    case build: pass",
        "match 3:\n    case [*build]: pass",
        "match {}:\n    case {**build}: pass",
        "build: int = 3",
        "import build.other",
        "this is no Python",
        "x = '\\d'\nbuild = 1",
    ],
)
def test_a_name_that_a_module_may_have_is_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nearly.py").write_text("bild = 1")
    (tmp_path / "whatever.py").write_text(text)
    with pytest.raises(ArchitectureError, match="did you mean bild"):
        check_factory("nearly:build")
    check_factory("whatever:build")


def test_modules_without_a_source_are_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space" / "part").mkdir(parents=True)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "build.py").write_text("")
    for spec in ("space:build", "space.part:build", "pack:build.make", "pack.gone:build", "math:nosuch", "sys:nosuch"):
        check_factory(spec)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["fold", "a.txt", "-o", "out.onnx"], "a.txt: unknown suffix; a checkpoint ends in .pt, "),
        (["fold", "empty", "-o", "out.onnx"], "empty is a directory without model.safetensors"),
        (["fold", "a.pt", "-o", "out.onnx", "--opset", "99"], "--opset 99: the exporter writes opsets 18 to "),
        (["fold", "a.pt", "-o", "out.onnx", "--opset", "7"], "--opset 7: the exporter writes opsets 18 to "),
        (["inspect", "a.txt"], "a.txt: unknown suffix"),
        (["inspect", "empty"], "empty is a directory without"),
        (["inspect", "a.pt", "--opset", "99"], "--opset 99"),
        (["inspect", "a.onnx", "--target", "mobile"], "a.onnx is an ONNX file and keeps its opset; --target is for"),
        (["bench", "a.txt"], "a.txt: unknown suffix"),
        (["verify", "a.txt"], "a.txt: unknown suffix"),
        (["verify", "a.pt"], "a.pt is no .onnx file: verify judges one, against a checkpoint (--against)"),
        (["verify", "a.onnx", "--against", "a.txt"], "a.txt: unknown suffix"),
        (["verify", "a.onnx", "--rtol", "-1"], "--rtol -1: a tolerance is a finite number, 0 or more"),
        (["verify", "a.onnx", "--atol", "nan"], "--atol nan: a tolerance is"),
        (["verify", "a.onnx", "--providers", "cdua"], "--providers: 'cdua' is not known; choose from cpu, cuda"),
        (["verify", "a.onnx", "--providers", ","], "--providers names none"),
    ],
)
def test_refused_before_torch_is_imported(tmp_path: Path, words: list[str], complaint: str) -> None:
    for name in ("a.pt", "a.txt", "a.onnx"):
        (tmp_path / name).write_bytes(b"\x80 not looked at")
    (tmp_path / "empty").mkdir()
    code, errors = said(tmp_path, *words)
    assert code == 2, errors
    assert complaint in errors
    assert errors.splitlines()[-1] == f"heavy: {'onnx ' if '--opset' in words else ''}numpy", errors


@pytest.mark.parametrize("name", ["a2.pt", "a2", ".onnx"])
def test_an_output_that_is_not_called_onnx_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.pt").write_bytes(b"\x80 not looked at")
    code, errors = said(tmp_path, "fold", "a.pt", "-o", name)
    assert code == 2, errors
    assert f"{name}: fold writes ONNX; end the name in .onnx" in errors
    assert errors.splitlines()[-1] == "heavy:", errors
    with pytest.raises(UsageError, match="fold writes ONNX"):
        fold(tmp_path / "a.pt", tmp_path / name)


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
