"""Where the numbers of tokens, heads and pictures lie. No batch size becomes a Python number."""

from __future__ import annotations

import torch
from torch import Tensor


def split_axis(x: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    """One axis as several of these sizes: the inverse of flattening them."""
    return torch.unflatten(x, axis, sizes)


def to_tokens(x: Tensor) -> Tensor:
    """A picture (N, C, H, W) as tokens (N, H * W, C), row by row."""
    return x.flatten(2).transpose(1, 2)


def to_picture(x: Tensor, height: int, width: int) -> Tensor:
    """Tokens (N, height * width, C) as a picture (N, C, height, width): the inverse of `to_tokens`."""
    return split_axis(x.transpose(1, 2), 2, (height, width))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., L, C) to (..., heads, L, C / heads)."""
    return split_axis(x, -1, (heads, x.shape[-1] // heads)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """(..., heads, L, d) to (..., L, heads * d): the inverse of `split_heads`."""
    return x.transpose(-3, -2).flatten(-2)
