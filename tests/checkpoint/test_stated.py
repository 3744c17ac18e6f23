"""What files state of their own architecture: read from every kind of them, taken, and held against the weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from normfold import models
from normfold.checkpoint import recognise
from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.recognise import ContradictionError, defaults, options_of
from normfold.checkpoint.source import Source
from normfold.checkpoint.stated import Said, Statement, known, of_configuration, read
from normfold.errors import ArchitectureError
from tests.checkpoint.test_authors_files import DictConfig, packages, state_of
from tests.checkpoint.test_recognise import named, shapes_of, stating

__all__ = ["packages"]  # a fixture

# --- what a file states --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "word", "heads"),
    [
        ("t2t_vit_14_un", {}, "T2t_vit_14_resnext", 32),
        ("t2t_vit_14_un", {}, "T2t_vit_14_all_un1d", 6),
        ("t2t_vit_14_ln", {"dim": 512, "heads": 1}, "T2t_vit_24", 8),
        ("t2t_vit_14_ln", {"dim": 448, "heads": 1}, "t2t-vit-19", 7),
        ("t2t_vit_14_un", {"dim": 256, "depth": 7, "mlp_ratio": 2.0, "heads": 1}, "T2t_vit_7", 4),
        ("deit_small_prepbn", {}, "deit_small_patch16_224_repbn", 6),
        ("deit_tiny_ln", {"dim": 768}, "deit_base_patch16_224", 12),
        ("nmt_un", {"depth": 2}, "transformer_iwslt_de_en", 4),
        ("nmt_un", {"hidden": 2048}, "transformer_wmt_en_de", 8),
        ("pvt_tiny_prepbn", {}, "slab_pvt_tiny", (1, 2, 5, 8)),
        ("cswin_tiny_ln", {}, "CSWin_64_24181_tiny_224", (2, 4, 8, 16)),
    ],
)
def test_an_authors_name_says_the_heads(name: str, options: dict[str, Any], word: str, heads: Any) -> None:
    shapes = shapes_of(name, **options)
    found = recognise.recognise(shapes, said=named(word))
    assert {**defaults(found.name), **found.options}["heads"] == heads
    # What the file states in so many words is closer to the run than its architecture's name.
    if not isinstance(heads, tuple):
        own = recognise.recognise(shapes, said=Said(((word, "arch"),), stating(heads=2 * heads).statements))
        assert own.options["heads"] == 2 * heads


CONTRADICTIONS: list[tuple[str, dict[str, Any], Said, str]] = [
    ("t2t_vit_14_un", {}, named("T2t_vit_24"), r"arch = 'T2t_vit_24': dim = 512.* has dim = 384"),
    ("swin_tiny_prepbn", {}, named("deit_tiny_patch16_224"), "arch = 'deit_tiny_patch16_224', and .* of swin_tiny"),
    ("slab_deit_tiny", {}, stating(heads=6), "args.heads = 6, .*has heads = 3"),
    (
        "swin_tiny_prepbn",
        {},
        stating(heads=(4, 8, 16, 32)),
        r"args.heads = \(4, 8, 16, 32\).* heads = \(3, 6, 12, 24\)",
    ),
    ("nmt_un", {}, stating(heads=4, encoder_depth=12), "encoder_depth = 12, .*has encoder_depth = 6"),
    ("nmt_un", {}, stating(heads=4, activation="gelu"), "activation = gelu, .*has activation = relu"),
    ("nmt_un", {}, stating(heads=4, pre_norm=False), "pre_norm = False.* = True"),
    ("nmt_un", {}, stating(heads=4, learned_positions=True), "learned_positions = True.* = False"),
    ("nmt_un", {}, stating(heads=4, unscaled_embedding=True), "unscaled_embedding = True"),
    ("nmt_un", {}, stating(heads=4, norm_window=8), "norm_window = 8.* = 4"),
    ("llama_350m_rms", {}, stating(eps=1e-6, rope_base=1e4, heads=16), "heads = 16.* heads = 8"),
    ("llama_350m_rms", {}, stating(eps=1e-6, rope_base=1e4, model_type="gemma"), "model_type = llama or mistral"),
    ("llama_350m_rms", {}, stating(eps=1e-6, rope_base=1e4, activation="gelu"), "activation = silu or swish"),
    ("llama_350m_rms", {}, stating(eps=1e-6, rope_base=1e4, rope_scaling="yarn"), "rope_scaling = None"),
    ("deit_tiny_bn", {}, stating(heads=3, bn_eps=1e-3), "bn_eps = 0.001"),
]


@pytest.mark.parametrize(("name", "options", "said", "complaint"), CONTRADICTIONS)
def test_words_that_contradict_the_weights_are_an_error(
    name: str, options: dict[str, Any], said: Said, complaint: str
) -> None:
    with pytest.raises(ContradictionError, match=complaint):
        recognise.recognise(shapes_of(name, **options), said=said)


def test_the_file_and_the_user_may_not_disagree_either() -> None:
    shapes = shapes_of("nmt_un")
    with pytest.raises(ContradictionError, match=r"args\.heads = 8, and nmt_un .* has heads = 4"):
        options_of("nmt_un", shapes, said=stating(heads=8), given={"heads": 4})
    assert options_of("nmt_un", shapes, said=stating(heads=8)).options == {"heads": 8}
    assert "args.heads = 8" in options_of("nmt_un", shapes, said=stating(heads=8)).sentence
    both = Said(statements=(Statement("heads", 8, "cfg.a"), Statement("heads", 4, "cfg.b")))
    with pytest.raises(ContradictionError, match=r"cfg\.b = 4, .* heads = 8"):
        recognise.recognise(shapes, said=both)


def test_what_only_limits_the_inputs_is_taken_from_the_file_or_left_as_it_is() -> None:
    shapes = shapes_of("nmt_un", dim=8)
    assert "positions" not in recognise.recognise(shapes, said=stating(heads=4)).options
    for stated, taken in ((64, 64), (10**12, 1 << 16)):
        options = recognise.recognise(shapes, said=stating(heads=4, positions=stated)).options
        assert options["positions"] == taken


@pytest.mark.parametrize("heads", [0, -1, 7, 10**15])
def test_a_number_of_heads_that_nothing_can_be_built_with(heads: int) -> None:
    with pytest.raises(ArchitectureError, match="cannot be built with"):
        recognise.recognise(shapes_of("t2t_vit_14_un"), said=stating(heads=heads))


# --- the containers ------------------------------------------------------------------------------------------------

NMT = {"vocab": 40, "dim": 16, "depth": 1, "hidden": 24}
# The rows of shared/reference's records for `args`, as the authors' fairseq saves them.
FAIRSEQ = {
    "arch": "transformer_iwslt_de_en",
    "norm_type": "UN1d",
    "un_win": 4,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_embed_dim": 16,
    "decoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "decoder_ffn_embed_dim": 24,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "encoder_learned_pos": False,
    "decoder_learned_pos": False,
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
    "layernorm_embedding": False,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "activation_fn": "relu",
    "no_scale_embedding": False,
}


def loaded(path: Path, content: dict[str, Any], **options: Any) -> Source:
    torch.save(content, path)
    return load_checkpoint(path, **options)


def heads_of(source: Source) -> Any:
    assert source.arch is not None
    return {**defaults(source.arch), **source.arch_args}["heads"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda args: {"args": None, "cfg": {"model": argparse.Namespace(**args)}},
        lambda args: {"cfg": {"model": dict(args)}},
        lambda args: {"args": argparse.Namespace(**args)},
        lambda args: {"hyper_parameters": dict(args)},
        lambda args: {"cfg": DictConfig({"model": args})},
    ],
    ids=["cfg.model Namespace", "cfg.model dict", "args", "hyper_parameters", "omegaconf"],
)
def test_fairseqs_own_configuration_is_read(tmp_path: Path, packages: Any, wrap: Any) -> None:
    content = {**wrap(FAIRSEQ), "model": state_of("nmt_un", **NMT, heads=8)}
    torch.save(content, tmp_path / "c.pt")
    packages()
    source = load_checkpoint(tmp_path / "c.pt")
    assert source.module is not None
    assert source.arch_args == {**NMT, "heads": 8, "positions": 64}
    attention = source.module.get_submodule("encoder.layers.0.self_attn")
    assert attention.heads == 8
    assert [str(spec) for spec in source.inputs] == ["src:int64[B,S<=64]<40", "ids:int64[B,L<=64]<40"]
    assert any("encoder_attention_heads = 8" in warning for warning in source.warnings)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"decoder_layers": 6}, "cfg.model.decoder_layers = 6, .* has decoder_depth = 1"),
        ({"activation_fn": "gelu"}, "cfg.model.activation_fn = gelu, .*relu"),
        ({"no_scale_embedding": True}, "cfg.model.no_scale_embedding = True"),
        ({"encoder_normalize_before": False}, "cfg.model.encoder_normalize_before = False"),
        ({"layernorm_embedding": True}, "cfg.model.layernorm_embedding = True"),
        ({"un_win": 8}, "cfg.model.un_win = 8"),
        ({"no_token_positional_embeddings": True}, "no_token_positional_embeddings = True"),
    ],
)
def test_a_fairseq_file_that_is_another_network(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    config = {"model": argparse.Namespace(**{**FAIRSEQ, **change})}
    with pytest.raises(ArchitectureError, match=complaint) as caught:
        loaded(tmp_path / "c.pt", {"cfg": config, "model": state_of("nmt_un", **NMT, heads=8)})
    assert str(tmp_path / "c.pt") in str(caught.value)


def test_timms_file_says_which_t2t_it_is(tmp_path: Path) -> None:
    state = state_of("t2t_vit_14_un", depth=1, classes=5, image_size=32)
    for word, heads in (("T2t_vit_14_resnext", 32), ("T2t_vit_14", 6)):
        args = argparse.Namespace(model=word, img_size=None, num_classes=5, bn_eps=None)
        source = loaded(tmp_path / "c.pth.tar", {"arch": word, "state_dict": state, "args": args, "version": 2})
        assert heads_of(source) == heads
    args = argparse.Namespace(model="T2t_vit_14_resnext", num_classes=1000)
    with pytest.raises(ArchitectureError, match=r"args\.num_classes = 1000, .* has classes = 5"):
        loaded(tmp_path / "c.pth.tar", {"arch": "T2t_vit_14_resnext", "state_dict": state, "args": args})
    both = {"arch": "T2t_vit_14_resnext", "args": argparse.Namespace(model="T2t_vit_14")}
    with pytest.raises(ArchitectureError, match=r"args\.model = 'T2t_vit_14': heads = 6, .* has heads = 32"):
        loaded(tmp_path / "c.pth.tar", {**both, "state_dict": state})


def test_a_t2t_that_was_asked_for_pretrained_scales_its_attention_otherwise(tmp_path: Path) -> None:
    state = state_of("t2t_vit_14_un", depth=1, classes=5, image_size=32)
    file = {"arch": "T2t_vit_14", "state_dict": state}
    with pytest.raises(
        ArchitectureError, match=r"args\.pretrained = True: qk_scale = width \*\* -0\.5, and t2t_vit_14"
    ):
        loaded(tmp_path / "c.pth.tar", {**file, "args": argparse.Namespace(model="T2t_vit_14", pretrained=True)})
    # The twin, and a network of others, whose constructors do not.
    source = loaded(tmp_path / "c.pth.tar", {**file, "args": argparse.Namespace(model="T2t_vit_14", pretrained=False)})
    assert heads_of(source) == 6
    state = state_of("deit_tiny_prepbn", depth=1, classes=5, image_size=32)
    args = argparse.Namespace(model="deit_tiny_patch16_224", pretrained=True)
    assert heads_of(loaded(tmp_path / "d.pth.tar", {"state_dict": state, "args": args})) == 3


def test_mmdets_configuration_is_parsed_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    text = f"""
dataset_type = __import__('os').mkdir({str(trap)!r})
model = dict(
    type='MaskRCNN',
    backbone=dict(type='SwinTransformer_PRepBN', embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24],
                  window_size=7, drop_path_rate=0.2, pretrained=open('/etc/passwd').read()),
    neck=dict(type='FPN', in_channels=[96, 192, 384, 768]))
