"""How the vision families' weights show their options: a row for every family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from normfold.checkpoint import readers
from normfold.checkpoint.readers import Reader, Row, value_of
from normfold.norms.base import Shapes

# SLAB's own windows and stripes: linear attention over all of a picture of 224.
_WHOLE, _STRIPES, _SOFTMAX_STRIPES = 56, (56, 28, 14, 7), (1, 2, 7, 7)
_PATCH = "patch_embed.proj.weight"
# A network without its head gives what the head would read.
_CLASSES: Mapping[str, Reader] = {"classes": readers.first(readers.size("head.weight"), lambda shapes: 0)}
_KERNEL: Mapping[str, Reader] = {
    "kernel": lambda shapes: next((shape[2] for name, shape in shapes.items() if name.endswith(".dwc.weight")), None)
}


def _deit_image(shapes: Shapes) -> int | None:
    tokens = 2 if "dist_token" in shapes else 1
    side: int | None = value_of(readers.side("pos_embed", extra=tokens, patch=_PATCH), shapes)
    return side


def _window(at: str, shapes: Shapes) -> int:
    """Of one Swin block, with either attention."""
    table = shapes.get(f"{at}relative_position_bias_table")
    return math.isqrt(shapes[f"{at}positional_encoding"][1]) if table is None else (math.isqrt(table[0]) + 1) // 2


def _softmax_window(shapes: Shapes) -> int | None:
    """The largest: a window never exceeds its picture, and pictures shrink from stage to stage."""
    ending = "relative_position_bias_table"
    blocks = [name.removesuffix(ending) for name in shapes if name.endswith(f".blocks.0.attn.{ending}")]
    return max((_window(at, shapes) for at in blocks), default=None)


def _linear_window(shapes: Shapes) -> int | None:
    """Of the first stage with linear attention; one as large as its picture says no more than that it is."""
    for stage in range(_depth(shapes)):
        at = f"layers.{stage}.blocks.0.attn."
        if f"{at}positional_encoding" in shapes:
            window, image = _window(at, shapes), _swin_image(shapes)
            side = None if image is None else image // shapes[_PATCH][2] >> stage
            return _WHOLE if window == side and window <= _WHOLE >> stage else window
    return None


def _swin_image(shapes: Shapes) -> int | None:
    """From the mask of a shifted block, which has an entry for every window; else from windows as large as pictures."""
    patch = shapes[_PATCH][2]
    for name, shape in shapes.items():
        if name.endswith(".attn_mask"):
            stage = int(name.split(".")[1])
            return math.isqrt(shape[0]) * math.isqrt(shape[1]) * patch << stage
    places = [shapes.get(f"layers.{stage}.blocks.0.attn.positional_encoding") for stage in (0, 1)]
    if places[0] is None or (places[1] is not None and places[1][1] == places[0][1]):
        return None
    return math.isqrt(places[0][1]) * patch


def _depth(shapes: Shapes) -> int:
    """How many stages a Swin has."""
    return len({name.split(".")[1] for name in shapes if name.startswith("layers.")})


def _pvt_v2_image(shapes: Shapes) -> int | None:
    """From the first stage with linear attention, whose picture is 2^(stage + 1) times smaller."""
    for stage in range(1, len(shapes)):
        at = f"block{stage}.0.attn."
        if f"{at}positional_encoding" in shapes:
            side = math.isqrt(shapes[f"{at}positional_encoding"][1])
            return side * shapes.get(f"{at}sr.weight", (1, 1, 1))[2] << stage + 1
        if f"{at}q.weight" not in shapes:
            return None
    return None


def _cswin_side(shapes: Shapes) -> int | None:
    """Of the first stage's picture, from a stage with linear attention over all of it."""
    for stage in range(len(_STRIPES)):
        at = f"stage{stage + 1}.0.attns"
        places = shapes.get(f"{at}.0.positional_encoding")
        if places is not None and f"{at}.1.get_v.weight" not in shapes:
            side = math.isqrt(places[1])
            return side << stage if side * side == places[1] else None
    return None


