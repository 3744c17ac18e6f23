"""The papers' vision models give the numbers of their published code, with parameters drawn by reference/fill.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normfold.models import create, names
from normfold.norms.detect import find_norms
from tests.models.reference import fill

FOLDER = Path(__file__).resolve().parent / "reference"
PUBLISHED = {
    "deit_tiny_prepbn": ("RepBN", 25),
    "pvt_tiny_prepbn": ("PRepBN", 26),
    "slab_cswin_tiny": ("PRepBN", 55),
    "slab_deit_tiny": ("PRepBN", 25),
    "slab_pvt_tiny": ("PRepBN", 20),
    "slab_swin_tiny": ("PRepBN", 29),
    "swin_tiny_prepbn": ("RepBN", 29),
    "t2t_vit_14_un": ("UN", 33),
}
SIZES = {"cswin": ("tiny", "small"), "deit": ("tiny", "small"), "pvt": ("tiny", "small", "medium")}
SIZES["swin"] = SIZES["deit"]
STEMS = [f"{slab}{family}_{size}" for slab in ("", "slab_") for family, sizes in SIZES.items() for size in sizes]
STEMS.append("t2t_vit_14")
KINDS = {"ln": "LayerNorm", "bn": "BatchNorm", "un": "UN", "repbn": "RepBN", "prepbn": "PRepBN"}
# Published under the name of the schedule, without it.
BARE = {"deit_tiny_prepbn", "swin_small_prepbn", "swin_tiny_prepbn"}
# What float64 leaves after some fifty layers is 1e-15; a wrong eps, order or mask shows above 1e-6.
TOLERANCE = 1e-9


def variant(stem: str, kind: str) -> str:
    """The name of an architecture under a norm: SLAB's own norm goes without saying."""
    return stem if stem.startswith("slab_") and kind == "prepbn" else f"{stem}_{kind}"


def read(name: str) -> tuple[dict[str, Any], np.ndarray]:
    return json.loads((FOLDER / f"{name}.json").read_text()), np.load(FOLDER / f"{name}.npy")


def filled(name: str, record: dict[str, Any]) -> nn.Module:
    """The model with the reference's parameters, rounded to float32 as a checkpoint holds them, in float64."""
    model = create(name)
    drawn = {key: torch.from_numpy(value).float() for key, value in fill.state_dict(record).items()}
    model.load_state_dict({**model.state_dict(), **drawn}, strict=True)
    return model.double().eval()


def distance(model: nn.Module, expected: np.ndarray) -> float:
    with torch.no_grad():
        got = model(torch.from_numpy(fill.image((2, 3, 224, 224)))).numpy()
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_entries_and_gives_its_numbers(name: str) -> None:
    record, expected = read(name)
    model = filled(name, record)
    entries = [
        {"name": key, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for key, value in create(name).state_dict().items()
    ]
    assert entries == record["entries"]
    norms = find_norms(model)
    assert ({norm.kind for norm in norms}, len(norms)) == ({PUBLISHED[name][0]}, PUBLISHED[name][1])
    assert distance(model, expected) < TOLERANCE


def test_the_comparison_sees_a_small_difference() -> None:
    record, expected = read("slab_deit_tiny")
    model = filled("slab_deit_tiny", record)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps *= 1.01
    assert distance(model, expected) > TOLERANCE


@pytest.mark.parametrize("stem", STEMS)
def test_every_model_comes_with_every_norm(stem: str) -> None:
    """On the meta device, where building costs nothing: sizes and names are all that is looked at."""
    plain: set[tuple[tuple[str, torch.Size], ...]] = set()
    for kind, expected in KINDS.items():
        name = variant(stem, kind)
        if name not in names():
            assert (kind, f"{stem}_prepbn" in BARE) == ("repbn", True), name
            continue
        with torch.device("meta"):
            model = create(name)
        norms = find_norms(model)
        assert {norm.kind for norm in norms} == {"RepBN" if name in BARE else expected}
        paths = tuple(f"{norm.name}." for norm in norms)
        plain.add(tuple((key, value.shape) for key, value in model.state_dict().items() if not key.startswith(paths)))
    assert len(plain) == 1, "the variants differ by more than their norms"


def test_the_names_are_these() -> None:
    vision = [name for name in names() if name.startswith(("cswin_", "deit_", "pvt_", "slab_", "swin_", "t2t_"))]
    expected = {variant(stem, kind) for stem in STEMS for kind in KINDS}
    assert set(vision) == expected - {name.replace("prepbn", "repbn") for name in BARE}
    assert len(vision) == len(STEMS) * len(KINDS) - len(BARE)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_layer_norm_twin_runs(name: str) -> None:
    twin = variant(name.removesuffix("_prepbn").removesuffix("_un"), "ln")
    torch.manual_seed(0)
    model = create(twin).eval()
    eps = 1e-6 if "deit" in twin or "pvt" in twin else 1e-5
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {eps}
    with torch.no_grad():
        y = model(torch.randn(1, 3, 224, 224))
    assert y.shape == (1, 1000)
    assert bool(torch.isfinite(y).all())
    assert float(y.std()) > 0
