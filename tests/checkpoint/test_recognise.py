"""Architectures from names and shapes: the published models, every built-in one, and what is like none of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normfold import models
from normfold.checkpoint import recognise
from normfold.checkpoint.recognise import defaults, options_of
from normfold.checkpoint.stated import Said, Statement, of_configuration, read
from normfold.errors import ArchitectureError
from normfold.models import catalogue, registry
from normfold.models.families import Family
from tests.models import authors
from tests.paths import ROOT

FIXTURES = sorted((ROOT / "fixtures").glob("*.pt"))
Shapes = dict[str, tuple[int, ...]]
BUILD = recognise.without_values


@cache
def built(name: str, options: str) -> nn.Module:
    return BUILD(name, json.loads(options))


@pytest.fixture(autouse=True)
def build_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time goes into building; the same network need not be built twice."""
    monkeypatch.setattr(recognise, "without_values", lambda name, options: built(name, json.dumps(options)))


def shapes_of(name: str, **options: Any) -> Shapes:
    return {key: tuple(value.shape) for key, value in built(name, json.dumps(options)).state_dict().items()}


# --- what is recognised --------------------------------------------------------------------------------------------


def stating(**options: Any) -> Said:
    return Said(statements=tuple(Statement(option, value, f"args.{option}") for option, value in options.items()))


def named(name: str) -> Said:
    return Said(names=((name, "arch"),))


SHOWN = ("swin", "slab_swin", "swin_backbone", "slab_deit", "slab_pvt", "slab_pvt_v2", "convnet")
"""Families whose names and shapes show all that changes the function; of the others something has to be said."""

_LLAMA = {"vocab": 160, "dim": 96, "depth": 2, "hidden": 176}
_EPS = {**defaults("llama_350m_prepbn")["norm_args"], "base_eps": 1e-5, "eps": 1e-5}
_NMT = {"vocab": 600, "depth": 1}
TAKEN_FOR: dict[str, tuple[str, dict[str, Any]]] = {
    "deit_tiny_prepbn_distilled": ("deit_tiny_prepbn", {"distilled": True}),
    "det_slab_swin_tiny_odd": ("det_slab_swin_tiny", {}),
    "det_swin_tiny_prepbn_odd": ("det_swin_tiny_prepbn", {}),
    "llama_prepbn_heads2": ("llama_350m_prepbn", {**_LLAMA, "heads": 2, "norm_args": _EPS}),
    "llama_prepbn_heads6": ("llama_350m_prepbn", {**_LLAMA, "heads": 6}),
    "nmt_un": ("nmt_un", {"vocab": 1000}),
    "nmt_un_layernorm_embedding": ("nmt_un", {**_NMT, "embedding_norm": True}),
    "nmt_un_learned_pos": ("nmt_un", {**_NMT, "positions": 64, "learned_positions": True}),
    "nmt_un_postnorm": ("nmt_un", {"vocab": 600, "depth": (2, 1), "pre_norm": False}),
    "nmt_un_postnorm_untied_wmt": (
        "nmt_wmt_un",
        {**_NMT, "pre_norm": False, "shared": "none", "norm_args": {"window": 8}},
    ),
    "nmt_un_share_decoder": ("nmt_un", {**_NMT, "shared": "decoder"}),
    "nmt_un_untied": ("nmt_un", {**_NMT, "shared": "none"}),
    "nmt_un_wmt_base": ("nmt_wmt_un", _NMT),
    "slab_pvt_tiny_llss": ("slab_pvt_tiny", {"attention": "LLSS", "reductions": (1, 1, 2, 1)}),
    "slab_pvt_tiny_sr8421": ("slab_pvt_tiny", {"reductions": (8, 4, 2, 1)}),
    "slab_pvt_v2_b0_sr8421": ("slab_pvt_v2_b0", {"attention": "LLSS", "reductions": (8, 4, 2, 1)}),
    "slab_swin_tiny_llll_w7_k3": ("slab_swin_tiny", {"attention": "L", "kernel": 3, "linear_window": 7}),
}
"""What the papers' files are, by reference; a name that is missing here is the architecture's own."""


