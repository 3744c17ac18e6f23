"""Swin as the backbone of a detector: pictures of any size to the feature maps of its stages.

As SLAB has it for mmdet: Liu et al., arXiv:2103.14030; Guo et al., arXiv:2405.11582.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from normfold.models.attention import letters
from normfold.models.blocks import Block, NormArgs, NormLayer, init_weights, norm_layer
from normfold.models.layout import from_windows, shift_mask, to_windows
from normfold.models.swin import WindowAttention, attend_windows, squares
from normfold.nn.attention import LinearAttention
from normfold.nn.layout import split_axis, to_picture, to_tokens


def _padded(x: Tensor, height: int, width: int, multiple: int) -> tuple[Tensor, int, int]:
    """A channels-last picture with zeros at the right and the bottom, up to multiples of a size."""
    right, bottom = -width % multiple, -height % multiple
    if right or bottom:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    return x, height + bottom, width + right


class BackboneBlock(Block):
    """A pre-norm block over the tokens of a picture that attends inside windows, shifted by half in every other one.

    Zeros fill a picture up to whole windows after the norm, and take part in the attention. Windows are shifted even
    where there is only one, and no mask keeps linear attention within a region: all as published.
    """

    def __init__(
        self, dim: int, heads: int, *, window: int, shifted: bool, linear: bool, kernel: int, norm: NormLayer
    ) -> None:
        inside = LinearAttention(dim, heads, window, kernel=kernel) if linear else WindowAttention(dim, heads, window)
        super().__init__(dim, inside, norm=norm, mlp_ratio=4.0)
        self.window, self.linear = window, linear
        self.shift = window // 2 if shifted else 0

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, height * width, dim) to the same shape."""
        x = x + self._inside_windows(self.norm1(x), height, width)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def _inside_windows(self, x: Tensor, height: int, width: int) -> Tensor:
        picture, rows, columns = _padded(split_axis(x, 1, (height, width)), height, width, self.window)
        mask = None
        if self.shift:
            picture = picture.roll((-self.shift, -self.shift), dims=(1, 2))
            mask = shift_mask(rows, columns, self.window, self.shift).to(x)
        windows = to_windows(picture, self.window, self.window)
        windows = attend_windows(self.attn, windows) if self.linear else self.attn(windows, mask)
        picture = from_windows(windows, rows, columns, self.window, self.window)
        if self.shift:
            picture = picture.roll((self.shift, self.shift), dims=(1, 2))
        if (rows, columns) != (height, width):
            picture = picture[:, :height, :width]
        return picture.flatten(1, 2)


class BackboneMerging(nn.Module):
    """Halve a picture: the channels of each 2 x 2 square side by side, normalised and projected to 2 * dim."""

    def __init__(self, dim: int, *, norm: NormLayer) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm(4 * dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, height * width, dim) to (N, ceil(height / 2) * ceil(width / 2), 2 * dim); odd sides get zeros."""
        picture, rows, columns = _padded(split_axis(x, 1, (height, width)), height, width, 2)
        y: Tensor = self.reduction(self.norm(squares(picture.flatten(1, 2), rows, columns)))
        return y


class BackboneStage(nn.Module):
    """Blocks of one width, and the merging that ends all stages but the last."""

    def __init__(self, blocks: Sequence[BackboneBlock], downsample: BackboneMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, height * width, dim) to the same shape, before the merging."""
        for block in self.blocks:
            x = block(x, height, width)
        return x


class BackboneEmbed(nn.Module):
    """Cut a picture of any size, filled up with zeros, into square patches; project and normalise each."""

    def __init__(self, patch_size: int, dim: int, *, norm: NormLayer) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.norm = norm(dim)
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """(N, 3, H, W) to the tokens (N, rows * columns, dim), row by row, and how many rows and columns they are."""
        right, bottom = -x.shape[3] % self.patch_size, -x.shape[2] % self.patch_size
        if right or bottom:
            x = F.pad(x, (0, right, 0, bottom))
        picture = self.proj(x)
        return self.norm(to_tokens(picture)), picture.shape[2], picture.shape[3]


class SwinBackbone(nn.Module):
    """Pictures (N, 3, H, W) of any size to one feature map (N, dim * 2^i, rows, columns) for every stage i.

    Every output has a LayerNorm of its own, whatever `norm` says. windows: of each stage, whatever the picture's size.
    attention: a letter for every stage, S for softmax and L for linear, or one for all; kernel: of the convolution of
    linear attention. image_size: of the inputs it is exported for. norm: any name `blocks.norm` knows; norm_args: its
    options.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 4,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        windows: Sequence[int] = (7, 7, 7, 7),
        attention: str = "S",
        kernel: int = 5,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer = norm_layer(norm, norm_args)
        self.patch_embed = BackboneEmbed(patch_size, dim, norm=layer)
        self.layers = nn.ModuleList()
        kinds = letters(attention, len(depths))
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            blocks = [
                BackboneBlock(
                    dim << stage,
                    count,
                    window=windows[stage],
                    shifted=number % 2 == 1,
                    linear=kinds[stage] == "L",
                    kernel=kernel,
                    norm=layer,
                )
                for number in range(depth)
            ]
            last = stage == len(depths) - 1
            self.layers.append(BackboneStage(blocks, None if last else BackboneMerging(dim << stage, norm=layer)))
        for stage in range(len(depths)):
            self.add_module(f"norm{stage}", nn.LayerNorm(dim << stage))
        init_weights(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) to the feature maps, the finest first."""
        x, height, width = self.patch_embed(x)
        maps = []
        for number, stage in enumerate(self.layers):
            assert isinstance(stage, BackboneStage)
            x = stage(x, height, width)
            maps.append(to_picture(self.get_submodule(f"norm{number}")(x), height, width))
            if stage.downsample is not None:
                x = stage.downsample(x, height, width)
                height, width = (height + 1) // 2, (width + 1) // 2
        return tuple(maps)
