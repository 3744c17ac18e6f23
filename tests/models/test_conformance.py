"""The papers' files load as what they are, give the numbers of the papers' code, and fold into those numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.source import Source
from normfold.models import catalogue, create
from normfold.models.families import Family
from normfold.norms.detect import find_norms
from normfold.pipeline.run import fold
from tests.models import authors

# What float64 leaves after some fifty layers is 1e-15; a wrong eps, order or mask shows above 1e-6.
TOLERANCE = 1e-9
# The tables of angles of these were computed in float32, which another CPU does another way.
TABLES, TABLE_TOLERANCE = ("llama", "nmt"), 1e-6
# A folded weight is stored in float32: 1e-7, more after some fifty layers.
FOLDED_TOLERANCE = 1e-5
# Quick ones, each with options that no other has.
SAMPLE = {
    "deit_tiny_prepbn_distilled",
    "det_slab_swin_tiny_odd",
    "llama_prepbn_heads2",
    "nmt_un_learned_pos",
    "nmt_un_postnorm_untied_wmt",
    "slab_pvt_v2_b0_sr8421",
    "t2t_vit_7_un",
}
FOLDED_SAMPLE = {"nmt_un_postnorm"}
# Norms that are LayerNorms by design: of a detector's outputs, and behind PVT v2's reductions.
BY_DESIGN = {
    "det_slab_swin_tiny": 4,
    "det_slab_swin_tiny_odd": 4,
    "det_swin_tiny_prepbn": 4,
    "det_swin_tiny_prepbn_odd": 4,
    "pvt_v2_b0_prepbn": 6,
    "slab_pvt_v2_b0_sr8421": 6,
}
# A shift that would be a bias of 3136 x 192 numbers, and stays one addition to 3136 x 147.
PARTIAL = {"t2t_vit_t_14_un": ("UN", "narrow-add")}


def sampled(names: list[str], sample: set[str]) -> list[object]:
    assert sample <= set(names)
    return [name if name in sample else pytest.param(name, marks=pytest.mark.slow) for name in names]


def tolerance(name: str) -> float:
    return TABLE_TOLERANCE if name.startswith(TABLES) else TOLERANCE


def loaded(name: str, folder: Path, *, seed: int = 0) -> Source:
    return load_checkpoint(authors.write(name, folder, seed=seed))


@pytest.mark.parametrize("name", sampled(authors.NAMES, SAMPLE))
def test_a_papers_file_loads_and_gives_its_numbers(tmp_path: Path, name: str) -> None:
    """With no option: names, shapes and types in their order, the norms, and the output."""
    reference = authors.record(name)
    source = loaded(name, tmp_path)
    assert source.module is not None
    entries = [
        {"name": key, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for key, value in source.module.state_dict().items()
    ]
    assert entries == reference["entries"]
    kinds = [norm.kind for norm in source.norms]
    own = (
        "UN" if "_un" in name else "RepBN" if name in ("swin_tiny_prepbn",) or "deit_tiny_prepbn" in name else "PRepBN"
    )
    assert kinds.count("LayerNorm") == BY_DESIGN.get(name, 0)
    assert set(kinds) - {"LayerNorm"} == {own}
    expected = authors.answer(name)
    if expected is not None:
        assert authors.distance(authors.outputs(source.module, reference), expected) < tolerance(name)


def test_only_one_reference_has_no_numbers() -> None:
    assert [name for name in authors.NAMES if authors.answer(name) is None] == ["deit_base_prepbn"]


def test_the_comparison_sees_a_small_difference(tmp_path: Path) -> None:
    name = "deit_tiny_prepbn_distilled"
    module = loaded(name, tmp_path).module
    assert module is not None
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.eps *= 1.01
    expected = authors.answer(name)
    assert expected is not None
    assert authors.distance(authors.outputs(module, authors.record(name)), expected) > TOLERANCE


@pytest.mark.parametrize("name", sampled(authors.NAMES, FOLDED_SAMPLE))
def test_a_papers_file_folds_and_comes_back_as_torch(tmp_path: Path, name: str) -> None:
    """No norm is left but those that are LayerNorms by design, and the folded module gives the paper's numbers."""
    path = authors.write(name, tmp_path)
    inputs = ["x:float32[B,3,150,203]"] if name.endswith("_odd") else []
    report = fold(path, tmp_path / "out.onnx", inputs=inputs, dry_run=True)
    left = [(site.kind, str(site.code)) for site in report.norms if site.status != "folded"]
    whole = ["LayerNorm"] * BY_DESIGN.get(name, 0)
    assert [kind for kind, _ in left if kind == "LayerNorm"] == whole
    assert [entry for entry in left if entry[0] != "LayerNorm"] == ([PARTIAL[name]] if name in PARTIAL else [])
    module = report.to_torch()
    assert [norm.kind for norm in find_norms(module)] == whole
    expected = authors.answer(name)
    if expected is not None:
        assert authors.distance(authors.outputs(module, authors.record(name)), expected) < FOLDED_TOLERANCE


