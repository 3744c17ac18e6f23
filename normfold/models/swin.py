"""Swin Transformer (Liu et al., ICCV 2021, arXiv:2103.14030), and Swin with SLAB's linear attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from normfold.models.attention import LinearAttention, check_heads, softmax_attention
from normfold.models.blocks import NormArgs, NormLayer, PatchEmbed, PreNormBlock, init_weights, norm_layer
from normfold.models.layout import (
    from_windows,
    merge_heads,
    relative_positions,
    shift_mask,
    split_axis,
    split_qkv,
    to_windows,
)
from normfold.models.variants import norm_variants


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows (N, windows, window^2, dim), biased by relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.heads = heads
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(N, windows, window^2, dim) to the same shape; mask (windows, window^2, window^2) is added to the scores."""
        q, k, v = split_qkv(self.qkv(x), self.heads)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]
        y: Tensor = self.proj(merge_heads(softmax_attention(q, k, v, bias=bias)))
        return y


class SwinBlock(PreNormBlock):
    """A pre-norm block over (N, side^2, dim) that attends inside windows, which are shifted by half in every other one.

    A window never exceeds the picture, and one as large is not shifted.
    """

    attn_mask: Tensor | None

    def __init__(self, dim: int, heads: int, *, side: int, window: int, shifted: bool, norm: NormLayer) -> None:
        window = min(window, side)
        super().__init__(dim, WindowAttention(dim, heads, window), norm=norm, mlp_ratio=4.0)
        self.side, self.window = side, window
        self.shift = window // 2 if shifted and window < side else 0
        self.register_buffer("attn_mask", shift_mask(side, window, self.shift) if self.shift else None)

    def attend(self, x: Tensor) -> Tensor:
        """Attention inside the windows of (N, side^2, dim)."""
        picture = split_axis(x, 1, (self.side, self.side))
        if self.shift:
            picture = picture.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(to_windows(picture, self.window, self.window), self.attn_mask)
        picture = from_windows(windows, self.side, self.window, self.window)
        if self.shift:
            picture = picture.roll((self.shift, self.shift), dims=(1, 2))
        return picture.flatten(1, 2)


class PatchMerging(nn.Module):
    """Halve the picture's side: the channels of each 2 x 2 square side by side, normalised and projected to 2 * dim."""

    def __init__(self, dim: int, side: int, *, norm: NormLayer) -> None:
        super().__init__()
        if side % 2:
            raise ValueError(f"a picture of odd side {side} cannot be halved")
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm(4 * dim)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(N, side^2, dim) to (N, side^2 / 4, 2 * dim)."""
        half = self.side // 2
        # (N, row, row of the square, column, column of the square, dim); a square is read column by column.
        squares = split_axis(x, 1, (half, 2, half, 2)).permute(0, 1, 3, 4, 2, 5)
        y: Tensor = self.reduction(self.norm(squares.flatten(3).flatten(1, 2)))
        return y


class SwinStage(nn.Module):
    """Blocks of one size over (N, side^2, dim), and the PatchMerging that ends all stages but the last."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, side^2, dim) to (N, side^2 / 4, 2 * dim), or to the same shape in the last stage."""
        y: Tensor = self.downsample(self.blocks(x))
        return y


class SwinTransformer(nn.Module):
    """Pictures (N, 3, image_size, image_size) to logits (N, classes), read from the average token.

    linear_stages: how many of the first stages have linear attention over the whole picture instead of windows (SLAB:
    two). norm: any name `blocks.norm` knows; norm_args: its options.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 4,
        classes: int = 1000,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        linear_stages: int = 0,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer, side = norm_layer(norm, norm_args), image_size // patch_size
        self.patch_embed = PatchEmbed(image_size, patch_size, 3, dim, norm=layer)
        self.layers = nn.Sequential()
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            blocks: list[nn.Module] = [
                PreNormBlock(dim, LinearAttention(dim, count, side), norm=layer, mlp_ratio=4.0)
                if stage < linear_stages
                else SwinBlock(dim, count, side=side, window=window, shifted=number % 2 == 1, norm=layer)
                for number in range(depth)
            ]
            last = stage == len(depths) - 1
            self.layers.append(SwinStage(blocks, nn.Identity() if last else PatchMerging(dim, side, norm=layer)))
            if not last:
                dim, side = 2 * dim, side // 2
        self.norm = layer(dim)
        self.head = nn.Linear(dim, classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) to (N, classes)."""
        x = self.norm(self.layers(self.patch_embed(x)))
        logits: Tensor = self.head(x.mean(1))
        return logits


_SMALL = partial(SwinTransformer, depths=(2, 2, 18, 2))
_SLAB_TINY = partial(SwinTransformer, linear_stages=2)
_SLAB_SMALL = partial(_SMALL, linear_stages=2)

# The published swin_*_prepbn hold bare RepBN.
SWIN = {
    **norm_variants("swin_tiny", SwinTransformer, prepbn="repbn"),
    **norm_variants("swin_small", _SMALL, prepbn="repbn"),
    **norm_variants("slab_swin_tiny", _SLAB_TINY, steps=60000, plain="prepbn"),
    **norm_variants("slab_swin_small", _SLAB_SMALL, steps=60000, plain="prepbn"),
}
