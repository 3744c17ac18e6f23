"""Pyramid Vision Transformers, with softmax attention or SLAB's linear attention in each stage.

Sources: Wang et al., arXiv:2102.12122 (first version) and arXiv:2106.13797 (second); Guo et al., arXiv:2405.11582.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.models.attention import letters
from normfold.models.blocks import (
    NormArgs,
    NormLayer,
    PatchEmbed,
    PreNormBlock,
    classifier,
    init_weights,
    norm_layer,
)
from normfold.nn.attention import check_heads, depthwise, linear_attention
from normfold.nn.layout import merge_heads, split_heads, to_picture, to_tokens


class ReducedAttention(nn.Module):
    """Multi-head self-attention over (N, side^2, dim) whose keys and values come from a picture `reduction` smaller.

    linear: `linear_attention`, with a learned position for every key, instead of softmax.
    """

    def __init__(
        self, dim: int, heads: int, side: int, *, reduction: int, linear: bool, kernel: int, norm: NormLayer
    ) -> None:
        super().__init__()
        head_dim = check_heads(dim, heads)
        if linear:
            self.positional_encoding = nn.Parameter(torch.zeros(1, side * side // reduction**2, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, dim * 2)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = norm(dim)
        if linear:
            self.dwc = depthwise(head_dim, kernel)
        self.heads, self.side, self.reduction, self.linear = heads, side, reduction, linear

    def forward(self, x: Tensor) -> Tensor:
        """(N, side^2, dim) to the same shape."""
        source = x
        if self.reduction > 1:
            source = self.norm(to_tokens(self.sr(to_picture(x, self.side, self.side))))
        q, (k, v) = self.q(x), self.kv(source).chunk(2, dim=-1)
        if self.linear:
            k = k + self.positional_encoding
            mixed = linear_attention(q, k, v, heads=self.heads, conv=self.dwc, height=self.side, width=self.side)
        else:
            q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.proj(merge_heads(mixed))
        return y


class _Pyramid(nn.Module):
    """What both versions share: stages, and logits from the average token."""

    sides: list[int]
    head: nn.Module

    def _stages(self, x: Tensor) -> Tensor:
        """A picture to the tokens of the last stage, (N, side^2, dims[-1])."""
        for stage, side in enumerate(self.sides, start=1):
            x = self._embedded(x, stage)
            x = self.get_submodule(f"block{stage}")(x)
            x = self._finished(x, stage)
            if stage < len(self.sides):
                x = to_picture(x, side, side)
        return x

    def _embedded(self, x: Tensor, stage: int) -> Tensor:
        y: Tensor = self.get_submodule(f"patch_embed{stage}")(x)
        return y

    def _finished(self, x: Tensor, stage: int) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) to (N, classes)."""
        logits: Tensor = self.head(self._stages(x).mean(1))
        return logits


class PyramidVisionTransformer(_Pyramid):
    """Pictures (N, 3, image_size, image_size) to logits (N, classes), read from the average token.

    As SLAB has it: no class token and no norm at the end. attention: a letter for every stage, S for softmax and L for
    linear, or one for all. reductions: of keys and values, stage by stage.
    norm: any name `blocks.norm` knows; norm_args: its options.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 4,
        classes: int = 1000,
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        attention: str = "S",
        kernel: int = 5,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer = norm_layer(norm, norm_args)
        side, patch, channels = image_size, patch_size, 3
        kinds = letters(attention, len(dims))
        self.sides = []
        for stage, (dim, depth, count) in enumerate(zip(dims, depths, heads, strict=True)):
            embed = PatchEmbed(side, patch, channels, dim, norm=layer)
            side, patch, channels = side // patch, 2, dim
            make = partial(ReducedAttention, dim, count, side, reduction=reductions[stage], kernel=kernel, norm=layer)
            blocks = [
                PreNormBlock(dim, make(linear=kinds[stage] == "L"), norm=layer, mlp_ratio=mlp_ratios[stage])
                for _ in range(depth)
            ]
            self.add_module(f"patch_embed{stage + 1}", embed)
            self.register_parameter(f"pos_embed{stage + 1}", nn.Parameter(torch.zeros(1, embed.patches, dim)))
            self.add_module(f"block{stage + 1}", nn.Sequential(*blocks))
            nn.init.trunc_normal_(self.get_parameter(f"pos_embed{stage + 1}"), std=0.02)
            self.sides.append(side)
        self.head = classifier(dims[-1], classes)
        init_weights(self)

    def _embedded(self, x: Tensor, stage: int) -> Tensor:
        return super()._embedded(x, stage) + self.get_parameter(f"pos_embed{stage}")


class OverlapPatchEmbed(nn.Module):
    """Cut a picture (N, channels, H, W) into overlapping patches, project each and normalise it: (N, L, dim)."""

    def __init__(self, channels: int, dim: int, *, window: int, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, window, stride=stride, padding=window // 2)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, patches, dim), row by row."""
        y: Tensor = self.norm(to_tokens(self.proj(x)))
        return y


class _Depthwise(nn.Module):
    """A convolution one module deeper than it need be, as published names have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = depthwise(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same shape."""
        y: Tensor = self.dwconv(x)
        return y


class ConvMlp(nn.Module):
    """Linear, 3 x 3 depth-wise convolution of the picture that the tokens are, GELU, Linear."""

    def __init__(self, dim: int, hidden: int, *, side: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = _Depthwise(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(N, side^2, dim) to the same shape."""
        local = to_tokens(self.dwconv(to_picture(self.fc1(x), self.side, self.side)))
        y: Tensor = self.fc2(self.act(local))
        return y


class PyramidVisionTransformerV2(_Pyramid):
    """The second version: patches overlap, a convolution in every MLP stands for positions, a norm ends every stage.

    The norm behind the reduction of keys and values is a LayerNorm whatever `norm` says, as published.
    Options as in the first version.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        classes: int = 1000,
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        attention: str = "S",
        kernel: int = 5,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer = norm_layer(norm, norm_args)
        side, window, stride, channels = image_size, 7, 4, 3
        kinds = letters(attention, len(dims))
        self.sides = []
        for stage, (dim, depth, count) in enumerate(zip(dims, depths, heads, strict=True)):
            embed = OverlapPatchEmbed(channels, dim, window=window, stride=stride, norm=layer)
            side, window, stride, channels = (side - 1) // stride + 1, 3, 2, dim
            make = partial(
                ReducedAttention, dim, count, side, reduction=reductions[stage], kernel=kernel, norm=nn.LayerNorm
            )
            blocks = [
                PreNormBlock(
                    dim,
                    make(linear=kinds[stage] == "L"),
                    norm=layer,
                    mlp_ratio=mlp_ratios[stage],
                    mlp=partial(ConvMlp, side=side),
                )
                for _ in range(depth)
            ]
            self.add_module(f"patch_embed{stage + 1}", embed)
            self.add_module(f"block{stage + 1}", nn.Sequential(*blocks))
            self.add_module(f"norm{stage + 1}", layer(dim))
            self.sides.append(side)
        self.head = classifier(dims[-1], classes)
        init_weights(self)

    def _finished(self, x: Tensor, stage: int) -> Tensor:
        y: Tensor = self.get_submodule(f"norm{stage}")(x)
        return y
