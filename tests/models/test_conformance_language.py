"""The papers' language models give the numbers of their published code, with parameters drawn by reference/fill.py."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normfold.models import create, names
from normfold.nn.deepnorm import encoder_decoder, encoder_only
from normfold.norms.detect import find_norms
from tests.models.reference import fill

FOLDER = Path(__file__).resolve().parent / "reference"
REDUCED_LLAMA = {"vocab": 160, "dim": 96, "depth": 2, "hidden": 176}
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
# Only what float64 leaves.
TOLERANCE = 1e-12
# LLaMA's angles are float32: tables in float64 move its logits by 6e-11, and another CPU's float32 sine by no more. An
# eps that is off by a tenth (8e-8) is far outside.
ANGLE_TOLERANCE = 1e-9
# The sinusoid table is float32, and another CPU's float32 sine moves the logits by up to 2.7e-7.
TABLE_TOLERANCE = 1e-6
NORMS = {
    "deepnet_encoder_ln": ("LayerNorm", 36),
    "deepnet_encoder_un": ("UN", 36),
    "deepnet_nmt_ln": ("LayerNorm", 90),
    "deepnet_nmt_un": ("UN", 90),
    "llama_350m_prepbn": ("PRepBN", 37),
    "llama_350m_rms": ("RMSNorm", 37),
    "nmt_ln": ("LayerNorm", 32),
    "nmt_un": ("UN", 32),
    "nmt_wmt_big_ln": ("LayerNorm", 32),
    "nmt_wmt_big_un": ("UN", 32),
    "nmt_wmt_ln": ("LayerNorm", 32),
    "nmt_wmt_un": ("UN", 32),
}


def read(name: str) -> tuple[dict[str, Any], np.ndarray]:
    return json.loads((FOLDER / f"{name}.json").read_text()), np.load(FOLDER / f"{name}.npy")


def filled(model: nn.Module, record: dict[str, Any], tied: tuple[str, ...] = ()) -> nn.Module:
    """The model with the reference's parameters, rounded to float32 as a checkpoint holds them, in float64."""
    drawn = {key: torch.from_numpy(value).float() for key, value in fill.state_dict(record).items()}
    if tied:
        drawn |= dict.fromkeys(tied, drawn[tied[0]])
    model.load_state_dict({**model.state_dict(), **drawn}, strict=True)
    return model.double().eval()


def entries(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"name": key, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for key, value in model.state_dict().items()
    ]


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", NORMS)
def test_the_published_size_has_its_norms(name: str) -> None:
    with torch.device("meta"):
        model = create(name)
    norms = find_norms(model)
    assert ({norm.kind for norm in norms}, len(norms)) == ({NORMS[name][0]}, NORMS[name][1])


def test_the_names_are_these() -> None:
    assert set(NORMS) == {name for name in names() if name.startswith(("deepnet_", "llama_", "nmt_"))}


def published_llama(heads: int, norm_eps: float) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    record, expected = read(f"llama_prepbn_heads{heads}")
    published = {"base": "rms", "flatten": True, "warm": 10000, "steps": 18000, "accumulation": 16}
    norm_args = {**published, "base_eps": norm_eps, "eps": norm_eps}
    model = create("llama_350m_prepbn", **REDUCED_LLAMA, heads=heads, norm_args=norm_args)
    assert entries(model) == record["entries"]
    return filled(model, record), fill.tokens((2, 20), 160), expected


@pytest.mark.parametrize(("heads", "published"), [(2, 1e-5), (6, 1e-6)])
@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_llama_gives_the_published_numbers(heads: int, published: float, factor: float) -> None:
    model, ids, expected = published_llama(heads, published * factor)
    with torch.no_grad():
        got = model(torch.from_numpy(ids)).numpy()[..., ::4]
    assert (distance(got, expected) < ANGLE_TOLERANCE) == (factor == 1.0)


@pytest.mark.parametrize("padded", [False, True])
def test_the_translation_transformer_gives_the_published_numbers(padded: bool) -> None:
    record, expected = read("nmt_un")
    model = create("nmt_un", vocab=1000)
    assert entries(model) == record["entries"]
    filled(model, record, TIED)
    src, ids = fill.tokens((2, 20), 1000), fill.tokens((2, 16), 1000, 100)
    if padded:
        src[1, -5:] = 1
    with torch.no_grad():
        got = model(torch.from_numpy(src), torch.from_numpy(ids)).numpy()
    assert float(np.abs(got - expected[int(padded)]).max()) < TABLE_TOLERANCE


# N, M, and then alpha and beta of the encoder and of the decoder.
TABLE = [
    (1, 1, (0.81, 0.87), (1.3160740, 0.5372850)),
    (6, 6, (1.4179381, 0.4969892), (2.0597671, 0.3432945)),
    (18, 18, (1.9987463, 0.3525710), (2.7108060, 0.2608474)),
    (200, 100, (4.0620243, 0.1734849), (4.1617915, 0.1699044)),
]


@pytest.mark.parametrize(("n", "m", "encoder", "decoder"), TABLE)
def test_deepnorm_constants(n: int, m: int, encoder: tuple[float, float], decoder: tuple[float, float]) -> None:
    found = encoder_decoder(n, m)
    np.testing.assert_allclose(found, (encoder, decoder), rtol=1e-6)