# --- every architecture under every norm -----------------------------------------------------------------------------

KINDS = {"ln": "LayerNorm", "bn": "BatchNorm", "un": "UN", "repbn": "RepBN", "prepbn": "PRepBN"}
VISION = [family for family in catalogue.FAMILIES if "bn" in family.sizes[0].names and "ln" in family.sizes[0].names]


def comes_with_every_norm(family: Family, stem: str) -> None:
    """On the meta device, where building costs nothing: sizes and names are all that is looked at."""
    size = next(size for size in family.sizes if size.stem == stem)
    assert set(size.names) == set(KINDS)
    plain = set()
    for kind, name in size.names.items():
        with torch.device("meta"):
            model = create(name)
        norms = find_norms(model)
        # The attention norm of PVT v2 and the outputs of a detector have a LayerNorm in any case.
        assert {norm.kind for norm in norms} in ({KINDS[kind]}, {KINDS[kind], "LayerNorm"})
        paths = tuple(f"{norm.name}." for norm in norms)
        plain.add(tuple((key, value.shape) for key, value in model.state_dict().items() if not key.startswith(paths)))
    assert len(plain) == 1, "the variants differ by more than their norms"


@pytest.mark.parametrize("family", VISION, ids=lambda family: family.key)
def test_the_first_size_comes_with_every_norm(family: Family) -> None:
    comes_with_every_norm(family, family.sizes[0].stem)


@pytest.mark.slow
@pytest.mark.parametrize("family", VISION, ids=lambda family: family.key)
def test_every_size_comes_with_every_norm(family: Family) -> None:
    for size in family.sizes:
        comes_with_every_norm(family, size.stem)


def test_there_are_as_many_vision_families() -> None:
    assert len(VISION) == 12


@pytest.mark.slow
@pytest.mark.parametrize("family", VISION, ids=lambda family: family.key)
def test_the_layer_norm_twin_runs(family: Family) -> None:
    torch.manual_seed(0)
    model = create(family.sizes[0].names["ln"]).eval()
    with torch.no_grad():
        y = model(torch.randn(1, 3, 224, 224))
    for part in y if isinstance(y, tuple) else (y,):
        assert bool(torch.isfinite(part).all())
        assert float(part.std()) > 0


@pytest.mark.parametrize("family", VISION, ids=lambda family: family.key)
def test_the_layer_norms_have_the_papers_eps(family: Family) -> None:
    eps = 1e-6 if family.key in ("deit", "slab_deit", "pvt", "slab_pvt", "pvt_v2", "slab_pvt_v2") else 1e-5
    with torch.device("meta"):
        model = create(family.sizes[0].names["ln"])
    found = {part.eps for key, part in model.named_modules() if isinstance(part, nn.LayerNorm) and ".attn." not in key}
    assert found == {eps}
