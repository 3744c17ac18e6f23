"""What names and shapes of weights show of the options of their architecture: one table, a row for every family."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from normfold.norms.base import Shapes

# Reads one option; None where the weights do not show it.
Reader = Callable[[Shapes], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """How a family's weights are read.

    present, absent: names that all of its weights have, and that none has. read: options by what shows them.
    hidden: options that change the function and that nothing shows, unless `read` has them too. sized: options that go
    with the hidden ones in a known size: where these differ, nobody knows those. free: options that nothing shows and
    that change no output, only which inputs are taken. facts: what is so of this family whatever its options, or
    follows from them, in the words of stated.py, for a file may say otherwise (`Said.against`).
    """

    present: tuple[str, ...]
    absent: tuple[str, ...] = ()
    read: Mapping[str, Reader] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    sized: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    facts: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=lambda options: {})


def _size(name: str, axis: int = 0, *, less: int = 0) -> Reader:
    return lambda shapes: shapes[name][axis] - less


def _count(prefix: str) -> Reader:
    """How many numbers follow the prefix, as in `blocks.0.`, `blocks.1.`"""
    return lambda shapes: len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)}) or None


def _has(name: str) -> Reader:
    return lambda shapes: name in shapes


def _lacks(name: str) -> Reader:
    """True where the name is missing; where it is there, it may still be tied to another."""
    return lambda shapes: True if name not in shapes else None


def _ratio(name: str) -> Reader:
    """Of a Linear's output to its input."""
    return lambda shapes: shapes[name][0] / shapes[name][1]


def _heads(width: str, axis: int, head: str, factor: int = 1) -> Reader:
    """The channels of `width` over those of one head."""
    return lambda shapes: shapes[width][axis] // (shapes[head][0] * factor)


def _side(name: str, axis: int = 1, *, extra: int = 0, patch: str | int = 1) -> Reader:
    """The side of a square picture of which `name` has an entry for every patch."""

    def read(shapes: Shapes) -> int | None:
        patches = shapes[name][axis] - extra
        side = math.isqrt(max(patches, 0))
        return side * (patch if isinstance(patch, int) else shapes[patch][2]) if side * side == patches else None

    return read


def _stages(pattern: str, first: int, read: Callable[[str], Reader]) -> Reader:
    """What `read` reads in every stage; `pattern` is the stage's prefix, with {} for its number."""

    def read_all(shapes: Shapes) -> tuple[Any, ...] | None:
        prefixes = itertools.takewhile(
            lambda prefix: any(name.startswith(prefix) for name in shapes), map(pattern.format, itertools.count(first))
        )
        found = tuple(value_of(read(prefix), shapes) for prefix in prefixes)
        return None if None in found or not found else found

    return read_all


def _first(*readers: Reader) -> Reader:
    """The first that the weights show."""
    return lambda shapes: next((value for read in readers if (value := value_of(read, shapes)) is not None), None)


def value_of(read: Reader, shapes: Shapes) -> Any:
    """What a reader finds, None where the weights lack what it looks at."""
    try:
        return read(shapes)
    except (KeyError, IndexError, ZeroDivisionError):
        return None


