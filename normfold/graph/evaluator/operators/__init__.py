"""The operator table: what computes an operator in float64, by domain, name and the opset that introduced its schema.

A row names the schemas that a function is right for, one by one: a schema that a later opset brings is not covered
until it has been checked. Every row is held against onnxruntime (docs/truth.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from normfold.graph.evaluator.call import Function, Rows
from normfold.graph.evaluator.operators import (
    activations,
    attention,
    casts,
    columns,
    control,
    convolution,
    creation,
    elementwise,
    indexing,
    layout,
    logic,
    losses,
    matrix,
    microsoft,
    microsoft_attention,
    microsoft_quantised,
    ml_features,
    ml_labels,
    ml_linear,
    normalize,
    padding,
    pooling,
    quantised,
    recurrent,
    reductions,
    regions,
    resampling,
    sampling,
    scatter,
    sequences,
    signal,
    strings,
    trees,
)

_FAMILIES: tuple[tuple[str, Rows], ...] = (
    ("", activations.ROWS),
    ("", attention.ROWS),
    ("", casts.ROWS),
    ("", columns.ROWS),
    ("", control.ROWS),
    ("", convolution.ROWS),
    ("", creation.ROWS),
    ("", elementwise.ROWS),
    ("", indexing.ROWS),
    ("", layout.ROWS),
    ("", logic.ROWS),
    ("", losses.ROWS),
    ("", matrix.ROWS),
    ("com.microsoft", microsoft.ROWS),
    ("com.microsoft", microsoft_attention.ROWS),
    ("com.microsoft", microsoft_quantised.ROWS),
    ("ai.onnx.ml", ml_features.ROWS),
    ("ai.onnx.ml", ml_labels.ROWS),
    ("ai.onnx.ml", ml_linear.ROWS),
    ("", normalize.ROWS),
    ("", padding.ROWS),
    ("", pooling.ROWS),
    ("", quantised.ROWS),
    ("", recurrent.ROWS),
    ("com.microsoft", recurrent.MICROSOFT_ROWS),
    ("", reductions.ROWS),
    ("", regions.ROWS),
    ("", resampling.ROWS),
    ("", sampling.ROWS),
    ("", scatter.ROWS),
    ("", sequences.ROWS),
    ("", signal.ROWS),
    ("", strings.ROWS),
    ("ai.onnx.ml", trees.ROWS),
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
