from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from normfold import models
from normfold.checkpoint.load import load_checkpoint
from normfold.errors import (
    CheckpointError,
    InputSpecError,
    NormStateError,
)
from tests.checkpoint.files import ARGS, SPEC, load, rewritten, same_state


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar", ".bin", ".ckpt"])
def test_every_torch_suffix(tmp_path: Path, vit: nn.Module, suffix: str) -> None:
    path = tmp_path / f"vit{suffix}"
    torch.save(vit.state_dict(), path)
    assert same_state(load(path).module, vit.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_state_dicts_are_found_and_their_prefixes_stripped(
    tmp_path: Path, vit: nn.Module, key: str, prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in vit.state_dict().items()}
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, key: state}, tmp_path / "c.pt")
    assert same_state(load(tmp_path / "c.pt").module, vit.state_dict())


def test_parts_compiled_on_their_own(tmp_path: Path, vit: nn.Module) -> None:
    state = {name.replace("blocks.0.", "blocks.0._orig_mod."): t for name, t in vit.state_dict().items()}
    assert state.keys() != vit.state_dict().keys()
    torch.save(state, tmp_path / "c.pt")
    assert same_state(load(tmp_path / "c.pt").module, vit.state_dict())


def test_the_old_file_format(tmp_path: Path, vit: nn.Module) -> None:
    torch.save(vit.state_dict(), tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    assert same_state(load(tmp_path / "c.pt").module, vit.state_dict())


def test_averaged_weights_on_request_only(tmp_path: Path, vit: nn.Module) -> None:
    averaged = {name: tensor + 1 for name, tensor in vit.state_dict().items()}
    for key in ("state_dict_ema", "model_ema"):
        torch.save({"state_dict": vit.state_dict(), key: averaged}, tmp_path / "c.pt")
        assert same_state(load(tmp_path / "c.pt").module, vit.state_dict())
        assert same_state(load(tmp_path / "c.pt", ema=True).module, averaged)
    torch.save({"state_dict": vit.state_dict()}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"no averaged weights .* for --ema; it holds 'state_dict'"):
        load(tmp_path / "c.pt", ema=True)


def test_safetensors(tmp_path: Path, vit: nn.Module) -> None:
    state = vit.state_dict()
    safetensors.torch.save_file(state, tmp_path / "c.safetensors")
    source = load(tmp_path / "c.safetensors", trust=True)
    assert same_state(source.module, state)
    assert (source.format, source.trusted) == ("safetensors", False)
    said = {"arch": "vit", "arch_args": '{"dim": 12, "depth": 1, "heads": 2, "norm": "un"}', "inputs": f'["{SPEC}"]'}
    safetensors.torch.save_file(state, tmp_path / "c.safetensors", metadata=said)
    assert load_checkpoint(tmp_path / "c.safetensors").arch_args == ARGS
    with pytest.raises(CheckpointError, match="--ema has nothing to choose"):
        load(tmp_path / "c.safetensors", ema=True)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_weight_that_is_stored_once_is_not_missing(tmp_path: Path) -> None:
    state = {"embed.weight": torch.randn(11, 4)}
    safetensors.torch.save_file(state, tmp_path / "c.safetensors")
    options: dict[str, Any] = {"model": f"{__name__}:Tied", "inputs": ["ids:int64[B,L]"]}
    source = load_checkpoint(tmp_path / "c.safetensors", **options)
    assert source.module is not None
    assert torch.equal(source.module.head.weight, state["embed.weight"])
    assert source.inputs[0].high == 11


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_loaded_as_float32_and_said_to_be(
    tmp_path: Path, vit: nn.Module, dtype: torch.dtype
) -> None:
    torch.save(vit.to(dtype).state_dict(), tmp_path / "c.pt")
    source = load(tmp_path / "c.pt")
    assert source.module is not None
    assert {parameter.dtype for parameter in source.module.parameters()} == {torch.float32}
    (warning,) = source.warnings
    assert f"stored as {str(dtype).removeprefix('torch.')} and were loaded as float32" in warning


def test_a_checkpoint_without_inputs_says_how_to_give_them(tmp_path: Path, vit: nn.Module) -> None:
    torch.save(vit.state_dict(), tmp_path / "c.pt")
    with pytest.raises(InputSpecError, match="--input NAME:DTYPE"):
        load_checkpoint(tmp_path / "c.pt", model="tests.checkpoint.test_build:build_vit", model_args={"norm": "un"})


def test_a_built_in_architecture_knows_its_inputs(tmp_path: Path, vit: nn.Module) -> None:
    torch.save(vit.state_dict(), tmp_path / "c.pt")
    assert [str(spec) for spec in load(tmp_path / "c.pt", inputs=[]).inputs] == [SPEC]
    said = {"state_dict": vit.state_dict(), "arch": "vit", "arch_args": ARGS, "inputs": ["x:float32[N,1,8,8]"]}
    torch.save(said, tmp_path / "c.pt")
    assert str(load_checkpoint(tmp_path / "c.pt").inputs[0]) == "x:float32[N,1,8,8]"
    assert str(load_checkpoint(tmp_path / "c.pt", inputs=["x:float32[2,1,8,8]"]).inputs[0]) == "x:float32[2,1,8,8]"


def truncated(path: Path, vit: nn.Module) -> None:
    torch.save(vit.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])


