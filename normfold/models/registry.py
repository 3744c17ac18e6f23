"""Architectures by name, with their options checked before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from normfold.errors import ArchitectureError
from normfold.models import catalogue
from normfold.models.convnet import ConvNet
from normfold.models.cswin import CSWIN
from normfold.models.deepnet import DEEPNET
from normfold.models.deit import DEIT
from normfold.models.encoder import PostNormEncoder
from normfold.models.llama import LLAMA, CausalLM
from normfold.models.nmt import NMT
from normfold.models.pvt import PVT
from normfold.models.swin import SWIN
from normfold.models.t2t import T2T
from normfold.models.vit import VisionTransformer

# Words of the largest vocabularies, several times.
_LARGEST = 1 << 22

# One row an architecture; the keyword arguments of the class are its options.
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "char_lm": CausalLM,
    "convnet": ConvNet,
    "postnorm_encoder": PostNormEncoder,
    "vit": VisionTransformer,
    **CSWIN,
    **DEEPNET,
    **DEIT,
    **LLAMA,
    **NMT,
    **PVT,
    **SWIN,
    **T2T,
}


def names() -> list[str]:
    """The names `create` accepts, sorted."""
    return sorted(ARCHITECTURES)


def create(name: str, **config: Any) -> nn.Module:
    """Build the architecture `name` with fresh parameters.

    config: the options of that architecture; those left out keep their defaults.
    Raises ArchitectureError for a name, an option or a value that does not exist or does not fit.
    """
    if name not in ARCHITECTURES:
        close = catalogue.closest(name)
        likely = f" (close: {', '.join(close)})" if close else ""
        raise ArchitectureError(f"there is no built-in architecture {name!r}{likely}; `normfold models` lists all")
    known = inspect.signature(ARCHITECTURES[name]).parameters
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ArchitectureError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    sizes = [size for value in config.values() for size in (value if isinstance(value, (list, tuple)) else [value])]
    if any(isinstance(size, int) and abs(size) > _LARGEST for size in sizes):
        raise ArchitectureError(f"{name} cannot be built with {config}: no layer is as large")
    heads = config.get("heads", 1)
    if any(isinstance(count, int) and count < 1 for count in (heads if isinstance(heads, (list, tuple)) else [heads])):
        raise ArchitectureError(f"{name} cannot be built with {config}: attention has at least one head")
    try:
        return ARCHITECTURES[name](**config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        # The layers below raise these for values that do not fit; all of them came in through `config`.
        raise ArchitectureError(f"{name} cannot be built with {config}: {error}") from error
