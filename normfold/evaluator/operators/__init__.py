"""The operator table: what computes an operator in float64, by domain, name and the opset that introduced its schema.

A row names the schemas that a function is right for, one by one: a schema that a later opset brings is not covered
until somebody has looked at it. Every row is held against onnxruntime (docs/truth.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from normfold.evaluator.call import Function, Rows
from normfold.evaluator.operators import (
    attention,
    columns,
    convolution,
    elementwise,
    matrix,
    microsoft,
    microsoft_attention,
    normalize,
    pooling,
    quantised,
    recurrent,
    regions,
    resampling,
    sampling,
)

_FAMILIES: tuple[tuple[str, Rows], ...] = (
    ("", attention.ROWS),
    ("", columns.ROWS),
    ("", convolution.ROWS),
    ("", elementwise.ROWS),
    ("", matrix.ROWS),
    ("", normalize.ROWS),
    ("", pooling.ROWS),
    ("", quantised.ROWS),
    ("", recurrent.ROWS),
    ("", regions.ROWS),
    ("", resampling.ROWS),
    ("", sampling.ROWS),
    ("com.microsoft", microsoft.ROWS),
    ("com.microsoft", microsoft_attention.ROWS),
)

TABLE: Mapping[tuple[str, str, int], Function] = {
    (domain, name, version): function
    for domain, rows in _FAMILIES
    for name, row in rows.items()
    for versions, function in row.items()
    for version in versions
}


def lookup(domain: str, name: str, version: int) -> Function | None:
    """The function for an operator whose schema the opset `version` introduced; None where it is not covered."""
    return TABLE.get(("" if domain == "ai.onnx" else domain, name, version))
