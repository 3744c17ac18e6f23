from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from normfold.graph.evaluator.call import NotCoveredError
from tests.graph.evaluator.one_node import agrees, evaluated, floats, grid, initializer

OWN = "com.microsoft"
BATCH, PLACES, HEADS, SIZE, VALUE = 2, 4, 3, 8, 6
LOOSE = {"relative": 1e-4, "absolute": 1e-5}
own = partial(agrees, domain=OWN)


def test_gelus() -> None:
    x, bias = floats(3, 4), floats(4)
    own("Gelu", 17, [x])
    own("BiasGelu", 17, [x, bias])
    own("FastGelu", 17, [x])
    own("FastGelu", 17, [x, bias])
    own("QuickGelu", 17, [x])
    own("QuickGelu", 17, [x], {"alpha": 1.0})


@pytest.mark.parametrize("skip", [(2, 3, 8), (1, 3, 8), (3, 8)], ids=str)
def test_skip_norms(skip: tuple[int, ...]) -> None:
    x, scale, shift, bias = floats(2, 3, 8), floats(8), floats(8, seed=1), floats(8, seed=2)
    for form in ({}, {"epsilon": 1e-3}):
        own("SkipLayerNormalization", 17, [x, floats(*skip), scale, shift, bias], form)
        own("SkipLayerNormalization", 17, [x, floats(*skip), scale], form)
        own("SkipSimplifiedLayerNormalization", 17, [x, floats(*skip), scale, bias], form)
    (*_, total) = evaluated("SkipLayerNormalization", 17, [x, floats(*skip), scale, shift, bias], domain=OWN, outputs=4)
    np.testing.assert_allclose(total, x.astype(np.float64) + floats(*skip) + bias)


def test_embed_layer_norm() -> None:
    tokens, segments = np.array([[3, 1, 8, 0, 5], [2, 2, 7, 6, 4]], np.int32), np.array([[0, 0, 1, 1, 1]] * 2, np.int32)
    norm, mask = (
        [initializer(floats(8)), initializer(floats(8, seed=1))],
        np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32),
    )
    tables = [initializer(floats(9, 8)), initializer(floats(7, 8))]
    for given in ([mask], [mask, segments + 2], [None]):
        own(
            "EmbedLayerNormalization",
            17,
            [tokens, segments, *tables, initializer(floats(2, 8)), *norm, *given],
            outputs=3,
        )
        own("EmbedLayerNormalization", 17, [tokens, None, *tables, None, *norm, *given], outputs=2)


ACTIVATIONS = [
    ("Relu", []),
    ("Tanh", []),
    ("Sigmoid", []),
    ("LeakyRelu", [0.2]),
    ("HardSigmoid", [0.3, 0.4]),
    ("Clip", [-0.5, 0.7]),
]


@pytest.mark.parametrize(("name", "numbers"), ACTIVATIONS)
def test_fused_activations(name: str, numbers: list[float]) -> None:
    form: dict[str, Any] = {"activation": name, "group": 2, "pads": [1, 0, 1, 1]}
    if numbers:
        form["activation_params"] = numbers
    conv = [floats(2, 4, 6, 7), floats(8, 2, 3, 2), floats(8)]
    own("FusedConv", 17, conv, form)
    own("FusedConv", 17, [*conv, floats(2, 8, 6, 7)], form)
    if name != "Clip":
        params = dict(zip(("activation_alpha", "activation_beta"), numbers, strict=False))
        own("FusedGemm", 17, [floats(2, 3), floats(3, 4), floats(4)], {"activation": name, "alpha": 0.5, **params})
    with pytest.raises(NotCoveredError, match="fused activation 'Sqrt'"):
        evaluated("FusedConv", 17, conv, {**form, "activation": "Sqrt"}, domain=OWN)


