"""Any tensor of any network in another power of two: float32 computes the same, bit by bit, with the same operators."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from normfold.analysis.frames.powers import choose_powers
from normfold.analysis.placement.float16_range import Range, Ranges
from normfold.checkpoint.load import load_checkpoint
from normfold.export.to_onnx import export
from normfold.graph.powers import rescale
from normfold.graph.prepare import prepare
from normfold.inputs.cases import draw_cases
from tests.paths import FIXTURES
from tests.random.random_graphs import network
from tests.support.graphs import as_float32, op_types, run_float32

# Beyond float16: some power of two has to be found.
LARGE = 1e6
FEW, MANY = range(4), range(4, 200)


def holding(value: ir.Value) -> Ranges:
    """As if one tensor held large numbers, and nothing were known of all others."""
    rank = len(value.shape or ())
    array = tuple(np.full((1,) * rank, LARGE) for _ in range(rank + 1))
    none, square = (tuple(part * factor for part in array) for factor in (0.0, LARGE))
    return Ranges({str(value.name): Range(tuple(-part for part in array), array, none, square)}, half=True)


def check(model: ir.Model, feeds: dict[str, np.ndarray]) -> Counter[bool]:
    """One region after another is stored in another power; how many were, and how many could not be."""
    graph, found, seen = prepare(model), Counter[bool](), set()
    before = ir.to_proto(graph)
    truth = run_float32(before, feeds)
    for value in [value for node in graph.graph for value in node.outputs]:
        if value.shape is None or value.dtype != ir.DataType.FLOAT:
            continue
        powers = choose_powers(graph, holding(value))
        key = tuple(sorted(powers.of.items()))
        found[powers.beyond is None] += 1
        if powers.beyond is not None or key in seen:
            continue
        seen.add(key)
        after = ir.to_proto(rescale(graph, powers.rescaling))
        added = Counter({"Mul": len(powers.rescaling.products)})
        assert Counter(op_types(after)) == Counter(op_types(before)) + added, value.name
        for right, same in zip(truth, run_float32(after, feeds), strict=True):
            assert np.array_equal(right, same, equal_nan=True), value.name
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in FIXTURES.glob("*.pt")))
def test_fixtures(name: str) -> None:
    source = load_checkpoint(FIXTURES / f"{name}.pt")
    found = check(export(source), dict(draw_cases(source.inputs, count=1)[0].feeds))
    assert found[True] > 10


def check_networks(seeds: range) -> None:
    found = Counter[bool]()
    for seed in seeds:
        drawn = network(seed)
        feeds = {name: array.astype(np.float32) for name, array in drawn.feeds.items()}
        found += check(ir.from_proto(as_float32(drawn.model)), feeds)
    assert found[True] > 5 * len(seeds) and found[False] > len(seeds)


def test_random_networks() -> None:
    check_networks(FEW)


@pytest.mark.slow
def test_many_random_networks() -> None:
    check_networks(MANY)
