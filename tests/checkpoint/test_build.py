"""The module for given weights: where its architecture comes from, and what does not fit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normfold import models
from normfold.checkpoint.load import load_checkpoint
from normfold.errors import ArchitectureError, UsageError
from tests.checkpoint.files import ARGS, SPEC, load, same_state, settled


def test_the_order_in_which_architectures_are_taken(tmp_path: Path, vit: nn.Module) -> None:
    path = tmp_path / "c.pt"
    said = {"state_dict": vit.state_dict(), "arch": "vit", "arch_args": ARGS, "inputs": [SPEC]}
    torch.save({**said, "arch": "convnet"}, path)
    assert load_checkpoint(path, arch="vit", model_args=ARGS).arch == "vit"
    source = load_checkpoint(path, model=f"{__name__}:build_vit", model_args={"norm": "un"})
    assert (source.arch, source.arch_args) == (f"{__name__}:build_vit", {"norm": "un"})
    torch.save(said, path)
    assert load_checkpoint(path, arch="vit").arch_args == ARGS
    with pytest.raises(UsageError, match="both give an architecture"):
        load_checkpoint(path, arch="vit", model=f"{__name__}:build_vit")


def build_vit(norm: str) -> nn.Module:
    return models.create("vit", **{**ARGS, "norm": norm})


def not_a_module() -> int:
    return 3


def fails() -> nn.Module:
    raise KeyError("blocks")


@pytest.mark.parametrize(
    ("model", "args", "complaint"),
    [
        ("nocolon", {}, "expected pkg.module:factory"),
        ("no_such_package.models:vit", {}, "cannot be imported: ModuleNotFoundError: No module named"),
        (f"{__name__}:absent", {}, "has no 'absent'"),
        (f"{__name__}:SPEC", {}, "is a str, not a function or a class"),
        (f"{__name__}:not_a_module", {}, "returned a int, not a torch.nn.Module"),
        (f"{__name__}:fails", {}, "with no arguments failed: KeyError: 'blocks'"),
        (f"{__name__}:build_vit", {"size": 3}, "TypeError: .*unexpected keyword argument 'size'"),
    ],
)
def test_a_factory_that_does_not_work_is_a_sentence(
    tmp_path: Path, vit: nn.Module, model: str, args: dict[str, Any], complaint: str
) -> None:
    torch.save(vit.state_dict(), tmp_path / "c.pt")
    with pytest.raises(ArchitectureError, match=complaint) as caught:
        load_checkpoint(tmp_path / "c.pt", model=model, model_args=args, inputs=[SPEC])
    assert "\n" not in str(caught.value)


@pytest.fixture
def current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("users_own_model", None)


def test_factories_in_the_current_directory(current_directory: Path) -> None:
    text = "from torch import nn\n\ndef build(width):\n    return nn.Sequential(nn.Linear(width, 2))\n"
    (current_directory / "users_own_model.py").write_text(text)
    model = nn.Sequential(nn.Linear(3, 2))
    torch.save(model.state_dict(), current_directory / "c.pt")
    before = list(sys.path)
    options: dict[str, Any] = {"model": "users_own_model:build", "inputs": ["x:float32[B,3]"]}
    assert same_state(load_checkpoint("c.pt", model_args={"width": 3}, **options).module, model.state_dict())
    assert sys.path == before


def test_broken_user_code_is_a_sentence(current_directory: Path) -> None:
    (current_directory / "users_own_model.py").write_text("def build(:\n")
    torch.save({"weight": torch.zeros(1)}, "c.pt")
    with pytest.raises(ArchitectureError, match="users_own_model cannot be imported: SyntaxError"):
        load_checkpoint("c.pt", model="users_own_model:build", inputs=["x:float32[B]"])


def test_weights_without_an_architecture_say_how_to_give_one(tmp_path: Path, vit: nn.Module) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "c.pt")
    with pytest.raises(
        ArchitectureError, match=r"--model pkg\.module:factory.*--arch NAME \(`normfold models` lists"
    ) as caught:
        load_checkpoint(tmp_path / "c.pt", inputs=[SPEC])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "arch": "resnet50"}, tmp_path / "c.pt")
    with pytest.raises(ArchitectureError, match=r"says its architecture is 'resnet50', which is not built in.*--model"):
        load_checkpoint(tmp_path / "c.pt", inputs=[SPEC])
    torch.save(vit.state_dict(), tmp_path / "c.pt")
    with pytest.raises(
        ArchitectureError, match=r"--arch 'deit_tiny_prebn' is not built in; did you mean deit_tiny_prepbn, or "
    ):
        load(tmp_path / "c.pt", arch="deit_tiny_prebn")
    with pytest.raises(ArchitectureError, match=r"--arch 'resnet50' is not built in\. `normfold models`"):
        load(tmp_path / "c.pt", arch="resnet50")
    with pytest.raises(ArchitectureError, match="no option depht"):
        load(tmp_path / "c.pt", model_args={"depht": 1})


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path, vit: nn.Module) -> None:
    state = vit.state_dict()
    del state["head.bias"]
    state.update({f"extra.{i}": torch.zeros(1) for i in range(12)})
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ArchitectureError) as caught:
        load(tmp_path / "c.pt")
    message = str(caught.value)
    assert "1 missing from the checkpoint (head.bias)" in message
    assert "12 unexpected in the checkpoint (extra.0, " in message
    assert "extra.9, ...)" in message
    assert "extra.10" not in message


def test_a_prepbn_checkpoint_does_not_silently_fit_a_repbn_model(tmp_path: Path) -> None:
    model = settled(models.create("vit", **{**ARGS, "norm": "prepbn"}))
    torch.save(model.state_dict(), tmp_path / "c.pt")
    with pytest.raises(
        ArchitectureError, match=r"missing .*blocks\.0\.norm1\.alpha.*unexpected .*blocks\.0\.norm1\.warm"
    ):
        load(tmp_path / "c.pt", model_args={**ARGS, "norm": "repbn"})
    assert [norm.kind for norm in load(tmp_path / "c.pt", model_args={**ARGS, "norm": "prepbn"}).norms] == [
        "PRepBN"
    ] * 3


def test_shapes_that_differ_are_listed(tmp_path: Path, vit: nn.Module) -> None:
    torch.save({**vit.state_dict(), "head.bias": torch.zeros(7)}, tmp_path / "c.pt")
    with pytest.raises(
        ArchitectureError, match=r"1 shapes differ \(head\.bias is \[7\] in the checkpoint and \[10\] in"
    ):
        load(tmp_path / "c.pt")
