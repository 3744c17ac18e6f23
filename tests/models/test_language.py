"""The language models decode with a cache, mind no padding, and export with every length dynamic."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.export import Dim

from normfold.errors import ArchitectureError
from normfold.models import create
from normfold.models.seq2seq import PADDING, EncoderDecoder

VOCAB = 61
SMALL = {"vocab": VOCAB, "dim": 32, "heads": 2, "hidden": 48}
DEPTHS = {"deepnet_nmt": {"encoder_depth": 3, "decoder_depth": 2}, "deepnet_encoder": {"depth": 2}}
CAUSAL = ["llama_350m_prepbn", "llama_350m_rms"]
TRANSLATORS = ["nmt_un", "nmt_ln", "deepnet_nmt_un", "deepnet_nmt_ln"]
LAYERS, HEADS, HEAD_DIM = 2, 2, 16
# The same sums in another order.
FLOAT64 = 1e-12
# float32 rounding over a few layers, relative to the largest output; a baked-in length or mask is off by its own size.
FLOAT32 = 1e-4


def small(name: str, **extra: Any) -> nn.Module:
    """A tiny network with statistics that are not fresh."""
    torch.manual_seed(0)
    depths = next((sizes for stem, sizes in DEPTHS.items() if name.startswith(stem)), {"depth": LAYERS})
    model = create(name, **SMALL, **depths, **extra)
    generator = torch.Generator().manual_seed(1)
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.7)
        elif key.endswith(("running_mean", "bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model.eval()


def translator(name: str) -> EncoderDecoder:
    model = small(name)
    assert isinstance(model, EncoderDecoder)
    return model


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def empty(batch: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two caches of no position."""
    keys = torch.zeros(LAYERS, batch, HEADS, 0, HEAD_DIM, dtype=dtype)
    return keys, keys.clone()


@pytest.mark.parametrize("name", CAUSAL)
def test_llama_with_a_cache_is_llama_without(name: str) -> None:
    model, ids = small(name).double(), tokens(3, 9)
    past = empty(3, torch.float64)
    pieces = []
    with torch.no_grad():
        whole = model(ids)
        for piece in ids.split([3, 1, 1, 4], dim=1):
            logits, *past = model(piece, *past)
            pieces.append(logits)
    assert past[0].shape == past[1].shape == (LAYERS, 3, HEADS, 9, HEAD_DIM)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_translator_with_a_cache_is_the_translator_without(name: str) -> None:
    model = translator(name).double()
    encoder, decoder = model.parts()
    src, ids = tokens(3, 7), tokens(3, 9, seed=1)
    src[1, :2], src[2, -3:] = PADDING, PADDING
    past = empty(3, torch.float64)
    pieces = []
    with torch.no_grad():
        whole = model(src, ids)
        source = encoder(src)
        for piece in ids.split([3, 1, 1, 4], dim=1):
            logits, *past = decoder(piece, *source, src != PADDING, *past)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("name", TRANSLATORS)
def test_padding_on_either_side_changes_nothing(name: str) -> None:
    model = translator(name).double()
    src, ids = tokens(1, 5), tokens(1, 4, seed=1)
    padding = torch.full((1, 3), PADDING)
    with torch.no_grad():
        plain = model(src, ids)
        left = model(torch.cat([padding, src], dim=1), ids)
        right = model(torch.cat([src, padding], dim=1), ids)
        longer = model(src, torch.cat([ids, padding], dim=1))[:, :4]
    for padded in (left, right, longer):
        torch.testing.assert_close(padded, plain, rtol=FLOAT64, atol=FLOAT64)
    with torch.no_grad():
        other = model(torch.cat([src, tokens(1, 3)], dim=1), ids)
    assert not torch.allclose(other, plain)


def test_padding_changes_nothing_in_the_encoder() -> None:
    model = small("deepnet_encoder_un").double()
    src, padding = tokens(1, 5), torch.full((1, 3), PADDING)
    with torch.no_grad():
        plain = model(src)
        left = model(torch.cat([padding, src], dim=1))[:, 3:]
        right = model(torch.cat([src, padding], dim=1))[:, :5]
    torch.testing.assert_close(left, plain, rtol=FLOAT64, atol=FLOAT64)
    torch.testing.assert_close(right, plain, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("name", [*TRANSLATORS, *CAUSAL, "deepnet_encoder_un"])
def test_every_parameter_that_evaluation_reads_gets_a_gradient(name: str) -> None:
    model, ids = small(name), tokens(2, 5)
    model(*([ids, ids] if name in TRANSLATORS else [ids])).square().mean().backward()
    unread = ("norm1.weight", "norm2.alpha")
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert all(key.endswith(unread[0]) for key in missing), missing


def test_half_precision_keeps_its_positions() -> None:
    model = small("llama_350m_rms").to(torch.float16)
    rotary = model.model.layers[0].self_attn.rotary_emb
    cos, _ = rotary(torch.zeros(1, 2000, 32, dtype=torch.float16), None)
    exact = torch.cos(torch.arange(2000, dtype=torch.float64))
    assert cos.dtype == torch.float16
    assert float((cos[:, 0] - exact).abs().max()) < 1e-3


def test_positions_follow_the_module_to_its_device() -> None:
    """A copy in every forward would wait for the device, and a CUDA graph cannot hold one."""
    rotary = small("llama_350m_rms").half().model.layers[0].self_attn.rotary_emb.to("meta")
    assert rotary._frequencies.is_meta and rotary._frequencies.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("nmt_un", {"heads": 5}, "5 heads do not divide dim 512"),
        ("nmt_un", {"dim": 33, "heads": 3}, "even dim"),
        ("deepnet_nmt_un", {"depth": 3}, "no option depth.*encoder_depth"),
        ("llama_350m_rms", {"norm_args": {"base": "ln"}}, "norm rms has no option base"),
    ],
)
def test_what_does_not_fit_is_an_architecture_error(name: str, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ArchitectureError, match=says), torch.device("meta"):
        create(name, **config)


