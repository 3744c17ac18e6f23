"""A causal language model in the layout and with the names of LLaMA: no biases, rotary positions, SwiGLU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.models.blocks import NormArgs, NormLayer, norm_layer
from normfold.models.text_blocks import (
    CacheShape,
    Decoded,
    KeyValue,
    append,
    attention,
    cached_length,
    causal_mask,
    merge_heads,
    split_heads,
    stack,
    unstack,
)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., arXiv:2104.09864), halves rotated, positions 0, 1, 2, ...

    Angles are computed in float32 whatever the precision around them, as the published code computes its tables.
    `inv_freq` is in the state dict and, as there, nothing reads it: the published tables are made before it is loaded.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int, *, base: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions need an even head size, got {head_dim}")
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        # No buffer: it would follow the module to half precision, in which position 2000 has no angle left.
        self._frequencies = 1.0 / base**exponents
        self.register_buffer("inv_freq", self._frequencies.clone())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        """The frequencies follow the module to another device: copying them in every forward would wait for it."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self._frequencies.is_meta:
            self._frequencies = self._frequencies.to(self.inv_freq.device)
        return self

    def forward(self, x: Tensor, past: int | None) -> tuple[Tensor, Tensor]:
        """The cosine and sine of every angle for x (N, L, dim) after `past` positions: (L, head_dim), in x's dtype."""
        position = torch.arange(x.shape[1], device=x.device)
        if past is not None:
            position = position + past
        angle = position.to(torch.float32)[:, None] * self._frequencies.to(x.device)
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class CausalAttention(nn.Module):
    """Multi-head self-attention over (N, L, dim) in which no position sees a later one."""

    def __init__(self, dim: int, heads: int, *, rope_base: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide dim {dim}")
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.rotary_emb = Rotary(dim // heads, base=rope_base)
        self.heads = heads

    def forward(
        self, x: Tensor, past: KeyValue | None, rotation: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """(N, L, dim) to (N, L, dim) and the cache of P + L positions.

        past: the cache of P positions; rotation: cosine and sine from `rotary_emb`; mask: from `causal_mask`.
        """
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        cache = append(past, (_rotate(k, *rotation), v))
        return self.o_proj(merge_heads(attention(_rotate(q, *rotation), cache, mask))), cache


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

    def __init__(self, dim: int, heads: int, hidden: int, *, norm: NormLayer, rope_base: float) -> None:
        super().__init__()
        self.self_attn = CausalAttention(dim, heads, rope_base=rope_base)
        self.mlp = SwiGLU(dim, hidden)
        self.input_layernorm = norm(dim)
        self.post_attention_layernorm = norm(dim)

    def forward(
        self, x: Tensor, past: KeyValue | None, rotation: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """(N, L, dim) to (N, L, dim) and the cache of P + L positions; the arguments are the attention's."""
        change, cache = self.self_attn(self.input_layernorm(x), past, rotation, mask)
        x = x + change
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class _Trunk(nn.Module):
    """Everything below the output projection; a module of its own because published names say `model.`"""

    def __init__(
        self, vocab: int, dim: int, depth: int, heads: int, hidden: int, *, norm: NormLayer, rope_base: float
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, hidden, norm=norm, rope_base=rope_base) for _ in range(depth)
        )
        self.norm = norm(dim)

    def forward(self, ids: Tensor, pasts: Sequence[KeyValue] | None) -> tuple[Tensor, list[KeyValue]]:
        x: Tensor = self.embed_tokens(ids)
        length = cached_length(pasts[0]) if pasts else None
        # The angles are the same in every layer.
        rotation = cast(DecoderLayer, self.layers[0]).self_attn.rotary_emb(x, length)
        mask = causal_mask(x, length)
        caches: list[KeyValue] = []
        for i, layer in enumerate(self.layers):
            x, cache = layer(x, pasts[i] if pasts else None, rotation, mask)
            caches.append(cache)
        return self.norm(x), caches


class CausalLM(nn.Module):
    """Token numbers (N, L) int64 in [0, vocab) to the logits (N, L, vocab) of the token that follows each.

    The defaults are tiny; the catalogue lists the published sizes.
    norm: any name `blocks.norm` knows; norm_args: its options. tied: the output projection is the embedding table.
    rope_base: of the rotary positions.
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
        rope_base: float = 10000.0,
    ) -> None:
        super().__init__()
        self.model = _Trunk(vocab, dim, depth, heads, hidden, norm=norm_layer(norm, norm_args), rope_base=rope_base)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02 if parameter is self.model.embed_tokens.weight else dim**-0.5)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.cache_shape = CacheShape(depth, heads, dim // heads)

    @overload
    def forward(self, ids: Tensor) -> Tensor: ...

    @overload
    def forward(self, ids: Tensor, past_keys: Tensor, past_values: Tensor) -> Decoded: ...

    def forward(
        self, ids: Tensor, past_keys: Tensor | None = None, past_values: Tensor | None = None
    ) -> Tensor | Decoded:
        """(N, L) to the logits (N, L, vocab); given a cache, also the keys and values of all P + L positions.

        past_keys, past_values: (layers, N, heads, P, head_dim), what the last call returned, with P = 0 in the first.
        """
        if past_keys is None or past_values is None:
            logits: Tensor = self.lm_head(self.model(ids, None)[0])
            return logits
        x, caches = self.model(ids, unstack(past_keys, past_values, len(self.model.layers)))
        return Decoded(self.lm_head(x), *stack(caches))
