"""What names and shapes of weights show of the options of their architecture: one table, a row for every family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from normfold.checkpoint import evidence_vision, readers
from normfold.checkpoint.readers import Reader, Row
from normfold.models.families import each


def _fairseq_facts(options: Mapping[str, Any]) -> Mapping[str, Any]:
    encoder, decoder = each(options["depth"])
    depth = {"encoder_depth": encoder, "decoder_depth": decoder}
    return {**depth, **_NO_EXTRAS, "activation": "relu", "unscaled_embedding": False}


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
_LLAMA = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
)
# What every configuration of such a model states, and no name or shape does.
_ROTARY = ("eps", "rope_base")
_TOKENS = "encoder.embed_tokens.weight"
_DEEPNET: Mapping[str, Reader] = {
    "vocab": readers.size("embed_tokens.weight"),
    "dim": readers.size("embed_tokens.weight", 1),
    "depth": readers.count("layers."),
    "hidden": readers.size("layers.0.ffn.fc1.weight"),
    "positions": readers.size("embed_positions.weight", less=2),
}


def _begins(prefix: str) -> Reader:
    return lambda shapes: any(name.startswith(prefix) for name in shapes)


_FAIRSEQ: Mapping[str, Reader] = {
    "vocab": readers.each(
        readers.size(_TOKENS), readers.first(readers.size("decoder.embed_tokens.weight"), readers.size(_TOKENS))
    ),
    "dim": readers.size(_TOKENS, 1),
    "depth": readers.each(readers.count("encoder.layers."), readers.count("decoder.layers.")),
    "hidden": readers.each(readers.size("encoder.layers.0.fc1.weight"), readers.size("decoder.layers.0.fc1.weight")),
    "positions": readers.size("encoder.embed_positions.weight", less=2),
    "pre_norm": _begins("encoder.layer_norm."),
    "learned_positions": readers.has("encoder.embed_positions.weight"),
    "embedding_norm": _begins("encoder.layernorm_embedding."),
}

ROWS: Mapping[str, Row] = {
    **evidence_vision.ROWS,
    "llama": Row(
        _LLAMA,
        read={
            "vocab": readers.size("model.embed_tokens.weight"),
            "dim": readers.size("model.embed_tokens.weight", 1),
            "depth": readers.count("model.layers."),
            "hidden": readers.size("model.layers.0.mlp.gate_proj.weight"),
            "heads": readers.heads(
                "model.embed_tokens.weight", 1, "model.layers.0.self_attn.rotary_emb.inv_freq", factor=2
            ),
            "tied": readers.lacks("lm_head.weight"),
        },
        hidden=("heads", *_ROTARY),
        sized=("dim",),
        facts=_llama_facts,
    ),
    "nmt": Row(
        (_TOKENS, "encoder.layers.0.fc1.weight", "decoder.layers.0.encoder_attn.k_proj.weight"),
        read=_FAIRSEQ,
        hidden=("heads",),
        sized=("dim",),
        free=("positions", "shared"),
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
            "vocab": readers.size(_TOKENS),
            "dim": readers.size(_TOKENS, 1),
            "encoder_depth": readers.count("encoder.layers."),
            "decoder_depth": readers.count("decoder.layers."),
            "hidden": readers.size("encoder.layers.0.ffn.fc1.weight"),
            "positions": readers.size("encoder.embed_positions.weight", less=2),
        },
        hidden=("heads",),
        sized=("dim",),
        facts=_deepnet_facts,
    ),
    # The fixtures' networks, as they are by default: other options are written in the fixtures.
    "char_lm": Row(
        _LLAMA, read={"vocab": readers.size("model.embed_tokens.weight")}, hidden=_ROTARY, facts=_llama_facts
    ),
}
