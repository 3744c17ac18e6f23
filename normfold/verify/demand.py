"""How much memory a verification will take, told before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from normfold.errors import CannotJudgeError
from normfold.graph.evaluator.limits import MARGIN, available_memory
from normfold.graph.inference import infer_shapes
from normfold.inputs.cases import Case

_WIDE = 8
# A byte of stored weights: read by the evaluator, by onnxruntime, and laid out anew by its kernels.
_COPIES = 3
# Graphs whose tensors could not fill this share of the free memory, were they all as large as the inputs and alive at
# once, are not looked at.
_SMALL_SHARE = 1 / 16


def check_fits(model: ir.Model, cases: Sequence[Case], path: Path) -> None:
    """Raise CannotJudgeError where the graph at `path` would not fit into the free memory at the largest case."""
    free = available_memory()
    if free is None or not cases:
        return
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    largest = max(cases, key=lambda case: case.elements)
    elements = largest.elements
    if _COPIES * weights + _WIDE * elements * len(model.graph) < free * _SMALL_SHARE:
        return
    live = _WIDE * live_elements(model, {name: array.shape for name, array in largest.feeds.items()})
    needed = _COPIES * weights + live + MARGIN
    if needed > free:
        raise CannotJudgeError(
            f"{path} cannot be verified here: {weights / 1e9:.1f} GB of weights and {live / 1e9:.1f} GB of tensors at "
            f"{largest} need about {needed / 1e9:.0f} GB of memory to run in float64, and {free / 1e9:.1f} GB are "
            "free. Give smaller inputs (--input), or fold without a verdict (`fold --no-verify`); `normfold verify "
            "FOLDED.onnx` can judge the result later, on a larger machine"
        )


def live_elements(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> int:
    """Elements of the largest set of tensors that are alive at once at these input shapes, weights not counted.

    As far as shape inference knows them: a tensor of unknown size counts as nothing.
    """
    copy = model.clone()
    for value in copy.graph.inputs:
        if str(value.name) in shapes:
            value.shape = ir.Shape(list(shapes[str(value.name)]))
    for node in copy.graph:
        for value in node.outputs:
            # What the file declares may name sizes that are known now.
            value.shape = None
    infer_shapes(copy)
    last = {value: number for number, node in enumerate(copy.graph) for value in node.inputs if value is not None}
    kept = set(copy.graph.outputs)
    alive = {value: _elements(value) for value in copy.graph.inputs if str(value.name) in shapes}
    most = sum(alive.values())
    for number, node in enumerate(copy.graph):
        alive |= {value: _elements(value) for value in node.outputs}
        most = max(most, sum(alive.values()))
        touched = [value for value in (*node.inputs, *node.outputs) if value is not None]
        for value in touched:
            if value not in kept and last.get(value, number) <= number:
                alive.pop(value, None)
    return most


def _elements(value: ir.Value) -> int:
    if value.shape is None or not value.shape.is_static():
        return 0
    return math.prod(value.shape.numpy())
