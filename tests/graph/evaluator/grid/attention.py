"""ONNX's own operators of transformers: Attention, RotaryEmbedding, and what newer opsets bring beside them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import B, F, N, U, V, const, row


def cases() -> Iterator[Case]:
    yield from attention()
    yield from rotary()
    yield from linear()


def attention() -> Iterator[Case]:
    four = [F(2, 4, 5, 8), F(2, 4, 6, 8), F(2, 4, 6, 10)]
    grouped = [F(2, 4, 5, 8), F(2, 2, 6, 8), F(2, 2, 6, 10)]
    for operands, causal, mask in product((four, grouped), (None, 1), (None, "bool", "float", "2d", "3d")):
        given = {
            None: None,
            "bool": V(*np.tri(5, 6, 1).tolist(), dtype=bool).reshape(1, 1, 5, 6),
            "float": F(2, 4, 5, 6),
            "2d": F(5, 6),
            "3d": F(4, 5, 6),
        }[mask]
        yield row("Attention", *operands, given, is_causal=causal)
    for forms in ({"scale": 0.3}, {"softcap": 2.0}, {"softcap": 0.5, "scale": 1.0}, {"softmax_precision": 1}):
        yield row("Attention", *four, F(5, 6), **forms)
    three = [F(2, 5, 32), F(2, 6, 32), F(2, 6, 40)]
    for causal, mask in product((None, 1), (None, F(5, 6), B(5, 6))):
        yield row(
            "Attention",
            *three,
            mask if mask is None or causal is None else F(5, 6),
            q_num_heads=4,
            kv_num_heads=4,
            is_causal=causal,
        )
    yield row("Attention", F(2, 5, 32), F(2, 6, 16), F(2, 6, 20), q_num_heads=4, kv_num_heads=2)
    past = [F(2, 4, 3, 8), F(2, 4, 3, 10)]
    for causal, mode, mask in product((None, 1), (None, 0, 1, 2, 3), (None, F(5, 9))):
        yield row("Attention", *four, mask, *past, is_causal=causal, qk_matmul_output_mode=mode, outputs=4)
    yield row("Attention", *grouped, None, F(2, 2, 3, 8), F(2, 2, 3, 10), outputs=3)
    for mode, cap in product((0, 1, 2, 3), (None, 1.5)):
        yield row("Attention", *four, F(5, 6), qk_matmul_output_mode=mode, softcap=cap, outputs="y,,,qk")
    one = [F(1, 2, 1, 4), F(1, 2, 4, 4), F(1, 2, 4, 4), None, F(1, 2, 1, 4), F(1, 2, 1, 4)]
    yield row("Attention", *one, outputs=4)
    yield row("Attention", *one, is_causal=1, outputs=4, note="one query, four keys")
    lengths = V(3, 6, dtype=np.int64)
    yield row("Attention", *four, None, None, None, lengths)
    yield row("Attention", *four, F(5, 6), None, None, lengths)
    yield row("Attention", *four, None, None, None, lengths, is_causal=1)
    for left, right, causal in product((None, 1, 2), (None, 0, 1), (None, 1)):
        yield row("Attention", *four, left_window_size=left, right_window_size=right, is_causal=causal)
    yield row("Attention", *four, V(*[[False] * 6] * 5, dtype=bool), note="all masked")
    yield row("Attention", *four, V(*[[True] * 6] * 4, [False] * 6, dtype=bool), note="a row masked")


def rotary() -> Iterator[Case]:
    for interleaved, dim in product((None, 1), (None, 4)):
        half = (dim or 8) // 2
        forms = {"interleaved": interleaved, "rotary_embedding_dim": dim}
        positions = N(0, 10, 2, 3)
        yield row("RotaryEmbedding", F(2, 4, 3, 8), F(10, half), F(10, half), positions, **forms)
        yield row("RotaryEmbedding", F(2, 4, 3, 8), F(2, 3, half), F(2, 3, half), **forms)
        yield row("RotaryEmbedding", F(2, 3, 32), F(10, half), F(10, half), positions, num_heads=4, **forms)
        yield row("RotaryEmbedding", F(2, 3, 32), F(2, 3, half), F(2, 3, half), num_heads=4, **forms)


def linear() -> Iterator[Case]:
    q, k, v = F(2, 5, 16), F(2, 5, 16), F(2, 5, 24)
    heads = {"q_num_heads": 2, "kv_num_heads": 2, "outputs": 2}
    decay, beta, state = U(-1, 0, 2, 5, 2), U(0.1, 0.9, 2, 5, 2), F(2, 2, 8, 12)
    yield row("LinearAttention", q, k, v, None, None, None, update_rule="linear", **heads)
    yield row("LinearAttention", q, k, v, state, decay, None, update_rule="gated", **heads)
    yield row("LinearAttention", q, k, v, state, None, beta, update_rule="delta", **heads)
    yield row("LinearAttention", q, k, v, state, decay, beta, update_rule="gated_delta", scale=0.3, **heads)
    yield row("LinearAttention", q, k, v, state, decay, beta, **heads)
    for activation in (None, "none", "silu", "swish"):
        weight = const(F(4, 1, 3))
        yield row("CausalConvWithState", F(2, 4, 6), weight, activation=activation, outputs=2)
        yield row("CausalConvWithState", F(2, 4, 6), weight, F(4), F(2, 4, 2), activation=activation, outputs=2)
    for alpha in (None, 1.7):
        yield row("SwiGLU", F(2, 3), F(2, 3), alpha=alpha)
