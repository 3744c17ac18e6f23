"""Weights under a prefix, as parts of larger networks, without their head, or beside averaged ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.prefixes import part_of
from normfold.checkpoint.recognise import ROWS
from normfold.errors import ArchitectureError
from tests.checkpoint.test_authors_files import SLAB, State, state_of

PREFIXES = ["backbone.", "model.", "net.", "module.", "encoder_q.", "model.backbone.", "module.net.", "_orig_mod."]
BACKBONE = {"dim": 12, "depths": [1, 1], "heads": [2, 2], "windows": [7, 7]}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("arch", [None, "slab_deit_tiny"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_prefix_of_all_names_is_taken_off_and_said(tmp_path: Path, prefix: str, arch: str | None) -> None:
    state = state_of("slab_deit_tiny", **SLAB)
    torch.save({"state_dict": under(prefix, state)}, tmp_path / "c.pth")
    source = load_checkpoint(tmp_path / "c.pth", arch=arch)
    assert (source.arch, source.arch_args) == ("slab_deit_tiny", SLAB)
    assert source.module is not None
    own = source.module.state_dict()
    assert all(torch.equal(own[name], value) for name, value in state.items())
    told = prefix.removeprefix("module.").removeprefix("_orig_mod.")
    said = [text for text in source.warnings if text.startswith("The weights stand under")]
    assert said == ([f"The weights stand under `{told}`, which was taken off their names."] if told else [])


def test_names_that_begin_alike_of_themselves_keep_it(tmp_path: Path) -> None:
    options = {"vocab": 40, "dim": 16, "depth": 1, "heads": 2, "hidden": 24, "tied": True}
    state = state_of("llama_350m_rms", **options)
    del state["lm_head.weight"]
    assert all(name.startswith("model.") for name in state)
    torch.save(state, tmp_path / "c.pth")
    source = load_checkpoint(tmp_path / "c.pth", arch="llama_350m_rms")
    assert source.module is not None
    assert not any("prefix" in text or "stand under" in text for text in source.warnings)


def test_a_users_own_module_takes_them_without_the_prefix(tmp_path: Path) -> None:
    state = under("net.", torch.nn.Linear(3, 2).state_dict())
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(ArchitectureError, match=r"2 missing .*2 unexpected"):
        load_checkpoint(
            tmp_path / "c.pth",
            model="torch.nn:Linear",
            model_args={"in_features": 3, "out_features": 2},
            inputs=["input:float32[B,3]"],
        )


def test_a_detectors_backbone_is_taken_and_the_rest_is_said(tmp_path: Path) -> None:
    state = state_of("det_swin_tiny_prepbn", **BACKBONE)
    rest = {"neck.fpn.weight": torch.zeros(2), "rpn_head.conv.weight": torch.zeros(3)}
    torch.save({"state_dict": {**under("backbone.", state), **rest}}, tmp_path / "c.pth")
    source = load_checkpoint(tmp_path / "c.pth")
    assert source.arch == "det_swin_tiny_prepbn"
    (said,) = [text for text in source.warnings if text.startswith("The weights stand under `backbone.`")]
    assert said.endswith("2 entries beside them (neck, rpn_head) were left out.")


def test_what_stands_beside_a_classifier_is_not_left_out(tmp_path: Path) -> None:
    state = {**under("backbone.", state_of("slab_deit_tiny", **SLAB)), "projector.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(ArchitectureError, match=r"no built-in architecture has names such as backbone\."):
        load_checkpoint(tmp_path / "c.pth")


def test_two_networks_in_one_file(tmp_path: Path) -> None:
    state = state_of("det_swin_tiny_prepbn", **BACKBONE)
    torch.save({**under("student.", state), **under("teacher.", state)}, tmp_path / "c.pth")
    with pytest.raises(ArchitectureError, match=r"holds several networks \(student\., teacher\.\)"):
        load_checkpoint(tmp_path / "c.pth")


def test_a_stranger_is_under_no_prefix() -> None:
    shapes = {f"layer{i}.{j}.conv.weight": (4, 4, 3, 3) for i in range(40) for j in range(10)}
    assert part_of(shapes, list(ROWS)) == ""


@pytest.mark.parametrize(
    ("name", "options", "width"),
    [
        ("slab_deit_tiny", SLAB, 12),
        ("deit_tiny_un", {"dim": 12, "depth": 1, "heads": 2, "image_size": 32, "distilled": True}, 12),
        ("pvt_tiny_prepbn", {"dims": [8, 12], "depths": [1, 1], "heads": [1, 2], "image_size": 32}, 12),
        ("swin_tiny_un", {"dim": 12, "depths": [2], "heads": [2], "image_size": 56}, 12),
    ],
)
def test_a_network_without_its_head_gives_what_the_head_would_read(
    tmp_path: Path, name: str, options: dict[str, Any], width: int
) -> None:
    state = {key: value for key, value in state_of(name, **options).items() if not key.startswith("head")}
    content = {"state_dict": state, "args": {"num_classes": 1000}}
    torch.save(content, tmp_path / "c.pth")
    source = load_checkpoint(tmp_path / "c.pth", model_args={"heads": options["heads"]})
    assert source.module is not None and source.arch_args["classes"] == 0
    assert any("classes = 0" in text for text in source.warnings)
    side = options["image_size"]
    assert source.module(torch.zeros(2, 3, side, side)).shape == (2, width)


def test_averaged_weights_that_were_not_taken_are_said(tmp_path: Path) -> None:
    state = state_of("slab_deit_tiny", **SLAB)
    averaged = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    torch.save({"model": state, "state_dict_ema": averaged}, tmp_path / "c.pth")
    source = load_checkpoint(tmp_path / "c.pth")
    assert any("averaged weights too, under 'state_dict_ema', which --ema takes" in text for text in source.warnings)
    source = load_checkpoint(tmp_path / "c.pth", ema=True)
    assert source.module is not None
    assert torch.equal(source.module.get_parameter("head.bias"), averaged["head.bias"])
    assert not any("averaged" in text for text in source.warnings)
    # A number under such a key is not a model.
    torch.save({"model": state, "ema": {"decay": 0.99}}, tmp_path / "c.pth")
    assert not any("averaged" in text for text in load_checkpoint(tmp_path / "c.pth").warnings)
