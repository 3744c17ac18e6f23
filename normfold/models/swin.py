"""Swin Transformer (Liu et al., ICCV 2021, arXiv:2103.14030), and Swin with SLAB's linear attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from normfold.models.attention import letters, softmax_attention
from normfold.models.blocks import NormArgs, NormLayer, PatchEmbed, PreNormBlock, classifier, init_weights, norm_layer
from normfold.models.layout import from_windows, relative_positions, shift_mask, split_qkv, to_windows
from normfold.nn.attention import LinearAttention, check_heads
from normfold.nn.layout import merge_heads, split_axis


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
    linear: `LinearAttention` inside the windows, without the mask between regions, as published.
    """

    attn_mask: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        side: int,
        window: int,
        shifted: bool,
        norm: NormLayer,
        linear: bool = False,
        kernel: int = 5,
    ) -> None:
        window = min(window, side)
        inside = LinearAttention(dim, heads, window, kernel=kernel) if linear else WindowAttention(dim, heads, window)
        super().__init__(dim, inside, norm=norm, mlp_ratio=4.0)
        self.side, self.window, self.linear = side, window, linear
        self.shift = window // 2 if shifted and window < side else 0
        self.register_buffer("attn_mask", shift_mask(side, side, window, self.shift) if self.shift else None)

    def attend(self, x: Tensor) -> Tensor:
        """Attention inside the windows of (N, side^2, dim)."""
        if self.linear and self.window == self.side:
            whole: Tensor = self.attn(x)
            return whole
        picture = split_axis(x, 1, (self.side, self.side))
        if self.shift:
            picture = picture.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self._inside(to_windows(picture, self.window, self.window))
        picture = from_windows(windows, self.side, self.side, self.window, self.window)
        if self.shift:
            picture = picture.roll((self.shift, self.shift), dims=(1, 2))
        return picture.flatten(1, 2)

    def _inside(self, windows: Tensor) -> Tensor:
        """The attention over (N, windows, window^2, dim)."""
        y: Tensor = attend_windows(self.attn, windows) if self.linear else self.attn(windows, self.attn_mask)
        return y


def attend_windows(attention: nn.Module, windows: Tensor) -> Tensor:
    """Attention over (N, L, dim) for every window of (N, windows, L, dim)."""
    y: Tensor = attention(windows.flatten(0, 1))
    return split_axis(y, 0, (-1, windows.shape[1]))


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
        y: Tensor = self.reduction(self.norm(squares(x, self.side, self.side)))
        return y


def squares(x: Tensor, height: int, width: int) -> Tensor:
    """The tokens of every 2 x 2 square side by side: (N, height * width, C) to (N, height * width / 4, 4 * C)."""
    # (N, row, row of the square, column, column of the square, dim); a square is read column by column.
    cut = split_axis(x, 1, (height // 2, 2, width // 2, 2)).permute(0, 1, 3, 4, 2, 5)
    return cut.flatten(3).flatten(1, 2)


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

    attention: a letter for every stage, S for softmax and L for linear, or one for all. window: of softmax attention;
    linear_window: of linear attention, the whole picture up to that side; kernel: of its convolution.
    norm: any name `blocks.norm` knows; norm_args: its options.
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
        attention: str = "S",
        linear_window: int = 56,
        kernel: int = 5,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer, side = norm_layer(norm, norm_args), image_size // patch_size
        kinds = letters(attention, len(depths))
        self.patch_embed = PatchEmbed(image_size, patch_size, 3, dim, norm=layer)
        self.layers = nn.Sequential()
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            linear = kinds[stage] == "L"
            make = partial(SwinBlock, dim, count, side=side, norm=layer, linear=linear, kernel=kernel)
            blocks = [
                make(window=linear_window if linear else window, shifted=number % 2 == 1) for number in range(depth)
            ]
            last = stage == len(depths) - 1
            self.layers.append(SwinStage(blocks, nn.Identity() if last else PatchMerging(dim, side, norm=layer)))
            if not last:
                dim, side = 2 * dim, side // 2
        self.norm = layer(dim)
        self.head = classifier(dim, classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) to (N, classes)."""
        x = self.norm(self.layers(self.patch_embed(x)))
        logits: Tensor = self.head(x.mean(1))
        return logits
