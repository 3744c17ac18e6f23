from __future__ import annotations

import argparse
import collections
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from normfold import models
from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.save import save_checkpoint
from normfold.checkpoint.source import Source
from normfold.errors import (
    ArchitectureError,
    CheckpointError,
    GraphError,
    InputSpecError,
    NormStateError,
    OutputError,
    UsageError,
)

ARGS = {"dim": 12, "depth": 1, "heads": 2, "norm": "un"}
SPEC = "x:float32[B,1,8,8]"


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(0)
    return settled(models.create("vit", **ARGS))


def settled(model: nn.Module) -> nn.Module:
    """Statistics that no fresh module has, and schedules that have ended."""
    for name, buffer in model.named_buffers():
        if "running_" in name:
            nn.init.uniform_(buffer, 0.5, 2.0)
        if name.endswith((".iter", ".warm")):
            buffer.zero_()
    return model


def load(path: Path, **options: Any) -> Source:
    """With the architecture and inputs that a bare state dict of `vit` needs."""
    return load_checkpoint(path, **{"arch": "vit", "model_args": ARGS, "inputs": [SPEC], **options})


def same_state(model: nn.Module | None, state: Mapping[str, torch.Tensor]) -> bool:
    assert model is not None
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def rewritten(path: Path, member: str, content: bytes) -> None:
    """Replace the member of a zip whose name ends so."""
    with zipfile.ZipFile(path) as archive:
        parts = [(info, archive.read(info)) for info in archive.infolist()]
    assert any(info.filename.endswith(member) for info, _ in parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for info, data in parts:
            archive.writestr(info.filename, content if info.filename.endswith(member) else data)


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


# --- our own checkpoints -------------------------------------------------------------------------------------------


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


# --- where the weights are -----------------------------------------------------------------------------------------


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


# --- safety --------------------------------------------------------------------------------------------------------


def test_plain_containers_and_numbers_are_read(tmp_path: Path, vit: nn.Module) -> None:
    beside = {
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.99), tags={"a"}),
        "history": collections.defaultdict(list, loss=[1.0]),
        "queue": collections.deque([1, 2]),
        "count": collections.Counter("aab"),
        "best": np.float64(0.5),
        "step": np.int64(3),
    }
    torch.save({**beside, "state_dict": collections.OrderedDict(vit.state_dict())}, tmp_path / "c.pt")
    assert same_state(load(tmp_path / "c.pt").module, vit.state_dict())


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_a_pickle_that_runs_code_does_not_run_it(tmp_path: Path, vit: nn.Module, options: dict[str, Any]) -> None:
    trap, path = tmp_path / "ran", tmp_path / "c.pt"
    torch.save({"state_dict": vit.state_dict(), "extra": Bomb(trap)}, path, **options)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert not trap.exists()
    message = str(caught.value)
    assert "mkdir" in message
    assert "--trust-checkpoint" in message
    assert "\n" not in message
    assert load(path, trust=True).trusted
    assert trap.exists()


def test_a_bare_pickle_does_not_run_either(tmp_path: Path) -> None:
    trap, path = tmp_path / "ran", tmp_path / "c.bin"
    path.write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(CheckpointError, match="--trust-checkpoint"):
        load(path)
    assert not trap.exists()


def test_a_whole_module_needs_trust(tmp_path: Path, vit: nn.Module) -> None:
    path = tmp_path / "c.pt"
    torch.save(vit.train(), path)
    with pytest.raises(CheckpointError, match=r"normfold\.models\.vit\.VisionTransformer.*--trust-checkpoint"):
        load_checkpoint(path, inputs=[SPEC])
    source = load_checkpoint(path, inputs=[SPEC], trust=True)
    assert source.trusted
    assert same_state(source.module, vit.state_dict())
    assert source.module is not None
    assert not source.module.training
    assert len(source.norms) == 3


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.layer(x))
        return y


@pytest.fixture(scope="module")
def program_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "small.pt2"
    model = settled(Small()).eval()
    batch = torch.export.Dim("B", max=64)
    torch.export.save(torch.export.export(model, (torch.zeros(3, 4),), dynamic_shapes=({0: batch},)), path)
    return path


def test_a_program_needs_trust(program_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\.pt2 program unpickles.*--trust-checkpoint"):
        load_checkpoint(program_file)
    source = load_checkpoint(program_file, trust=True)
    assert source.trusted
    assert source.program is not None
    assert [(norm.name, norm.kind) for norm in source.norms] == [("norm", "BatchNorm")]
    (spec,) = source.inputs
    assert (spec.name, spec.dtype, len(spec.letters), spec.dims[1]) == ("x", "float32", 1, 4)
    assert list(spec.limits.values()) == [64]
    with pytest.raises(InputSpecError, match="contradicts the model's own"):
        load_checkpoint(program_file, trust=True, inputs=["x:float32[B,5]"])


def test_a_program_that_runs_code_does_not_run_it(tmp_path: Path, program_file: Path) -> None:
    """Proof that the refusal is needed: with trust, torch.export.load does unpickle the example inputs."""
    trap, path = tmp_path / "ran", tmp_path / "c.pt2"
    path.write_bytes(program_file.read_bytes())
    torch.save(Bomb(trap), tmp_path / "bomb.pt")
    rewritten(path, "sample_inputs/model.pt", (tmp_path / "bomb.pt").read_bytes())
    with pytest.raises(CheckpointError, match="--trust-checkpoint"):
        load_checkpoint(path)
    assert not trap.exists()
    with pytest.raises(CheckpointError):
        load_checkpoint(path, trust=True)
    assert trap.exists()


def test_a_program_that_was_captured_in_training_mode_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Small().train(), (torch.zeros(3, 4),)), tmp_path / "c.pt2")
    with pytest.raises(NormStateError, match="captured in training mode"):
        load_checkpoint(tmp_path / "c.pt2", trust=True)


