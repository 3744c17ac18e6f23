"""ai.onnx.ml: what maps labels to numbers and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.strings import string_array
from normfold.graph.evaluator.values import Tensor, Value


def label_encoder_1(call: Call, x: Value) -> Value:
    """Classes to their numbers, or numbers to classes."""
    classes = call.texts("classes_strings") or []
    default, unused = call.integer("default_int64", -1), call.text("default_string", "_Unused")
    if isinstance(x, Tensor):
        return _mapped(x, dict(enumerate(classes)), unused)
    return _mapped(x, {name: number for number, name in reversed(list(enumerate(classes)))}, default)


def category_mapper(call: Call, x: Value) -> Value:
    """Strings to integers, or integers to strings."""
    numbers, texts = call.integers("cats_int64s") or [], call.texts("cats_strings") or []
    default, unused = call.integer("default_int64", -1), call.text("default_string", "_Unused")
    if isinstance(x, Tensor):
        return _mapped(x, dict(zip(numbers, texts, strict=True)), unused)
    return _mapped(x, dict(zip(texts, numbers, strict=True)), default)


def label_encoder(call: Call, x: Value) -> Value:
    """Keys to values. Of a key that is there twice the first counts, as in onnxruntime, against the text of opset 4.
    NaN is a key from there on.
    """
    defaults = {
        "strings": call.text("default_string", "_Unused"),
        "int64s": call.integer("default_int64", -1),
        "floats": call.number("default_float", -0.0),
        "tensor": call.tensor("default_tensor"),
    }
    keys, values = _listed(call, "keys"), _listed(call, "values")
    if keys is None or values is None:
        raise ValueError("it has no keys or no values")
    default: Any = defaults[values[0]]
    if values[0] == "tensor":
        default = _default_of(values[1]) if default is None else default.reshape(-1).tolist()[0]
    pairs = [(_key(key), value) for key, value in zip(keys[1], _plain(values[1]), strict=True)]
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key is not None or call.version >= 4:
            found.setdefault(key, value)
    dtype = values[1].dtype if isinstance(values[1], Tensor) else None
    return _mapped(x, found, default, dtype)


def _listed(call: Call, what: str) -> tuple[str, Any] | None:
    """The keys or the values: which attribute has them, and they."""
    found: dict[str, Any] = {
        "strings": call.texts(f"{what}_strings"),
        "int64s": call.integers(f"{what}_int64s"),
        "floats": call.numbers(f"{what}_floats"),
        "tensor": call.tensor(f"{what}_tensor"),
    }
    kind = next((name for name, items in found.items() if items is not None), None)
    return None if kind is None else (kind, _plain(found[kind]) if what == "keys" else found[kind])


def _plain(items: Any) -> list[Any]:
    return items if isinstance(items, list) else list(items.reshape(-1).tolist())


def _default_of(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return "_Unused"
    return -0.0 if values.dtype == torch.float64 else -1


def _key(item: Any) -> Any:
    """NaN is the same as NaN: None here."""
    return None if isinstance(item, float) and math.isnan(item) else item


def _mapped(x: Value, mapping: Mapping[Any, Any], default: Any, dtype: torch.dtype | None = None) -> Value:
    found = [mapping.get(_key(item), default) for item in x.reshape(-1).tolist()]
    if isinstance(default, str):
        return string_array(found, tuple(x.shape))
    kind = dtype or (torch.float64 if isinstance(default, float) else torch.int64)
    return torch.tensor(found, dtype=kind).reshape(tuple(x.shape))


def zip_map(call: Call, x: Tensor) -> list[dict[Any, float]]:
    """Every row as a map from its labels."""
    labels: list[Any] = [*(call.integers("classlabels_int64s") or ()), *(call.texts("classlabels_strings") or ())]
    rows = x.reshape(-1, x.shape[-1]).tolist()
    return [dict(zip(labels, row, strict=True)) for row in rows]


ROWS: Rows = {
    "CategoryMapper": {(1,): category_mapper},
    "LabelEncoder": {(1,): label_encoder_1, (2, 4): label_encoder},
    "ZipMap": {(1,): zip_map},
}