"""
    said = read({"meta": {"config": text}})
    found = {statement.option: statement.value for statement in said.statements}
    assert found == {"heads": (3, 6, 12, 24), "dim": 96, "depths": (2, 2, 6, 2), "window": 7}
    assert said.names == (("SwinTransformer_PRepBN", "meta.config: backbone.arch"),)
    assert not trap.exists()


@pytest.mark.parametrize(("stated", "read_as"), [("LLLL", "L"), ("LLSS", "LLSS"), ("global", None), ("", None)])
def test_mmdets_attention_is_read(stated: str, read_as: str | None) -> None:
    text = f"model = dict(backbone=dict(type='SwinTransformer_SLAB', attn_type={stated!r}, kernel_size=3))"
    said = read({"meta": {"config": text}})
    found = {statement.option: statement.value for statement in said.statements}
    assert found == {"kernel": 3} | ({} if read_as is None else {"attention": read_as})


@pytest.mark.parametrize("text", ["", "(" * 100_000, "model = dict(", "\0", "backbone=" + "[" * 5000, "f(backbone=x)"])
def test_a_text_that_is_no_configuration_says_nothing(text: str) -> None:
    assert read({"meta": {"config": text}}) == Said()


def test_what_is_no_configuration_says_nothing() -> None:
    odd: list[Any] = [None, 3, "x", [], {}, {"model": 3}, {"MODEL": []}, {"model": {"num_heads": 10**5000}}]
    odd += [{"num_heads": {"a": 1}}, {"num_heads": torch.ones(2)}, {"num_heads": [[]] * 2000}, {1: 2, None: 3}]
    for value in odd:
        assert read({"args": value, "config": value, "meta": value}).statements == ()
    assert read({"arch": "x" * 10_000}).names == ()
    assert known("resnet50") is None


# --- folders of the hub --------------------------------------------------------------------------------------------

LLAMA = {"vocab": 40, "dim": 16, "depth": 1, "heads": 2, "hidden": 24}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 40,
}


def folder_of(path: Path, config: dict[str, Any], state: dict[str, torch.Tensor] | None = None) -> Path:
    state = state if state is not None else state_of("llama_350m_rms", **LLAMA)
    safetensors.torch.save_file({k: v.contiguous().clone() for k, v in state.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, {}),
        ({"rope_theta": None}, {}),
        ({"rope_theta": 500000.0}, {"rope_base": 500000.0}),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, {"rope_base": 1e6}),
        ({"rms_norm_eps": 1e-6}, {"norm_args": {"eps": 1e-6}}),
    ],
)
def test_what_config_json_says_is_what_is_built(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any]
) -> None:
    source = load_checkpoint(folder_of(tmp_path, {**CONFIG, **change}))
    expected = {**LLAMA, "norm_args": {"eps": 1e-5}, **options}
    expected = {key: value for key, value in expected.items() if value != {"eps": 1e-6}}
    assert source.arch_args == expected


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 4}, r"config\.json\.num_attention_heads = 4, .* heads = 2"),
        ({"num_key_value_heads": 1}, "num_key_value_heads = 1"),
        ({"model_type": "gemma"}, r"model_type = gemma, .* has model_type = llama or mistral"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act = gelu_pytorch_tanh"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling|rope_type = llama3"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"vocab_size": 41}, "vocab_size = 41, .* vocab = 40"),
        ({"rms_norm_eps": None}, "do not show eps"),
    ],
)
def test_a_folder_of_another_network(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ArchitectureError, match=complaint):
        load_checkpoint(folder_of(tmp_path, {**CONFIG, **change}))


def test_a_tied_projection_as_config_json_states_it(tmp_path: Path) -> None:
    config, state = {**CONFIG, "tie_word_embeddings": True}, state_of("llama_350m_rms", **LLAMA)
    with pytest.raises(ArchitectureError, match=r"model\.embed_tokens\.weight and lm_head\.weight"):
        load_checkpoint(folder_of(tmp_path, config, state))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    assert load_checkpoint(folder_of(tmp_path, config, state)).arch_args["tied"] is True
    del state["lm_head.weight"]
    assert load_checkpoint(folder_of(tmp_path, config, state)).arch_args["tied"] is True
    with pytest.raises(ArchitectureError, match=r"tie_word_embeddings = False, .* has tied = True"):
        load_checkpoint(folder_of(tmp_path, CONFIG, state))


def test_timms_folder_says_its_name(tmp_path: Path) -> None:
    state = state_of("deit_tiny_ln", depth=1, classes=5)
    config = {"architecture": "deit_tiny_patch16_224", "num_classes": 5, "num_features": 192}
    assert heads_of(load_checkpoint(folder_of(tmp_path, config, state))) == 3
    with pytest.raises(ArchitectureError, match=r"config\.json\.num_classes = 1000"):
        load_checkpoint(folder_of(tmp_path, {**config, "num_classes": 1000}, state))
    assert of_configuration({"architectures": "LlamaForCausalLM", "hidden_size": "x"}, "c").names == ()


def test_the_users_own_word_for_what_is_asked(tmp_path: Path) -> None:
    state = state_of("nmt_un", **NMT, heads=2)
    with pytest.raises(ArchitectureError, match="do not show heads"):
        loaded(tmp_path / "c.pt", state)
    for arch in ("nmt_un", None):
        source = loaded(tmp_path / "c.pt", state, arch=arch, model_args={"heads": 2})
        assert source.arch_args == {**NMT, "heads": 2}
    # The name alone speaks of its usual width.
    with pytest.raises(ArchitectureError, match="do not show heads"):
        loaded(tmp_path / "c.pt", state, arch="nmt_un")
    assert models.create("nmt_un", **NMT, heads=2) is not None


def test_heads_of_encoder_and_decoder(tmp_path: Path) -> None:
    words = {**FAIRSEQ, "decoder_attention_heads": 4}
    state = state_of("nmt_un", **NMT, heads=[8, 4])
    source = loaded(tmp_path / "c.pt", {"cfg": {"model": argparse.Namespace(**words)}, "model": state})
    assert source.module is not None and heads_of(source) == (8, 4)
    assert source.module.get_submodule("encoder.layers.0.self_attn").heads == 8
    assert source.module.get_submodule("decoder.layers.0.encoder_attn").heads == 4
    assert any("encoder_attention_heads and decoder_attention_heads = (8, 4)" in text for text in source.warnings)
