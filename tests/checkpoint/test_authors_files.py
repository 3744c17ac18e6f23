"""Checkpoints as the papers' authors and their frameworks write them: read without a flag, without running anything."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normfold import models
from normfold.checkpoint.load import load_checkpoint
from normfold.errors import ArchitectureError, CheckpointError
from normfold.pipeline import look
from tests.checkpoint.files import Bomb
from tests.models.authors import CfgNode

SLAB = {"image_size": 32, "dim": 12, "depth": 1, "heads": 2, "classes": 5}
LLAMA = {"vocab": 40, "dim": 16, "depth": 1, "heads": 2, "hidden": 24}
State = dict[str, torch.Tensor]


def state_of(name: str, **options: Any) -> State:
    """Statistics that no fresh module has, and schedules that have ended."""
    torch.manual_seed(0)
    model = models.create(name, **options)
    for key, buffer in model.named_buffers():
        if "running_" in key:
            nn.init.uniform_(buffer, 0.5, 2.0)
        if key.endswith((".iter", ".warm")):
            buffer.zero_()
    return model.state_dict()


# --- modules that exist while a file is written, and not while it is read -------------------------------------------


class ContainerMetadata:
    """omegaconf's: holds types as values."""

    __module__ = "omegaconf.base"

    def __init__(self) -> None:
        self.ref_type, self.object_type, self.key_type = typing.Any, dict, str
        self.resolver_cache: Any = collections.defaultdict(dict)


class DictConfig:
    """omegaconf's: its state is pickled by __getstate__ and refers back to itself."""

    __module__ = "omegaconf.dictconfig"

    def __init__(self, content: dict[str, Any]) -> None:
        self.__dict__.update(_metadata=ContainerMetadata(), _parent=None, _flags_cache={}, _content={})
        for key, value in content.items():
            node = DictConfig(value) if isinstance(value, dict) else AnyNode(value)
            node.__dict__["_parent"] = self
            self.__dict__["_content"][key] = node

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_flags_cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("omegaconf's own code ran")


class AnyNode:
    __module__ = "omegaconf.nodes"

    def __init__(self, value: Any) -> None:
        self._val, self._metadata = value, ContainerMetadata()


PACKAGES = ("yacs", "yacs.config", "omegaconf", "omegaconf.base", "omegaconf.dictconfig", "omegaconf.nodes")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The packages are there until what this returns is called."""
    for module_name in PACKAGES:
        monkeypatch.setitem(sys.modules, module_name, types.ModuleType(module_name))
    for kind in (CfgNode, ContainerMetadata, DictConfig, AnyNode):
        setattr(sys.modules[kind.__module__], kind.__name__, kind)

    def gone() -> None:
        for module_name in PACKAGES:
            # An import of None fails, whatever is installed.
            monkeypatch.setitem(sys.modules, module_name, None)  # type: ignore[arg-type]

    return gone


# --- files ---------------------------------------------------------------------------------------------------------


def slab_file(path: Path, state: State) -> None:
    """Swin's and SLAB's main.py."""
    config = CfgNode({"MODEL": {"NAME": "slab_deit_t", "TYPE": "slab_deit", "NUM_CLASSES": 5}, "AUG": {"MIXUP": 0.8}})
    rest = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]}, "lr_scheduler": {"t": 3}}
    torch.save({"model": state, **rest, "max_accuracy": 73.6, "scaler": {}, "epoch": 299, "config": config}, path)


def timm_file(path: Path, state: State) -> None:
    """timm's CheckpointSaver, as Unified-Normalization's main.py uses it."""
    args = argparse.Namespace(model="T2t_vit_14_all_un1d", output=pathlib.PurePosixPath("/runs/1"), lr=np.float64(5e-4))
    saved = {"epoch": 309, "arch": "T2t_vit_14_all_un1d", "state_dict": state, "optimizer": {}, "version": 2}
    torch.save({**saved, "args": args, "metric": np.float32(80.9), "rng": np.arange(3), "size": torch.Size([2])}, path)


def fairseq_file(path: Path, state: State) -> None:
    """fairseq's trainer, before and with its hydra configuration."""
    args = argparse.Namespace(arch="transformer_iwslt_de_en", un_win=4, encoder_normalize_before=True)
    config = DictConfig({"model": {"_name": "transformer_iwslt_de_en", "share": True}, "lr": 5e-4, "tie": "${model}"})
    extra = {"epoch": 1, "previous_training_time": np.float64(3.5), "metrics": collections.OrderedDict(a=[("x", 1)])}
    history = [{"num_updates": 4000, "criterion_name": "LabelSmoothedCrossEntropyCriterion"}]
    torch.save({"args": args, "cfg": config, "model": state, "optimizer_history": history, "extra_state": extra}, path)


