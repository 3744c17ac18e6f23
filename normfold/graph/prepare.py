"""A model made ready for analysis."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as passes

from normfold.errors import GraphError
from normfold.graph.dead_channels import silence
from normfold.graph.inference import infer_shapes
from normfold.graph.operators import opset
from normfold.graph.types import IR_OF_CONSTANTS, OLDEST_OPSET, Model, Value
from normfold.system.collector import uncollected
from normfold.system.failures import one_line


@uncollected()
def prepare(model: Model) -> Model:
    """A copy of `model` ready for analysis: modern, functions inlined, every shape that ONNX can infer filled in.

    Tensors are shared with the original, not copied. Raises GraphError.
    """
    copy = _raised(model) if opset(model) < OLDEST_OPSET else model.clone()
    if (copy.ir_version or IR_OF_CONSTANTS) < IR_OF_CONSTANTS:
        for value in [value for value in copy.graph.inputs if value.is_initializer()]:
            copy.graph.inputs.remove(value)
        copy.ir_version = IR_OF_CONSTANTS
    if copy.functions:
        passes.InlinePass()(copy)
    silence(copy)
    if any(value.shape is None or None in _names(value.shape) for value in _activations(copy)):
        infer_shapes(copy)
    return copy


def _raised(model: Model) -> Model:
    """`model` in the oldest operators that are read."""
    try:
        return ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), OLDEST_OPSET))
    # The converter raises whatever its C++ does, for an operator that it does not know or cannot express.
    except Exception as error:
        raise GraphError(
            f"The model is written in ONNX opset {opset(model)}; normfold reads {OLDEST_OPSET} and later, where "
            f"constants broadcast as in numpy, and onnx cannot convert this one: {one_line(error)}."
        ) from error


def _names(shape: ir.Shape) -> list[object]:
    return [dim if isinstance(dim, int) else dim.value for dim in shape]


def _activations(model: Model) -> Iterator[Value]:
    return (value for node in model.graph for value in node.outputs)
