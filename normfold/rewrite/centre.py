"""A plan of `analysis.centre` carried out: weights lose their mean, LayerNorms become RMSNorms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from normfold.analysis.centre import Centred, Centring
from normfold.analysis.rules.base import name_of
from normfold.graph.affine import Array
from normfold.graph.constants import Rows
from normfold.graph.types import Model, Value
from normfold.graph.write import EXACT
from normfold.rewrite.copy import Copy


def centre(model: Model, centring: Centring) -> Model:
    """The copy of `model` that `centring`, made from this very model, describes. Constants are cast once, last."""
    copy = _Centred(model)
    for edit in centring.constants:
        copy.set_constant(edit)
    for output, _ in centring.norms:
        copy.to_rms(output)
    return copy.finish()


class _Centred(Copy):
    """The copy whose streams lose their mean."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.nodes = {value.name or "": node for node in self.model.graph for value in node.outputs}
        self.made: dict[tuple[str, int], Value] = {}

    def set_constant(self, edit: Centred) -> None:
        node = self.nodes[edit.output]
        source = node.inputs[edit.input]
        assert source is not None, "the plan names a constant"
        key = (name_of(source), edit.axis)
        if key not in self.made:
            self.made[key] = self._without_mean(source, edit.axis)
        node.replace_input_with(edit.input, self.made[key])

    def _without_mean(self, source: Value, axis: int) -> Value:
        """A new initializer; of a constant that was folded, out of what it was before it was cast."""
        original = self.original[name_of(source)]
        content: Callable[[], Array] = original.meta.get(EXACT) or partial(self.source.constant, original)
        dtype = source.dtype or ir.DataType.FLOAT
        shape = [dim.size for dim in self.source.dims(original) or ()]

        def compute(rows: Rows) -> Array:
            array: Array = np.asarray(content(), dtype=np.float64)
            mean: Array = array.mean(axis=axis, keepdims=True)
            return (array - mean)[rows]

        return self.initializer(f"{source.name}.centred", compute, dtype, shape, by_rows=False)

    def to_rms(self, output: str) -> None:
        """The norm without its mean; a bias that is not zero follows as an Add."""
        node = self.nodes[output]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        # RMSNormalization has the attributes of LayerNormalization, with the same meaning and defaults.
        rms = ir.Node("", "RMSNormalization", node.inputs[:2], node.attributes.values(), name=node.name)
        last = rms
        if bias is not None and np.any(self.source.constant(self.original[name_of(bias)])):
            result = rms.outputs[0]
            result.name = self.unused(f"{output}.rms")
            result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
            last = ir.Node("", "Add", [result, bias], name=self.unused(f"{node.name}.bias"))
        for made in dict.fromkeys((rms, last)):
            made.metadata_props.update(node.metadata_props)
            self.model.graph.insert_before(node, made)
        self.stand_for(node.outputs[0], last.outputs[0])
        self.model.graph.remove(node, safe=True)
