"""The built-in architectures: shapes, options, export at dynamic sizes, and the published references."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.export import Dim

from normfold.errors import ArchitectureError
from normfold.models import create, names
from normfold.models.blocks import norm

KINDS = ("ln", "rms", "bn", "repbn", "prepbn", "un", "powernorm", "identity")
CASES = [
    *((name, kind) for name in ("char_lm", "postnorm_encoder", "vit") for kind in KINDS),
    ("convnet", "bn"),
    ("convnet", "identity"),
]
# One export of each shape of graph; the rest differ by their norms alone, which tests/nn covers.
EXPORTED = [("char_lm", "prepbn"), ("convnet", "bn"), ("postnorm_encoder", "un"), ("vit", "repbn")]
# float32 rounding over a dozen layers on logits of order 1; a baked-in size or a wrong axis is off by far more.
TOLERANCE = 1e-4


def small(name: str, kind: str, **extra: Any) -> nn.Module:
    """A tiny network with statistics that are not fresh."""
    sizes = {"convnet": {"width": 4}, "char_lm": {"dim": 16, "depth": 1, "heads": 2, "hidden": 24}}
    options = {"norm": kind, **sizes.get(name, {"dim": 12, "depth": 1, "heads": 2}), **extra}
    torch.manual_seed(0)
    model = create(name, **options)
    generator = torch.Generator().manual_seed(1)
    for key, buffer in model.named_buffers():
        if key.endswith(("running_var", "running_phi")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 2 + 0.3)
        elif key.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)
    return model.eval()


def inputs(name: str, batch: int = 3, length: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    if name == "char_lm":
        return torch.randint(128, (batch, length), generator=generator)
    side = 8 if name == "vit" else 28
    return torch.randn(batch, 1, side, side, generator=generator)


def test_names_are_sorted_and_the_small_ones_build() -> None:
    assert names() == sorted(names())
    # The papers' own are built where they are compared with their references.
    for name in ("char_lm", "convnet", "postnorm_encoder", "vit"):
        assert name in names()
        assert isinstance(create(name), nn.Module)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_norm_fits_everywhere_and_trains(name: str, kind: str) -> None:
    model, x = small(name, kind), inputs(name)
    with torch.no_grad():
        y = model(x)
    assert y.shape == ((3, 7, 128) if name == "char_lm" else (3, 10))
    model.train()(x).square().mean().backward()
    reached = [parameter.grad for key, parameter in model.named_parameters() if "norm2.bn" not in key]
    assert any(gradient is not None and bool(gradient.any()) for gradient in reached)
    assert all(gradient is None or bool(torch.isfinite(gradient).all()) for gradient in reached)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_double_precision_all_the_way(name: str, kind: str) -> None:
    """The float64 model is the truth a fold is judged by: nothing inside may drop to float32."""
    model, x = small(name, kind), inputs(name)
    with torch.no_grad():
        single = model(x)
        model.double()
        truth = model(x if name == "char_lm" else x.double())
    assert truth.dtype == torch.float64
    torch.testing.assert_close(single.double(), truth, rtol=TOLERANCE, atol=TOLERANCE)


def test_identity_is_the_same_network_without_its_norms() -> None:
    for name in ("char_lm", "postnorm_encoder", "vit"):
        twin = small(name, "identity", norm_args={"flatten": True}).state_dict()
        full = small(name, "repbn").state_dict()
        assert twin
        assert set(twin) == {key for key in full if "norm" not in key}


def test_the_language_model_is_causal() -> None:
    model, x = small("char_lm", "prepbn"), inputs("char_lm", length=9)
    with torch.no_grad():
        whole, part = model(x), model(x[:, :5])
    torch.testing.assert_close(whole[:, :5], part, rtol=TOLERANCE, atol=TOLERANCE)
    changed = x.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 128
    with torch.no_grad():
        other = model(changed)
    assert not torch.allclose(other[:, 4:], whole[:, 4:])


def test_the_language_model_knows_positions_and_can_tie_its_embedding() -> None:
    model = small("char_lm", "rms", tied=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(key.endswith("bias") for key in model.state_dict())
    x = torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]])
    with torch.no_grad():
        y = model(x)
    assert not torch.allclose(y[0, -1], y[1, -1])


@pytest.mark.parametrize(("name", "kind"), EXPORTED)
def test_export_follows_dynamic_sizes(name: str, kind: str) -> None:
    model = small(name, kind, **({"norm_args": {"flatten": True}} if kind == "prepbn" else {}))
    axes = {0: Dim("batch"), 1: Dim("length")} if name == "char_lm" else {0: Dim("batch")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (inputs(name),), dynamo=True, dynamic_shapes=(axes,), verbose=False)
    assert program is not None
    session = ort.InferenceSession(program.model_proto.SerializeToString())
    for batch, length in ((3, 7), (1, 7), (5, 11), (2, 1)):
        x = inputs(name, batch, length)
        with torch.no_grad():
            expected = model(x).numpy()
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("resnet", {}, "there is no built-in architecture 'resnet'.*`normfold models` lists all"),
        ("deit_tiny_rms", {}, r"close: deit_tiny_.*\); `normfold models` lists all"),
        ("vit", {"width": 3}, "no option width.*mlp_ratio"),
        ("vit", {"norm": "groupnorm"}, "no norm 'groupnorm'.*powernorm"),
        ("vit", {"norm": "un", "norm_args": {"windows": 3}}, "norm un has no option windows.*warmup"),
        ("vit", {"norm": "prepbn", "norm_args": {"base": "bn"}}, "cannot be built.*fades from"),
        ("vit", {"heads": 5}, "cannot be built.*5 heads do not divide"),
        ("vit", {"patch_size": 3}, "cannot be built.*do not tile"),
        ("vit", {"dim": "wide"}, "cannot be built"),
        ("char_lm", {"dim": 12, "heads": 4}, "cannot be built.*even head size"),
        ("convnet", {"norm": "ln"}, "bn or identity"),
    ],
)
def test_what_does_not_exist_or_fit_is_an_architecture_error(name: str, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ArchitectureError, match=says):
        create(name, **config)


def test_norm_factory_names_its_kinds() -> None:
    for kind in KINDS:
        x = torch.randn(2, 3, 8)
        assert norm(kind, 8).eval()(x).shape == x.shape
