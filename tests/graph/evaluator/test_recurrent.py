from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from normfold.graph.evaluator.call import NotCoveredError
from tests.graph.evaluator.one_node import agrees, evaluated, floats

STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 6
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DIRECTIONS = ["forward", "reverse", "bidirectional"]
# Errors add up over the steps, in float32.
LOOSE = {"relative": 2e-4, "absolute": 2e-5}


def layer(
    operator: str, direction: str = "forward", lengths: list[int] | None = None, *, peepholes: bool = False
) -> list[Any]:
    """All inputs, the weights small enough that no activation runs away."""
    count, rows = 1 + (direction == "bidirectional"), GATES[operator] * HIDDEN
    small = np.float32(0.2)
    found = [
        floats(STEPS, BATCH, SIZE),
        small * floats(count, rows, SIZE),
        small * floats(count, rows, HIDDEN),
        small * floats(count, 2 * rows),
        None if lengths is None else np.array(lengths, np.int32),
        floats(count, BATCH, HIDDEN),
    ]
    if operator == "LSTM":
        found += [floats(count, BATCH, HIDDEN, seed=1), floats(count, 3 * HIDDEN) if peepholes else None]
    return found


def outputs_of(operator: str) -> int:
    return 3 if operator == "LSTM" else 2


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("operator", GATES)
def test_directions_lengths_and_clip(operator: str, direction: str) -> None:
    form = {"hidden_size": HIDDEN, "direction": direction}
    for lengths in (None, [5, 3, 1], [2, 3, 4], [0, 1, 0]):
        for opset in (7, 14):
            given = layer(operator, direction, lengths)
            agrees(operator, opset, given, form, outputs=outputs_of(operator), **LOOSE)
            agrees(operator, opset, given[:3], form, outputs=outputs_of(operator), **LOOSE)
    given = layer(operator, direction, peepholes=True)
    agrees(operator, 22, given, {**form, "clip": 0.3}, outputs=outputs_of(operator), **LOOSE)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_forms_of_the_gates(direction: str) -> None:
    form = {"hidden_size": HIDDEN, "direction": direction}
    agrees("GRU", 14, layer("GRU", direction, [5, 3, 1]), {**form, "linear_before_reset": 1}, outputs=2, **LOOSE)
    for coupled in (0, 1):
        given = layer("LSTM", direction, [5, 3, 1], peepholes=True)
        agrees("LSTM", 14, given, {**form, "input_forget": coupled}, outputs=3, **LOOSE)


@pytest.mark.parametrize(
    "name", ["Affine", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "ScaledTanh", "Softplus", "Softsign"]
)
def test_activations_take_their_alphas_and_betas_in_order(name: str) -> None:
    numbers = {"activation_alpha": [0.3, 0.4, 0.5, 0.35], "activation_beta": [0.1, 0.2, 0.3, 0.15]}
    form = {"hidden_size": HIDDEN, "direction": "bidirectional", **numbers}
    agrees("RNN", 14, layer("RNN", "bidirectional"), {**form, "activations": [name, "LeakyRelu"]}, outputs=2, **LOOSE)
    names = ["Sigmoid", name, "HardSigmoid", "Tanh"]
    agrees("GRU", 14, layer("GRU", "bidirectional"), {**form, "activations": names}, outputs=2, **LOOSE)
    if name in ("Elu", "HardSigmoid", "LeakyRelu"):
        agrees("RNN", 14, layer("RNN"), {"hidden_size": HIDDEN, "activations": [name]}, outputs=2, **LOOSE)


def test_an_alpha_over_which_onnxruntime_and_the_standard_disagree() -> None:
    with pytest.raises(NotCoveredError, match="ThresholdedRelu without its alpha"):
        evaluated("RNN", 14, layer("RNN"), {"hidden_size": HIDDEN, "activations": ["ThresholdedRelu"]}, outputs=2)


@pytest.mark.parametrize("operator", GATES)
def test_layout_by_batch_is_the_other_one_turned(operator: str) -> None:
    """onnxruntime does not run it."""
    given = layer(operator, "bidirectional")
    form = {"hidden_size": HIDDEN, "direction": "bidirectional"}
    expected = evaluated(operator, 14, given, form, outputs=outputs_of(operator))
    for place in (0, 5, 6):
        if place < len(given):
            given[place] = given[place].swapaxes(0, 1)
    found = evaluated(operator, 14, given, {**form, "layout": 1}, outputs=outputs_of(operator))
    np.testing.assert_array_equal(found[0], expected[0].transpose(2, 0, 1, 3))
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(mine, theirs.swapaxes(0, 1))


def test_products_made_ahead_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    given = layer("LSTM", "bidirectional", [5, 3, 1])
    form = {"hidden_size": HIDDEN, "direction": "bidirectional"}
    whole = evaluated("LSTM", 14, given, form, outputs=3)
    monkeypatch.setattr("normfold.graph.evaluator.operators.recurrent._AHEAD", 2 * BATCH * 4 * HIDDEN)
    for mine, theirs in zip(evaluated("LSTM", 14, given, form, outputs=3), whole, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)
