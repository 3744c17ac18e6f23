from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.evaluator.one_node import agrees, evaluated, floats, grid

BATCH, PLACES, KEYS, SIZE, VALUE = 2, 4, 5, 8, 6
LOOSE = {"relative": 1e-4, "absolute": 1e-5}


def mask_of(kind: str | None, heads: int, keys: int) -> np.ndarray | None:
    random = np.random.default_rng(9)
    return {
        None: None,
        "places": random.random((PLACES, keys)) < 0.7,
        "heads": random.random((BATCH, heads, PLACES, keys)) < 0.7,
        "added": floats(BATCH, 1, PLACES, keys),
        # The first query sees nothing.
        "nothing": np.arange(PLACES)[:, None] * np.ones((1, keys)) > 0,
    }[kind]


@pytest.mark.parametrize("form", grid(is_causal=[None, 1], softcap=[None, 2.0], scale=[None, 0.3]), ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)], ids=str)
def test_attention(heads: tuple[int, int], form: dict[str, Any]) -> None:
    own, shared = heads
    past = [floats(BATCH, shared, 3, SIZE), floats(BATCH, shared, 3, VALUE)]
    deep = [floats(BATCH, own, PLACES, SIZE), floats(BATCH, shared, KEYS, SIZE), floats(BATCH, shared, KEYS, VALUE)]
    flat = [floats(BATCH, PLACES, own * SIZE), floats(BATCH, KEYS, shared * SIZE), floats(BATCH, KEYS, shared * VALUE)]
    numbers = {"q_num_heads": own, "kv_num_heads": shared}
    for kind in (None, "places", "heads", "added", "nothing"):
        agrees("Attention", 23, [*deep, mask_of(kind, own, KEYS)], form, **LOOSE)
        agrees("Attention", 24, [*flat, mask_of(kind, own, KEYS + 3), *past], {**form, **numbers}, outputs=4, **LOOSE)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_the_scores(mode: int) -> None:
    """Not with a mask that forbids: onnxruntime writes its lowest number then, and not the standard's -inf."""
    inputs = [floats(BATCH, 2, PLACES, SIZE), floats(BATCH, 2, KEYS, SIZE), floats(BATCH, 2, KEYS, VALUE)]
    form = {"qk_matmul_output_mode": mode, "softcap": 2.0}
    past = [floats(BATCH, 2, 3, SIZE), floats(BATCH, 2, 3, VALUE)]
    agrees("Attention", 23, [*inputs, mask_of("added", 2, KEYS + 3), *past], form, outputs=4, **LOOSE)


@pytest.mark.parametrize("lengths", [[6, 6], [4, 5], [2, 6]], ids=str)
def test_padded_keys(lengths: list[int]) -> None:
    inputs = [floats(BATCH, 2, PLACES, SIZE), floats(BATCH, 2, 6, SIZE), floats(BATCH, 2, 6, VALUE)]
    for causal in (0, 1):
        agrees("Attention", 24, [*inputs, None, None, None, np.array(lengths)], {"is_causal": causal}, **LOOSE)


def test_windows_of_opset_25() -> None:
    """The example of the standard: queries 4, keys 6, two to the left, one to the right."""
    inputs = [floats(1, 1, 4, SIZE), floats(1, 1, 6, SIZE), floats(1, 1, 6, VALUE)]
    allowed = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]], bool)
    (found,) = evaluated("Attention", 25, inputs, {"left_window_size": 2, "right_window_size": 1})
    (expected,) = evaluated("Attention", 25, [*inputs, allowed])
    np.testing.assert_array_equal(found, expected)


def test_attention_in_pieces_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [floats(BATCH, 4, PLACES, SIZE), floats(BATCH, 2, KEYS, SIZE), floats(BATCH, 2, KEYS, VALUE)]
    (whole,) = evaluated("Attention", 23, inputs)
    monkeypatch.setattr("normfold.graph.evaluator.operators.attention._SCORES", 1)
    np.testing.assert_allclose(evaluated("Attention", 23, inputs)[0], whole, rtol=1e-12)


@pytest.mark.parametrize("form", grid(interleaved=[None, 1], rotary_embedding_dim=[None, 4]), ids=str)
def test_rotary_embedding(form: dict[str, Any]) -> None:
    half = form.get("rotary_embedding_dim", SIZE) // 2
    positions = np.random.default_rng(10).integers(0, 20, (BATCH, PLACES))
    for x, numbers in ((floats(BATCH, PLACES, 3 * SIZE), {"num_heads": 3}), (floats(BATCH, 3, PLACES, SIZE), {})):
        by_place = [floats(BATCH, PLACES, half), floats(BATCH, PLACES, half, seed=1)]
        agrees("RotaryEmbedding", 23, [x, *by_place], {**form, **numbers})
        agrees("RotaryEmbedding", 23, [x, floats(20, half), floats(20, half, seed=1), positions], {**form, **numbers})
