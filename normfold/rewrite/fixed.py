"""A plan of `analysis.fixed` carried out: norms become a mean and a map of each channel, then the mean goes as well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfold.analysis.centre import Centred, Centring
from normfold.analysis.fixed import FixedNorm
from normfold.analysis.rules.base import name_of
from normfold.graph.affine import Array
from normfold.graph.constants import Rows
from normfold.graph.operators import opset
from normfold.graph.types import Model, Node, Value
from normfold.rewrite.centre import centre
from normfold.rewrite.copy import Copy


@dataclass(frozen=True, slots=True)
class Spelled:
    """model: the norms written out. centred: by the norm's output, the tensor `x - mean(x)`."""

    model: Model
    centred: Mapping[str, str]


def spell_out(model: Model, norms: Sequence[FixedNorm], *, scoped: bool) -> Spelled:
    """A copy of `model` with `norms` as `w / sqrt(eps) * (x - mean(x)) + b`.

    scoped: whether their operators are named as parts of the norm's module.
    """
    copy = _Spelled(model)
    centred = {norm.output: copy.spell(norm, scoped=scoped) for norm in norms}
    return Spelled(copy.finish(), {output: name for output, name in centred.items() if name is not None})


def drop_means(model: Model, weights: Mapping[str, Sequence[Centred]]) -> Model:
    """The copy of `model` in which the readers of each `x - mean(x)` read x. weights: theirs, which are centred."""
    edits = tuple(dict.fromkeys(edit for found in weights.values() for edit in found))
    copy = Copy(centre(model, Centring(constants=edits)))
    for name in weights:
        value = copy.values[name]
        node = value.producer()
        assert node is not None and node.inputs[0] is not None, "the mean was subtracted by an operator"
        for user, index in tuple(value.uses()):
            user.replace_input_with(index, node.inputs[0])
    return copy.finish()


class _Spelled(Copy):
    """The copy with norms written out."""

    def spell(self, norm: FixedNorm, *, scoped: bool) -> str | None:
        """Write one out; the name of `x - mean(x)`, where a mean is subtracted."""
        output = self.values[norm.output]
        node = output.producer()
        assert node is not None and node.inputs[0] is not None and node.inputs[1] is not None
        source, weight, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        centred = None
        if norm.centred:
            centred = self._step(node, "Sub", [source, self._mean(node, source, output)], output, scoped=scoped)
            source = centred
        result = self._step(node, "Mul", [source, self._scale(weight, norm.epsilon)], output, scoped=scoped)
        if bias is not None:
            result = self._step(node, "Add", [result, bias], output, scoped=scoped)
        self.stand_for(output, result)
        self.model.graph.remove(node, safe=True)
        return None if centred is None else name_of(centred)

    def _step(self, node: Node, op_type: str, inputs: list[Value], output: Value, *, scoped: bool) -> Value:
        """One operator in front of `node`, with a result like `output`."""
        result = self.like(output, self.unused(f"{output.name}.{op_type.lower()}"))
        name = self.unused(f"{node.name or output.name}.{op_type.lower()}")
        written = ir.Node("", op_type, inputs, outputs=[result], name=name)
        if scoped:
            written.metadata_props.update(node.metadata_props)
        self.model.graph.insert_before(node, written)
        return result

    def _mean(self, node: Node, source: Value, output: Value) -> Value:
        """The mean over the last axis, which is kept; before opset 18 an attribute says which axis."""
        given: list[ir.Attr] = [ir.AttrInt64("keepdims", 1)]
        inputs = [source]
        if opset(self.model) < 18:
            given.append(ir.AttrInt64s("axes", [-1]))
        else:
            inputs.append(self.initializer(f"{output.name}.axes", lambda rows: np.array([-1.0])[rows], _INT, (1,)))
        result = self.like(output, self.unused(f"{output.name}.mean"))
        result.shape = None if output.shape is None else ir.Shape([*output.shape[:-1], 1])
        name = self.unused(f"{node.name or output.name}.mean")
        self.model.graph.insert_before(node, ir.Node("", "ReduceMean", inputs, given, outputs=[result], name=name))
        return result

    def _scale(self, weight: Value, epsilon: float) -> Value:
        """w / sqrt(eps), in float64 until it is written."""
        original = self.original[weight.name]
        shape = [dim.size for dim in self.source.dims(original) or ()]
        dtype = weight.dtype or ir.DataType.FLOAT

        def compute(rows: Rows) -> Array:
            scale: Array = self.source.rows(original, rows) / math.sqrt(epsilon)
            return scale

        return self.initializer(f"{weight.name}.fixed", compute, dtype, shape)


_INT = ir.DataType.INT64
