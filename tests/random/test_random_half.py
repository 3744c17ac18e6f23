"""Random networks folded into float16: against float64 no worse than the same network converted without folding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from normfold.analysis.analyse import analyse
from normfold.analysis.placement.calibrate import calibrate
from normfold.graph.float16 import to_half
from normfold.graph.float64 import COARSE_CEILINGS
from normfold.graph.prepare import prepare
from normfold.inputs.cases import Case
from normfold.rewrite.graph import rewrite
from normfold.verify.judge import FLOOR_ULPS, FOLD_FACTOR
from tests.random.random_graphs import network
from tests.support.graphs import as_float32, session

SEEDS = 24
# Runs of the original on inputs moved by one ULP: its own error, as verify takes it.
RUNS = 6

Feeds = Mapping[str, NDArray[np.generic]]


def typed(feeds: Feeds, dtype: type[np.floating]) -> dict[str, NDArray[np.generic]]:
    return {name: value.astype(dtype) if value.dtype.kind == "f" else value for name, value in feeds.items()}


def run(model: ir.Model, case: Case) -> NDArray[np.float64]:
    return np.asarray(session(ir.to_proto(model).SerializeToString()).run(None, dict(case.feeds))[0], np.float64)


def check(seed: int) -> Counter[str]:
    """Folded for the ranges of other inputs than the one that judges it."""
    drawn, rng = network(seed), np.random.default_rng(seed)
    case = Case({}, seed, 1.0, typed(drawn.feeds, np.float16))
    truth = np.asarray(ReferenceEvaluator(drawn.model).run(None, typed(case.feeds, np.float64))[0])
    original = prepare(ir.from_proto(as_float32(drawn.model)))
    floats = {name: value.shape for name, value in drawn.feeds.items() if value.dtype.kind == "f"}
    others = [
        Case({}, n, 1.0, {**drawn.feeds, **{name: rng.normal(size=shape) for name, shape in floats.items()}})
        for n in range(4)
    ]
    plan = analyse(original, ranges=calibrate(original, (), half=True, cases=others))
    half, scale = to_half(original), float(np.sqrt(np.mean(np.square(truth))))
    own = max(np.abs(run(half, case.moved(n)) - truth).max() for n in range(RUNS)) / scale
    if not own <= COARSE_CEILINGS[1]:
        return Counter({"not for float16": 1})
    error = np.abs(run(to_half(rewrite(original, plan)), case) - truth).max() / scale
    assert error <= FOLD_FACTOR * own + FLOOR_ULPS * np.finfo(np.float16).eps
    return Counter(site.status for site in plan.sites)


@pytest.mark.parametrize("first", range(0, SEEDS, 8))
def test_random_networks_fold_into_float16(first: int) -> None:
    statuses: Counter[str] = Counter()
    for seed in range(first, first + 8):
        statuses += check(seed)
    assert statuses["folded"] > 8 > 2 * statuses["not for float16"]
