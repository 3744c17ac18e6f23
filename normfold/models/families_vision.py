"""The vision architectures, a row for every size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from normfold.models.families import Family, Norms, Options

_PICTURE = ("x:float32[B,3,{image_size},{image_size}]",)
_224 = {"image_size": 224}
_SLAB = "2405.11582"
_SLAB_FILES = "https://github.com/xinghaochen/SLAB/releases/tag/ckpts"
_UN = "2208.01313"
_UN_FILES = "https://github.com/hikvision-research/Unified-Normalization"
_SWIN_COMPUTED = (".relative_position_index", ".attn_mask")

_DEIT = {"image_size": 224, "patch_size": 16, "channels": 3, "classes": 1000, "depth": 12, "mlp_ratio": 4.0}
_DEIT_SIZES = {"tiny": {"dim": 192, "heads": 3}, "small": {"dim": 384, "heads": 6}, "base": {"dim": 768, "heads": 12}}
_PVT_DEPTHS = {"tiny": (2, 2, 2, 2), "small": (3, 4, 6, 3), "medium": (3, 4, 18, 3), "large": (3, 8, 27, 3)}
_DEEPER: Mapping[str, Any] = {"depths": (2, 2, 18, 2)}
_SWIN_BASE = {**_DEEPER, "dim": 128, "heads": (4, 8, 16, 32)}
# Parameters with softmax attention and with linear attention, and the options of a size.
_PVT_V2: Mapping[str, tuple[int, int, Options]] = {
    "b0": (3666760, 3593800, {"dims": (32, 64, 160, 256)}),
    "b1": (14009000, 12929192, {}),
    "b2": (25362856, 22544104, {"depths": (3, 4, 6, 3)}),
    "b3": (45238696, 38265832, {"depths": (3, 4, 18, 3)}),
    "b4": (62556072, 51825576, {"depths": (3, 8, 27, 3)}),
    "b5": (81956008, 67046248, {"depths": (3, 6, 40, 3), "mlp_ratios": (4, 4, 4, 4)}),
}
_LINEAR: Mapping[str, Any] = {"attention": "L", "reductions": (1, 1, 1, 1)}
_HALF: Mapping[str, Any] = {"attention": "LLSS"}
_SLAB_WINDOWS = {"attention": "LLSS", "windows": (56, 28, 7, 7)}
_VIT = Norms(eps=1e-6)
_VIT_SLAB = Norms(eps=1e-6, slab=True)
_SWIN = Norms()
_SWIN_SLAB = Norms(steps=60000, slab=True)
_DETECTION = Norms(warm=None)
_CSWIN = Norms(steps=120000)

VISION: tuple[Family, ...] = (
    Family(
        "deit",
        "DeiT",
        ("2012.12877", _SLAB),
        _PICTURE,
        _224,
        (
            _VIT.size("deit_tiny", 5717416, _DEIT_SIZES["tiny"], bare=True, file=True),
            _VIT.size("deit_small", 22050664, _DEIT_SIZES["small"], file=True),
            _VIT.size("deit_base", 86567656, _DEIT_SIZES["base"]),
        ),
        _DEIT,
        _SLAB_FILES,
    ),
    Family(
        "slab_deit",
        "SLAB-DeiT",
        (_SLAB,),
        _PICTURE,
        _224,
        (
            Norms(1e-6, 60000, slab=True).size("slab_deit_tiny", 6188776, _DEIT_SIZES["tiny"], file=True),
            Norms(1e-6, 60000, slab=True).size("slab_deit_small", 22973416, _DEIT_SIZES["small"], file=True),
            Norms(1e-6, 60000, slab=True).size("slab_deit_base", 88393192, _DEIT_SIZES["base"]),
        ),
        release=_SLAB_FILES,
    ),
    Family(
        "swin",
        "Swin",
        ("2103.14030", _SLAB),
        _PICTURE,
        _224,
        (
            _SWIN.size("swin_tiny", 28288354, bare=True, file=True),
            _SWIN.size("swin_small", 49606258, _DEEPER, bare=True),
            _SWIN.size("swin_base", 87768224, _SWIN_BASE, bare=True),
        ),
        release=_SLAB_FILES,
        computed=_SWIN_COMPUTED,
    ),
    Family(
        "slab_swin",
        "SLAB-Swin",
        (_SLAB,),
        _PICTURE,
        _224,
        (
            _SWIN_SLAB.size("slab_swin_tiny", 29191808, file=True),
            _SWIN_SLAB.size("slab_swin_small", 50509712, _DEEPER, file=True),
            _SWIN_SLAB.size("slab_swin_base", 88971720, _SWIN_BASE),
        ),
        _HALF,
        _SLAB_FILES,
        _SWIN_COMPUTED,
    ),
    Family(
        "swin_backbone",
        "Swin and SLAB-Swin of a detector",
        ("2103.14030", _SLAB),
        _PICTURE,
        _224,
        (
            _DETECTION.size("det_swin_tiny", 27520698),
            _DETECTION.size("det_swin_small", 48838602, _DEEPER),
            Norms(warm=None, slab=True).size("det_slab_swin_tiny", 28424152, _SLAB_WINDOWS),
            Norms(warm=None, slab=True).size("det_slab_swin_small", 49742056, {**_SLAB_WINDOWS, **_DEEPER}),
        ),
        release=_SLAB_FILES,
        computed=_SWIN_COMPUTED,
    ),
    Family(
        "pvt",
        "PVT",
        ("2102.12122", _SLAB),
        _PICTURE,
        _224,
        (
            _VIT.size("pvt_tiny", 13227240, file=True),
            _VIT.size("pvt_small", 24483816, {"depths": _PVT_DEPTHS["small"]}, file=True),
            _VIT.size("pvt_medium", 44206056, {"depths": _PVT_DEPTHS["medium"]}, file=True),
            _VIT.size("pvt_large", 61367272, {"depths": _PVT_DEPTHS["large"]}),
        ),
        release=_SLAB_FILES,
    ),
    Family(
        "slab_pvt",
        "SLAB-PVT",
        (_SLAB,),
        _PICTURE,
        _224,
        (
            _VIT_SLAB.size("slab_pvt_tiny", 12147432, file=True),
            _VIT_SLAB.size("slab_pvt_small", 21665064, {"depths": _PVT_DEPTHS["small"]}),
            _VIT_SLAB.size("slab_pvt_medium", 37233192, {"depths": _PVT_DEPTHS["medium"]}),
            _VIT_SLAB.size("slab_pvt_large", 50636776, {"depths": _PVT_DEPTHS["large"]}),
        ),
        _LINEAR,
        _SLAB_FILES,
    ),
    Family(
        "pvt_v2",
        "PVT v2",
        ("2106.13797", _SLAB),
        _PICTURE,
        _224,
        tuple(_VIT.size(f"pvt_v2_{key}", count, options) for key, (count, _, options) in _PVT_V2.items()),
        release=_SLAB_FILES,
    ),
    Family(
        "slab_pvt_v2",
        "SLAB-PVT v2",
        (_SLAB,),
        _PICTURE,
        _224,
        tuple(_VIT_SLAB.size(f"slab_pvt_v2_{key}", count, options) for key, (_, count, options) in _PVT_V2.items()),
        _LINEAR,
        _SLAB_FILES,
    ),
    Family(
        "cswin",
        "CSwin",
        ("2107.00652",),
        _PICTURE,
        _224,
        (_CSWIN.size("cswin_tiny", 20393320), _CSWIN.size("cswin_small", 34643304, {"depths": (2, 4, 32, 2)})),
    ),
    Family(
        "slab_cswin",
        "SLAB-CSwin",
        (_SLAB,),
        _PICTURE,
        _224,
        (
            Norms(steps=120000, slab=True).size("slab_cswin_tiny", 21201768, file=True),
            Norms(steps=120000, slab=True).size("slab_cswin_small", 35451752, {"depths": (2, 4, 32, 2)}),
        ),
        _HALF,
        _SLAB_FILES,
    ),
    Family(
        "t2t",
        "T2T-ViT",
        ("2101.11986", _UN),
        _PICTURE,
        _224,
        (
            _SWIN.size("t2t_vit_7", 4310222, {"dim": 256, "depth": 7, "heads": 4, "mlp_ratio": 2.0}),
            _SWIN.size("t2t_vit_10", 5889230, {"dim": 256, "depth": 10, "heads": 4, "mlp_ratio": 2.0}),
            _SWIN.size("t2t_vit_12", 6941902, {"dim": 256, "depth": 12, "heads": 4, "mlp_ratio": 2.0}),
            _SWIN.size("t2t_vit_14", 21545550),
            _SWIN.size("t2t_vit_19", 39177422, {"dim": 448, "depth": 19, "heads": 7}),
            _SWIN.size("t2t_vit_24", 64105934, {"dim": 512, "depth": 24, "heads": 8}),
            _SWIN.size("t2t_vit_t_14", 21541070, {"tokens": "transformer"}),
            _SWIN.size("t2t_vit_t_19", 39172942, {"tokens": "transformer", "dim": 448, "depth": 19, "heads": 7}),
            _SWIN.size("t2t_vit_t_24", 64101454, {"tokens": "transformer", "dim": 512, "depth": 24, "heads": 8}),
            _SWIN.size("t2t_vit_14_resnext", 21545550, {"heads": 32}),
            _SWIN.size("t2t_vit_14_wide", 25156302, {"dim": 768, "depth": 4, "heads": 12}),
        ),
        release=_UN_FILES,
    ),
)
