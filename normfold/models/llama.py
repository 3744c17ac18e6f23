"""A causal language model in the layout and with the names of LLaMA: no biases, rotary positions, SwiGLU."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.models.blocks import NormArgs
from normfold.models.blocks import norm as make_norm


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., arXiv:2104.09864), halves rotated, base 10000, positions 0, 1, 2, ..."""

    inv_freq: Tensor

    def __init__(self, head_dim: int, *, base: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions need an even head size, got {head_dim}")
        self.register_buffer("inv_freq", base ** (-torch.arange(0, head_dim, 2) / head_dim))

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """The cosine and sine of every angle, each (length, head_dim)."""
        position = torch.arange(length, device=self.inv_freq.device, dtype=self.inv_freq.dtype)
        angle = position[:, None] * self.inv_freq
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class CausalAttention(nn.Module):
    """Multi-head self-attention over (N, L, dim) in which no position sees a later one."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide dim {dim}")
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.rotary_emb = Rotary(dim // heads)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, dim) to (N, L, dim)."""
        n, length, dim = x.shape
        shape = (n, length, self.heads, dim // self.heads)
        q, k, v = (layer(x).reshape(shape).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = self.rotary_emb(length)
        mixed = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v, is_causal=True)
        y: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(n, length, dim))
        return y


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases (Shazeer, arXiv:2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class DecoderLayer(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, dim: int, heads: int, hidden: int, *, norm_kind: str, norm_args: NormArgs) -> None:
        super().__init__()
        self.self_attn = CausalAttention(dim, heads)
        self.mlp = SwiGLU(dim, hidden)
        self.input_layernorm = make_norm(norm_kind, dim, **norm_args)
        self.post_attention_layernorm = make_norm(norm_kind, dim, **norm_args)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, dim) to (N, L, dim)."""
        x = x + self.self_attn(self.input_layernorm(x))
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


class _Trunk(nn.Module):
    """Everything below the output projection; a module of its own because published names say `model.`"""

    def __init__(
        self, vocab: int, dim: int, depth: int, heads: int, hidden: int, *, norm_kind: str, norm_args: NormArgs
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, hidden, norm_kind=norm_kind, norm_args=norm_args) for _ in range(depth)
        )
        self.norm = make_norm(norm_kind, dim, **norm_args)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.norm(x))


class CharLM(nn.Module):
    """Token numbers (N, L) int64 in [0, vocab) to the logits (N, L, vocab) of the token that follows each.

    norm: any name `blocks.norm` knows; norm_args: its options. tied: the output projection is the embedding table.
    Source of layout and names: Touvron et al., arXiv:2302.13971.
    """

    def __init__(
        self,
        *,
        vocab: int = 128,
        dim: int = 64,
        depth: int = 3,
        heads: int = 4,
        hidden: int = 160,
        norm: str = "rms",
        norm_args: NormArgs | None = None,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.model = _Trunk(vocab, dim, depth, heads, hidden, norm_kind=norm, norm_args=norm_args or {})
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02 if parameter is self.model.embed_tokens.weight else dim**-0.5)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(N, L) to (N, L, vocab)."""
        logits: Tensor = self.lm_head(self.model(ids))
        return logits