Writer = Callable[[Path, State], None]
FILES: list[tuple[Writer, str, dict[str, Any], list[str]]] = [
    (slab_file, "slab_deit_tiny", SLAB, ["x:float32[B,3,32,32]"]),
    (timm_file, "t2t_vit_14_un", {"depth": 1, "classes": 5, "image_size": 32}, ["x:float32[B,3,32,32]"]),
    (
        fairseq_file,
        "nmt_un",
        {"vocab": 40, "depth": 1, "hidden": 24},
        ["src:int64[B,S<=1024]<40", "ids:int64[B,L<=1024]<40"],
    ),
]


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before zip"])
@pytest.mark.parametrize(("write", "name", "options", "inputs"), FILES, ids=[name for _, name, _, _ in FILES])
def test_authors_files_need_no_flag_and_no_package(
    tmp_path: Path,
    packages: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    old: bool,
    write: Writer,
    name: str,
    options: dict[str, Any],
    inputs: list[str],
) -> None:
    state, path = state_of(name, **options), tmp_path / "checkpoint.pth"
    if old:
        save = torch.save
        monkeypatch.setattr(torch, "save", lambda *args: save(*args, _use_new_zipfile_serialization=False))
    write(path, state)
    packages()
    source = load_checkpoint(path)
    assert source.arch == name
    assert {option: source.arch_args[option] for option in options} == options
    assert [str(spec) for spec in source.inputs] == inputs
    assert not source.trusted
    assert source.module is not None
    own = source.module.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    (warning,) = source.warnings
    assert warning.startswith(f"Recognised as {name} with ")


def test_what_a_stand_in_stands_for_does_not_run(tmp_path: Path, packages: Callable[[], None]) -> None:
    """The packages are there while the file is read, and would notice."""
    fairseq_file(tmp_path / "c.pt", state_of("nmt_un", vocab=40, depth=1, hidden=24))
    with pytest.raises(AssertionError, match="omegaconf's own code ran"):
        torch.load(tmp_path / "c.pt", weights_only=False)
    assert load_checkpoint(tmp_path / "c.pt").arch == "nmt_un"


@pytest.mark.parametrize("module", ["omegaconf.base", "numpy.core.multiarray", "pathlib", "typing"])
def test_a_function_that_a_file_calls_by_such_a_name_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """A package that has a stand-in may hold a function that does something; a file may name and call it."""
    trap = tmp_path / "ran"

    def run(path: str) -> object:
        os.mkdir(path)
        return {}

    run.__module__, run.__qualname__ = module, "run"
    own = sys.modules.get(module, types.ModuleType(module))
    parent = module.partition(".")[0]
    monkeypatch.setitem(sys.modules, parent, sys.modules.get(parent, types.ModuleType(parent)))
    monkeypatch.setitem(sys.modules, module, own)
    monkeypatch.setattr(own, "run", run, raising=False)

    class Call:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return run, (str(trap),)

    path = tmp_path / "c.pt"
    torch.save({"model": state_of("slab_deit_tiny", **SLAB), "config": Call()}, path)
    assert load_checkpoint(path).arch == "slab_deit_tiny"
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists(), "the file does call it"


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before zip"])
def test_code_inside_a_configuration_stays_refused(tmp_path: Path, packages: Callable[[], None], old: bool) -> None:
    trap, path = tmp_path / "ran", tmp_path / "c.pt"
    config = CfgNode({"MODEL": {"NAME": "x"}, "HOOK": Bomb(trap)})
    saved = {"model": state_of("slab_deit_tiny", **SLAB), "config": config}
    torch.save(saved, path, _use_new_zipfile_serialization=not old)
    packages()
    with pytest.raises(CheckpointError, match=r"mkdir.*--trust-checkpoint") as caught:
        load_checkpoint(path)
    assert not trap.exists()
    assert "\n" not in str(caught.value)


