"""What the architectures are made of: norms by name, MLP, pre-norm and post-norm blocks, patch embedding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normfold.errors import ArchitectureError
from normfold.nn.batchnorm import TokenBatchNorm
from normfold.nn.layout import to_tokens
from normfold.nn.powernorm import PowerNorm
from normfold.nn.repbn import LinearNorm, RepBN
from normfold.nn.un import UN1d

# Options of a norm, as they stand in a checkpoint's architecture arguments.
NormArgs = Mapping[str, Any]
# Makes a norm over the last axis of (N, L, channels) from the number of channels.
NormLayer = Callable[[int], nn.Module]


def _layer_norm(dim: int, *, eps: float = 1e-5) -> nn.Module:
    return nn.LayerNorm(dim, eps=eps)


def _rms_norm(dim: int, *, eps: float = 1e-6) -> nn.Module:
    return nn.RMSNorm(dim, eps=eps)


def _batch_norm(dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
    return TokenBatchNorm(dim, eps=eps, momentum=momentum)


def _identity(dim: int) -> nn.Module:
    return nn.Identity()


def _repbn(dim: int, *, eps: float = 1e-5, momentum: float = 0.1, flatten: bool = False) -> nn.Module:
    return RepBN(dim, eps=eps, momentum=momentum, flatten=flatten)


def _prepbn(
    dim: int,
    *,
    base: Literal["ln", "rms"] = "ln",
    base_eps: float | None = None,
    steps: int = 300000,
    warm: int | None = 0,
    r0: float = 1.0,
    accumulation: int | None = None,
    flatten: bool = False,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> nn.Module:
    """PRepBN fading from `base` with its eps (None: its own); eps and momentum are those of the BatchNorm.

    warm: None for no warm-up and no such entry in the state dict, as the published detection code has it.
    """
    if base not in ("ln", "rms"):
        raise ValueError(f"prepbn fades from 'ln' or 'rms', not from {base!r}")
    norm2 = RepBN(dim, eps=eps, momentum=momentum, flatten=flatten)
    norm1 = norm(base, dim) if base_eps is None else norm(base, dim, eps=base_eps)
    faded = LinearNorm(dim, norm1, norm2, warm=warm or 0, step=steps, r0=r0, accumulation=accumulation)
    if warm is None:
        faded.register_buffer("warm", torch.tensor(0), persistent=False)
    return faded


def _unified(
    dim: int,
    *,
    window: int | tuple[int, int] = 4,
    warmup: int = 4000,
    filtration: bool = False,
    eps: float = 1e-5,
    momentum: float = 0.9,
) -> nn.Module:
    return UN1d(dim, window, warmup, filtration, eps, momentum)


def _power_norm(
    dim: int,
    *,
    group_scaling: int = 0,
    warmup: int = 10000,
    momentum: float = 0.9,
    backward_momentum: float = 0.9,
    eps: float = 1e-5,
) -> nn.Module:
    return PowerNorm(dim, eps, momentum, backward_momentum, warmup, group_scaling)


_NORMS: dict[str, Callable[..., nn.Module]] = {
    "bn": _batch_norm,
    "identity": _identity,
    "ln": _layer_norm,
    "powernorm": _power_norm,
    "prepbn": _prepbn,
    "repbn": _repbn,
    "rms": _rms_norm,
    "un": _unified,
}


def norm(kind: str, dim: int, **options: Any) -> nn.Module:
    """A norm over the last axis of (N, L, dim) by its short name: ln, rms, bn, repbn, prepbn, un, powernorm, identity.

    options: keyword arguments of that norm. `identity` takes and ignores any, so that the same configuration with
    only the kind changed builds the network without norms. Raises ArchitectureError for an unknown kind or option.
    """
    if kind not in _NORMS:
        raise ArchitectureError(f"there is no norm {kind!r}; there are {', '.join(sorted(_NORMS))}")
    if kind == "identity":
        return nn.Identity()
    known = inspect.signature(_NORMS[kind]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ArchitectureError(f"norm {kind} has no option {', '.join(unknown)}; it has {', '.join(list(known)[1:])}")
    return _NORMS[kind](dim, **options)


def norm_layer(kind: str, options: NormArgs | None = None) -> NormLayer:
    """What makes the norms of one network: `norm` with everything but the number of channels given."""
    return partial(norm, kind, **(options or {}))


class Mlp(nn.Module):
    """Linear, GELU, Linear over the last axis."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class Block(nn.Module):
    """norm: makes both norms. attention: over (N, L, dim). mlp: what follows it, from its width and its hidden one."""

    def __init__(
        self, dim: int, attention: nn.Module, *, norm: NormLayer, mlp_ratio: float, mlp: Callable[..., nn.Module] = Mlp
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = attention
        self.norm2 = norm(dim)
        self.mlp = mlp(dim, int(dim * mlp_ratio))

    def attend(self, x: Tensor) -> Tensor:
        """The attention over (N, L, dim), its input normalised or not."""
        y: Tensor = self.attn(x)
        return y


class PreNormBlock(Block):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), over (N, L, dim)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, dim) to (N, L, dim)."""
        x = x + self.attend(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class PostNormBlock(Block):
    """norm1(alpha x + attn(x)), then norm2(alpha x + mlp(x)), over (N, L, dim).

    alpha: 1 unless `nn.deepnorm_` sets it.
    """

    alpha = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, dim) to (N, L, dim)."""
        x = self.norm1(self._scaled(x) + self.attend(x))
        y: Tensor = self.norm2(self._scaled(x) + self.mlp(x))
        return y

    def _scaled(self, x: Tensor) -> Tensor:
        # Without an operator where there is nothing to do.
        return x if self.alpha == 1.0 else self.alpha * x


class PatchEmbed(nn.Module):
    """Cut a picture (N, channels, H, W) into square patches, project each and normalise it: (N, L, dim)."""

    def __init__(
        self, image_size: int, patch_size: int, channels: int, dim: int, *, norm: NormLayer = nn.Identity
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patches of {patch_size} do not tile an image of {image_size}")
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.norm = norm(dim)
        self.patches = (image_size // patch_size) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, patches, dim), row by row."""
        y: Tensor = self.norm(to_tokens(self.proj(x)))
        return y


def classifier(dim: int, classes: int) -> nn.Module:
    """The projection to logits; nothing for no classes, where a network gives what its head would read."""
    return nn.Linear(dim, classes) if classes else nn.Identity()


def init_weights(model: nn.Module) -> None:
    """Vision transformers' start: linear weights truncated normal of standard deviation 0.02, their biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
