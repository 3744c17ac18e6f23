"""ai.onnx.ml: ensembles of decision trees, of opsets 1 and 3.

All rows go down all trees at once: `places` holds for every row and tree the node where it is, until all are leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.ml_linear import labels_of, named, transformed, two_columns
from normfold.graph.evaluator.values import Tensor, Value

_MODES = ("LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


@dataclass(frozen=True, slots=True)
class Forest:
    """Nodes by number: which feature they compare with what and how, and where it goes on. numbers: by tree and node
    of the file. A leaf goes on to itself.
    """

    numbers: dict[tuple[int, int], int]
    roots: Tensor
    features: Tensor
    thresholds: Tensor
    modes: Tensor
    missing: Tensor
    true: Tensor
    false: Tensor

    def leaves(self, call: Call, x: Tensor) -> Tensor:
        """The leaf of every row (N, F) in every tree, (N, trees)."""
        call.reserve(len(x), len(self.roots))
        places = self.roots.expand(len(x), -1)
        for _ in range(len(self.modes)):
            if bool((self.modes[places] == 0).all()):
                return places
            values = x.gather(1, self.features[places])
            holds = self._compared(values, places) | (values.isnan() & self.missing[places])
            places = torch.where(holds, self.true[places], self.false[places])
        raise ValueError("a tree has a cycle")

    def _compared(self, values: Tensor, places: Tensor) -> Tensor:
        threshold, modes = self.thresholds[places], self.modes[places]
        less, same = values < threshold, values == threshold
        more = values > threshold
        return (
            ((modes == 1) & (less | same))
            | ((modes == 2) & less)
            | ((modes == 3) & (more | same))
            | ((modes == 4) & more)
            | ((modes == 5) & same)
            | ((modes == 6) & ~same)
        )


def _forest(call: Call) -> Forest:
    trees, nodes = call.integers("nodes_treeids") or [], call.integers("nodes_nodeids") or []
    numbers = {pair: number for number, pair in enumerate(zip(trees, nodes, strict=True))}
    modes = torch.tensor([_MODES.index(mode) for mode in call.texts("nodes_modes") or []])
    thresholds = call.tensor("nodes_values_as_tensor")
    if thresholds is None:
        thresholds = torch.tensor(call.numbers("nodes_values"), dtype=torch.float64)
    missing = call.integers("nodes_missing_value_tracks_true") or [0] * len(nodes)
    call.numbers("nodes_hitrates")  # how often a node was reached in training
    call.attribute("nodes_hitrates_as_tensor")
    goes_on = [
        torch.tensor(
            [
                number if mode == 0 else numbers[tree, target]
                for number, (tree, target, mode) in enumerate(
                    zip(trees, call.integers(f"nodes_{way}nodeids") or [], modes.tolist(), strict=True)
                )
            ]
        )
        for way in ("true", "false")
    ]
    # The first node of a tree in the file is its root.
    roots = {tree: number for number, tree in reversed(list(enumerate(trees)))}
    return Forest(
        numbers,
        torch.tensor([roots[tree] for tree in sorted(roots)]),
        torch.tensor(call.integers("nodes_featureids")),
        thresholds,
        modes,
        torch.tensor(missing, dtype=torch.bool),
        *goes_on,
    )


def _summed(call: Call, x: Tensor, kind: str, outputs: int, function: str) -> tuple[Tensor, Tensor]:
    """What the leaves say of each row, (N, outputs), by SUM, AVERAGE, MIN or MAX over the trees whose leaf mentions the
    output; 0 where none does. And where one does.
    """
    forest = _forest(call)
    names = [call.integers(f"{kind}_{name}ids" if name else f"{kind}_ids") or [] for name in ("tree", "node", "")]
    weights = _leaf_weights(call, kind)
    call.reserve(len(forest.modes), outputs)
    table = torch.zeros(len(forest.modes), outputs, dtype=torch.float64)
    mentioned = torch.zeros(len(forest.modes), outputs, dtype=torch.bool)
    for tree, node, output, weight in zip(*names, weights, strict=True):
        table[forest.numbers[tree, node], output] += weight
        mentioned[forest.numbers[tree, node], output] = True
    rows = (x if x.ndim == 2 else x.reshape(1, -1)).to(torch.float64)
    leaves = forest.leaves(call, rows)
    if function in ("MIN", "MAX"):
        table[~mentioned] = torch.inf if function == "MIN" else -torch.inf
    found, said = table[leaves[:, 0]], mentioned[leaves[:, 0]]
    for column in leaves.unbind(1)[1:]:
        said = said | mentioned[column]
        if function in ("SUM", "AVERAGE"):
            found = found + table[column]
        else:
            found = (torch.minimum if function == "MIN" else torch.maximum)(found, table[column])
    found = found / leaves.shape[1] if function == "AVERAGE" else found
    return found.where(said, 0.0), said


def _leaf_weights(call: Call, kind: str) -> Sequence[float]:
    stored = call.tensor(f"{kind}_weights_as_tensor")
    given = call.numbers(f"{kind}_weights") or []
    return given if stored is None else stored.tolist()


def _base(call: Call) -> list[float]:
    stored = call.tensor("base_values_as_tensor")
    given = call.numbers("base_values") or []
    return given if stored is None else [float(item) for item in stored]


def regressor(call: Call, x: Tensor) -> Tensor:
    """What the trees say of each target, and its base value. Of several targets onnxruntime leaves one that no leaf
    mentions at 0, without it.
    """
    function, base, targets = call.text("aggregate_function", "SUM"), _base(call), call.integer("n_targets", 1)
    found, said = _summed(call, x, "target", targets, function)
    if base:
        found = (found + torch.tensor(base, dtype=torch.float64)).where(said | (targets == 1), 0.0)
    return transformed(found, call.text("post_transform", "NONE"))


def classifier(call: Call, x: Tensor) -> tuple[Value, Tensor]:
    """The label of the highest sum, among the classes that the leaves mention, and the sums."""
    labels, transform, base = labels_of(call, "classlabels_int64s"), call.text("post_transform", "NONE"), _base(call)
    mentioned, weights = set(call.integers("class_ids") or ()), _leaf_weights(call, "class")
    scores, _ = _summed(call, x, "class", len(labels), "SUM")
    if len(labels) == 2:
        return _of_two(call, scores, mentioned, min(weights) >= 0)
    if base:
        scores = scores + torch.tensor(base, dtype=torch.float64)
    elif len(mentioned) < len(labels):
        raise call.refuse("its leaves do not mention all classes")
    return named(labels, scores.argmax(-1)), transformed(scores, transform)


def _of_two(call: Call, scores: Tensor, mentioned: set[int], positive: bool) -> tuple[Value, Tensor]:
    """Of two classes the second wins from 0 on. If the leaves mention one class only, theirs is the score of the
    second, and wins from 0.5 on where no weight is negative. So onnxruntime; its handling of base values here is
    right for a single score of class 0 alone.
    """
    labels, transform, base = labels_of(call, "classlabels_int64s"), call.text("post_transform", "NONE"), _base(call)
    limit = 0.5 if positive and len(mentioned) == 1 else 0.0
    if mentioned != {0}:
        if base:
            raise call.refuse("it has base values for two classes")
        if len(mentioned) == 2 and not isinstance(labels[0], str):
            labels = [0, 1]  # whatever they are: onnxruntime forgets integer labels here
        return named(labels, (scores[:, 1] > limit).to(torch.int64)), transformed(scores, transform)
    if len(base) == 2:
        raise call.refuse("it has two base values for a single score")
    score = scores[:, :1] + (base[0] if base else 0.0)
    chosen = named(labels, (score[:, 0] > limit).to(torch.int64))
    if positive or transform in ("LOGISTIC", "PROBIT"):
        return chosen, two_columns(call, score, transform)
    return chosen, torch.cat([-score, score], -1)


ROWS: Rows = {
    "TreeEnsembleClassifier": {(1, 3): classifier},
    "TreeEnsembleRegressor": {(1, 3): regressor},
}
