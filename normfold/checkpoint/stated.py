"""What a checkpoint file states of its own architecture: names, and options in the words of its author.

timm and DeiT keep `arch` and `args`, fairseq `cfg.model`, Swin and SLAB a yacs `config`, mmdet a configuration as text
in `meta.config`, the Hugging Face hub a config.json. One table reads them all; what it has no line for says nothing.
Nothing here is imported or run: configurations are plain values, stand-ins (unpickle.py), or text that is parsed.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normfold.checkpoint.unpickle import StandIn
from normfold.norms.kinds import KINDS
from normfold.system.plain import is_plain


@dataclass(frozen=True, slots=True)
class Statement:
    """One option as a file has it. option: in our words. where: in the file's, such as `cfg.model.encoder_layers`."""

    option: str
    value: Any
    where: str

    def __str__(self) -> str:
        return f"{self.where} = {self.value}"


@dataclass(frozen=True, slots=True)
class Said:
    """All that a file states. names: what it calls its architecture, and where, such as ("T2t_vit_14", "arch")."""

    names: tuple[tuple[str, str], ...] = ()
    statements: tuple[Statement, ...] = ()

    def of(self, family: str) -> Iterator[Statement]:
        """The options of a family: the file's own words first, then what its names stand for."""
        yield from self.statements
        stated = {statement.option for statement in self.statements}
        for word, where in self.names:
            meaning = known(word)
            if meaning is not None and family in meaning.families:
                for option, value in meaning.options.items():
                    if option not in stated:
                        yield Statement(option, value, f"{where} = {word!r}: {option}")

    def against(self, family: str, name: str, facts: Mapping[str, Any], free: Sequence[str]) -> Iterator[str]:
        """The file's words that are not so, each with what is: of the architecture `name`, of which these are facts.

        A set among the facts holds every value that is the same to it. free: options that it may state as it likes.
        """
        for statement in self.of(family):
            fact = facts.get(statement.option, statement.value)
            if statement.option not in free and not _agree(statement.value, fact):
                has = " or ".join(map(str, sorted(fact))) if isinstance(fact, frozenset) else fact
                yield f"{statement}, and {name} with these weights and options has {statement.option} = {has}"
        for word, where in self.names:
            meaning = known(word)
            if meaning is not None and family not in meaning.families:
                yield f"{where} = {word!r}, and the names of its weights are those of {name}"


def _agree(stated: Any, fact: Any) -> bool:
    if isinstance(fact, frozenset):
        return stated in fact
    if fact is not None and isinstance(stated, str) != isinstance(fact, str):
        return True  # a word where we have a number, or the other way: it is about something else
    one, other = (tuple(value) if isinstance(value, list) else value for value in (stated, fact))
    return bool(one == other)


@dataclass(frozen=True, slots=True)
class Known:
    """What an authors' name stands for: families of the catalogue, and options that come with it."""

    families: tuple[str, ...]
    options: Mapping[str, Any]


