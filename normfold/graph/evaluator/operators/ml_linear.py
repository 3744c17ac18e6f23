"""ai.onnx.ml: linear models, and what they and the trees do with their scores."""

from __future__ import annotations

from typing import Any

import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.strings import string_array
from normfold.graph.evaluator.values import Tensor, Value

# What counts as 0 to SOFTMAX_ZERO.
_NOTHING = 1e-7


def transformed(scores: Tensor, transform: str) -> Tensor:
    """Scores (N, E) after `post_transform`. A single score is left alone by all but PROBIT, as in onnxruntime."""
    if transform == "PROBIT":
        return _probit(scores)
    if transform == "NONE" or scores.shape[-1] == 1:
        return scores
    if transform == "LOGISTIC":
        return torch.sigmoid(scores)
    if transform == "SOFTMAX":
        return torch.softmax(scores, -1)
    if transform == "SOFTMAX_ZERO":
        return _softmax_zero(scores)
    raise ValueError(f"there is no transform {transform!r}")


def _softmax_zero(scores: Tensor) -> Tensor:
    """Softmax of what is not 0; what is stays nearly so, and does not count."""
    largest = scores.amax(-1, keepdim=True)
    counts = scores.abs() > _NOTHING
    powers = torch.where(counts, torch.exp(scores - largest), scores * torch.exp(-largest))
    return powers / torch.where(counts, powers, 0.0).sum(-1, keepdim=True)


def _probit(scores: Tensor) -> Tensor:
    """The inverse of the normal distribution, by the approximation that onnxruntime has of it (Winitzki's)."""
    x = 2 * scores - 1
    log = torch.log((1 - x) * (1 + x))
    half = 2 / (3.14159 * 0.147) + 0.5 * log
    return 1.41421356 * torch.where(x < 0, -1.0, 1.0) * torch.sqrt(torch.sqrt(half * half - log / 0.147) - half)


def two_columns(call: Call, score: Tensor, transform: str) -> Tensor:
    """The score (N, 1) of the second of two classes, as scores of both."""
    if transform == "PROBIT":
        raise call.refuse("it transforms a single score by PROBIT, which onnxruntime does not do twice alike")
    if transform == "LOGISTIC":
        return torch.cat([torch.sigmoid(-score), torch.sigmoid(score)], -1)
    return torch.cat([1 - score, score], -1)


def labels_of(call: Call, integers: str = "classlabels_ints") -> list[Any]:
    """The labels of a classifier, of either kind."""
    numbers, texts = call.integers(integers), call.texts("classlabels_strings")
    return list(texts or numbers or ())


def named(labels: list[Any], classes: Tensor) -> Value:
    """The labels of these classes."""
    found = [labels[number] for number in classes.tolist()]
    return string_array(found, (len(found),)) if isinstance(labels[0], str) else torch.tensor(found, dtype=torch.int64)


def _scores(x: Tensor, coefficients: list[float], intercepts: list[float] | None, count: int) -> Tensor:
    rows = (x if x.ndim == 2 else x.reshape(1, -1)).to(torch.float64)
    weight = torch.tensor(coefficients, dtype=torch.float64).reshape(count, -1)
    found = rows @ weight.T
    return found if not intercepts else found + torch.tensor(intercepts, dtype=torch.float64)


def linear_classifier(call: Call, x: Tensor) -> tuple[Value, Tensor]:
    """The label of the highest score, and the scores. A single score is that of the second of two labels, which is
    taken where it is positive.
    """
    call.integer("multi_class", 0)  # onnxruntime does not look at it
    labels, transform = labels_of(call), call.text("post_transform", "NONE")
    intercepts = call.numbers("intercepts")
    count = len(intercepts) if intercepts else len(labels)
    scores = _scores(x, call.numbers("coefficients") or [], intercepts, count)
    if count > 1:
        return named(labels, scores.argmax(-1)), transformed(scores, transform)
    if len(labels) != 2:
        raise ValueError(f"{len(labels)} labels for a single score")
    return named(labels, (scores[:, 0] > 0).to(torch.int64)), two_columns(call, scores, transform)


def linear_regressor(call: Call, x: Tensor) -> Tensor:
    """X times the coefficients of each target, and its intercept."""
    count = call.integer("targets", 1)
    scores = _scores(x, call.numbers("coefficients") or [], call.numbers("intercepts"), count)
    return transformed(scores, call.text("post_transform", "NONE"))


ROWS: Rows = {
    "LinearClassifier": {(1,): linear_classifier},
    "LinearRegressor": {(1,): linear_regressor},
}
