"""Random networks, folded and equalized: the same function in float64, no operator more, once and for all."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from normfold.analysis.analyse import analyse
from normfold.analysis.plan import Plan
from normfold.graph.prepare import prepare
from normfold.rewrite.graph import rewrite
from tests.random.random_graphs import network
from tests.random.test_random_graphs import FLOAT64_TOLERANCE, run

SEEDS, MANY_SEEDS = 25, 1000
# A grouped convolution of one tap: as many entries as its channels have, in and out together.
ONCE_OVERLOOKED = [137]
# log2, summed over all steps and weights.
ROUNDING = 1e-6


def equalized(model: onnx.ModelProto, *, equalize: bool = True) -> tuple[onnx.ModelProto, Plan]:
    graph = prepare(ir.from_proto(model))
    plan = analyse(graph, equalize=equalize)
    return ir.to_proto(rewrite(graph, plan)), plan


def weights_of(model: onnx.ModelProto) -> list[NDArray[np.float64]]:
    """The weights of MatMuls, Gemms and Convs, in the order of the graph, each as its operator reads it."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    readers = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    return [stored[node.input[1]] for node in readers if node.input[1] in stored]


def wasted(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """Bits that one step for each whole weight wastes more than before: what its range grew more than its entries."""
    total = 0.0
    for old, new in zip(weights_of(before), weights_of(after), strict=True):
        alive = (old != 0.0) & (new != 0.0)
        if np.any(alive):
            grown = np.log2(np.abs(new[alive]).max() / np.abs(old[alive]).max())
            total += float(grown - np.log2(np.abs(new[alive] / old[alive])).mean())
    return total


def check(seed: int) -> Counter[str]:
    drawn = network(seed)
    folded, plan = equalized(drawn.model, equalize=False)
    after, even = equalized(drawn.model)
    onnx.checker.check_model(after, full_check=True)
    truth, result = run(drawn.model, drawn), run(after, drawn)
    assert np.abs(result - truth).max() <= FLOAT64_TOLERANCE * max(float(np.abs(truth).max()), 1.0)
    assert [site.status for site in even.sites] == [site.status for site in plan.sites]
    assert Counter(node.op_type for node in after.graph.node) == Counter(node.op_type for node in folded.graph.node)
    merged = bool(plan.merges)
    if not merged:
        assert wasted(folded, after) <= ROUNDING
        _, second = equalized(after)
        assert not any(site.status == "folded" for site in second.sites)
        assert not second.frames, "what is balanced stays as it is"
    moved = any(weight.equalized not in (None, weight.folded) for weight in even.spreads)
    return Counter(equalized=moved, merged=merged)


@pytest.mark.parametrize("first", range(0, SEEDS, 5))
def test_random_networks_are_equalized_exactly(first: int) -> None:
    assert sum((check(seed) for seed in range(first, first + 5)), Counter())["equalized"] > 0


@pytest.mark.parametrize("seed", ONCE_OVERLOOKED)
def test_every_weight_counts(seed: int) -> None:
    assert check(seed)["equalized"]


@pytest.mark.slow
def test_many_random_networks_are_equalized_exactly() -> None:
    found = sum((check(seed) for seed in range(SEEDS, MANY_SEEDS)), Counter())
    print(f"{MANY_SEEDS} networks: {dict(found)}")
    assert found["equalized"] > MANY_SEEDS // 4
