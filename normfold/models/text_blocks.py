"""What the language models share: split heads, key-value caches, masks, positions, encoder and decoder layers.

Shapes: N sequences, L positions of this call, P positions already in a cache, S positions of a source.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.models.blocks import NormLayer

# Keys and values of one attention, each (N, heads, positions, head_dim).
KeyValue = tuple[Tensor, Tensor]


class CacheShape(NamedTuple):
    """What a model's caches, (layers, N, heads, positions, head_dim), have in common whatever they hold."""

    layers: int
    heads: int
    head_dim: int


class Decoded(NamedTuple):
    """What one step of decoding gives: logits (N, L, vocab) and the caches of P + L positions for the next step."""

    logits: Tensor
    present_keys: Tensor
    present_values: Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, dim) to (N, heads, L, dim / heads)."""
    n, length, dim = x.shape
    return x.reshape(n, length, heads, dim // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(N, heads, L, head_dim) to (N, L, heads * head_dim)."""
    return x.transpose(1, 2).flatten(2)


def append(past: KeyValue | None, new: KeyValue) -> KeyValue:
    """The cache `past` (P positions) followed by `new` (L positions)."""
    if past is None:
        return new
    return torch.cat([past[0], new[0]], dim=2), torch.cat([past[1], new[1]], dim=2)


def causal_mask(x: Tensor, past: int | None) -> Tensor | None:
    """Which of P + L positions each of the L in x (N, L, dim) sees, (L, P + L) bool: those up to itself.

    None without a cache, which `attention` takes for the same and which exports to fewer operators.
    """
    if past is None:
        return None
    position = torch.arange(x.shape[1], device=x.device)
    return torch.arange(x.shape[1] + past, device=x.device) <= position[:, None] + past


def source_mask(keep: Tensor, x: Tensor) -> Tensor:
    """`keep` (N, S), True where a source has a token, for each position of x (N, L, dim): (N, 1, L, S)."""
    # Expanded, because ONNX Runtime's Attention takes no mask that is one row for all queries.
    return keep[:, None, None].expand(-1, -1, x.shape[1], -1)


