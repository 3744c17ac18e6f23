"""The built-in architectures as data: names, papers, sizes, inputs, published files. No torch: listing is quick.

`models/registry.py` builds them; the tests keep both in step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_CLOSE = 5


@dataclass(frozen=True, slots=True)
class Size:
    """One size of a family. names: the architecture's name by norm kind. parameters: of the first of them.

    usual: the options that its input specifications speak of. published: files that the authors released, by name, and
    the architecture that each holds.
    """

    stem: str
    names: Mapping[str, str]
    parameters: int
    usual: Mapping[str, int]
    published: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """Sizes of one architecture. papers: arXiv numbers. release: where the authors' files are.

    inputs: specifications with options of the architecture in braces.
    computed: endings of state-dict entries that building the model gives and that some files therefore leave out.
    """

    key: str
    title: str
    papers: tuple[str, ...]
    inputs: tuple[str, ...]
    sizes: tuple[Size, ...]
    release: str = ""
    computed: tuple[str, ...] = ()


def _vision(stem: str, parameters: int, *, repbn: bool = False, slab: bool = False, file: bool = False) -> Size:
    """STEM_ln, STEM_bn, ...; repbn: STEM_prepbn is bare RepBN; slab: STEM itself is PRepBN; file: it was published."""
    names = {kind: f"{stem}_{kind}" for kind in ("ln", "bn", "un", "repbn", "prepbn")}
    if repbn:
        names["repbn"] = names.pop("prepbn")
    elif slab:
        names["prepbn"] = stem
    own = names["repbn" if repbn else "prepbn"]
    return Size(stem, names, parameters, {"image_size": 224}, {f"{own}.pth": own} if file else {})


_PICTURE = ("x:float32[B,3,{image_size},{image_size}]",)
_IDS = ("ids:int64[B,L]<{vocab}",)
_SOURCE = "src:int64[B,S<={positions}]<{vocab}"
_PAIR = (_SOURCE, "ids:int64[B,L<={positions}]<{vocab}")
_SLAB = "2405.11582"
_SLAB_FILES = "https://github.com/xinghaochen/SLAB/releases/tag/ckpts"
_UN = "2208.01313"
_UN_FILES = "https://github.com/hikvision-research/Unified-Normalization"
_SWIN_COMPUTED = (".relative_position_index", ".attn_mask")

FAMILIES: tuple[Family, ...] = (
    Family(
        "deit",
        "DeiT",
        ("2012.12877", _SLAB),
        _PICTURE,
        (_vision("deit_tiny", 5717416, repbn=True, file=True), _vision("deit_small", 22050664, file=True)),
        _SLAB_FILES,
    ),
    Family(
        "slab_deit",
        "SLAB-DeiT",
        (_SLAB,),
        _PICTURE,
        (
            _vision("slab_deit_tiny", 6188776, slab=True, file=True),
            _vision("slab_deit_small", 22973416, slab=True, file=True),
        ),
        _SLAB_FILES,
    ),
    Family(
        "swin",
        "Swin",
        ("2103.14030", _SLAB),
        _PICTURE,
        (_vision("swin_tiny", 28288354, repbn=True, file=True), _vision("swin_small", 49606258, repbn=True)),
        _SLAB_FILES,
        _SWIN_COMPUTED,
    ),
    Family(
        "slab_swin",
        "SLAB-Swin",
        (_SLAB,),
        _PICTURE,
        (
            _vision("slab_swin_tiny", 29191808, slab=True, file=True),
            _vision("slab_swin_small", 50509712, slab=True, file=True),
        ),
        _SLAB_FILES,
        _SWIN_COMPUTED,
    ),
    Family(
        "pvt",
        "PVT",
        ("2102.12122", _SLAB),
        _PICTURE,
        (
            _vision("pvt_tiny", 13227240, file=True),
            _vision("pvt_small", 24483816, file=True),
            _vision("pvt_medium", 44206056, file=True),
        ),
        _SLAB_FILES,
    ),
    Family(
        "slab_pvt",
        "SLAB-PVT",
        (_SLAB,),
        _PICTURE,
        (
            _vision("slab_pvt_tiny", 12147432, slab=True, file=True),
            _vision("slab_pvt_small", 21665064, slab=True),
            _vision("slab_pvt_medium", 37233192, slab=True),
        ),
        _SLAB_FILES,
    ),
    Family(
        "cswin",
        "CSwin",
        ("2107.00652",),
        _PICTURE,
        (_vision("cswin_tiny", 20393320), _vision("cswin_small", 34643304)),
    ),
    Family(
        "slab_cswin",
        "SLAB-CSwin",
        (_SLAB,),
        _PICTURE,
        (_vision("slab_cswin_tiny", 21201768, slab=True, file=True), _vision("slab_cswin_small", 35451752, slab=True)),
        _SLAB_FILES,
    ),
    Family("t2t", "T2T-ViT", ("2101.11986", _UN), _PICTURE, (_vision("t2t_vit_14", 21545550),), _UN_FILES),
    Family(
        "llama",
        "LLaMA",
        ("2302.13971", _SLAB),
        _IDS,
        (Size("llama_350m", {"rms": "llama_350m_rms", "prepbn": "llama_350m_prepbn"}, 367563776, {"vocab": 32000}),),
        computed=(".rotary_emb.inv_freq",),
    ),
    Family(
        "nmt",
        "Transformer for IWSLT14 (fairseq)",
        ("1904.01038", _UN),
        _PAIR,
        (Size("nmt", {"ln": "nmt_ln", "un": "nmt_un"}, 36665344, {"vocab": 10000, "positions": 1024}),),
        _UN_FILES,
        ("coder.version", ".embed_positions._float_tensor"),
    ),
    Family(
        "deepnet_encoder",
        "DeepNet encoder (torchscale)",
        ("2203.00555",),
        (_SOURCE,),
        (
            Size(
                "deepnet_encoder",
                {"ln": "deepnet_encoder_ln", "un": "deepnet_encoder_un"},
                90036224,
                {"vocab": 32000, "positions": 1024},
            ),
        ),
    ),
    Family(
        "deepnet_nmt",
        "DeepNet encoder-decoder (torchscale)",
        ("2203.00555",),
        _PAIR,
        (
            Size(
                "deepnet_nmt",
                {"ln": "deepnet_nmt_ln", "un": "deepnet_nmt_un"},
                149850112,
                {"vocab": 32000, "positions": 1024},
            ),
        ),
    ),
    Family(
        "char_lm",
        "Small language model of the fixtures",
        (),
        _IDS,
        (Size("char_lm", {"rms": "char_lm"}, 158144, {"vocab": 128}),),
    ),
    Family(
        "vit",
        "Small vision transformer of the fixtures",
        (),
        ("x:float32[B,{channels},{image_size},{image_size}]",),
        (Size("vit", {"ln": "vit"}, 58570, {"channels": 1, "image_size": 8}),),
    ),
    Family(
        "postnorm_encoder",
        "Small post-norm encoder of the fixtures",
        (),
        ("x:float32[B,1,{length},{features}]",),
        (Size("postnorm_encoder", {"ln": "postnorm_encoder"}, 60202, {"length": 28, "features": 28}),),
    ),
    Family(
        "convnet",
        "Small convolutional network of the fixtures",
        (),
        ("x:float32[B,{channels},28,28]",),
        (Size("convnet", {"bn": "convnet"}, 20186, {"channels": 1}),),
    ),
)


def entries() -> Iterator[tuple[str, Size, Family]]:
    """Every architecture: its name, size and family."""
    for family in FAMILIES:
        for size in family.sizes:
            for name in size.names.values():
                yield name, size, family


def family_of(name: str) -> Family | None:
    """The family of an architecture, None for a name that is not in the catalogue."""
    return next((family for own, _, family in entries() if own == name), None)


def usual_inputs(family: Family, size: Size) -> tuple[str, ...]:
    """The input specifications of a size as it comes."""
    return tuple(text.format(**size.usual) for text in family.inputs)


def inputs_of(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The input specifications of an architecture built with these options (all of them, defaults included)."""
    family = family_of(name)
    return tuple(text.format(**options) for text in family.inputs) if family is not None else ()


def to_json() -> list[dict[str, Any]]:
    """The catalogue for programs: an object for every size."""
    return [
        {
            "name": size.stem,
            "norms": dict(size.names),
            "family": family.title,
            "papers": [f"arXiv:{paper}" for paper in family.papers],
            "parameters": size.parameters,
            "inputs": list(usual_inputs(family, size)),
            "published": dict(size.published),
            "release": family.release or None,
        }
        for family in FAMILIES
        for size in family.sizes
    ]


def closest(word: str) -> list[str]:
    """The names most like a word that is none of them, the likeliest first; possibly none."""
    names = [name for name, _, _ in entries()]
    lowered = word.lower().replace("-", "_")
    # Authors' own names (T2t_vit_14_all_un1d) begin alike more often than they resemble as a whole.
    return difflib.get_close_matches(lowered, names, n=_CLOSE, cutoff=0.6)
