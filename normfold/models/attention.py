"""Self-attention as softmax over dot products; the linear form is nn/attention.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.nn.attention import check_heads


class Attention(nn.Module):
    """Multi-head self-attention over (N, L, dim) with one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, dim) to (N, L, dim)."""
        n, length, dim = x.shape
        # (3, N, heads, L, dim / heads)
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        y: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, length, dim))
        return y


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for q, k, v (..., L, d) with any leading axes, bias broadcast to (..., L, L).

    Spelled out because windows make five axes, one more than the ONNX operator Attention takes.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores, -1) @ v


def letters(attention: str, stages: int) -> str:
    """The attention of every stage, S for softmax and L for linear: one letter stands for all of them.

    More letters than stages are of a deeper network. Raises ValueError.
    """
    whole = attention * stages if len(attention) == 1 else attention[:stages]
    if len(whole) < stages or set(whole) - set("LS"):
        raise ValueError(f"attention is L or S for each of {stages} stages, not {attention!r}")
    return whole