def test_fused_matmul() -> None:
    for form in grid(transA=[0, 1], transB=[0, 1], transBatchA=[0, 1], transBatchB=[0, 1], alpha=[0.5]):
        own("FusedMatMul", 17, [floats(2, 2, 2, 2), floats(2, 2, 2, 2, seed=1)], form)
    for form in grid(transA=[0, 1], transB=[0, 1], alpha=[None, 0.5]):
        own("TransposeMatMul", 17, [floats(3, 3), floats(3, 3, seed=1)], form)
        own("FusedMatMul", 17, [floats(2, 3, 3), floats(3, 3)], form)
    own("FusedMatMul", 17, [floats(2, 5, 6, 3), floats(3, 5, 6, 4)], {"transBatchA": 1, "transBatchB": 1})


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmul_n_bits(bits: int) -> None:
    rows, inner, block = 6, 40, 16
    random = np.random.default_rng(11)
    packed = random.integers(0, 256, (rows, 3, block * bits // 8)).astype(np.uint8)
    zeros = random.integers(0, 256, rows * (-(-3 * bits // 8))).astype(np.uint8)
    inputs = [floats(2, 3, inner), packed, abs(floats(rows * 3))]
    form = {"K": inner, "N": rows, "bits": bits, "block_size": block}
    for given in ([], [zeros], [None, None, initializer(floats(rows))]):
        own("MatMulNBits", 17, [*inputs, *given], form, relative=1e-3, absolute=1e-3)


def test_integer_products_as_floats() -> None:
    random = np.random.default_rng(12)
    for kind in (np.int8, np.uint8):
        b, bias = random.integers(0, 100, (8, 4)).astype(kind), floats(4)
        for shape in ((), (4,)):
            scale, zero = np.full(shape, 0.1, np.float32), np.full(shape, 9, kind)
            own("DynamicQuantizeMatMul", 17, [floats(2, 3, 8), b, scale, zero, bias], **LOOSE)
            a, of_a = random.integers(0, 200, (2, 3, 8)).astype(np.uint8), [np.array(0.03, np.float32), scale]
            own("MatMulIntegerToFloat", 17, [a, b, *of_a, np.array(7, np.uint8), zero, bias], **LOOSE)


def test_operators_that_became_the_standards() -> None:
    own("Trilu", 17, [floats(3, 4), np.array(1)], {"upper": 0})
    own("Pad", 17, [floats(2, 3), np.array([0, 1, 2, 0]), np.array([1.5], np.float32)])
    own("Range", 17, [np.array(1.0, np.float32), np.array(5.0, np.float32)])
    own("ExpandDims", 17, [floats(2, 3), initializer(np.array(1, np.int32))])
    own("Inverse", 17, [floats(2, 3, 3)], relative=1e-4)
    own("GatherND", 17, [floats(2, 3, 4), np.array([[0, 1], [1, 2]])])


def masks(keys: int) -> list[np.ndarray | None]:
    """Lengths, lengths and beginnings, keys, all; never a query without a key."""
    random = np.random.default_rng(13)
    rows, whole = random.random((BATCH, keys)) < 0.8, random.random((BATCH, PLACES, keys)) < 0.8
    rows[:, 0], whole[:, :, 0] = True, True
    lengths = [keys, keys - 1]
    return [None, *(np.array(mask, np.int32) for mask in (lengths, [*lengths, 0, 0], rows, whole))]


@pytest.mark.parametrize("causal", [0, 1])
def test_attention(causal: int) -> None:
    total = 3 * HEADS * SIZE
    form = {"num_heads": HEADS, "unidirectional": causal}
    for number in range(5):
        inputs = [floats(BATCH, PLACES, 10), floats(10, total), floats(total)]
        own("Attention", 17, [*inputs, masks(PLACES)[number], None, floats(1, HEADS, PLACES, PLACES)], form, **LOOSE)
        past = floats(2, BATCH, HEADS, 3, SIZE)
        own("Attention", 17, [*inputs, masks(PLACES + 3)[number], past], {**form, "scale": 0.3}, outputs=2, **LOOSE)
    sizes = [HEADS * SIZE, HEADS * SIZE, HEADS * VALUE]
    inputs = [floats(BATCH, PLACES, 10), floats(10, sum(sizes)), floats(sum(sizes))]
    own("Attention", 17, inputs, {**form, "qkv_hidden_sizes": sizes}, **LOOSE)


def test_multi_head_attention() -> None:
    form = {"num_heads": HEADS}
    query, key = floats(BATCH, PLACES, HEADS * SIZE), floats(BATCH, 5, HEADS * SIZE)
    value, bias = floats(BATCH, 5, HEADS * VALUE), floats(HEADS * (2 * SIZE + VALUE))
    for mask in (masks(5)[number] for number in (0, 1, 3, 4)):
        own("MultiHeadAttention", 17, [query, key, value, None, mask], form, **LOOSE)
        own("MultiHeadAttention", 17, [query, key, value, bias, mask, floats(1, HEADS, PLACES, 5)], form, **LOOSE)
    past = [floats(BATCH, HEADS, 2, SIZE), floats(BATCH, HEADS, 2, SIZE, seed=1)]
    for causal in (0, 1):
        inputs = [query, floats(BATCH, PLACES, HEADS * SIZE, seed=1), query, None, None, None, *past]
        own("MultiHeadAttention", 17, inputs, {**form, "unidirectional": causal}, outputs=3, **LOOSE)
    with pytest.raises(NotCoveredError, match="unidirectional attention to others"):
        evaluated("MultiHeadAttention", 17, [query, key, value], {**form, "unidirectional": 1}, domain=OWN)


@pytest.mark.parametrize(
    "form", grid(local_window_size=[None, 2], softcap=[None, 2.0], rotary_interleaved=[None, 1]), ids=str
)
@pytest.mark.parametrize("heads", [(4, 2), (2, 2), (3, 1)], ids=str)
def test_group_query_attention(heads: tuple[int, int], form: dict[str, Any]) -> None:
    own_heads, shared = heads
    size = 16
    numbers = {**form, "num_heads": own_heads, "kv_num_heads": shared}
    caches = [floats(20, size // 2), floats(20, size // 2, seed=1)]
    cases = [(4, 0, [3, 3]), (1, 3, [3, 3]), (1, 3, [3, 1])]
    if len(form) == 0:
        # With a window, what a query of the padding sees is nothing, and what onnxruntime makes of that chance.
        cases.append((4, 0, [3, 1]))
    for places, kept, lengths in cases:
        past = (
            [floats(BATCH, shared, kept, size, seed=2), floats(BATCH, shared, kept, size, seed=3)]
            if kept
            else [None] * 2
        )
        q, k, v = (floats(BATCH, places, count * size, seed=count) for count in (own_heads, shared, shared))
        rest = [*past, np.array(lengths, np.int32), np.array([places + kept], np.int32)]
        own("GroupQueryAttention", 17, [q, k, v, *rest], numbers, outputs=3, **LOOSE)
        packed = np.concatenate([q, k, v], axis=2)
        own(
            "GroupQueryAttention",
            17,
            [packed, None, None, *rest, *caches],
            {**numbers, "do_rotary": 1},
            outputs=3,
            **LOOSE,
        )


@pytest.mark.parametrize("form", grid(interleaved=[None, 1]), ids=str)
def test_rotary_embedding(form: dict[str, Any]) -> None:
    every = np.random.default_rng(14).integers(0, 20, (BATCH, PLACES))
    for x in (floats(BATCH, PLACES, HEADS * SIZE), floats(BATCH, HEADS, PLACES, SIZE)):
        for positions in (np.array([2]), every):
            own("RotaryEmbedding", 17, [x, positions, floats(20, 4), floats(20, 4, seed=1)], form)
            part = {**form, "num_heads": HEADS, "rotary_embedding_dim": 4}
            own("RotaryEmbedding", 17, [x, positions, floats(20, 2), floats(20, 2, seed=1)], part)
