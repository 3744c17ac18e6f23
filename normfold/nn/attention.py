"""SLAB's simplified linear attention (Guo et al., ICML 2024, arXiv:2405.11582)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.nn.layout import merge_heads, split_axis, split_heads, to_picture, to_tokens

# As published: keeps a token whose every kernel value is zero from dividing by zero.
_LINEAR_EPS = 1e-6


def check_heads(dim: int, heads: int) -> int:
    """The channels of one head. Raises ValueError when `heads` does not divide `dim`."""
    if dim % heads:
        raise ValueError(f"{heads} heads do not divide dim {dim}")
    return dim // heads


def depthwise(channels: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size of its picture and mixes no channels. Raises ValueError for an even kernel."""
    if kernel % 2 == 0:
        raise ValueError(
            f"a convolution of an even kernel ({kernel}) does not keep the size of its picture; take an odd one"
        )
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, heads: int, conv: nn.Module, height: int, width: int
) -> Tensor:
    """SLAB's simplified linear attention over the tokens of a picture: cost linear in their number.

    y_i = relu(q_i) (sum_j relu(k_j)^T v_j) / (relu(q_i) . sum_j relu(k_j) + 1e-6) + conv(v)_i, head by head.
    q (N, L, C) with L = height * width; k and v the same, or of fewer tokens: values are then stretched along the row
    of tokens for the convolution. conv maps (N * heads, C / heads, height, width) to itself. Returns (N, heads, L, d).
    Source: Guo et al., ICML 2024, arXiv:2405.11582, eq. 8.
    """
    q, k, v = (split_heads(x, heads) for x in (F.relu(q), F.relu(k), v))
    total = k.sum(-2, keepdim=True)
    mixed = q @ (k.transpose(-2, -1) @ v) / (q @ total.transpose(-2, -1) + _LINEAR_EPS)
    values = v.flatten(0, 1)
    if v.shape[-2] != height * width:
        values = F.interpolate(values.transpose(1, 2), size=height * width, mode="linear").transpose(1, 2)
    local = to_tokens(conv(to_picture(values, height, width)))
    return mixed + split_axis(local, 0, (-1, heads))


class LinearAttention(nn.Module):
    """SLA, SLAB's simplified linear attention: `linear_attention` over (N, side^2, dim) between projections.

    Every key has a learned position. kernel: of the depthwise convolution over the values.
    """

    def __init__(self, dim: int, heads: int, side: int, *, kernel: int = 5) -> None:
        super().__init__()
        self.positional_encoding = nn.Parameter(torch.zeros(1, side * side, dim))
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.dwc = depthwise(check_heads(dim, heads), kernel)
        self.heads, self.side = heads, side

    def forward(self, x: Tensor) -> Tensor:
        """(N, side^2, dim) to the same shape."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        k = k + self.positional_encoding
        mixed = linear_attention(q, k, v, heads=self.heads, conv=self.dwc, height=self.side, width=self.side)
        y: Tensor = self.proj(merge_heads(mixed))
        return y