def test_a_stand_in_is_not_a_weight(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": np.zeros(2)}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="'b' is a _reconstruct, not a tensor"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_file_with_nothing_but_averaged_weights(tmp_path: Path) -> None:
    state = state_of("slab_deit_tiny", **SLAB)
    torch.save({"epoch": 3, "state_dict_ema": state}, tmp_path / "c.pth.tar")
    assert load_checkpoint(tmp_path / "c.pth.tar").arch == "slab_deit_tiny"


def test_fine_tuned_files_of_t2t(tmp_path: Path) -> None:
    """transfer_learning.py: DataParallel's names under `net`, another number of classes."""
    state = state_of("t2t_vit_14_un", depth=1, classes=10)
    torch.save({"net": {f"module.{k}": v for k, v in state.items()}, "acc": 98.3, "epoch": 59}, tmp_path / "c.pth")
    # There is no name in it, and the same weights are a network of 6 heads and one of 32.
    with pytest.raises(ArchitectureError, match=r"the file states no more, and they do not show heads.*--model-args"):
        load_checkpoint(tmp_path / "c.pth")
    source = load_checkpoint(tmp_path / "c.pth", model_args={"heads": 6})
    assert source.arch_args == {"classes": 10, "depth": 1, "heads": 6}


# --- what the file says of itself ----------------------------------------------------------------------------------


def test_a_name_that_is_not_built_in_is_said_when_nothing_is_recognised(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.zeros(4, 3, 3, 3)}
    torch.save({"state_dict": state, "arch": "resnet50"}, tmp_path / "c.pt")
    with pytest.raises(
        ArchitectureError, match=r"says its architecture is 'resnet50', which is not built in, and holds"
    ):
        load_checkpoint(tmp_path / "c.pt")


def test_a_built_in_name_without_arguments_takes_what_shapes_show(tmp_path: Path) -> None:
    state = state_of("slab_deit_tiny", **SLAB)
    torch.save({"state_dict": state, "arch": "slab_deit_tiny"}, tmp_path / "c.pt")
    source = load_checkpoint(tmp_path / "c.pt")
    assert source.arch_args == SLAB
    assert "From the shapes of the weights: slab_deit_tiny with" in source.warnings[0]
    torch.save(state, tmp_path / "d.pt")
    assert load_checkpoint(tmp_path / "d.pt", arch="slab_deit_tiny").arch_args == SLAB
    with pytest.raises(ArchitectureError, match="does not fit the architecture"):
        load_checkpoint(tmp_path / "d.pt", arch="slab_deit_tiny", model_args={"depth": 2})
    with pytest.raises(ArchitectureError, match="does not fit the architecture"):
        load_checkpoint(tmp_path / "d.pt", arch="slab_deit_tiny_ln")


def test_answers_to_the_question_are_taken(tmp_path: Path) -> None:
    state = state_of("deit_tiny_ln", dim=24, heads=2, depth=1, image_size=32, classes=5)
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ArchitectureError, match="do not show heads") as caught:
        load_checkpoint(tmp_path / "c.pt")
    text = str(caught.value).split("--model-args '")[1].split("'")[0]
    answers = json.loads(text.replace('"?"', "2"))
    source = load_checkpoint(tmp_path / "c.pt", arch="deit_tiny_ln", model_args=answers)
    assert source.module is not None
    assert source.module.blocks[0].attn.heads == 2
    assert [str(spec) for spec in source.inputs] == ["x:float32[B,3,32,32]"]


def test_an_authors_file_folds_with_no_option(tmp_path: Path, packages: Callable[[], None]) -> None:
    slab_file(tmp_path / "slab_deit_tiny.pth", state_of("slab_deit_tiny", **SLAB))
    packages()
    report = look.inspect(tmp_path / "slab_deit_tiny.pth")
    assert [site.kind for site in report.sites] == ["PRepBN"] * 3
    assert report.source.inputs == ("x:float32[B,3,32,32]",)
    assert any(warning.startswith("Recognised as slab_deit_tiny") for warning in report.warnings)


# --- folders of the Hugging Face hub -------------------------------------------------------------------------------
