"""ai.onnx.ml: what prepares features. CastMap and DictVectorizer read maps, which onnx-ir cannot hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.casts import truncated
from normfold.graph.evaluator.values import Tensor, Value, is_float, moved


def scaler(call: Call, x: Tensor) -> Tensor:
    """(X - offset) * scale, of each feature or of all."""
    offset, scale = (torch.tensor(call.numbers(name), dtype=torch.float64) for name in ("offset", "scale"))
    return (x.to(torch.float64) - offset) * scale


def normalizer(call: Call, x: Tensor) -> Tensor:
    """Every row by its maximum, by the sum of its absolute values or by its length, unless that is 0."""
    x = x.to(torch.float64)
    norm = call.text("norm", "MAX")
    if x.ndim not in (1, 2):
        raise ValueError(f"it takes rows, not {list(x.shape)}")
    if norm == "MAX":
        divisor = x.amax(-1, keepdim=True)
    else:
        divisor = torch.linalg.vector_norm(x, {"L1": 1, "L2": 2}[norm], -1, keepdim=True)
    return torch.where(divisor == 0, x, x / divisor)


def imputer(call: Call, x: Tensor) -> Tensor:
    """X with one value replaced, for each feature by its own; of floats that value may be NaN."""
    unwanted, whole = call.number("replaced_value_float", 0.0), call.integer("replaced_value_int64", 0)
    floats, integers = call.numbers("imputed_value_floats"), call.integers("imputed_value_int64s")
    if is_float(x):
        chosen = x.isnan() if np.isnan(unwanted) else x == unwanted
        return torch.where(chosen, torch.tensor(floats, dtype=x.dtype), x)
    return torch.where(x == whole, torch.tensor(integers, dtype=x.dtype), x)


def binarizer(call: Call, x: Tensor) -> Tensor:
    """1 above the threshold, else 0."""
    if bool(x.isnan().any()):
        raise ValueError("an element is NaN")
    return (x > call.number("threshold", 0.0)).to(x.dtype)


def array_feature_extractor(call: Call, x: Value, places: Tensor) -> Value:
    """These numbers of the last axis; of a vector a matrix of one row."""
    found = moved(lambda values: values.index_select(-1, places.reshape(-1)), x)
    return found.reshape(1, -1) if x.ndim == 1 else found


def feature_vectorizer(call: Call, *parts: Tensor) -> Tensor:
    """The inputs next to each other, each cut or filled up with 0 to its number of features."""
    rows = [(part.reshape(1, -1) if part.ndim == 1 else part.flatten(1)).to(torch.float64) for part in parts]
    sizes = call.integers("inputdimensions") or [row.shape[1] for row in rows]
    call.reserve(len(rows[0]), sum(sizes))
    found = torch.zeros(len(rows[0]), sum(sizes), dtype=torch.float64)
    for row, size, place in zip(rows, sizes, np.cumsum([0, *sizes]).tolist(), strict=False):
        count = min(size, row.shape[1])
        found[:, place : place + count] = row[:, :count]
    return found


def one_hot_encoder(call: Call, x: Value) -> Tensor:
    """A row of 0 with a 1 at the category of the element, the last of this name; none for an unknown one."""
    numbers, texts = call.integers("cats_int64s"), call.texts("cats_strings")
    places: dict[Any, int] = {key: place for place, key in enumerate(texts or numbers or ())}
    items = x.reshape(-1).tolist() if not is_float(x) else truncated(x, torch.int64).reshape(-1).tolist()
    unknown, zeros = [item for item in items if item not in places], call.integer("zeros", 1)
    if unknown and not zeros:
        raise ValueError(f"{unknown[0]!r} is not a category")
    width = len(texts or numbers or ())
    call.reserve(len(items), width)
    found = torch.zeros(len(items), width, dtype=torch.float64)
    for row, item in enumerate(items):
        if item in places:
            found[row, places[item]] = 1
    return found.reshape(*x.shape, width)


ROWS: Rows = {
    "ArrayFeatureExtractor": {(1,): array_feature_extractor},
    "Binarizer": {(1,): binarizer},
    "FeatureVectorizer": {(1,): feature_vectorizer},
    "Imputer": {(1,): imputer},
    "Normalizer": {(1,): normalizer},
    "OneHotEncoder": {(1,): one_hot_encoder},
    "Scaler": {(1,): scaler},
}
