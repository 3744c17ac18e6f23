"""Tree ensembles, drawn at random, against onnxruntime."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from typing import Any

import numpy as np
import pytest

from normfold.graph.evaluator.call import EvaluationError, NotCoveredError
from tests.graph.evaluator.single import check, model_of, run

ML = "ai.onnx.ml"
RNG = np.random.default_rng(0)
# Values with one digit, so that features meet thresholds.
X = np.round(RNG.normal(0, 1, (40, 3)), 1).astype(np.float32)
HOLES = np.where(np.arange(120).reshape(40, 3) % 5 == 0, np.float32(np.nan), X)
MODES = [f"BRANCH_{mode}" for mode in ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ")]


def forest(
    kind: str, outputs: list[int], *, positive: bool = False, seed: int = 1, missing: bool = True
) -> dict[str, Any]:
    """Attributes of four full trees of different depths; the leaves weigh these outputs."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = defaultdict(list)
    for tree, depth in enumerate((1, 2, 3, 2)):
        for node in range(2 ** (depth + 1) - 1):
            is_leaf = node >= 2**depth - 1
            found["nodes_treeids"].append(tree)
            found["nodes_nodeids"].append(node)
            found["nodes_featureids"].append(0 if is_leaf else int(rng.integers(3)))
            found["nodes_modes"].append("LEAF" if is_leaf else str(rng.choice(MODES)))
            found["nodes_values"].append(0.0 if is_leaf else float(rng.choice(X.reshape(-1))))
            found["nodes_truenodeids"].append(0 if is_leaf else 2 * node + 1)
            found["nodes_falsenodeids"].append(0 if is_leaf else 2 * node + 2)
            if missing:
                found["nodes_missing_value_tracks_true"].append(int(rng.integers(2)))
            for output in outputs if is_leaf else ():
                weight = float(rng.normal(0, 0.3))
                found[f"{kind}_treeids"].append(tree)
                found[f"{kind}_nodeids"].append(node)
                found[f"{kind}_ids"].append(output)
                found[f"{kind}_weights"].append(abs(weight) if positive else weight)
    return dict(found)


@pytest.mark.parametrize("function", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize(
    ("count", "transform", "base"),
    [(1, "NONE", []), (3, "NONE", [0.5, 0.1, 0.2]), (1, "LOGISTIC", [0.5]), (3, "SOFTMAX", []), (3, "LOGISTIC", [])],
)
def test_regressors(function: str, count: int, transform: str, base: list[float]) -> None:
    for x, missing, seed in product((X, HOLES), (False, True), (1, 2)):
        attributes = forest("target", list(range(count)), missing=missing, seed=seed)
        attributes |= {"aggregate_function": function, "n_targets": count, "post_transform": transform}
        check(("TreeEnsembleRegressor", 1, [x], attributes | ({"base_values": base} if base else {})), domain=ML)


CLASSIFIERS = [
    *product([{"classlabels_int64s": [3, 7]}, {"classlabels_strings": ["a", "b"]}], [[0]], [[], [0.3]]),
    *product([{"classlabels_int64s": [3, 7]}, {"classlabels_strings": ["a", "b"]}], [[1], [0, 1]], [[]]),
    *product([{"classlabels_int64s": [3, 7, 9]}, {"classlabels_strings": ["a", "b", "c"]}], [[0, 1, 2]],
             [[], [0.3, 0, 0.1]]),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "weighed", "base"), CLASSIFIERS)
def test_classifiers(labels: dict[str, Any], weighed: list[int], base: list[float]) -> None:
    for positive, transform in product((False, True), ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")):
        attributes = forest("class", weighed, positive=positive) | {"post_transform": transform} | labels
        attributes |= {"base_values": base} if base else {}
        check(("TreeEnsembleClassifier", 1, [X], attributes), outputs=2, domain=ML)


@pytest.mark.parametrize(
    ("labels", "weighed", "more", "why"),
    [
        ([3, 7], [0, 1], {"base_values": [0.1, 0.2]}, "base values"),
        ([3, 7], [0], {"base_values": [0.1, 0.2]}, "two base values"),
        ([3, 7], [0], {"post_transform": "PROBIT"}, "PROBIT"),
        ([3, 7, 9], [0, 1], {}, "all classes"),
    ],
)
def test_what_onnxruntime_makes_no_sense_of(
    labels: list[int], weighed: list[int], more: dict[str, Any], why: str
) -> None:
    attributes = forest("class", weighed) | {"classlabels_int64s": labels} | more
    with pytest.raises(NotCoveredError, match=why):
        run(model_of("TreeEnsembleClassifier", 1, [X], attributes, outputs=2, domain=ML), [X])


def test_a_tree_with_a_cycle_is_an_error() -> None:
    attributes = forest("target", [0]) | {"n_targets": 1}
    attributes["nodes_truenodeids"] = [0] * len(attributes["nodes_nodeids"])
    attributes["nodes_falsenodeids"] = attributes["nodes_truenodeids"]
    with pytest.raises(EvaluationError, match="cycle"):
        run(model_of("TreeEnsembleRegressor", 1, [X], attributes, domain=ML), [X])