@pytest.mark.parametrize("name", authors.NAMES)
def test_the_papers_files_are_recognised(name: str) -> None:
    """From names and shapes and what stands beside them."""
    content = authors.content(name, {})
    said = of_configuration(content, "config.json") if name.startswith("llama") else read(content)
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in authors.record(name)["entries"]}
    found = recognise.recognise(shapes, said=said)
    assert (found.name, found.options) == TAKEN_FOR.get(name, (name, {}))
    assert found.sentence.startswith(f"Recognised as {found.name}")


def test_there_are_references() -> None:
    assert len(authors.NAMES) == 40
    assert TAKEN_FOR.keys() < set(authors.NAMES)
    assert len(FIXTURES) == 9


def recognises_itself(name: str, family: Family) -> None:
    found = recognise.recognise(shapes_of(name), said=named(name))
    assert (found.name, found.options) == (name, {})
    assert options_of(name, shapes_of(name)) == recognise.Recognised(name, {}, "")
    if family.key in SHOWN:
        assert recognise.recognise(shapes_of(name)).name == name
    else:
        with pytest.raises(ArchitectureError, match=rf"do not show \w+.*--arch {name} \(\w+ = "):
            recognise.recognise(shapes_of(name))


@pytest.mark.parametrize("family", catalogue.FAMILIES, ids=lambda family: family.key)
def test_every_family_recognises_its_first_size(family: Family) -> None:
    for name in family.sizes[0].names.values():
        recognises_itself(name, family)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), [(name, family) for name, _, family in catalogue.entries()])
def test_every_architecture_recognises_itself(name: str, family: Family) -> None:
    recognises_itself(name, family)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_tiny_prepbn", {"classes": 10, "image_size": 384, "depth": 6}),
        ("deit_small_un", {"norm_args": {"window": 7}}),
        ("slab_deit_tiny", {"image_size": 32, "dim": 12, "depth": 1, "heads": 2, "mlp_ratio": 2.0}),
        ("swin_tiny_prepbn", {"classes": 3, "image_size": 128, "window": 8}),
        ("swin_tiny_ln", {"dim": 24, "depths": [2, 2], "heads": [2, 4]}),
        ("slab_swin_tiny", {"classes": 3, "depths": [2, 2, 4, 2]}),
        ("pvt_tiny_prepbn", {"classes": 3, "image_size": 64, "depths": [1, 2, 2, 1]}),
        ("slab_pvt_tiny_bn", {"dims": [16, 32], "depths": [1, 1], "heads": [2, 2], "mlp_ratios": [2, 2]}),
        ("cswin_tiny_un", {"classes": 3, "depths": [1, 1, 2, 1]}),
        ("slab_cswin_tiny", {"classes": 3}),
        ("slab_cswin_tiny_un", {"depths": [1, 1, 1, 1], "attention": "L", "linear_stripes": [7, 14, 14, 7]}),
        ("t2t_vit_14_un", {"classes": 10, "depth": 7, "image_size": 96}),
        ("llama_350m_rms", {"vocab": 50, "dim": 32, "depth": 2, "heads": 2, "hidden": 48}),
        ("llama_350m_prepbn", {"vocab": 50, "dim": 32, "depth": 2, "heads": 2, "hidden": 48}),
        ("nmt_un", {"vocab": 50, "depth": 2, "hidden": 48}),
        ("deepnet_encoder_un", {"vocab": 50, "depth": 2, "hidden": 48, "positions": 20}),
        ("deepnet_nmt_ln", {"vocab": 50, "encoder_depth": 1, "decoder_depth": 3, "positions": 20}),
    ],
)
def test_options_that_shapes_show_are_derived(name: str, options: dict[str, Any]) -> None:
    shapes = shapes_of(name, **options)
    hidden = {
        option: defaults(name)[option] for option in ("heads", "stripes", "rope_base") if option in defaults(name)
    }
    found = recognise.recognise(shapes, said=stating(**{**hidden, "eps": 1e-6, **options}))
    # Two sizes may be one network once their depths are given.
    assert {key: value.shape for key, value in built(found.name, json.dumps(found.options)).state_dict().items()} == {
        key: torch.Size(shape) for key, shape in shapes.items()
    }
    full = {**defaults(found.name), **found.options}
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in full.items()}
    assert {key: listed[key] for key in options} == options
    for option, value in found.options.items():
        assert f"{option} = {value}" in found.sentence