# Where a file keeps what it was made with; each of them may have a part `model` or `MODEL`.
_PLACES = ("args", "cfg", "config", "hparams", "hyper_parameters", "model_args", "model_config")
_NAME_KEYS = ("arch", "model", "_name", "architecture", "model_name", "TYPE")
_HEADS = ("heads", "num_heads", "n_heads", "n_head", "nhead", "num_attention_heads")
# Options by the names that configurations give them; the rows of evidence.py say which of them a family has.
_OPTIONS: Mapping[str, str] = {
    **dict.fromkeys((*_HEADS, "encoder_attention_heads", "decoder_attention_heads"), "heads"),
    **dict.fromkeys(("num_classes", "nb_classes", "NUM_CLASSES"), "classes"),
    **dict.fromkeys(("img_size", "image_size", "input_size", "IMG_SIZE"), "image_size"),
    **dict.fromkeys(("embed_dim", "hidden_size", "encoder_embed_dim", "decoder_embed_dim", "EMBED_DIM"), "dim"),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_embed_dim", "decoder_ffn_embed_dim"), "hidden"),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer"), "depth"),
    **dict.fromkeys(("depths", "DEPTHS"), "depths"),
    **dict.fromkeys(("activation_fn", "hidden_act"), "activation"),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), "positions"),
    **dict.fromkeys(("encoder_normalize_before", "decoder_normalize_before"), "pre_norm"),
    **dict.fromkeys(("encoder_learned_pos", "decoder_learned_pos"), "learned_positions"),
    **dict.fromkeys(("deepnorm", "use_deepnorm"), "deepnorm"),
    "NUM_HEADS": "heads",
    "encoder_layers": "encoder_depth",
    "decoder_layers": "decoder_depth",
    "split_size": "stripes",
    "vocab_size": "vocab",
    "rms_norm_eps": "eps",
    "rope_theta": "rope_base",
    "tie_word_embeddings": "tied",
    "num_key_value_heads": "key_value_heads",
    "norm_type": "norm",
    "un_win": "norm_window",
    "no_scale_embedding": "unscaled_embedding",
    "no_token_positional_embeddings": "no_positions",
    "layernorm_embedding": "embedding_norm",
    "WINDOW_SIZE": "window",
    "MLP_RATIO": "mlp_ratio",
    "attn_type": "attention",
    "kernel_size": "kernel",
    **dict.fromkeys(("ape", "APE"), "absolute_positions"),
    **dict.fromkeys(("patch_norm", "PATCH_NORM"), "patch_norm"),
    **{
        key: key.lower()
        for key in (
            "QKV_BIAS", "QK_SCALE", "qkv_bias", "qk_scale", "head_dim", "attention_bias", "mlp_bias", "rope_scaling",
            "sliding_window", "cross_self_attention", "no_cross_attention", "subln", "bn_eps", "model_type",
        )
    },
}  # fmt: skip
# Of values that one library spells in its own way; what is not listed says nothing.
_NORMS = {word: kind.short for kind in KINDS for word in kind.words}
# What encoder and decoder each have: two values where they differ.
_EACH = {
    "heads": ("encoder_attention_heads", "decoder_attention_heads"),
    "hidden": ("encoder_ffn_embed_dim", "decoder_ffn_embed_dim"),
}
# yacs keeps the parts SWIN and LA in every file, with their defaults where nothing reads them: MODEL.TYPE says what is
# read, and a default of LA says nothing.
_SWIN = re.compile(r"(slab)?_?swin", re.IGNORECASE)
_PYRAMID = re.compile(r"slab_pvt", re.IGNORECASE)
_SLAB = re.compile(r"slab", re.IGNORECASE)
_T2T = re.compile(r"t2t_vit_", re.IGNORECASE)
_BY_RUN = "deits"
_DEFAULT_ATTENTION, _DEFAULT_KERNEL, _DEFAULT_RATIOS, _DEFAULT_WINDOW = "LLLL", 5, "1111", 7
_SOFTMAX_RATIOS = (8, 4, 2, 1)

_TINY, _SMALL, _BASE = ({"dim": 64 * heads, "heads": heads} for heads in (3, 6, 12))
_CSWIN = {"heads": (2, 4, 8, 16), "stripes": (1, 2, 7, 7), "image_size": 224}
# Authors' names, lower case, by how they begin; the first that fits.
_NAMES: tuple[tuple[str, Known], ...] = tuple(
    (pattern, Known(families, options))
    for pattern, families, options in (
        (r"t2t_vit_(t_)?14_resnext", ("t2t",), {"dim": 384, "heads": 32}),
        (r"t2t_vit_(t_)?14_wide", ("t2t",), {"dim": 768, "heads": 12}),
        (r"t2t_vit_(t_)?14(?!\d)", ("t2t",), {"dim": 384, "heads": 6}),
        (r"t2t_vit_(t_)?19(?!\d)", ("t2t",), {"dim": 448, "heads": 7}),
        (r"t2t_vit_(t_)?24(?!\d)", ("t2t",), {"dim": 512, "heads": 8}),
        (r"t2t_vit_(7|10|12)(?!\d)", ("t2t",), {"dim": 256, "heads": 4}),
        (r"(deit|vit)_tiny_", ("deit", "slab_deit"), _TINY),
        (r"(deit|vit)_small_", ("deit", "slab_deit"), _SMALL),
        (r"(deit|vit)_base_", ("deit", "slab_deit"), _BASE),
        (r"(slab_)?pvt_v2_b\d", ("pvt_v2", "slab_pvt_v2"), {"heads": (1, 2, 5, 8)}),
        (r"(slab_)?pvt_(tiny|small|medium|large)(?![a-z])", ("pvt", "slab_pvt"), {"heads": (1, 2, 5, 8)}),
        (r"(slab_)?cswin_64_\d+_(tiny|small)_224", ("cswin", "slab_cswin"), _CSWIN),
        (r"transformer_(vaswani_|wmt_|iwslt_)?\w*_big", ("nmt",), {"heads": 16}),
        (r"transformer_iwslt_de_en", ("nmt",), {"heads": 4}),
        (r"transformer(_wmt_en_de|_vaswani_wmt_en_(de|fr))?$", ("nmt",), {"heads": 8}),
        (r"(llama|mistral)(forcausallm)?$", ("llama", "char_lm"), {}),
        (r"(slab)?_?swin(_?transformer|_tiny|_small|_base)?", ("swin", "slab_swin", "swin_backbone"), {}),
    )
)


