"""Pyramid Vision Transformer (Wang et al., ICCV 2021, arXiv:2102.12122), and PVT with SLAB's linear attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.models.attention import check_heads, depthwise, linear_attention
from normfold.models.blocks import NormArgs, NormLayer, PatchEmbed, PreNormBlock, init_weights, norm_layer
from normfold.models.layout import merge_heads, split_heads, to_picture, to_tokens
from normfold.models.variants import norm_variants


class ReducedAttention(nn.Module):
    """Multi-head self-attention over (N, side^2, dim) whose keys and values come from a picture `reduction` smaller."""

    def __init__(self, dim: int, heads: int, side: int, *, reduction: int, norm: NormLayer) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, dim * 2)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = norm(dim)
        self.heads, self.side, self.reduction = heads, side, reduction

    def forward(self, x: Tensor) -> Tensor:
        """(N, side^2, dim) to the same shape."""
        source = x
        if self.reduction > 1:
            source = self.norm(to_tokens(self.sr(to_picture(x, self.side))))
        q, k, v = (split_heads(part, self.heads) for part in (self.q(x), *self.kv(source).chunk(2, dim=-1)))
        y: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return y


class SplitLinearAttention(nn.Module):
    """`linear_attention` over (N, side^2, dim) with PVT's projections: queries apart from keys and values."""

    def __init__(self, dim: int, heads: int, side: int, *, kernel: int = 5) -> None:
        super().__init__()
        self.positional_encoding = nn.Parameter(torch.zeros(1, side * side, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, dim * 2)
        self.proj = nn.Linear(dim, dim)
        self.dwc = depthwise(check_heads(dim, heads), kernel)
        self.heads, self.side = heads, side

    def forward(self, x: Tensor) -> Tensor:
        """(N, side^2, dim) to the same shape."""
        k, v = self.kv(x).chunk(2, dim=-1)
        k = k + self.positional_encoding
        mixed = linear_attention(self.q(x), k, v, heads=self.heads, conv=self.dwc, side=self.side)
        y: Tensor = self.proj(merge_heads(mixed))
        return y


class PyramidVisionTransformer(nn.Module):
    """Pictures (N, 3, image_size, image_size) to logits (N, classes), read from the average token.

    As SLAB has it: no class token and no norm at the end. linear: linear attention instead of reduced attention.
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
        linear: bool = False,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer = norm_layer(norm, norm_args)
        side, patch, channels = image_size, patch_size, 3
        self.sides: list[int] = []
        for stage, (dim, depth, count) in enumerate(zip(dims, depths, heads, strict=True)):
            embed = PatchEmbed(side, patch, channels, dim, norm=layer)
            side, patch, channels = side // patch, 2, dim
            blocks = [
                PreNormBlock(
                    dim,
                    SplitLinearAttention(dim, count, side)
                    if linear
                    else ReducedAttention(dim, count, side, reduction=reductions[stage], norm=layer),
                    norm=layer,
                    mlp_ratio=mlp_ratios[stage],
                )
                for _ in range(depth)
            ]
            self.add_module(f"patch_embed{stage + 1}", embed)
            self.register_parameter(f"pos_embed{stage + 1}", nn.Parameter(torch.zeros(1, embed.patches, dim)))
            self.add_module(f"block{stage + 1}", nn.Sequential(*blocks))
            nn.init.trunc_normal_(self.get_parameter(f"pos_embed{stage + 1}"), std=0.02)
            self.sides.append(side)
        self.head = nn.Linear(dims[-1], classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) to (N, classes)."""
        for stage, side in enumerate(self.sides, start=1):
            x = self.get_submodule(f"patch_embed{stage}")(x) + self.get_parameter(f"pos_embed{stage}")
            x = self.get_submodule(f"block{stage}")(x)
            if stage < len(self.sides):
                x = to_picture(x, side)
        logits: Tensor = self.head(x.mean(1))
        return logits


_TINY = PyramidVisionTransformer
_SMALL = partial(PyramidVisionTransformer, depths=(3, 4, 6, 3))
_MEDIUM = partial(PyramidVisionTransformer, depths=(3, 4, 18, 3))

PVT = {
    **norm_variants("pvt_tiny", _TINY, ln_eps=1e-6),
    **norm_variants("pvt_small", _SMALL, ln_eps=1e-6),
    **norm_variants("pvt_medium", _MEDIUM, ln_eps=1e-6),
    **norm_variants("slab_pvt_tiny", partial(_TINY, linear=True), ln_eps=1e-6, plain="prepbn"),
    **norm_variants("slab_pvt_small", partial(_SMALL, linear=True), ln_eps=1e-6, plain="prepbn"),
    **norm_variants("slab_pvt_medium", partial(_MEDIUM, linear=True), ln_eps=1e-6, plain="prepbn"),
}