def test_what_shapes_do_not_show_is_said() -> None:
    for name, said in [
        ("deit_small_ln", "heads = 6"),
        ("pvt_tiny_prepbn", "heads = (1, 2, 5, 8)"),
        ("cswin_tiny_ln", "heads = (2, 4, 8, 16), stripes = (1, 2, 7, 7), image_size = 224"),
        ("nmt_un", "heads = 4, positions = 1024"),
    ]:
        sentence = recognise.recognise(shapes_of(name), said=named(name)).sentence
        assert said in sentence
        assert "the eps of its norms" in sentence
    for name in ("slab_deit_tiny", "swin_tiny_prepbn", "slab_swin_tiny", "slab_pvt_tiny"):
        assert "heads" not in recognise.recognise(shapes_of(name)).sentence


def test_bare_repbn_and_prepbn_are_told_apart() -> None:
    small = {"image_size": 32, "dim": 12, "depth": 1, "heads": 2}
    for name in ("slab_deit_tiny", "slab_deit_tiny_repbn", "slab_deit_tiny_bn", "slab_deit_tiny_un"):
        assert recognise.recognise(shapes_of(name, **small)).name == name


def test_entries_that_the_model_computes_may_be_left_out() -> None:
    shapes = shapes_of("swin_tiny_ln")
    without = {name: shape for name, shape in shapes.items() if not name.endswith("relative_position_index")}
    assert len(without) < len(shapes)
    assert recognise.recognise(without).name == "swin_tiny_ln"


def test_a_tied_projection_may_be_left_out() -> None:
    shapes = shapes_of("llama_350m_rms")
    del shapes["lm_head.weight"]
    assert recognise.recognise(shapes, said=named("llama_350m_rms")).options == {"tied": True}


