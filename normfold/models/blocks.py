"""What the architectures are made of: norms by name, attention, MLP, pre-norm and post-norm blocks, patch embedding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from normfold.errors import ArchitectureError
from normfold.nn import PowerNorm, PRepBN, RepBN, TokenBatchNorm, UN1d

# Options of a norm, as they stand in a checkpoint's architecture arguments.
NormArgs = Mapping[str, Any]


def _layer_norm(dim: int, *, eps: float = 1e-5) -> nn.Module:
    return nn.LayerNorm(dim, eps=eps)


def _rms_norm(dim: int, *, eps: float = 1e-6) -> nn.Module:
    return nn.RMSNorm(dim, eps=eps)


def _batch_norm(dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
    return TokenBatchNorm(dim, eps=eps, momentum=momentum)


def _identity(dim: int) -> nn.Module:
    return nn.Identity()


def _prepbn(
    dim: int,
    *,
    base: Literal["ln", "rms"] = "ln",
    steps: int = 300000,
    warm: int = 0,
    r0: float = 1.0,
    accumulation: int | None = None,
    flatten: bool = False,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> nn.Module:
    """PRepBN fading from `base`; eps and momentum are those of its BatchNorm."""
    if base not in ("ln", "rms"):
        raise ValueError(f"prepbn fades from 'ln' or 'rms', not from {base!r}")
    norm2 = RepBN(dim, eps=eps, momentum=momentum, flatten=flatten)
    return PRepBN(norm(base, dim), norm2, steps=steps, warm=warm, r0=r0, accumulation=accumulation)


_NORMS: dict[str, Callable[..., nn.Module]] = {
    "bn": _batch_norm,
    "identity": _identity,
    "ln": _layer_norm,
    "powernorm": PowerNorm,
    "prepbn": _prepbn,
    "repbn": RepBN,
    "rms": _rms_norm,
    "un": UN1d,
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


class Attention(nn.Module):
    """Multi-head self-attention over (N, L, dim) with one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide dim {dim}")
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, dim) to (N, L, dim)."""
        n, length, dim = x.shape
        # (3, N, heads, L, dim / heads)
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        y: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, length, dim))
        return y


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


class _Block(nn.Module):
    def __init__(
        self, dim: int, heads: int, hidden: int, *, norm_kind: str, norm_args: NormArgs, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = norm(norm_kind, dim, **norm_args)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias)
        self.norm2 = norm(norm_kind, dim, **norm_args)
        self.mlp = Mlp(dim, hidden)


class PreNormBlock(_Block):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), over (N, L, dim)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, dim) to (N, L, dim)."""
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class PostNormBlock(_Block):
    """norm1(x + attn(x)), then norm2(x + mlp(x)), over (N, L, dim)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, dim) to (N, L, dim)."""
        x = self.norm1(x + self.attn(x))
        y: Tensor = self.norm2(x + self.mlp(x))
        return y


class PatchEmbed(nn.Module):
    """Cut a picture (N, channels, H, W) into square patches and project each: (N, L, dim)."""

    def __init__(self, image_size: int, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patches of {patch_size} do not tile an image of {image_size}")
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.patches = (image_size // patch_size) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, patches, dim), row by row."""
        y: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return y