B, L, P, S = (Dim(letter) for letter in "BLPS")
AXES = {
    "src": {0: B, 1: S},
    "ids": {0: B, 1: L},
    "keep": {0: B, 1: S},
    **{name: {1: B, 3: S} for name in ("source_keys", "source_values")},
    **{name: {1: B, 3: P} for name in ("past_keys", "past_values")},
}


def feed(names: str, batch: int, length: int, past: int, source: int) -> dict[str, torch.Tensor]:
    """Arguments by name at these sizes."""
    generator = torch.Generator().manual_seed(length)
    keep = torch.rand(batch, source, generator=generator) < 0.75
    keep[:, 0] = True
    sizes = {"past": past, "source": source}
    every = {"src": tokens(batch, source).where(keep, PADDING), "ids": tokens(batch, length, seed=1), "keep": keep}
    for name in AXES.keys() - every.keys():
        shape = (LAYERS, batch, HEADS, sizes[name.split("_")[0]], HEAD_DIM)
        every[name] = torch.randn(shape, generator=generator)
    return {name: every[name] for name in names.split()}


@cache
def exported(name: str, part: int | None, names: str) -> tuple[nn.Module, ort.InferenceSession]:
    """The model, or a part of it, and what runs its export."""
    model = small(name) if part is None else translator(name).parts()[part].eval()
    example = feed(names, 3, 5, 7, 11)
    shapes = {name: AXES[name] for name in example}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, kwargs=example, dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return model, ort.InferenceSession(program.model_proto.SerializeToString(), options)


ENCODER, DECODER = "src", "ids source_keys source_values keep past_keys past_values"
# One graph of each shape in the default run; the others are put together from the same parts.
EXPORTS = [
    ("llama_350m_prepbn", None, "ids past_keys past_values"),
    ("nmt_un", 1, DECODER),
    pytest.param("llama_350m_prepbn", None, "ids", marks=pytest.mark.slow),
    pytest.param("nmt_un", None, "src ids", marks=pytest.mark.slow),
    pytest.param("nmt_un", 0, ENCODER, marks=pytest.mark.slow),
    pytest.param("deepnet_encoder_un", None, ENCODER, marks=pytest.mark.slow),
    pytest.param("deepnet_nmt_un", 1, DECODER, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "part", "names"), EXPORTS)
def test_exports_follow_every_length(name: str, part: int | None, names: str) -> None:
    model, runner = exported(name, part, names)
    assert {value.name for value in runner.get_inputs()} == set(names.split())
    for sizes in ((3, 5, 7, 11), (1, 1, 0, 1), (2, 1, 4, 6), (4, 9, 1, 3)):
        values = feed(names, *sizes)
        with torch.no_grad():
            expected = model(**values)
        got = runner.run(None, {key: value.numpy() for key, value in values.items()})
        expected = expected if isinstance(expected, tuple) else (expected,)
        for ours, theirs in zip(got, expected, strict=True):
            scale = max(1.0, float(theirs.abs().max()) if theirs.numel() else 0.0)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT32 * scale)


def test_exported_parts_translate_padded_sources_greedily() -> None:
    model = translator("nmt_un")
    encoder, decoder = exported("nmt_un", 0, ENCODER)[1], exported("nmt_un", 1, DECODER)[1]
    src = tokens(3, 8)
    src[1, :3], src[2, -3:] = PADDING, PADDING
    expected = torch.full((3, 1), 2)
    with torch.no_grad():
        for _ in range(8):
            expected = torch.cat([expected, model(src, expected)[:, -1:].argmax(-1)], dim=1)
    source = encoder.run(None, {"src": src.numpy()})
    keys, values = (past.numpy() for past in empty(3, torch.float32))
    ids, found = np.full((3, 1), 2), [np.full((3, 1), 2)]
    for _ in range(8):
        inputs = dict(zip(DECODER.split(), (ids, *source, (src != PADDING).numpy(), keys, values), strict=True))
        logits, keys, values = decoder.run(None, inputs)
        ids = logits[:, -1:].argmax(-1)
        found.append(ids)
    assert len(np.unique(expected[:, 1:])) > 1
    np.testing.assert_array_equal(np.concatenate(found, axis=1), expected)
