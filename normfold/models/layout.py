"""Where the numbers of a picture lie in windows and stripes; tokens, pictures and heads are in nn/layout.py.

Everything here only moves numbers, and no batch size becomes a Python number, so that exports hold at every batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfold.nn.layout import split_axis, to_tokens


class ToTokens(nn.Module):
    """`to_tokens` as a module, for sequences of modules."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, H * W, C)."""
        return to_tokens(x)


def split_qkv(x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values side by side (..., L, 3 * C) to three of (..., heads, L, C / heads)."""
    parts = split_axis(x, -1, (3, heads, x.shape[-1] // (3 * heads))).movedim(-3, 0).transpose(-3, -2)
    return parts[0], parts[1], parts[2]


def to_windows(x: Tensor, height: int, width: int) -> Tensor:
    """Cut a channels-last picture (N, H, W, C) into windows (N, windows, height * width, C), row by row.

    Windows of full height or width are stripes. height divides H and width divides W.
    """
    _, rows, columns, channels = x.shape
    x = x.reshape(-1, rows // height, height, columns // width, width, channels).transpose(2, 3)
    return x.reshape(-1, rows * columns // (height * width), height * width, channels)


def from_windows(x: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """Windows (N, windows, height * width, C) back to (N, rows, columns, C): the inverse of `to_windows`."""
    channels = x.shape[-1]
    x = x.reshape(-1, rows // height, columns // width, height, width, channels).transpose(2, 3)
    return x.reshape(-1, rows, columns, channels)


def relative_positions(window: int) -> Tensor:
    """For each pair of a window's tokens, the number of their offset: (window^2, window^2) int64.

    Offsets (rows, columns) from -(window - 1) to window - 1 each are numbered row by row, (2 * window - 1)^2 in all.
    """
    row, column = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    rows, columns = (axis[:, None] - axis + window - 1 for axis in (row, column))
    return rows * (2 * window - 1) + columns


def shift_mask(rows: int, columns: int, window: int, shift: int) -> Tensor:
    """The mask after a cyclic shift: 0 between tokens of a window that were neighbours before it, -100 between others.

    (windows, window^2, window^2) for a picture of rows * columns tokens rolled by -shift both ways.
    Source: arXiv:2103.14030.
    """
    row, column = (_regions(size, window, shift) for size in (rows, columns))
    regions = (3 * row[:, None] + column)[None, :, :, None]
    label = to_windows(regions, window, window)[0, :, :, 0]
    return torch.where(label[:, None] == label[:, :, None], 0.0, -100.0)


def _regions(size: int, window: int, shift: int) -> Tensor:
    index = torch.arange(size)
    return (index >= size - window).long() + (index >= size - shift).long()