@pytest.mark.parametrize("path", FIXTURES, ids=[path.stem for path in FIXTURES])
def test_fixtures_without_what_they_say_of_themselves(path: Path) -> None:
    """The fixtures' small networks are recognised by name as they are by default, and otherwise not guessed at."""
    checkpoint = torch.load(path, weights_only=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    if path.stem == "convnet_bn":
        assert recognise.recognise(shapes).name == "convnet"
        return
    with pytest.raises(ArchitectureError):
        recognise.recognise(shapes)
    recognised = {"vit_ln": {}, "char_lm_rms": {"vocab": 103}}
    if path.stem in recognised:
        found = recognise.recognise(shapes, said=named(checkpoint["arch"]))
        assert (found.name, found.options) == (checkpoint["arch"], recognised[path.stem])


def test_a_second_is_enough() -> None:
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in authors.record("slab_deit_tiny")["entries"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognise, "without_values", BUILD)
        recognise.recognise(shapes)
        start = time.process_time()
        recognise.recognise(shapes)
        assert time.process_time() - start < 1


def test_recognising_does_not_import_the_compiler() -> None:
    """torch's decompositions for the meta device take seconds to import, and some initialisers ask for them."""
    code = """
import sys
from normfold.checkpoint import recognise
import torch
before = "torch._dynamo" in sys.modules
for name in ("t2t_vit_14_un", "nmt_un", "vit", "convnet", "char_lm"):
    recognise.without_values(name, {})
print(before, "torch._dynamo" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


# --- what is not ---------------------------------------------------------------------------------------------------


def small_deit(**changes: tuple[int, ...] | None) -> Shapes:
    shapes = {**shapes_of("deit_tiny_prepbn"), **changes}
    return {name: shape for name, shape in shapes.items() if shape is not None}


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        ({"encoder.conv.weight": (3, 3)}, r"no built-in architecture has names such as encoder\.conv\.weight"),
        (small_deit(**{"head.bias": None}), r"deit_tiny_prepbn \(1 missing, such as head\.bias\)"),
        (small_deit(cls_token=None), r"deit_tiny_prepbn \(1 missing, such as cls_token\)"),
        (small_deit(**{"head_dist.bias": (3,)}), r"deit_tiny_prepbn \(1 unexpected, such as head_dist\.bias\)"),
        (
            small_deit(**{"blocks.3.mlp.fc2.bias": (190,)}),
            r"1 of another shape, such as blocks\.3\.mlp\.fc2\.bias, \[190\] for \[192\]",
        ),
    ],
)
def test_near_misses_name_the_closest(shapes: Shapes, complaint: str) -> None:
    with pytest.raises(ArchitectureError, match=complaint):
        recognise.recognise(shapes)


def test_norms_that_a_family_does_not_come_with() -> None:
    shapes = {name.replace("running_var", "running_phi"): shape for name, shape in shapes_of("deit_tiny_bn").items()}
    with pytest.raises(ArchitectureError, match=r"DeiT .*with powernorm for norms, which comes with ln, bn, un"):
        recognise.recognise(shapes)


def test_a_size_of_its_own_is_asked_for() -> None:
    shapes = shapes_of("deit_tiny_un", dim=576)
    with pytest.raises(ArchitectureError, match="do not show heads; give what it was trained with") as caught:
        recognise.recognise(shapes)
    assert """--arch deit_tiny_un --model-args '{"dim": 576, "heads": "?"}'""" in str(caught.value)
    assert "deit_small" not in str(caught.value), "the same question twice"
    for told in (
        recognise.recognise(shapes, said=stating(heads=12)),
        recognise.recognise(shapes, given={"heads": 12}),
        options_of("deit_tiny_un", shapes, given={"heads": 12}),
    ):
        assert (told.name, told.options) == ("deit_tiny_un", {"dim": 576, "heads": 12})
    with pytest.raises(ArchitectureError, match="do not show heads"):
        options_of("deit_tiny_un", shapes)


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> Shapes:
    """Two architectures that differ in nothing but a head count that shapes do not show."""
    first, *others = catalogue.FAMILIES
    assert first.key == "deit"
    like, name = first.sizes[0], "deit_few_heads"
    twin = replace(like, stem=name, names={"ln": name}, options={**like.options, "heads": 2}, published={})
    monkeypatch.setitem(registry.ARCHITECTURES, name, partial(registry.ARCHITECTURES["deit_tiny_ln"], heads=2))
    monkeypatch.setattr(catalogue, "FAMILIES", (replace(first, sizes=(*first.sizes, twin)), *others))
    return shapes_of("deit_tiny_ln")


def test_what_is_ambiguous_is_listed_or_told_by_the_file(twins: Shapes) -> None:
    with pytest.raises(
        ArchitectureError, match=r"--arch deit_tiny_ln \(heads = 3\);.* --arch deit_few_heads \(heads = 2"
    ):
        recognise.recognise(twins)
    assert recognise.recognise(twins, said=named("deit_few_heads")).name == "deit_few_heads"
    assert recognise.recognise(twins, said=stating(heads=2)).name == "deit_few_heads"
    assert recognise.recognise(twins, said=stating(heads=3)).name == "deit_tiny_ln"
    assert recognise.recognise(twins, said=stating(heads=6)).options == {"heads": 6}
    with pytest.raises(ArchitectureError, match="do not show heads"):
        recognise.recognise(twins, said=named("my_own_deit"))


def test_a_configuration_file_may_say_another_eps() -> None:
    shapes = shapes_of("llama_350m_rms")
    said = {"rope_base": 10000.0}
    assert recognise.recognise(shapes, said=stating(eps=1e-6, **said)).options == {}
    found = recognise.recognise(shapes, said=stating(eps=1e-5, **said))
    assert found.options == {"norm_args": {"eps": 1e-5}}
    assert "eps of its norms" not in found.sentence
    prepbn = recognise.recognise(shapes_of("llama_350m_prepbn"), said=stating(eps=1e-5, **said)).options["norm_args"]
    assert (prepbn["eps"], prepbn["base_eps"], prepbn["base"]) == (1e-5, 1e-5, "rms")
    assert options_of("llama_350m_rms", shapes, given={"eps": 1e-5}).options == {"norm_args": {"eps": 1e-5}}


def test_what_no_shape_of_a_language_model_shows_is_asked_for() -> None:
    shapes = shapes_of("llama_350m_rms", vocab=50, dim=32, depth=2, heads=2, hidden=48)
    with pytest.raises(ArchitectureError, match=r"do not show eps and rope_base;.*--arch llama_350m_rms \(eps = 1e-06"):
        recognise.recognise(shapes)
    with pytest.raises(ArchitectureError, match="do not show rope_base;"):
        recognise.recognise(shapes, said=stating(eps=1e-6))
    assert options_of("llama_350m_rms", shapes).options["heads"] == 2
    found = recognise.recognise(shapes, said=stating(eps=1e-6, rope_base=500000.0))
    assert found.options["rope_base"] == 500000.0


def test_options_of_a_name_that_is_given() -> None:
    shapes = shapes_of("nmt_un", vocab=50)
    assert options_of("nmt_un", shapes).options == {"vocab": 50}
    assert options_of("nmt_un", shapes_of("nmt_un")).options == {}
    assert options_of("nmt_ln", shapes).options == {}, "does not fit whatever its options"
    assert options_of("nmt_ln", shapes, given={"depth": 3}).options == {"depth": 3}
    assert options_of("no_such", shapes).options == {}


# --- the catalogue -------------------------------------------------------------------------------------------------


def test_the_catalogue_has_what_is_built_in() -> None:
    names = [name for name, _, _ in catalogue.entries()]
    assert sorted(names) == models.names()
    for family in catalogue.FAMILIES:
        for size in family.sizes:
            for kind, name in size.names.items():
                known = defaults(name)
                assert known["norm"] == kind
                chosen = {**family.options, **size.options}
                assert {option: known[option] for option in chosen} == chosen
                assert catalogue.inputs_of(name, known) == catalogue.usual_inputs(family, size)
            assert set(size.published.values()) <= set(size.names.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", catalogue.FAMILIES, ids=lambda family: family.key)
def test_the_catalogue_counts_parameters(family: Family) -> None:
    for size in family.sizes:
        first = next(iter(size.names.values()))
        assert sum(parameter.numel() for parameter in built(first, "{}").parameters()) == size.parameters


def test_the_slab_release_is_all_there() -> None:
    files = {file for _, size, _ in catalogue.entries() for file in size.published}
    plain = {
        f"{stem}_prepbn.pth" for stem in ("deit_tiny", "deit_small", "pvt_tiny", "pvt_small", "pvt_medium", "swin_tiny")
    }
    slab = {
        f"slab_{stem}.pth" for stem in ("deit_tiny", "deit_small", "pvt_tiny", "swin_tiny", "swin_small", "cswin_tiny")
    }
    assert files == plain | slab


def test_close_names() -> None:
    assert catalogue.closest("deit_tiny_prebn")[0] == "deit_tiny_prepbn"
    assert "t2t_vit_14_un" in catalogue.closest("T2t_vit_14_un")
    assert catalogue.closest("resnet50") == []