def damaged(path: Path, vit: nn.Module) -> None:
    torch.save(vit.state_dict(), path)
    rewritten(path, "data.pkl", b"\x80\x02garbage")


def truncated_old_format(path: Path, vit: nn.Module) -> None:
    torch.save(vit.state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])


def foreign_zip(path: Path, vit: nn.Module) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def torchscript(path: Path, vit: nn.Module) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", b"")


BAD_FILES: list[tuple[str, Callable[[Path, nn.Module], object], str]] = [
    ("missing.pt", lambda path, vit: None, "no such file"),
    ("folder.pt", lambda path, vit: path.mkdir(), "is a directory without"),
    ("empty.pt", lambda path, vit: path.write_bytes(b""), r"is empty \(0 bytes\)"),
    ("model.h5", lambda path, vit: path.write_bytes(b"x"), r"unknown suffix; a checkpoint ends in \.pt"),
    ("text.pt", lambda path, vit: path.write_text("epoch 1: loss 0.3\n"), "neither a zip archive nor a pickle"),
    ("lfs.pt", lambda path, vit: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    ("truncated.pt", truncated, "truncated or damaged zip archive"),
    ("damaged.pt", damaged, "or it is damaged"),
    ("truncated_old.pt", truncated_old_format, "it may be damaged"),
    ("foreign.pt", foreign_zip, "torch.save did not write it"),
    ("script.pt", torchscript, "is a TorchScript archive"),
    ("list.pt", lambda path, vit: torch.save([1], path), "holds a list; expected a state dict"),
    ("none.pt", lambda path, vit: torch.save({}, path), "is an empty state dict"),
    ("none2.pt", lambda path, vit: torch.save({"state_dict": {}}, path), "'state_dict'] is an empty state dict"),
    ("odd.pt", lambda path, vit: torch.save({"a": torch.zeros(1), "b": 1}, path), "'b' is a int, not a tensor"),
    ("other.pt", lambda path, vit: torch.save({"epoch": 1, "opt": {}}, path), "no state dict .* holds 'epoch', 'opt'"),
    ("text.safetensors", lambda path, vit: path.write_text("hello, this is text"), "not a whole .safetensors file"),
    ("none.safetensors", lambda path, vit: safetensors.torch.save_file({}, path), "is an empty state dict"),
    ("text.pt2", lambda path, vit: path.write_text("hello"), "not a torch.export program"),
]


@pytest.mark.parametrize(("name", "make", "complaint"), BAD_FILES, ids=[name for name, _, _ in BAD_FILES])
def test_a_bad_file_is_one_clear_sentence(
    tmp_path: Path, vit: nn.Module, name: str, make: Callable[[Path, nn.Module], object], complaint: str
) -> None:
    make(tmp_path / name, vit)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_checkpoint(tmp_path / name, arch="vit", inputs=[SPEC]) if ".pt2" not in name else load_checkpoint(
            tmp_path / name
        )
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert sorted(tmp_path.iterdir()) == before


def test_truncated_safetensors(tmp_path: Path, vit: nn.Module) -> None:
    path = tmp_path / "c.safetensors"
    safetensors.torch.save_file(vit.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a whole"):
        load(path)


def test_unusable_statistics_are_refused_on_loading(tmp_path: Path, vit: nn.Module) -> None:
    state = vit.state_dict()
    state["blocks.0.norm2.running_var"][3] = -1.0
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(NormStateError, match=r"blocks\.0\.norm2\.running_var is negative"):
        load(tmp_path / "c.pt")


def test_an_unfinished_schedule_is_refused_on_loading(tmp_path: Path) -> None:
    args = {**ARGS, "norm": "prepbn"}
    model = models.create("vit", **args)
    for name, buffer in model.named_buffers():
        if name.endswith(".iter"):
            buffer.fill_(5)
    torch.save(model.state_dict(), tmp_path / "c.pt")
    with pytest.raises(NormStateError, match=r"5 of .* steps left"):
        load(tmp_path / "c.pt", model_args=args)
    assert len(load(tmp_path / "c.pt", model_args=args, allow_unfinished=True).warnings) == 1