def known(name: str) -> Known | None:
    """What an authors' name stands for; None for a name that says nothing here."""
    lowered = name.lower().replace("-", "_")
    return next((meaning for pattern, meaning in _NAMES if re.match(pattern, lowered)), None)


def read(content: Mapping[Any, Any]) -> Said:
    """What stands beside the weights in a loaded file."""
    parts = list(_parts(content))
    names = [(content["arch"], "arch")] if isinstance(content.get("arch"), str) else []
    for where, part in parts:
        names += [(part[key], f"{where}.{key}") for key in _NAME_KEYS if isinstance(part.get(key), str)]
        if where.endswith(".MODEL") and part.get("TYPE") == _BY_RUN and isinstance(part.get("NAME"), str):
            names.append((part["NAME"], f"{where}.NAME"))
    short = [(name, where) for name, where in names if len(name) <= 100]
    found = [said for where, part in parts for said in statements(part, where)]
    found += [said for where, part in parts if where.endswith(".MODEL") for said in _slab(part, where)]
    if any(_T2T.match(name) for name, _ in short):
        # Asked for `pretrained`, the constructors scale attention by a power of the width, not of that of a head.
        pretrained = [where for where, part in parts if part.get("pretrained") is True]
        found += [
            Statement("qk_scale", "width ** -0.5", f"{where}.pretrained = True: qk_scale") for where in pretrained
        ]
    return Said(tuple(dict.fromkeys(short)), tuple(found))


def of_configuration(config: Mapping[str, Any], where: str) -> Said:
    """What a config.json of the hub says, transformers' or timm's."""
    names = [config.get("architecture"), config.get("model_type")]
    architectures = config.get("architectures")
    names += architectures if isinstance(architectures, list) else []
    found = list(statements(config, where))
    rope = config.get("rope_parameters", config.get("rope_scaling"))
    if isinstance(rope, dict):
        # What transformers calls "default" is no scaling.
        kind = rope.get("rope_type", rope.get("type"))
        found = [said for said in found if said.option != "rope_scaling"]
        found += statements({"rope_theta": rope.get("rope_theta")}, f"{where}.rope_parameters")
        found += [] if kind == "default" else [Statement("rope_scaling", str(kind)[:20], f"{where}: rope_type")]
    if "num_attention_heads" in config and not any(said.option == "rope_base" for said in found):
        found.append(Statement("rope_base", 10000.0, f"{where}: rope_theta, left out,"))
    return Said(tuple((name, where) for name in names if isinstance(name, str)), tuple(found))


def statements(part: Mapping[Any, Any], where: str) -> Iterator[Statement]:
    """The lines of a configuration that speak of an option."""
    twofold = {option: keys for option, keys in _EACH.items() if _differ(*(part.get(key) for key in keys))}
    for option, keys in twofold.items():
        yield Statement(option, tuple(part[key] for key in keys), f"{where}.{' and '.join(keys)}")
    yield from _shared(part, where)
    for key, option in _OPTIONS.items():
        if key in twofold.get(option, ()):
            continue
        value = part.get(key)
        value = value.state.get("_val") if isinstance(value, StandIn) and isinstance(value.state, dict) else value
        if option == "image_size" and isinstance(value, (list, tuple)):
            value = value[-1] if value else None
        if option == "attention":
            value = _letters(value) if isinstance(value, str) else None
        if option == "norm":
            value = _NORMS.get(value.lower()) if isinstance(value, str) else None
        if value is not None and is_plain(value) and not isinstance(value, dict):
            yield Statement(option, tuple(value) if isinstance(value, list) else value, f"{where}.{key}")


def _letters(attention: str) -> str | None:
    """A letter for every stage, one where all agree; None for words that are no such letters."""
    if not attention or set(attention) - set("LS"):
        return None
    return attention[0] if len(set(attention)) == 1 else attention


def _differ(one: Any, other: Any) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one != other


