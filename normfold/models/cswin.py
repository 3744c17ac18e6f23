"""CSWin Transformer (Dong et al., CVPR 2022, arXiv:2107.00652), and CSWin with SLAB's linear attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from normfold.models.attention import letters, softmax_attention
from normfold.models.blocks import Mlp, NormArgs, NormLayer, classifier, init_weights, norm_layer
from normfold.models.layout import ToTokens, from_windows, split_qkv, to_windows
from normfold.nn.attention import check_heads, depthwise, linear_attention
from normfold.nn.layout import merge_heads, split_axis, to_picture, to_tokens


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
        return from_windows(mixed + self._position(stripes), self.side, self.side, *self.stripe).flatten(1, 2)

    def _position(self, stripes: Tensor) -> Tensor:
        """The convolution of the values in (N, stripes, L, 3 * dim): (N, stripes, L, dim)."""
        _, count, length, channels = stripes.shape
        values = stripes.chunk(3, dim=-1)[2].transpose(-2, -1).reshape(-1, channels // 3, *self.stripe)
        position: Tensor = self.get_v(values)
        return position.reshape(-1, count, channels // 3, length).transpose(-2, -1)


class LinearStripeAttention(nn.Module):
    """`linear_attention` inside stripes (height, width) of a square picture, plus the same convolution of the values.

    `scale` is in the published files and takes no part in the result.
    """

    def __init__(self, dim: int, heads: int, *, side: int, stripe: tuple[int, int], kernel: int = 5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.positional_encoding = nn.Parameter(torch.zeros(1, stripe[0] * stripe[1], dim))
        self.get_v = depthwise(dim, 3)
        self.dwc = depthwise(check_heads(dim, heads), kernel)
        self.heads, self.side, self.stripe = heads, side, stripe

    def forward(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values side by side (N, side^2, 3 * dim) to (N, side^2, dim)."""
        if self.stripe == (self.side, self.side):
            return self._inside(qkv)
        stripes = to_windows(split_axis(qkv, 1, (self.side, self.side)), *self.stripe)
        mixed = split_axis(self._inside(stripes.flatten(0, 1)), 0, (-1, stripes.shape[1]))
        return from_windows(mixed, self.side, self.side, *self.stripe).flatten(1, 2)

    def _inside(self, qkv: Tensor) -> Tensor:
        """The attention over one stripe, (N, height * width, 3 * dim) to (N, height * width, dim)."""
        height, width = self.stripe
        q, k, v = qkv.chunk(3, dim=-1)
        k = k + self.positional_encoding
        mixed = linear_attention(q, k, v, heads=self.heads, conv=self.dwc, height=height, width=width)
        return merge_heads(mixed) + to_tokens(self.get_v(to_picture(v, height, width)))


class CSWinBlock(nn.Module):
    """Pre-norm: half of the heads attend in vertical stripes, half in horizontal ones, then an MLP.

    One attention over everything instead of two halves when the stripe is the whole picture.
    """

    def __init__(
        self, dim: int, heads: int, *, side: int, stripe: int, linear: bool, kernel: int, norm: NormLayer
    ) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, dim * 3)
        self.norm1 = norm(dim)
        self.proj = nn.Linear(dim, dim)
        attention = partial(LinearStripeAttention, kernel=kernel) if linear else StripeAttention
        branches: list[nn.Module]
        if stripe >= side:
            branches = [attention(dim, heads, side=side, stripe=(side, side))]
        else:
            stripes = ((side, stripe), (stripe, side))
            branches = [attention(dim // 2, heads // 2, side=side, stripe=shape) for shape in stripes]
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
        y: Tensor = self.norm(to_tokens(self.conv(to_picture(x, self.side, self.side))))
        return y


class CSWinTransformer(nn.Module):
    """Pictures (N, 3, image_size, image_size) to logits (N, classes), read from the average token.

    attention: a letter for every stage, S for softmax and L for linear, or one for all. stripes: the width of softmax
    attention's in each stage; linear_stripes: of linear attention's, the whole picture up to that side; kernel: of its
    convolution. The last stage has one stripe. norm: any name `blocks.norm` knows; norm_args: its options.
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
        attention: str = "S",
        linear_stripes: Sequence[int] = (56, 28, 14, 7),
        kernel: int = 5,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer, side = norm_layer(norm, norm_args), image_size // 4
        stages, kinds = len(depths), letters(attention, len(depths))
        self.stage1_conv_embed = nn.Sequential(nn.Conv2d(3, dim, 7, stride=4, padding=2), ToTokens(), layer(dim))
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if stage:
                self.add_module(f"merge{stage}", ConvMerging(dim, side, norm=layer))
                dim, side = 2 * dim, side // 2
            linear = kinds[stage] == "L"
            stripe = side if stage == stages - 1 else (linear_stripes if linear else stripes)[stage]
            make = partial(CSWinBlock, dim, count, side=side, stripe=stripe, linear=linear, kernel=kernel, norm=layer)
            self.add_module(f"stage{stage + 1}", nn.Sequential(*(make() for _ in range(depth))))
        self.norm = layer(dim)
        self.head = classifier(dim, classes)
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