def _swin_window(shapes: Shapes) -> int | None:
    tables = (shape for name, shape in shapes.items() if name.endswith("relative_position_bias_table"))
    return next(((math.isqrt(shape[0]) + 1) // 2 for shape in tables), None)


def _swin_image(shapes: Shapes) -> int | None:
    """From the first shifted block, whose mask has an entry for every window; its side is isqrt(tokens)."""
    windows, tokens, _ = shapes["layers.0.blocks.1.attn_mask"]
    return math.isqrt(windows) * math.isqrt(tokens) * shapes["patch_embed.proj.weight"][2]


_CLASSES = {"classes": _size("head.weight")}
_PATCH = "patch_embed.proj.weight"
_DEIT: Mapping[str, Reader] = {
    **_CLASSES,
    "channels": _size(_PATCH, 1),
    "patch_size": _size(_PATCH, 2),
    "image_size": _side("pos_embed", extra=1, patch=_PATCH),
    "dim": _size("cls_token", 2),
    "depth": _count("blocks."),
    "mlp_ratio": _ratio("blocks.0.mlp.fc1.weight"),
    "qkv_bias": _has("blocks.0.attn.qkv.bias"),
}
_SWIN: Mapping[str, Reader] = {
    **_CLASSES,
    "patch_size": _size(_PATCH, 2),
    "dim": _size(_PATCH),
    "depths": _stages("layers.{}.blocks.", 0, _count),
    "window": _swin_window,
    "heads": _stages(
        "layers.{}.blocks.0.attn.",
        0,
        lambda at: _first(
            _size(f"{at}relative_position_bias_table", 1), _heads(f"{at}proj.weight", 0, f"{at}dwc.weight")
        ),
    ),
    "image_size": _first(_side("layers.0.blocks.0.attn.positional_encoding", patch=_PATCH), _swin_image),
}
_PVT: Mapping[str, Reader] = {
    **_CLASSES,
    "patch_size": _size("patch_embed1.proj.weight", 2),
    "image_size": _side("pos_embed1", patch="patch_embed1.proj.weight"),
    "dims": _stages("patch_embed{}.", 1, lambda at: _size(f"{at}proj.weight")),
    "depths": _stages("block{}.", 1, _count),
    "mlp_ratios": _stages("block{}.0.mlp.", 1, lambda at: _ratio(f"{at}fc1.weight")),
}
_CSWIN: Mapping[str, Reader] = {
    **_CLASSES,
    "dim": _size("stage1_conv_embed.0.weight"),
    "depths": _stages("stage{}.", 1, _count),
}


def _swin_facts(options: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"mlp_ratio": 4.0, "qkv_bias": True, "qk_scale": None}


def _timm_facts(options: Mapping[str, Any]) -> Mapping[str, Any]:
    # timm's `bn_eps` replaces the eps of every batch norm.
    return {"bn_eps": None, "qk_scale": None}


def _fairseq_facts(options: Mapping[str, Any]) -> Mapping[str, Any]:
    depth = {"encoder_depth": options["depth"], "decoder_depth": options["depth"]}
    return {**depth, **_NO_EXTRAS, "pre_norm": True, "activation": "relu", "unscaled_embedding": False} | {
        "learned_positions": False,
        "shared_embeddings": True,
    }


def _deepnet_facts(options: Mapping[str, Any]) -> Mapping[str, Any]:
    depth = {} if "encoder_depth" in options else {"encoder_depth": options["depth"]}
    return {
        **depth,
        **_NO_EXTRAS,
        "pre_norm": False,
        "activation": "gelu",
        "unscaled_embedding": True,
        "deepnorm": True,
    }


def _llama_facts(options: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "model_type": frozenset({"llama", "mistral"}),
        "activation": frozenset({"silu", "swish"}),
        "key_value_heads": options["heads"],
        "head_dim": options["dim"] // options["heads"],
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
        "sliding_window": None,
    }


_NO_EXTRAS = {
    "no_positions": False,
    "embedding_norm": False,
    "cross_self_attention": False,
    "no_cross_attention": False,
    "subln": False,
}
_CSWIN_LINEAR = "stage1.0.attns.0.positional_encoding"
_LLAMA = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
)
# What every configuration of such a model states, and no name or shape does.
_ROTARY = ("eps", "rope_base")
_TOKENS = "encoder.embed_tokens.weight"
_DEEPNET: Mapping[str, Reader] = {
    "vocab": _size("embed_tokens.weight"),
    "dim": _size("embed_tokens.weight", 1),
    "depth": _count("layers."),
    "hidden": _size("layers.0.ffn.fc1.weight"),
    "positions": _size("embed_positions.weight", less=2),
}

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
            "image_size": _side("pos_embed", patch=_PATCH),
            "heads": _heads("cls_token", 2, "blocks.0.attn.dwc.weight"),
        },
    ),
    "swin": Row((_PATCH, "layers.0.blocks.0.attn.relative_position_bias_table"), read=_SWIN, facts=_swin_facts),
    "slab_swin": Row((_PATCH, "layers.0.blocks.0.attn.dwc.weight"), read=_SWIN, facts=_swin_facts),
    "pvt": Row(
        ("pos_embed1", "patch_embed1.proj.weight", "block1.0.attn.kv.weight"),
        ("block1.0.attn.dwc.weight",),
        {
            **_PVT,
            "reductions": _stages(
                "block{}.0.attn.", 1, lambda at: _first(_size(f"{at}sr.weight", 2), lambda shapes: 1)
            ),
        },
        hidden=("heads",),
        sized=("dims",),
    ),
    "slab_pvt": Row(
        ("pos_embed1", "patch_embed1.proj.weight", "block1.0.attn.dwc.weight"),
        read={
            **_PVT,
            "heads": _stages("block{}.0.attn.", 1, lambda at: _heads(f"{at}q.weight", 0, f"{at}dwc.weight")),
        },
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
        read={**_CSWIN, "image_size": _side(_CSWIN_LINEAR, patch=4)},
        hidden=("heads", "stripes"),
        sized=("dim", "image_size"),
    ),
    "t2t": Row(
        ("cls_token", "tokens_to_token.attention1.w", "blocks.0.attn.qkv.weight"),
        read={
            **_CLASSES,
            "image_size": _side("pos_embed", extra=1, patch=16),
            "dim": _size("cls_token", 2),
            "depth": _count("blocks."),
            "mlp_ratio": _ratio("blocks.0.mlp.fc1.weight"),
            "token_dim": _size("tokens_to_token.attention1.w", 1),
        },
        hidden=("heads",),
        sized=("dim",),
        facts=_timm_facts,
    ),
    "llama": Row(
        _LLAMA,
        read={
            "vocab": _size("model.embed_tokens.weight"),
            "dim": _size("model.embed_tokens.weight", 1),
            "depth": _count("model.layers."),
            "hidden": _size("model.layers.0.mlp.gate_proj.weight"),
            "heads": _heads("model.embed_tokens.weight", 1, "model.layers.0.self_attn.rotary_emb.inv_freq", factor=2),
            "tied": _lacks("lm_head.weight"),
        },
        hidden=("heads", *_ROTARY),
        sized=("dim",),
        facts=_llama_facts,
    ),
    "nmt": Row(
        (_TOKENS, "encoder.layers.0.fc1.weight", "decoder.layers.0.encoder_attn.k_proj.weight"),
        read={
            "vocab": _size(_TOKENS),
            "dim": _size(_TOKENS, 1),
            "depth": _count("encoder.layers."),
            "hidden": _size("encoder.layers.0.fc1.weight"),
        },
        hidden=("heads",),
        sized=("dim",),
        free=("positions",),
        facts=_fairseq_facts,
    ),
    "deepnet_encoder": Row(
        ("embed_tokens.weight", "layers.0.ffn.fc1.weight"),
        read=_DEEPNET,
        hidden=("heads",),
        sized=("dim",),
        facts=_deepnet_facts,
    ),
    "deepnet_nmt": Row(
        (_TOKENS, "encoder.layers.0.ffn.fc1.weight", "decoder.layers.0.encoder_attn.k_proj.weight"),
        read={
            "vocab": _size(_TOKENS),
            "dim": _size(_TOKENS, 1),
            "encoder_depth": _count("encoder.layers."),
            "decoder_depth": _count("decoder.layers."),
            "hidden": _size("encoder.layers.0.ffn.fc1.weight"),
            "positions": _size("encoder.embed_positions.weight", less=2),
        },
        hidden=("heads",),
        sized=("dim",),
        facts=_deepnet_facts,
    ),
    # The fixtures' networks, as they are by default: other options are written in the fixtures.
    "char_lm": Row(_LLAMA, read={"vocab": _size("model.embed_tokens.weight")}, hidden=_ROTARY, facts=_llama_facts),
    "vit": Row(("cls_token", _PATCH, "blocks.0.attn.qkv.weight"), ("blocks.0.attn.dwc.weight",), hidden=("heads",)),
    "postnorm_encoder": Row(("embed.weight", "pos_embed", "blocks.0.attn.qkv.weight"), hidden=("heads",)),
    "convnet": Row(("stem.weight", "pointwise.weight", "padded.weight")),
}
