"""Checkpoints that `save_checkpoint` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normfold import models
from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.save import save_checkpoint
from normfold.errors import ArchitectureError, InputSpecError, OutputError, UsageError
from normfold.nn.repbn import RepBN
from tests.checkpoint.files import ARGS, SPEC, same_state


def test_what_is_saved_loads_without_flags(tmp_path: Path, vit: nn.Module) -> None:
    path = tmp_path / "vit.pt"
    save_checkpoint(path, vit, arch="vit", arch_args=ARGS, example_input=torch.zeros(2, 1, 8, 8))
    source = load_checkpoint(path)
    assert same_state(source.module, vit.state_dict())
    assert source.module is not None
    assert not any(part.training for part in source.module.modules())
    assert [str(spec) for spec in source.inputs] == [SPEC]
    assert (source.format, source.arch, source.arch_args, source.trusted) == ("torch", "vit", ARGS, False)
    assert [norm.kind for norm in source.norms] == ["UN"] * 3
    assert len(source.sha256) == 64
    assert torch.load(path, weights_only=True)["format"] == "normfold/1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["vit.pt"]


def test_integer_inputs_are_saved_with_their_vocabulary(tmp_path: Path) -> None:
    model = models.create("char_lm", dim=8, heads=2, depth=1, hidden=8, vocab=33)
    args = {"dim": 8, "heads": 2, "depth": 1, "hidden": 8, "vocab": 33}
    ids = torch.zeros(2, 7, dtype=torch.int64)
    save_checkpoint(tmp_path / "a.pt", model, arch="char_lm", arch_args=args, example_input={"ids": ids})
    assert str(load_checkpoint(tmp_path / "a.pt").inputs[0]) == "ids:int64[B,7]<33"
    free = "ids:int64[B,L=7<=9]<5"
    save_checkpoint(tmp_path / "b.pt", model, arch="char_lm", arch_args=args, example_input=ids, inputs=[free])
    assert str(load_checkpoint(tmp_path / "b.pt").inputs[0]) == free


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"path": "vit.onnx"}, UsageError, "end the name in .pt"),
        ({"arch_args": {"norm": nn.LayerNorm}}, UsageError, "arch_args must hold nothing but"),
        ({"inputs": ["x:float32[B,3,8,8]"]}, InputSpecError, r"does not fit its example of float32\[2, 1, 8, 8\]"),
        ({"inputs": ["x:int64[B,1,8,8]"]}, InputSpecError, "does not fit its example"),
        ({"inputs": [SPEC, "y:float32[B]"]}, InputSpecError, "2 inputs are specified and 1 given"),
        ({"path": "missing/vit.pt"}, OutputError, "cannot be written: No such file or directory"),
    ],
)
def test_saving_refuses_what_would_not_load(
    tmp_path: Path, vit: nn.Module, changes: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    options = {"arch": "vit", "arch_args": ARGS, "example_input": torch.zeros(2, 1, 8, 8), **changes}
    with pytest.raises(error, match=complaint):
        save_checkpoint(tmp_path / str(options.pop("path", "vit.pt")), vit, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vit.pt"
    path.write_bytes(b"old")

    def full(content: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        save_checkpoint(path, vit, arch="vit", arch_args=ARGS, example_input=torch.zeros(2, 1, 8, 8))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


OWN = """
import sys
from torch import nn
from normfold.nn import RepBN
print("imported", file=sys.stderr)
def build(width=4):
    return nn.Sequential(nn.Linear(width, width), RepBN(width), nn.Linear(width, 2))
"""


def test_own_code_is_remembered_and_imported_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "remembered.py").write_text(OWN)
    model = nn.Sequential(nn.Linear(6, 6), RepBN(6), nn.Linear(6, 2)).eval()
    options: dict[str, Any] = {"arch_args": {"width": 6}, "example_input": torch.zeros(2, 3, 6)}
    save_checkpoint("own.pt", model, factory="remembered:build", inputs=["input:float32[B,L,6]"], **options)
    with pytest.raises(
        ArchitectureError, match=r"saved for remembered:build, .* --model remembered:build, or .*--trust-code"
    ):
        load_checkpoint("own.pt")
    assert "imported" not in capfd.readouterr().err
    source = load_checkpoint("own.pt", trust_code=True)
    assert "imported" in capfd.readouterr().err
    assert source.arch == "remembered:build" and [norm.kind for norm in source.norms] == ["RepBN"]
    assert same_state(source.module, model.state_dict())
    named = load_checkpoint("own.pt", model="remembered:build", model_args={"width": 6})
    assert same_state(named.module, model.state_dict())
    called = load_checkpoint("own.pt", model=lambda: nn.Sequential(nn.Linear(6, 6), RepBN(6), nn.Linear(6, 2)))
    assert same_state(called.module, model.state_dict())


def test_own_code_without_its_function(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 6), RepBN(6), nn.Linear(6, 2)).eval()
    save_checkpoint(tmp_path / "own.pt", model, example_input=torch.zeros(2, 6))
    with pytest.raises(ArchitectureError, match=r"--model pkg\.module:factory"):
        load_checkpoint(tmp_path / "own.pt")
    for wrong in ({"factory": "no colon"}, {"factory": "a:b", "arch": "vit"}):
        with pytest.raises(UsageError):
            save_checkpoint(tmp_path / "x.pt", model, example_input=torch.zeros(2, 6), **wrong)
