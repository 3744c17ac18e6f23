"""Training against the published classes: traces of 40 steps each, outputs, gradients, every buffer, evaluation."""

from __future__ import annotations

import pytest
import torch

from tests.nn.trace import NAMES, difference, load, train

# float64 rounding over 40 steps; a statistic that is updated once too often is off by 1e-2 or more.
TOLERANCE = 1e-9
# PRepBN's blend weight is a float32 number.
TOLERANCE_PREPBN = 1e-6


def test_all_traces_are_here() -> None:
    assert len(NAMES) == 28


@pytest.mark.parametrize("name", NAMES)
def test_training_is_the_published_one(name: str) -> None:
    trace = load(name)
    module = trace.build()
    tolerance = TOLERANCE_PREPBN if name.startswith("prepbn") else TOLERANCE
    compared = set()
    for step in range(trace.steps):
        for key, found in train(trace, module, step).items():
            off = difference(found, trace.arrays[key][step])
            assert off <= tolerance, f"step {step}: {key} is off by {off:.1e}"
            compared.add(key)
    module.eval()
    with torch.no_grad():
        found = module(trace.input(trace.steps), *trace.mask())
    assert difference(found, trace.arrays["eval_out"]) <= tolerance
    assert compared == trace.arrays.keys() - {"eval_out"}