def test_deepnorm_constants_of_an_encoder() -> None:
    np.testing.assert_allclose(encoder_only(2), (2**0.5, 0.5), rtol=1e-12)
    np.testing.assert_allclose(encoder_only(12), (2.2133638, 0.3194716), rtol=1e-6)


def test_deepnorm_initialises_values_outputs_and_networks_smaller() -> None:
    torch.manual_seed(0)
    model = create("deepnet_nmt_ln", vocab=50, dim=128, hidden=128, heads=2, encoder_depth=8, decoder_depth=3)
    checked = 0
    for name, (_, beta) in zip(("encoder", "decoder"), encoder_decoder(8, 3), strict=True):
        for key, weight in model.get_submodule(name).named_parameters():
            if weight.dim() != 2 or "embed" in key or key == "output_projection.weight":
                continue
            gain = 1.0 if "q_proj" in key or "k_proj" in key else beta
            # Xavier normal on a square matrix: the standard deviation is gain / sqrt(width), here of 16384 draws.
            assert abs(float(weight.detach().std()) * 128**0.5 / gain - 1) < 0.05, key
            checked += 1
    assert checked == 8 * 6 + 3 * 10


@pytest.fixture
def torchscale(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """torchscale 0.3.0, with stand-ins for what it imports of fairscale and timm, and kept in float64 throughout."""
    for name, members in {
        "fairscale": {},
        "fairscale.nn": {"checkpoint_wrapper": None, "wrap": None},
        "timm": {},
        "timm.models": {},
        "timm.models.layers": {"drop_path": None},
    }.items():
        module = types.ModuleType(name)
        for member, value in members.items():
            setattr(module, member, value)
        monkeypatch.setitem(sys.modules, name, module)
    package = pytest.importorskip("torchscale")
    softmax = F.softmax
    monkeypatch.setattr(F, "softmax", lambda x, dim, dtype=None: softmax(x, dim))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return package


SIZES = {"embed_dim": 32, "attention_heads": 4, "ffn_embed_dim": 48}
OURS = {"vocab": 60, "dim": 32, "heads": 4, "hidden": 48, "positions": 40}


def same_weights(model: nn.Module, other: nn.Module) -> None:
    """Both get the same float64 weights, none of them what it was built with."""
    state = {key: torch.from_numpy(fill.tensor(key, tuple(value.shape))) for key, value in model.state_dict().items()}
    for key in (*TIED, "output_projection.weight"):
        if key in state:
            state[key] = state[TIED[0] if TIED[0] in state else key]
    for module in (model, other):
        module.double().eval().load_state_dict(state, strict=True)


@pytest.mark.slow
def test_the_deepnet_encoder_is_torchscales(torchscale: types.ModuleType) -> None:
    from torchscale.architecture.config import EncoderConfig
    from torchscale.architecture.encoder import Encoder
    from torchscale.component.embedding import PositionalEmbedding

    config = EncoderConfig(
        deepnorm=True, encoder_layers=5, vocab_size=60, **{f"encoder_{key}": value for key, value in SIZES.items()}
    )
    other = Encoder(config, nn.Embedding(60, 32), PositionalEmbedding(42, 32))
    model = create("deepnet_encoder_ln", depth=5, **OURS)
    same_weights(model, other)
    src = torch.from_numpy(fill.tokens((3, 17), 60))
    src[1, -6:] = 1
    with torch.no_grad():
        expected = other(src, encoder_padding_mask=src == 1)["encoder_out"]
        got = model(src)
    np.testing.assert_allclose(got[src != 1], expected[src != 1], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.slow
def test_the_deepnet_translator_is_torchscales(torchscale: types.ModuleType) -> None:
    from torchscale.architecture.config import EncoderDecoderConfig
    from torchscale.architecture.encoder_decoder import EncoderDecoder
    from torchscale.component.embedding import PositionalEmbedding

    sizes = {f"{part}_{key}": value for key, value in SIZES.items() for part in ("encoder", "decoder")}
    config = EncoderDecoderConfig(
        deepnorm=True,
        subln=False,
        encoder_layers=4,
        decoder_layers=3,
        vocab_size=60,
        share_all_embeddings=True,
        **sizes,
    )
    other = EncoderDecoder(config, nn.Embedding(60, 32), PositionalEmbedding(42, 32), None, PositionalEmbedding(42, 32))
    model = create("deepnet_nmt_ln", encoder_depth=4, decoder_depth=3, **OURS)
    same_weights(model, other)
    src, ids = torch.from_numpy(fill.tokens((2, 13), 60)), torch.from_numpy(fill.tokens((2, 9), 60, 100))
    with torch.no_grad():
        np.testing.assert_allclose(model(src, ids), other(src, ids)[0], rtol=TOLERANCE, atol=TOLERANCE)
    ratio = other.encoder.layers[0].alpha / other.decoder.layers[0].alpha
    ours = encoder_decoder(4, 3)
    assert ratio == pytest.approx(ours[0].alpha / ours[1].alpha, rel=1e-12)
