"""Architectures by name, with their options checked before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from normfold.errors import ArchitectureError
from normfold.models import catalogue
from normfold.models.convnet import ConvNet
from normfold.models.cswin import CSWinTransformer
from normfold.models.deepnet import DeepNetEncoder, DeepNetTranslator
from normfold.models.deit import SlabDeiT
from normfold.models.encoder import PostNormEncoder
from normfold.models.llama import CausalLM
from normfold.models.nmt import TranslationTransformer
from normfold.models.pvt import PyramidVisionTransformer, PyramidVisionTransformerV2
from normfold.models.swin import SwinTransformer
from normfold.models.swin_backbone import SwinBackbone
from normfold.models.t2t import T2TViT
from normfold.models.vit import VisionTransformer

# Words of the largest vocabularies, several times.
_LARGEST = 1 << 22

# The blocks of every family; the rows in families_*.py have the options.
_CLASSES: dict[str, Callable[..., nn.Module]] = {
    "char_lm": CausalLM,
    "convnet": ConvNet,
    "cswin": CSWinTransformer,
    "deepnet_encoder": DeepNetEncoder,
    "deepnet_nmt": DeepNetTranslator,
    "deit": VisionTransformer,
    "llama": CausalLM,
    "nmt": TranslationTransformer,
    "postnorm_encoder": PostNormEncoder,
    "pvt": PyramidVisionTransformer,
    "pvt_v2": PyramidVisionTransformerV2,
    "slab_cswin": CSWinTransformer,
    "slab_deit": SlabDeiT,
    "slab_pvt": PyramidVisionTransformer,
    "slab_pvt_v2": PyramidVisionTransformerV2,
    "slab_swin": SwinTransformer,
    "swin": SwinTransformer,
    "swin_backbone": SwinBackbone,
    "t2t": T2TViT,
    "vit": VisionTransformer,
}


def _architectures() -> dict[str, Callable[..., nn.Module]]:
    rows = [
        (name, size, family, kind)
        for family in catalogue.FAMILIES
        for size in family.sizes
        for kind, name in size.names.items()
    ]
    return {
        name: partial(_CLASSES[family.key], **family.options, **size.options, **size.norms[kind])
        for name, size, family, kind in rows
    }


# The keyword arguments of each are the options that it can be built with.
ARCHITECTURES = _architectures()


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