def _shared(part: Mapping[Any, Any], where: str) -> Iterator[Statement]:
    """Which of fairseq's tables of words are one."""
    keys = ("share_all_embeddings", "share_decoder_input_output_embed")
    every, decoder = (part.get(key) for key in keys)
    if every is True:
        yield Statement("shared", "all", f"{where}.{keys[0]}")
    elif every is False and isinstance(decoder, bool):
        yield Statement("shared", "decoder" if decoder else "none", f"{where}.{keys[1] if decoder else keys[0]}")


def _slab(model: Mapping[Any, Any], where: str) -> Iterator[Statement]:
    """What SLAB's networks read of MODEL.LA, and of MODEL.SWIN in a sense of its own."""
    kind, linear = model.get("TYPE"), _items(model.get("LA"))
    attention = str(linear.get("ATTN_TYPE"))
    if not isinstance(kind, str) or not _SLAB.match(kind) or len(attention) != 4 or _letters(attention) is None:
        return
    if attention != _DEFAULT_ATTENTION:
        yield Statement("attention", _letters(attention), f"{where}.LA.ATTN_TYPE")
    kernel, ratios = linear.get("KERNEL_SIZE"), str(linear.get("PVT_LA_SR_RATIOS"))
    if isinstance(kernel, int) and kernel != _DEFAULT_KERNEL:
        yield Statement("kernel", kernel, f"{where}.LA.KERNEL_SIZE")
    if _PYRAMID.match(kind) and re.fullmatch(r"\d{4}", ratios) and ratios != _DEFAULT_RATIOS:
        read = zip(attention, ratios, _SOFTMAX_RATIOS, strict=True)
        value = tuple(int(ratio) if letter == "L" else usual for letter, ratio, usual in read)
        yield Statement("reductions", value, f"{where}.LA.PVT_LA_SR_RATIOS")
    window = _items(model.get("SWIN")).get("WINDOW_SIZE")
    if _SWIN.match(kind) and "L" in attention and isinstance(window, int) and window != _DEFAULT_WINDOW:
        yield Statement("linear_window", window, f"{where}.SWIN.WINDOW_SIZE")


def _parts(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The configurations of a file, each with its place."""
    for place in _PLACES:
        whole = _items(content.get(place))
        yield place, whole
        yield f"{place}.model", _items(whole.get("model"))
        model = _items(whole.get("MODEL"))
        if _PYRAMID.match(str(model.get("TYPE"))):
            # SLAB builds these without it: they have 1000 classes, whatever stands there.
            model = {key: value for key, value in model.items() if key != "NUM_CLASSES"}
        yield f"{place}.MODEL", model
        yield f"{place}.DATA", _items(whole.get("DATA"))
        if isinstance(model.get("TYPE"), str) and (kind := _SWIN.match(model["TYPE"])):
            # SLAB's windows are another thing: its linear stages have the whole picture for one.
            skipped = ("WINDOW_SIZE",) if kind[1] else ()
            swin = _items(model.get("SWIN"))
            yield f"{place}.MODEL.SWIN", {key: value for key, value in swin.items() if key not in skipped}
    text = _items(content.get("meta")).get("config")
    if isinstance(text, str):
        yield "meta.config: backbone", _backbone(text)


def _items(value: Any) -> Mapping[Any, Any]:
    """The entries of a configuration of whatever kind; none of what is no configuration."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if isinstance(value, StandIn):
        inner = value.state.get("_content") if isinstance(value.state, dict) else None
        return {key: _unwrapped(item) for key, item in inner.items()} if isinstance(inner, Mapping) else {}
    return value if isinstance(value, Mapping) else {}


def _unwrapped(item: Any) -> Any:
    """omegaconf wraps every value in a node."""
    held = item.state if isinstance(item, StandIn) else None
    return held["_val"] if isinstance(held, dict) and "_val" in held else item


def _backbone(text: str) -> Mapping[str, Any]:
    """The plain arguments of `backbone=dict(...)` in a configuration of mmdet, which is Python: parsed, never run."""
    try:
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.keyword) and node.arg == "backbone"]
        found: dict[str, Any] = {}
        for call in calls[:1]:
            for keyword in call.value.keywords if isinstance(call.value, ast.Call) else ():
                if keyword.arg is not None and isinstance(keyword.value, (ast.Constant, ast.List, ast.Tuple)):
                    found[keyword.arg] = ast.literal_eval(keyword.value)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return {"arch" if key == "type" else "WINDOW_SIZE" if key == "window_size" else key: v for key, v in found.items()}
