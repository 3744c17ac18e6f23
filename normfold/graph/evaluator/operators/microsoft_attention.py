"""Attention as onnxruntime's own domain has it.

Masks of Attention and MultiHeadAttention add a large negative number (mask_filter_value), they do not forbid.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.attention import attend, both, by_head, joined, rotated, within
from normfold.graph.evaluator.values import Tensor


def attention(
    call: Call,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    added: Tensor | None = None,
    past_length: Tensor | None = None,
) -> Any:
    """Self-attention with the projections inside. x: (batch, places, size); weights: (size, q + k + v).

    Outputs: Y, and keys and values (2, batch, heads, places, size).
    """
    heads = call.integer("num_heads", 1)
    if past_length is not None or call.integer("do_rotary", 0) or call.integer("past_present_share_buffer", 0):
        raise call.refuse("a shared buffer or rotary embedding inside")
    call.integer("rotary_embedding_dim", 0)
    sizes = call.integers("qkv_hidden_sizes") or [weights.shape[1] // 3] * 3
    together = x @ weights if bias is None else x @ weights + bias
    q, k, v = (by_head(part, heads) for part in together.tensor_split([sizes[0], sizes[0] + sizes[1]], dim=-1))
    if past is not None:
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
    y = _attended(call, q, k, v, mask, added, 0 if past is None else past.shape[3])
    return joined(y), torch.stack([k, v]) if call.wants(1) else None


def multi_head_attention(
    call: Call,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    added: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_length: Tensor | None = None,
    indirection: Tensor | None = None,
) -> Any:
    """Attention of projected queries; keys and values may be by head already, or come with a past.

    query, key, value: (batch, places, heads * size). Outputs: Y, all keys, all values.
    """
    heads = call.integer("num_heads", 1)
    if past_length is not None or indirection is not None or call.wants(3):
        raise call.refuse("a shared buffer or the scores as an output")
    if query.dim() != 3 or key is None or value is None or key.dim() == 5:
        raise call.refuse("queries, keys and values in one tensor")
    q = by_head(query, heads)
    k, v = (part if part.dim() == 4 else by_head(part, heads) for part in (key, value))
    if bias is not None:
        width = query.shape[2]
        of_q, of_k, of_v = (part.reshape(heads, 1, -1) for part in bias.tensor_split([width, 2 * width]))
        q = q + of_q
        if key.dim() != 4:  # what is by head already has its bias
            k, v = k + of_k, v + of_v
    before = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    return joined(_attended(call, q, k, v, mask, added, before)), k, v


def _attended(
    call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, added: Tensor | None, before: int
) -> Tensor:
    """The attention itself, with the forms that a mask may have: lengths, lengths and beginnings, keys, or all.

    before: how many keys are of the past. What `unidirectional` forbids stays forbidden.
    """
    low = call.number("mask_filter_value", -10000.0)
    batch, queries, keys = q.shape[0], q.shape[2], k.shape[2]
    bias = q.new_zeros((batch, 1, queries, keys)) if mask is not None else None
    if mask is not None and bias is not None:
        if mask.dim() == 1:
            places = torch.arange(keys)
            kept = places < mask[:batch, None]
            if mask.numel() == 2 * batch:
                kept &= places >= mask[batch:, None]
            elif mask.numel() != batch:
                raise call.refuse("a mask of cumulated lengths")
        elif mask.dim() in (2, 3):
            kept = mask > 0
        else:
            raise call.refuse(f"a mask of {mask.dim()} axes")
        bias.masked_fill_(~(kept[:, None, None] if kept.dim() == 2 else kept[:, None]), low)
    if added is not None:
        bias = added if bias is None else bias + added
    scale = call.number("scale", 0.0) or 1 / math.sqrt(q.shape[3])
    right = 0 if call.integer("unidirectional", 0) else -1
    if not right and keys != before + queries:
        raise call.refuse("unidirectional attention to others, where onnxruntime lets the last query see all")
    allowed = within(queries, keys, torch.tensor([before]), -1, right)
    return attend(call, q, k, v, scale=scale, bias=bias, allowed=allowed)[0]


def group_query_attention(
    call: Call,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    lengths: Tensor,
    total: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    added: Tensor | None = None,
    *others: Tensor | None,
) -> Any:
    """Causal attention whose keys and values several heads share, with a past, for language models.

    query: (batch, places, heads * size), alone or packed with keys and values. lengths: of every sample, past and
    present, less one. total: the longest. Outputs: Y, all keys, all values.
    """
    heads, shared = call.integer("num_heads", 1), call.integer("kv_num_heads", 1)
    if any(other is not None for other in others) or call.integer("smooth_softmax", 0) > 0 or call.wants(3):
        raise call.refuse("a head sink, quantised or normalised keys, or the scores as an output")
    for name, plain in (("qk_output", 0), ("sliding_window_cache", 0), ("causal", 1), ("kv_cache_bit_width", 0)):
        if call.integer(name, plain) != plain:
            raise call.refuse(f"{name}={call.integer(name, plain)}")
    if {call.text("k_quant_type", "NONE"), call.text("v_quant_type", "NONE")} != {"NONE"}:
        raise call.refuse("quantised keys or values")
    for name in ("qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon", "smooth_softmax"):
        call.attribute(name)
    if key is None or value is None:
        size = query.shape[2] // (heads + 2 * shared)
        query, key, value = query.tensor_split([heads * size, (heads + shared) * size], dim=2)
    q, k, v = by_head(query, heads), by_head(key, shared), by_head(value, shared)
    places, longest = q.shape[2], int(total.reshape(-1)[0])
    ends = lengths.reshape(-1).long() + 1
    first = longest == places
    before = torch.zeros_like(ends) if first else ends - places
    if not first and bool((before < 0).any()):
        raise call.refuse("samples that are shorter than what is added to them")
    if call.integer("do_rotary", 0):
        assert cos is not None
        assert sin is not None
        at = positions if positions is not None else before[:, None] + torch.arange(places)
        turned = bool(call.integer("rotary_interleaved", 0))
        q, k = (
            rotated(x, cos[at].unsqueeze(1), sin[at].unsqueeze(1), 2 * cos.shape[1], interleaved=turned) for x in (q, k)
        )
    call.integer("rotary_interleaved", 0)
    k, v = _appended(call, past_key, k, before, longest), _appended(call, past_value, v, before, longest)
    window = call.integer("local_window_size", -1)
    allowed = within(places, k.shape[2], before, window - 1 if window > 0 else -1, 0)
    y, _ = attend(
        call,
        q,
        k,
        v,
        scale=call.number("scale", 0.0) or 1 / math.sqrt(q.shape[3]),
        softcap=call.number("softcap", 0.0),
        bias=None if added is None else added[..., : k.shape[2]],
        allowed=both(allowed, torch.arange(k.shape[2]) < ends.reshape(-1, 1, 1, 1)),
    )
    return joined(y), k, v


def _appended(call: Call, past: Tensor | None, new: Tensor, before: Tensor, longest: int) -> Tensor:
    """The past of every sample with what is new right behind it; zero where nothing is."""
    if past is None:
        return new
    room = max(past.shape[2], longest)
    call.reserve(*new.shape[:2], room, new.shape[3])
    found = new.new_zeros((*new.shape[:2], room, new.shape[3]))
    for sample, start in enumerate(before.tolist()):
        found[sample, :, :start] = past[sample, :, :start]
        found[sample, :, start : start + new.shape[2]] = new[sample]
    return found


def rotary_embedding(call: Call, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The standard's rotary embedding before it was the standard's; one position is that of the first place."""
    if call.integer("is_packed_batching", 0) or call.number("scale", 1.0) != 1.0:
        raise call.refuse("packed batches or a scale")
    size = call.integer("rotary_embedding_dim", 0)
    heads = call.integer("num_heads", 0)
    if x.dim() == 3:
        heads = heads or x.shape[2] // (size or 2 * cos.shape[1])
    shaped = by_head(x, heads) if x.dim() == 3 else x
    if positions.numel() == 1:
        positions = positions.reshape(1, 1) + torch.arange(shaped.shape[2])
    turned = bool(call.integer("interleaved", 0))
    y = rotated(shaped, cos[positions].unsqueeze(1), sin[positions].unsqueeze(1), 2 * cos.shape[1], interleaved=turned)
    return joined(y) if x.dim() == 3 else y


ROWS: Rows = {
    "Attention": {(1,): attention},
    "GroupQueryAttention": {(1,): group_query_attention},
    "MultiHeadAttention": {(1,): multi_head_attention},
    "RotaryEmbedding": {(1,): rotary_embedding},
}
