"""SLAB's configuration, whose parts stand in every file whether its network reads them or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.recognise import defaults
from normfold.errors import ArchitectureError
from tests.checkpoint.test_authors_files import packages, state_of
from tests.checkpoint.test_stated import heads_of
from tests.models.authors import CfgNode

__all__ = ["packages"]  # a fixture


def slab(kind: str, name: str = "run_17", **model: Any) -> CfgNode:
    """SLAB's configuration: its SWIN part stands in every file, with its defaults."""
    swin = {"NUM_HEADS": [3, 6, 12, 24], "DEPTHS": [2, 2, 6, 2], "EMBED_DIM": 96, "WINDOW_SIZE": 7}
    linear = {"ATTN_TYPE": "LLLL", "KERNEL_SIZE": 5}
    return CfgNode({"MODEL": {"TYPE": kind, "NAME": name, "SWIN": swin, "LA": linear, **model}})


SWIN = {"NUM_HEADS": [3, 6, 12, 24], "DEPTHS": [1, 1, 1, 1], "EMBED_DIM": 96, "WINDOW_SIZE": 56}
SMALL_DEIT = {"depth": 1, "classes": 5, "image_size": 32}


@pytest.mark.parametrize(
    ("config", "name", "options", "heads"),
    [
        (slab("deits", "deit_small_patch16_224_repbn"), "deit_small_prepbn", SMALL_DEIT, 6),
        (slab("slab_pvt_tiny"), "pvt_tiny_prepbn", {"depths": [1, 1, 1, 1], "image_size": 64}, (1, 2, 5, 8)),
        (slab("slab_pvt_tiny"), "slab_pvt_tiny", {"depths": [1, 1, 1, 1], "image_size": 64}, (1, 2, 5, 8)),
        (slab("slab_pvt_tiny", NUM_CLASSES=7), "slab_pvt_tiny", {"depths": [1] * 4, "image_size": 64}, (1, 2, 5, 8)),
        (slab("SlabSwinTransformer", SWIN=SWIN), "slab_swin_tiny", {"depths": SWIN["DEPTHS"]}, (3, 6, 12, 24)),
    ],
    ids=["deits", "pvt", "slab_pvt", "slab_pvt, classes not read", "slab_swin"],
)
def test_slabs_configuration_is_read_where_it_means_something(
    tmp_path: Path,
    packages: Any,
    config: CfgNode,
    name: str,
    options: dict[str, Any],
    heads: Any,
) -> None:
    torch.save({"model": state_of(name, **options), "config": config}, tmp_path / "c.pth")
    packages()
    source = load_checkpoint(tmp_path / "c.pth")
    assert source.arch == name
    assert heads_of(source) == heads


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (slab("SwinTransformer", SWIN={"NUM_HEADS": [4, 8, 16, 32]}), r"NUM_HEADS = \(4, 8, 16, 32\)"),
        (slab("SwinTransformer", SWIN={"QK_SCALE": 0.5}), "QK_SCALE = 0.5"),
        (slab("deits", "deit_tiny_patch16_224_repbn"), "config.MODEL.NAME = 'deit_tiny_patch16_224_repbn'"),
        (slab("SwinTransformer", NUM_CLASSES=7), "NUM_CLASSES = 7"),
    ],
)
def test_a_configuration_of_another_network(
    tmp_path: Path,
    packages: Any,
    config: CfgNode,
    complaint: str,
) -> None:
    state = state_of("swin_tiny_prepbn", depths=[1, 1], heads=[3, 6])
    torch.save({"model": state, "config": config}, tmp_path / "c.pth")
    packages()
    with pytest.raises(ArchitectureError, match=complaint):
        load_checkpoint(tmp_path / "c.pth")


PVT = {"depths": [1, 1, 1, 1], "image_size": 64}


def linear(kind: str, attention: str, **words: Any) -> CfgNode:
    window = words.pop("WINDOW_SIZE", 7)
    return slab(kind, SWIN={"WINDOW_SIZE": window}, LA={"ATTN_TYPE": attention, "KERNEL_SIZE": 5, **words})


@pytest.mark.parametrize(
    ("config", "name", "options", "complaint"),
    [
        (linear("slab_pvt_tiny", "LLSS"), "slab_pvt_tiny", {}, "ATTN_TYPE = LLSS, .* has attention = L"),
        (linear("slab_pvt_tiny", "SSSS"), "slab_pvt_tiny", {}, "ATTN_TYPE = S, .* has attention = L"),
        (linear("slab_pvt_tiny", "LLLL", KERNEL_SIZE=3), "slab_pvt_tiny", {}, "KERNEL_SIZE = 3, .* kernel = 5"),
        (
            linear("slab_pvt_tiny", "LLSS", PVT_LA_SR_RATIOS=8421),
            "slab_pvt_tiny",
            {"attention": "LLSS", "reductions": [1, 1, 2, 1]},
            r"PVT_LA_SR_RATIOS = \(8, 4, 2, 1\), .* reductions = \(1, 1, 2, 1\)",
        ),
        (
            linear("SlabSwinTransformer", "LLLL", WINDOW_SIZE=56),
            "slab_swin_tiny",
            {"depths": [2, 1], "heads": [3, 6], "linear_window": 7, "image_size": 56, "attention": "L"},
            "WINDOW_SIZE = 56, .* linear_window = 7",
        ),
    ],
)
def test_what_slab_says_of_its_attention_is_held_against_the_weights(
    tmp_path: Path, packages: Any, config: CfgNode, name: str, options: dict[str, Any], complaint: str
) -> None:
    state = state_of(name, **({} if "swin" in name else PVT), **options)
    torch.save({"model": state, "config": config}, tmp_path / "c.pth")
    packages()
    with pytest.raises(ArchitectureError, match=complaint):
        load_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize(
    ("config", "name", "options"),
    [
        # Defaults that stand in every file say nothing, and nobody reads them of a network without linear attention.
        (linear("slab_pvt_tiny", "LLLL"), "pvt_tiny_prepbn", PVT),
        (linear("slab_pvt_tiny", "SSSS", PVT_LA_SR_RATIOS=8421), "pvt_tiny_prepbn", PVT),
        (linear("slab_pvt_tiny", "LLSS"), "slab_pvt_tiny", {**PVT, "attention": "LLSS", "reductions": [1, 1, 2, 1]}),
        (linear("slab_pvt_v2_b0", "LLLL"), "slab_pvt_v2_b0", {**PVT, "reductions": [8, 4, 2, 1]}),
        (linear("deits", "LLSS", KERNEL_SIZE=3), "slab_deit_tiny", SMALL_DEIT),
    ],
)
def test_what_slab_says_of_networks_that_do_not_read_it(
    tmp_path: Path, packages: Any, config: CfgNode, name: str, options: dict[str, Any]
) -> None:
    torch.save({"model": state_of(name, **options), "config": config}, tmp_path / "c.pth")
    packages()
    source = load_checkpoint(tmp_path / "c.pth")
    assert source.arch == name
    known_ones = {**defaults(name), **source.arch_args}
    assert all(tuple(known_ones[key]) == tuple(value) for key, value in options.items() if isinstance(value, list))