def attention(q: Tensor, cache: KeyValue, mask: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v over what `mask` lets through, over no later position when it is None."""
    return F.scaled_dot_product_attention(q, *cache, attn_mask=mask, is_causal=mask is None)


def cached_length(past: KeyValue | None) -> int | None:
    """P, the number of positions in a cache; None when there is no cache."""
    return None if past is None else past[0].shape[2]


def unstack(keys: Tensor, values: Tensor, depth: int) -> list[KeyValue]:
    """One pair a layer from stacked keys and values, (layers, N, heads, positions, head_dim) each."""
    return [(keys[i], values[i]) for i in range(depth)]


def stack(caches: list[KeyValue]) -> KeyValue:
    """Keys and values of all layers, (layers, N, heads, positions, head_dim) each."""
    return torch.stack([keys for keys, _ in caches]), torch.stack([values for _, values in caches])


class MultiheadAttention(nn.Module):
    """Multi-head attention with the four projections (with biases) named as fairseq and torchscale name them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide dim {dim}")
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.heads = heads

    def keys_values(self, x: Tensor) -> KeyValue:
        """(N, L, dim) to keys and values, each (N, heads, L, head_dim)."""
        return split_heads(self.k_proj(x), self.heads), split_heads(self.v_proj(x), self.heads)

    def forward(self, x: Tensor, cache: KeyValue, mask: Tensor | None) -> Tensor:
        """(N, L, dim) to (N, L, dim), attending to the keys and values of `cache`; mask as for `attention`."""
        y: Tensor = self.out_proj(merge_heads(attention(split_heads(self.q_proj(x), self.heads), cache, mask)))
        return y


class Scale(nn.Module):
    """Multiply by a number. A module, so that what is left of the number once norms are folded can take its place."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        return self.factor * x


class FeedForward(nn.Module):
    """Linear, activation, Linear over the last axis."""

    def __init__(self, dim: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        y: Tensor = self.fc2(self.activation(self.fc1(x)))
        return y


class SinusoidalPositions(nn.Module):
    """Fixed positions: row p holds sin(p w_i), then cos(p w_i), w_i = 10000^(-i / (dim / 2 - 1)).

    As fairseq has it: computed in float32, the row of the padding number zero, and a `_float_tensor` in the state dict
    that nothing reads. Source: Vaswani et al., arXiv:1706.03762, section 3.5, in the tensor2tensor variant.
    """

    table: Tensor

    def __init__(self, rows: int, dim: int, *, padding: int) -> None:
        super().__init__()
        if dim % 2 or dim < 4:
            raise ValueError(f"sinusoidal positions need an even dim of at least 4, got {dim}")
        half = dim // 2
        rate = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
        angle = torch.arange(rows, dtype=torch.float32)[:, None] * rate
        table = torch.cat([angle.sin(), angle.cos()], dim=1)
        table[padding] = 0.0
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("_float_tensor", torch.zeros(1))

    def forward(self, positions: Tensor) -> Tensor:
        """Rows (...) int64 to (..., dim)."""
        return F.embedding(positions, self.table)


def token_positions(keep: Tensor, *, padding: int) -> Tensor:
    """Position rows (N, S) of a source: padding + 1, padding + 2, ... for its tokens wherever they stand.

    Padding on either side gets the row `padding`, so a sequence means the same however it is padded.
    """
    real = keep.to(torch.int64)
    return real.cumsum(1) * real + padding


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What a layer is built from.

    alpha: None for a pre-norm layer, x + f(norm(x)); a number for a post-norm one, norm(alpha * x + f(x)).
    nested: whether the feed-forward network is a module `ffn` (torchscale) or its Linears are the layer's (fairseq).
    """

    dim: int
    heads: int
    hidden: int
    norm: NormLayer
    alpha: float | None = None
    activation: Callable[[Tensor], Tensor] = F.relu
    nested: bool = False


class _Layer(nn.Module):
    """What both kinds of layer have: self-attention and a feed-forward network, each with its norm."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(config.dim, config.heads)
        self.self_attn_layer_norm = config.norm(config.dim)
        self.config = config

    @property
    def alpha(self) -> float | None:
        """What multiplies the residual stream of a post-norm layer; None of a pre-norm one."""
        return self.config.alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self.config = replace(self.config, alpha=value)

    def _add_network(self) -> None:
        """Kept apart from the constructor so that the state dict is in the published order."""
        config = self.config
        network = FeedForward(config.dim, config.hidden, config.activation)
        if config.nested:
            self.ffn = network
        else:
            self.fc1, self.fc2 = network.fc1, network.fc2
        self.final_layer_norm = config.norm(config.dim)

    def _before(self, x: Tensor, norm: nn.Module) -> Tensor:
        y: Tensor = norm(x) if self.config.alpha is None else x
        return y

    def _after(self, x: Tensor, change: Tensor, norm: nn.Module) -> Tensor:
        if self.config.alpha is None:
            return x + change
        # A multiplication by 1 would be a number of the code, which no folded parameter can hold.
        y: Tensor = norm((x if self.config.alpha == 1.0 else self.config.alpha * x) + change)
        return y

    def _feed_forward(self, x: Tensor) -> Tensor:
        h = self._before(x, self.final_layer_norm)
        change = self.ffn(h) if self.config.nested else self.fc2(self.config.activation(self.fc1(h)))
        return self._after(x, change, self.final_layer_norm)


class EncoderLayer(_Layer):
    """Self-attention and feed-forward network, each with its norm and residual addition."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self._add_network()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, S, dim) to (N, S, dim); mask from `source_mask`."""
        h = self._before(x, self.self_attn_layer_norm)
        change = self.self_attn(h, self.self_attn.keys_values(h), mask)
        return self._feed_forward(self._after(x, change, self.self_attn_layer_norm))


class DecoderLayer(_Layer):
    """Causal self-attention, attention to a source, feed-forward network, each with its norm and residual addition."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self.encoder_attn = MultiheadAttention(config.dim, config.heads)
        self.encoder_attn_layer_norm = config.norm(config.dim)
        self._add_network()

    def forward(
        self, x: Tensor, source: KeyValue, past: KeyValue | None, masks: tuple[Tensor | None, Tensor]
    ) -> tuple[Tensor, KeyValue]:
        """(N, L, dim) to (N, L, dim) and the cache of P + L positions.

        source: keys and values of the source from `encoder_attn.keys_values`; past: the cache of the P positions before
        these; masks: from `causal_mask` and from `source_mask`.
        """
        h = self._before(x, self.self_attn_layer_norm)
        cache = append(past, self.self_attn.keys_values(h))
        x = self._after(x, self.self_attn(h, cache, masks[0]), self.self_attn_layer_norm)
        h = self._before(x, self.encoder_attn_layer_norm)
        x = self._after(x, self.encoder_attn(h, source, masks[1]), self.encoder_attn_layer_norm)
        return self._feed_forward(x), cache
