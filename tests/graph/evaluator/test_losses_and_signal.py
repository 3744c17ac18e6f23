from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from normfold.graph.evaluator.call import NotCoveredError
from tests.graph.evaluator.one_node import agrees, evaluated, floats, grid

# onnxruntime adds the terms of a transform one by one, in float32.
ABSOLUTE = 3e-5


@pytest.mark.parametrize("form", grid(reduction=[None, "none", "sum", "mean"], ignore_index=[None, 2, -1]), ids=str)
def test_losses(form: dict[str, Any]) -> None:
    for shape in ((5, 4), (5, 4, 3, 2)):
        target = np.random.default_rng(15).integers(0, 4, (shape[0], *shape[2:]))
        if form.get("ignore_index") == -1:
            target.reshape(-1)[::3] = -1
        for weight in ([], [abs(floats(4))]):
            for opset in (12, 13):
                agrees("NegativeLogLikelihoodLoss", opset, [floats(*shape), target, *weight], form)
                agrees("SoftmaxCrossEntropyLoss", opset, [floats(*shape), target, *weight], form, outputs=2)


@pytest.mark.parametrize("centred", [0, 1])
def test_non_max_suppression(centred: int) -> None:
    random = np.random.default_rng(16)
    boxes, scores = random.random((2, 20, 4)).astype(np.float32), random.random((2, 3, 20)).astype(np.float32)
    for most in (0, 3, 100):
        for overlap in (0.0, 0.3, 1.0):
            given = [boxes, scores, np.array(most), np.array(overlap, np.float32)]
            for least in ([], [np.array([0.4], np.float32)]):
                agrees("NonMaxSuppression", 11, [*given, *least], {"center_point_box": centred})
    agrees("NonMaxSuppression", 10, [boxes, scores])
    ties = (np.round(4 * scores) / 4).astype(np.float32)
    agrees("NonMaxSuppression", 11, [boxes, ties, np.array(20), np.array(0.5, np.float32), np.array(0.25, np.float32)])


@pytest.mark.parametrize("form", grid(inverse=[0, 1], onesided=[0, 1]), ids=str)
def test_dft(form: dict[str, Any]) -> None:
    x = floats(3, 8, 7, 1 if form == {"inverse": 0, "onesided": 1} else 2)
    half = form == {"inverse": 1, "onesided": 1}
    for axis, length in ((0, 5 if half else 4), (1, 15 if half else 9), (2, 12 if half else 16)):
        agrees("DFT", 17, [x, np.array(length)], {**form, "axis": axis}, absolute=ABSOLUTE)
        agrees("DFT", 20, [x, np.array(length), np.array(axis)], form, absolute=ABSOLUTE)
    agrees("DFT", 17, [x], form, absolute=ABSOLUTE)
    agrees("DFT", 20, [x], form, absolute=ABSOLUTE)
    if half:
        with pytest.raises(NotCoveredError, match="does not fit dft_length"):
            evaluated("DFT", 20, [x, np.array(4)], form)


@pytest.mark.parametrize("onesided", [0, 1])
def test_stft(onesided: int) -> None:
    window, length = floats(16), np.array(16)
    for given in ([None, length], [window], [window, length]):
        inputs = [floats(2, 50, 1), np.array(3), *given]
        agrees("STFT", 17, inputs, {"onesided": onesided}, absolute=ABSOLUTE)
    if not onesided:
        agrees("STFT", 17, [floats(2, 50, 2), np.array(8), window], {"onesided": 0}, absolute=ABSOLUTE)


@pytest.mark.parametrize("name", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows(name: str) -> None:
    for size in (2, 5, 16):
        for form in grid(periodic=[None, 0, 1], output_datatype=[None, 11]):
            agrees(name, 17, [np.array(size)], form)
    with pytest.raises(NotCoveredError, match="symmetric window of one"):
        evaluated(name, 17, [np.array(1)], {"periodic": 0})


@pytest.mark.parametrize(
    "case", [(8, 16, 8192, 0, 4096), (40, 512, 16000, 20, 8000), (128, 400, 16000, 0, 8000)], ids=str
)
def test_mel_weights(case: tuple[int, ...]) -> None:
    inputs = [*(np.array(number) for number in case[:3]), *(np.array(number, np.float32) for number in case[3:])]
    agrees("MelWeightMatrix", 17, inputs)
