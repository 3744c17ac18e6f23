"""Attention, and the rotary embedding of positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import Tensor

# Scores that are held at a time (32 MB), where nobody asks for all of them.
_SCORES = 1 << 22


def attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Any:
    """softmax(scale * Q K' + mask) V by head, with keys and values that several queries may share.

    is_causal, and the windows of opset 25, count from the keys before the queries: those of the past, or, with
    `lengths` (the keys of each sample that are no padding), lengths - queries. Inputs are (batch, heads, places, size)
    or (batch, places, heads * size). Outputs: Y, all keys, all values, and the scores.
    """
    call.integer("softmax_precision", 1)  # all of it is float64
    flat = q.dim() == 3
    if flat:
        shared = call.integer("kv_num_heads", 0)
        q, k, v = by_head(q, call.integer("q_num_heads", 0)), by_head(k, shared), by_head(v, shared)
    else:
        call.integer("q_num_heads", 0)
        call.integer("kv_num_heads", 0)
    before = torch.zeros(1, dtype=torch.int64)
    if past_key is not None and past_value is not None:
        before += past_key.shape[2]
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    elif lengths is not None:
        before = lengths.long() - q.shape[2]
    right = 0 if call.integer("is_causal", 0) else -1
    limit = call.integer("right_window_size", -1)
    allowed = within(
        q.shape[2], k.shape[2], before, call.integer("left_window_size", -1), limit if right < 0 else right
    )
    if lengths is not None:
        allowed = both(allowed, torch.arange(k.shape[2]) < lengths.reshape(-1, 1, 1, 1))
    if mask is not None:
        short = k.shape[2] - mask.shape[-1]
        if mask.dtype == torch.bool:
            allowed, mask = both(allowed, F.pad(mask, (0, short))), None
        elif short:
            mask = F.pad(mask, (0, short), value=-math.inf)
    y, scores = attend(
        call,
        q,
        k,
        v,
        scale=call.number("scale", 1 / math.sqrt(q.shape[3])),
        softcap=call.number("softcap", 0.0),
        bias=mask,
        allowed=allowed,
        keep=call.integer("qk_matmul_output_mode", 0) if call.wants(3) else None,
    )
    call.integer("qk_matmul_output_mode", 0)
    return joined(y) if flat else y, k, v, scores


def by_head(x: Tensor, heads: int) -> Tensor:
    """(batch, places, heads * size) as (batch, heads, places, size)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """(batch, heads, places, size) as (batch, places, heads * size)."""
    return x.transpose(1, 2).flatten(2)


def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """What both masks allow; None allows all."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


def within(queries: int, keys: int, before: Tensor, left: int, right: int) -> Tensor | None:
    """Which keys lie at most `left` before and `right` behind a query: (batch, 1, queries, keys). -1: no limit.

    before: how many keys lie before the first query, by sample.
    """
    if left < 0 and right < 0:
        return None
    gap = torch.arange(keys) - torch.arange(queries)[:, None] - before.reshape(-1, 1, 1, 1)
    allowed = torch.ones_like(gap, dtype=torch.bool)
    if right >= 0:
        allowed &= gap <= right
    if left >= 0:
        allowed &= gap >= -left
    return allowed


def attend(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    bias: Tensor | None = None,
    allowed: Tensor | None = None,
    keep: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of q (batch, heads, queries, size) over k and v (batch, shared heads, keys, size).

    A query that may see nothing gives zero. keep: return the scores too: 0 as they are, 1 capped, 2 with the bias,
    3 after the softmax.
    """
    batch, heads, queries, _ = q.shape
    groups, keys = k.shape[1], k.shape[2]
    each = heads // groups
    call.reserve(batch, heads, queries, v.shape[3])
    y = q.new_zeros((batch, heads, queries, v.shape[3]))
    kept = None
    if keep is not None:
        call.reserve(batch, heads, queries, keys)
        kept = q.new_zeros((batch, heads, queries, keys))
    shape = (batch, heads, queries, keys)
    bias = None if bias is None else bias.expand(shape)
    allowed = None if allowed is None else allowed.expand(shape)
    together = min(max(_SCORES // max(each * queries * keys, 1), 1), groups)
    for sample in range(batch):
        for first in range(0, groups, together):
            some = slice(first * each, (first + together) * each)
            keys_of = k[sample, first : first + together].repeat_interleave(each, dim=0)
            scores = scale * q[sample, some] @ keys_of.transpose(1, 2)
            stages = [scores]
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            stages.append(scores)
            if bias is not None:
                scores = scores + bias[sample, some]
            if allowed is not None:
                scores = scores.masked_fill(~allowed[sample, some], -math.inf)
            stages.append(scores)
            shares = torch.softmax(scores, dim=-1)
            if bias is not None or allowed is not None:
                shares = shares.masked_fill((scores == -math.inf).all(dim=-1, keepdim=True), 0.0)
            stages.append(shares)
            y[sample, some] = shares @ v[sample, first : first + together].repeat_interleave(each, dim=0)
            if kept is not None and keep is not None:
                kept[sample, some] = stages[keep]
    return y, kept


def rotary_embedding(call: Call, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """Turn pairs of numbers of every head by the angle of their place; cos and sin by place, or by positions."""
    heads = call.integer("num_heads", 0)
    shaped = by_head(x, heads) if x.dim() == 3 else x
    size = call.integer("rotary_embedding_dim", 0) or shaped.shape[3]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    y = rotated(shaped, cos.unsqueeze(1), sin.unsqueeze(1), size, interleaved=bool(call.integer("interleaved", 0)))
    return joined(y) if x.dim() == 3 else y


def rotated(x: Tensor, cos: Tensor, sin: Tensor, size: int, *, interleaved: bool) -> Tensor:
    """The first `size` numbers of x (batch, heads, places, ...) turned; a pair is neighbours, or half a size apart."""
    turned, rest = x[..., :size], x[..., size:]
    first, second = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if interleaved:
        return torch.cat([torch.stack([real, imaginary], dim=-1).flatten(-2), rest], dim=-1)
    return torch.cat([real, imaginary, rest], dim=-1)


ROWS: Rows = {
    "Attention": {(23, 24, 25): attention},
    "RotaryEmbedding": {(23,): rotary_embedding},
}