# --- the architecture ----------------------------------------------------------------------------------------------


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
        ArchitectureError, match=r"--arch 'deit_tiny_prebn' is not built in \(close: deit_tiny_prepbn, "
    ):
        load(tmp_path / "c.pt", arch="deit_tiny_prebn")
    with pytest.raises(ArchitectureError, match=r"--arch 'resnet50' is not built in\. Give one"):
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


def test_a_checkpoint_without_inputs_says_how_to_give_them(tmp_path: Path, vit: nn.Module) -> None:
    torch.save(vit.state_dict(), tmp_path / "c.pt")
    with pytest.raises(InputSpecError, match="--input NAME:DTYPE"):
        load_checkpoint(tmp_path / "c.pt", model=f"{__name__}:build_vit", model_args={"norm": "un"})


def test_a_built_in_architecture_knows_its_inputs(tmp_path: Path, vit: nn.Module) -> None:
    torch.save(vit.state_dict(), tmp_path / "c.pt")
    assert [str(spec) for spec in load(tmp_path / "c.pt", inputs=[]).inputs] == [SPEC]
    said = {"state_dict": vit.state_dict(), "arch": "vit", "arch_args": ARGS, "inputs": ["x:float32[N,1,8,8]"]}
    torch.save(said, tmp_path / "c.pt")
    assert str(load_checkpoint(tmp_path / "c.pt").inputs[0]) == "x:float32[N,1,8,8]"
    assert str(load_checkpoint(tmp_path / "c.pt", inputs=["x:float32[2,1,8,8]"]).inputs[0]) == "x:float32[2,1,8,8]"


# --- bad files -----------------------------------------------------------------------------------------------------


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


# --- ONNX ----------------------------------------------------------------------------------------------------------


def write_graph(path: Path, *, location: str | None = None) -> None:
    """y = table[ids] + x, the table outside the file where a location is given."""
    table = numpy_helper.from_array(np.ones((9, 4), dtype=np.float32), "table")
    if location is not None:
        table.ClearField("raw_data")
        table.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "144")):
            table.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["ids"], ["long"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "long"], ["rows"]),
            helper.make_node("Add", ["rows", "x"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch size", 7]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch size", None, 4]),
            helper.make_tensor_value_info("table", TensorProto.FLOAT, [9, 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [table],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)


def test_a_graph_brings_its_own_inputs(tmp_path: Path) -> None:
    write_graph(tmp_path / "m.onnx")
    source = load_checkpoint(tmp_path / "m.onnx")
    assert [str(spec) for spec in source.inputs] == ["ids:int32[batch_size,7]<9", "x:float32[batch_size,x_1,4]"]
    assert (source.format, source.module, source.trusted) == ("onnx", None, False)
    assert source.graph is not None
    traced = load_checkpoint(tmp_path / "m.onnx", inputs=["ids:int32[B=8,7]", "x:float32[B,7,4]"])
    assert [str(spec) for spec in traced.inputs] == ["ids:int32[B=8,7]<9", "x:float32[B,7,4]"]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("y:float32[B,7,4]", "has no input 'y'; its inputs are ids:"),
        ("x:float64[B,7,4]", "contradicts the model's own"),
        ("x:float32[B,4]", "contradicts the model's own"),
        ("x:float32[B,7,5]", "contradicts the model's own"),
    ],
)
def test_inputs_that_a_graph_does_not_have(tmp_path: Path, spec: str, complaint: str) -> None:
    write_graph(tmp_path / "m.onnx")
    with pytest.raises(InputSpecError, match=complaint):
        load_checkpoint(tmp_path / "m.onnx", inputs=[spec])


def test_a_graph_takes_no_architecture(tmp_path: Path) -> None:
    write_graph(tmp_path / "m.onnx")
    for option in ({"arch": "vit"}, {"model": "a:b"}, {"ema": True}):
        with pytest.raises(UsageError, match="holds its own architecture"):
            load_checkpoint(tmp_path / "m.onnx", **option)  # type: ignore[arg-type]


def test_external_data_is_mapped_from_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(np.full((9, 4), 2, dtype=np.float32).tobytes())
    write_graph(tmp_path / "m.onnx", location="data/w.bin")
    graph = load_checkpoint(tmp_path / "m.onnx").graph
    assert graph is not None
    table = graph.graph.initializers["table"].const_value
    assert table is not None
    assert (table.numpy() == 2).all()


@pytest.mark.parametrize("location", ["../secret", "{outside}/secret", "sub/../../secret", "link", "folder/secret"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(bytes(144))
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "folder").symlink_to(tmp_path)
    write_graph(inside / "m.onnx", location=location.format(outside=tmp_path))
    with pytest.raises(GraphError, match="outside the model's folder"):
        load_checkpoint(inside / "m.onnx")


def test_external_data_that_is_not_whole(tmp_path: Path) -> None:
    write_graph(tmp_path / "m.onnx", location="w.bin")
    with pytest.raises(GraphError, match=r"'w\.bin' is missing"):
        load_checkpoint(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(bytes(143))
    with pytest.raises(GraphError, match=r"'w\.bin' is truncated: table ends at byte 144"):
        load_checkpoint(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"this is text, not a model", b"\x08\x07"])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(GraphError, match=r"m\.onnx") as caught:
        load_checkpoint(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def test_a_truncated_graph(tmp_path: Path) -> None:
    write_graph(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:-40])
    with pytest.raises(GraphError):
        load_checkpoint(tmp_path / "m.onnx")
