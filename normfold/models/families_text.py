"""The language architectures and the small networks of the fixtures, a row for every size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from normfold.models.families import Family, Options, Size

_IDS = ("ids:int64[B,L]<{vocab}",)
_SOURCE = "src:int64[B,S<={positions}]<{source_vocab}"
_PAIR = (_SOURCE, "ids:int64[B,L<={positions}]<{target_vocab}")
_SLAB = "2405.11582"
_UN = "2208.01313"
_UN_FILES = "https://github.com/hikvision-research/Unified-Normalization"
_LN_UN: Mapping[str, Options] = {"ln": {"norm": "ln"}, "un": {"norm": "un"}}
# One step of the published schedule is 16 training forwards.
_LLAMA_PREPBN: Mapping[str, Any] = {
    "base": "rms",
    "base_eps": 1e-6,
    "eps": 1e-6,
    "flatten": True,
    "warm": 10000,
    "steps": 18000,
    "accumulation": 16,
}


def _text(stem: str, parameters: int, norms: Mapping[str, Options], **options: Any) -> Size:
    """A row of a language model, named STEM_KIND."""
    return Size(stem, parameters, {kind: f"{stem}_{kind}" for kind in norms}, norms, options)


TEXT: tuple[Family, ...] = (
    Family(
        "llama",
        "LLaMA",
        ("2302.13971", _SLAB),
        _IDS,
        {"vocab": 32000},
        (
            _text(
                "llama_350m",
                367563776,
                {
                    "rms": {"norm": "rms", "norm_args": {"eps": 1e-6}},
                    "prepbn": {"norm": "prepbn", "norm_args": _LLAMA_PREPBN},
                },
                vocab=32000,
                dim=1024,
                depth=18,
                heads=8,
                hidden=4096,
            ),
        ),
        computed=(".rotary_emb.inv_freq",),
    ),
    Family(
        "nmt",
        "Transformer for translation (fairseq)",
        ("1904.01038", _UN),
        _PAIR,
        {"vocab": 10000, "positions": 1024},
        (
            _text("nmt", 36665344, _LN_UN),
            _text("nmt_wmt", 60917760, _LN_UN, heads=8, hidden=2048, vocab=32768),
            _text("nmt_wmt_big", 209915904, _LN_UN, dim=1024, heads=16, hidden=4096, vocab=32768),
        ),
        release=_UN_FILES,
        computed=("coder.version", ".embed_positions._float_tensor"),
    ),
    Family(
        "deepnet_encoder",
        "DeepNet encoder (torchscale)",
        ("2203.00555",),
        (_SOURCE,),
        {"vocab": 32000, "positions": 1024},
        (_text("deepnet_encoder", 90036224, _LN_UN),),
    ),
    Family(
        "deepnet_nmt",
        "DeepNet encoder-decoder (torchscale)",
        ("2203.00555",),
        _PAIR,
        {"vocab": 32000, "positions": 1024},
        (_text("deepnet_nmt", 149850112, _LN_UN),),
    ),
    Family(
        "char_lm",
        "Small language model of the fixtures",
        (),
        _IDS,
        {"vocab": 128},
        (Size("char_lm", 158144, {"rms": "char_lm"}, {"rms": {}}),),
    ),
    Family(
        "vit",
        "Small vision transformer of the fixtures",
        (),
        ("x:float32[B,{channels},{image_size},{image_size}]",),
        {"channels": 1, "image_size": 8},
        (Size("vit", 58570, {"ln": "vit"}, {"ln": {}}),),
    ),
    Family(
        "postnorm_encoder",
        "Small post-norm encoder of the fixtures",
        (),
        ("x:float32[B,1,{length},{features}]",),
        {"length": 28, "features": 28},
        (Size("postnorm_encoder", 60202, {"ln": "postnorm_encoder"}, {"ln": {}}),),
    ),
    Family(
        "convnet",
        "Small convolutional network of the fixtures",
        (),
        ("x:float32[B,{channels},28,28]",),
        {"channels": 1},
        (Size("convnet", 20186, {"bn": "convnet"}, {"bn": {}}),),
    ),
)
