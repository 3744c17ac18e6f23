"""The table of norms: each row against the module that normfold ships, and against what others call it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from normfold.graph.affine import Frame
from normfold.models import blocks
from normfold.nn.batchnorm import TokenBatchNorm
from normfold.nn.mabn import MABN2d
from normfold.nn.powernorm import PowerNorm
from normfold.nn.repbn import LinearNorm, RepBN
from normfold.nn.un import UN1d
from normfold.norms.base import NormKind
from normfold.norms.detect import token_twin
from normfold.norms.kinds import KINDS, kind_in, kind_of, kind_of_class

CHANNELS = 6
EPS = 1e-5
# Evaluated in float64: both sides are a handful of operations.
CLOSE = 1e-12


def fading(before: nn.Module) -> LinearNorm:
    return LinearNorm(CHANNELS, before, RepBN(CHANNELS), step=10)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "PRepBN": lambda: fading(nn.LayerNorm(CHANNELS)),
    "RepBN": lambda: RepBN(CHANNELS),
    "PowerNorm": lambda: PowerNorm(CHANNELS),
    "UN": lambda: UN1d(CHANNELS),
    "MABN": lambda: MABN2d(CHANNELS),
    "BatchNorm": lambda: TokenBatchNorm(CHANNELS),
    "LayerNorm": lambda: nn.LayerNorm(CHANNELS),
    "RMSNorm": lambda: nn.RMSNorm(CHANNELS),
}


def settled(module: nn.Module) -> nn.Module:
    """In float64 and in evaluation, with drawn parameters and statistics."""
    torch.manual_seed(0)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 2.0)
            if name.endswith(("weight", "running_mean")):
                tensor.data.sub_(1.25)
    return module.double().eval()


def closed_form(kind: NormKind, module: nn.Module) -> Frame:
    """The row's closed form of the module's parameters and buffers, in the order in which it takes them."""
    state = {name.rpartition(".")[2]: value for name, value in module.state_dict().items() if "norm1" not in name}
    names = ["weight", "bias", *(name for name in ("running_mean", "running_var", "running_phi") if name in state)]
    values = [state[name].numpy().reshape(-1) for name in names]
    alpha = [float(state["alpha"])] if "alpha" in state else []
    assert kind.closed_form is not None
    return kind.closed_form(*values, *alpha, eps=EPS)


def test_every_row_has_its_module() -> None:
    assert [kind.name for kind in KINDS] == list(MODULES)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_module_and_its_state_dict_are_of_their_kind(kind: NormKind) -> None:
    module = MODULES[kind.name]()
    assert kind_of(module) is kind
    shapes = {f"blocks.0.norm.{name}": tuple(value.shape) for name, value in module.state_dict().items()}
    assert kind_in(shapes) is kind
    assert all(kind_of_class(name) is kind for name in kind.classes)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.per_token], ids=lambda kind: kind.name)
def test_the_closed_form_is_what_the_module_computes(kind: NormKind) -> None:
    module = settled(MODULES[kind.name]())
    x = torch.randn(3, 4, CHANNELS, dtype=torch.float64)
    frame = closed_form(kind, module)
    with torch.no_grad():
        y = module(x.mT).mT if isinstance(module, MABN2d) else module(x)
    np.testing.assert_allclose(y.numpy(), frame.scale * x.numpy() + frame.shift, atol=CLOSE)


def test_architectures_call_their_norms_as_the_table_does() -> None:
    assert set(blocks._NORMS) - {"identity"} <= {kind.short for kind in KINDS}


def test_the_twin_is_what_the_norms_faded_from() -> None:
    faded = fading(nn.RMSNorm(CHANNELS))
    assert token_twin(nn.Sequential(faded, nn.Linear(2, 2), faded)).name == "RMSNorm"
    assert token_twin(nn.Sequential(faded, MODULES["PRepBN"]())).name == "LayerNorm"
    assert token_twin(nn.Sequential(UN1d(CHANNELS))).name == token_twin(None).name == "LayerNorm"