def _linear_stripes(shapes: Shapes) -> tuple[int, ...]:
    """Of CSwin's linear attention, stage by stage; one as wide as its picture says no more than that it is.

    A stage with softmax attention shows none, and has the usual one.
    """
    whole = value_of(_cswin_side, shapes) or _WHOLE
    found = []
    for stage, usual in enumerate(_STRIPES):
        side = max(whole >> stage, 1)
        places = shapes.get(f"stage{stage + 1}.0.attns.0.positional_encoding", (1, usual * side))
        found.append(usual if places[1] == side * side <= usual * side else places[1] // side)
    return tuple(found)


_DEIT: Mapping[str, Reader] = {
    **_CLASSES,
    **_KERNEL,
    "channels": readers.size(_PATCH, 1),
    "patch_size": readers.size(_PATCH, 2),
    "image_size": _deit_image,
    "dim": readers.size("cls_token", 2),
    "depth": readers.count("blocks."),
    "mlp_ratio": readers.ratio("blocks.0.mlp.fc1.weight"),
    "qkv_bias": readers.has("blocks.0.attn.qkv.bias"),
    "distilled": readers.has("dist_token"),
}
_STAGES: Mapping[str, Reader] = {
    **_KERNEL,
    "patch_size": readers.size(_PATCH, 2),
    "dim": readers.size(_PATCH),
    "depths": readers.stages("layers.{}.blocks.", 0, readers.count),
    "heads": readers.stages(
        "layers.{}.blocks.0.attn.",
        0,
        lambda at: readers.first(
            readers.size(f"{at}relative_position_bias_table", 1),
            readers.heads(f"{at}proj.weight", 0, f"{at}dwc.weight"),
        ),
    ),
    "attention": readers.letters("layers.{}.blocks.0.attn.", 0, "dwc.weight"),
}
_SWIN: Mapping[str, Reader] = {
    **_CLASSES,
    **_STAGES,
    "window": _softmax_window,
    "linear_window": _linear_window,
    "image_size": _swin_image,
}
_BACKBONE: Mapping[str, Reader] = {
    **_STAGES,
    "windows": readers.stages("layers.{}.blocks.0.attn.", 0, lambda at: lambda shapes: _window(at, shapes)),
}
_PVT: Mapping[str, Reader] = {
    **_CLASSES,
    **_KERNEL,
    "patch_size": readers.size("patch_embed1.proj.weight", 2),
    "image_size": readers.side("pos_embed1", patch="patch_embed1.proj.weight"),
    "dims": readers.stages("patch_embed{}.", 1, lambda at: readers.size(f"{at}proj.weight")),
    "depths": readers.stages("block{}.", 1, readers.count),
    "mlp_ratios": readers.stages("block{}.0.mlp.", 1, lambda at: readers.ratio(f"{at}fc1.weight")),
    "reductions": readers.stages(
        "block{}.0.attn.", 1, lambda at: readers.first(readers.size(f"{at}sr.weight", 2), lambda shapes: 1)
    ),
    "heads": readers.stages("block{}.0.attn.", 1, lambda at: readers.heads(f"{at}q.weight", 0, f"{at}dwc.weight")),
    "attention": readers.letters("block{}.0.attn.", 1, "dwc.weight"),
}
_CSWIN_LETTERS = readers.letters("stage{}.0.attns.0.", 1, "positional_encoding")
_CSWIN: Mapping[str, Reader] = {
    **_CLASSES,
    **_KERNEL,
    "dim": readers.size("stage1_conv_embed.0.weight"),
    "depths": readers.stages("stage{}.", 1, readers.count),
    "attention": _CSWIN_LETTERS,
    "linear_stripes": _linear_stripes,
    # Not read where every stage has linear attention.
    "stripes": lambda shapes: _SOFTMAX_STRIPES if _CSWIN_LETTERS(shapes) == "L" else None,
    "image_size": lambda shapes: None if (side := _cswin_side(shapes)) is None else side * 4,
}


def _swin_facts(options: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"mlp_ratio": 4.0, "qkv_bias": True, "qk_scale": None, "absolute_positions": False, "patch_norm": True}


def _backbone_facts(options: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**_swin_facts(options), "window": options["windows"][-1]}


def _timm_facts(options: Mapping[str, Any]) -> Mapping[str, Any]:
    # timm's `bn_eps` replaces the eps of every batch norm.
    return {"bn_eps": None, "qk_scale": None}


_PYRAMID = ("patch_embed1.proj.weight", "block1.0.attn.kv.weight")
_LINEAR, _CSWIN_LINEAR = "block*.attn.dwc.weight", "stage*.attns.0.positional_encoding"

ROWS: Mapping[str, Row] = {
    "deit": Row(
        ("cls_token", _PATCH, "blocks.0.attn.qkv.weight"),
        ("blocks.0.attn.dwc.weight",),
        _DEIT,
        hidden=("heads",),
        sized=("dim",),
        facts=_timm_facts,
    ),
    "slab_deit": Row(
        ("cls_token", _PATCH, "blocks.0.attn.dwc.weight"),
        read={
            **_DEIT,
            "image_size": readers.side("pos_embed", patch=_PATCH),
            "heads": readers.heads("cls_token", 2, "blocks.0.attn.dwc.weight"),
        },
    ),
    "swin": Row(
        (_PATCH, "layers.0.blocks.0.attn.relative_position_bias_table"),
        ("norm0.weight", "layers.*.attn.dwc.weight"),
        _SWIN,
        facts=_swin_facts,
    ),
    "slab_swin": Row((_PATCH, "layers.*.attn.dwc.weight"), ("norm0.weight",), _SWIN, facts=_swin_facts),
    "swin_backbone": Row(
        (_PATCH, "layers.0.blocks.0.attn.qkv.weight", "norm0.weight"),
        read=_BACKBONE,
        free=("image_size",),
        facts=_backbone_facts,
        part=True,
    ),
    "pvt": Row((*_PYRAMID, "pos_embed1"), (_LINEAR,), _PVT, hidden=("heads",), sized=("dims",)),
    "slab_pvt": Row((*_PYRAMID, "pos_embed1", _LINEAR), (), _PVT, hidden=("heads",), sized=("dims",)),
    "pvt_v2": Row(
        (*_PYRAMID, "block1.0.mlp.dwconv.dwconv.weight"),
        (_LINEAR,),
        {**_PVT, "image_size": lambda shapes: None},
        hidden=("heads",),
        sized=("dims",),
        free=("image_size",),
    ),
    "slab_pvt_v2": Row(
        (*_PYRAMID, "block1.0.mlp.dwconv.dwconv.weight", _LINEAR),
        (),
        {**_PVT, "image_size": _pvt_v2_image},
        hidden=("heads",),
        sized=("dims",),
    ),
    "cswin": Row(
        ("stage1_conv_embed.0.weight", "stage1.0.attns.0.get_v.weight"),
        (_CSWIN_LINEAR,),
        _CSWIN,
        # With these stripes only one size of picture has these names.
        hidden=("heads", "stripes"),
        free=("image_size",),
        sized=("dim",),
    ),
    "slab_cswin": Row(
        ("stage1_conv_embed.0.weight", _CSWIN_LINEAR),
        read=_CSWIN,
        hidden=("heads", "stripes"),
        sized=("dim", "image_size"),
    ),
    "t2t": Row(
        ("cls_token", "tokens_to_token.project.weight", "blocks.0.attn.qkv.weight"),
        read={
            **_CLASSES,
            "image_size": readers.side("pos_embed", extra=1, patch=16),
            "dim": readers.size("cls_token", 2),
            "depth": readers.count("blocks."),
            "mlp_ratio": readers.ratio("blocks.0.mlp.fc1.weight"),
            "token_dim": lambda shapes: shapes["tokens_to_token.project.weight"][1] // 9,
            "tokens": lambda shapes: "performer" if "tokens_to_token.attention1.w" in shapes else "transformer",
        },
        hidden=("heads",),
        sized=("dim",),
        facts=_timm_facts,
    ),
    "vit": Row(("cls_token", _PATCH, "blocks.0.attn.qkv.weight"), ("blocks.0.attn.dwc.weight",), hidden=("heads",)),
    "postnorm_encoder": Row(("embed.weight", "pos_embed", "blocks.0.attn.qkv.weight"), hidden=("heads",)),
    "convnet": Row(("stem.weight", "pointwise.weight", "padded.weight")),
}
