"""CSWin Transformer (Dong et al., CVPR 2022, arXiv:2107.00652), and CSWin with SLAB's linear attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from normfold.models.attention import check_heads, depthwise, linear_attention, softmax_attention
from normfold.models.blocks import Mlp, NormArgs, NormLayer, init_weights, norm_layer
from normfold.models.layout import (
    ToTokens,
    from_windows,
    merge_heads,
    split_axis,
    split_qkv,
    to_picture,
    to_tokens,
    to_windows,
)
from normfold.models.variants import norm_variants


class StripeAttention(nn.Module):
    """Self-attention inside stripes (height, width) of a square picture, plus a 3 x 3 convolution of the values.

    The convolution (LePE, the locally enhanced position) stops at the borders of a stripe.
    """

    def __init__(self, dim: int, heads: int, *, side: int, stripe: tuple[int, int]) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.get_v = depthwise(dim, 3)
        self.heads, self.side, self.stripe = heads, side, stripe

    def forward(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values side by side (N, side^2, 3 * dim) to (N, side^2, dim)."""
        stripes = to_windows(split_axis(qkv, 1, (self.side, self.side)), *self.stripe)
        mixed = merge_heads(softmax_attention(*split_qkv(stripes, self.heads)))
        return from_windows(mixed + self._position(stripes), self.side, *self.stripe).flatten(1, 2)

    def _position(self, stripes: Tensor) -> Tensor:
        """The convolution of the values in (N, stripes, L, 3 * dim): (N, stripes, L, dim)."""
        _, count, length, channels = stripes.shape
        values = stripes.chunk(3, dim=-1)[2].transpose(-2, -1).reshape(-1, channels // 3, *self.stripe)
        position: Tensor = self.get_v(values)
        return position.reshape(-1, count, channels // 3, length).transpose(-2, -1)


class LinearStripeAttention(nn.Module):
    """`linear_attention` over the whole picture, the one stripe that SLAB keeps, with LePE as well.

    `scale` is in the published files and takes no part in the result.
    """

    def __init__(self, dim: int, heads: int, *, side: int, kernel: int = 5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.positional_encoding = nn.Parameter(torch.zeros(1, side * side, dim))
        self.get_v = depthwise(dim, 3)
        self.dwc = depthwise(check_heads(dim, heads), kernel)
        self.heads, self.side = heads, side

    def forward(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values side by side (N, side^2, 3 * dim) to (N, side^2, dim)."""
        q, k, v = qkv.chunk(3, dim=-1)
        k = k + self.positional_encoding
        mixed = merge_heads(linear_attention(q, k, v, heads=self.heads, conv=self.dwc, side=self.side))
        return mixed + to_tokens(self.get_v(to_picture(v, self.side)))


class CSWinBlock(nn.Module):
    """Pre-norm: half of the heads attend in vertical stripes, half in horizontal ones, then an MLP.

    One attention over everything instead of two halves when the stripe is the whole picture, or `linear`.
    """

    def __init__(self, dim: int, heads: int, *, side: int, stripe: int, linear: bool, norm: NormLayer) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, dim * 3)
        self.norm1 = norm(dim)
        self.proj = nn.Linear(dim, dim)
        branches: list[nn.Module]
        if linear:
            branches = [LinearStripeAttention(dim, heads, side=side)]
        elif stripe >= side:
            branches = [StripeAttention(dim, heads, side=side, stripe=(side, side))]
        else:
            stripes = ((side, stripe), (stripe, side))
            branches = [StripeAttention(dim // 2, heads // 2, side=side, stripe=shape) for shape in stripes]
        self.attns = nn.ModuleList(branches)
        self.mlp = Mlp(dim, 4 * dim)
        self.norm2 = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, side^2, dim) to (N, side^2, dim)."""
        x = x + self.proj(self._attend(self.norm1(x)))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def _attend(self, x: Tensor) -> Tensor:
        """Each branch its share of the channels of queries, keys and values."""
        qkv: Tensor = self.qkv(x)
        if len(self.attns) == 1:
            whole: Tensor = self.attns[0](qkv)
            return whole
        shares = split_axis(qkv, -1, (3, len(self.attns), x.shape[-1] // len(self.attns))).unbind(-2)
        return torch.cat([branch(share.flatten(-2)) for branch, share in zip(self.attns, shares, strict=True)], dim=-1)


class ConvMerging(nn.Module):
    """Halve the picture's side with a 3 x 3 convolution to twice the channels, and normalise."""

    def __init__(self, dim: int, side: int, *, norm: NormLayer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
        self.norm = norm(2 * dim)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(N, side^2, dim) to (N, side^2 / 4, 2 * dim)."""
        y: Tensor = self.norm(to_tokens(self.conv(to_picture(x, self.side))))
        return y


class CSWinTransformer(nn.Module):
    """Pictures (N, 3, image_size, image_size) to logits (N, classes), read from the average token.

    stripes: their width in each stage. linear_stages: how many of the first stages have linear attention (SLAB: two).
    norm: any name `blocks.norm` knows; norm_args: its options.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        classes: int = 1000,
        dim: int = 64,
        depths: Sequence[int] = (2, 4, 18, 1),
        heads: Sequence[int] = (2, 4, 8, 16),
        stripes: Sequence[int] = (1, 2, 7, 7),
        linear_stages: int = 0,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer, side = norm_layer(norm, norm_args), image_size // 4
        self.stage1_conv_embed = nn.Sequential(nn.Conv2d(3, dim, 7, stride=4, padding=2), ToTokens(), layer(dim))
        stages = len(depths)
        for stage, (depth, count, stripe) in enumerate(zip(depths, heads, stripes, strict=True)):
            if stage:
                self.add_module(f"merge{stage}", ConvMerging(dim, side, norm=layer))
                dim, side = 2 * dim, side // 2
            make = partial(CSWinBlock, dim, count, side=side, stripe=stripe, linear=stage < linear_stages, norm=layer)
            self.add_module(f"stage{stage + 1}", nn.Sequential(*(make() for _ in range(depth))))
        self.norm = layer(dim)
        self.head = nn.Linear(dim, classes)
        self.stages = stages
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) to (N, classes)."""
        x = self.stage1_conv_embed(x)
        for stage in range(self.stages):
            if stage:
                x = self.get_submodule(f"merge{stage}")(x)
            x = self.get_submodule(f"stage{stage + 1}")(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


_TINY = CSWinTransformer
_SMALL = partial(CSWinTransformer, depths=(2, 4, 32, 2))

CSWIN = {
    **norm_variants("cswin_tiny", _TINY, steps=120000),
    **norm_variants("cswin_small", _SMALL, steps=120000),
    **norm_variants("slab_cswin_tiny", partial(_TINY, linear_stages=2), steps=120000, plain="prepbn"),
    **norm_variants("slab_cswin_small", partial(_SMALL, linear_stages=2), steps=120000, plain="prepbn"),
}
