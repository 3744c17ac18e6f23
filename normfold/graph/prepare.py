"""A model made ready for analysis."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import onnx
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from normfold.errors import GraphError
from normfold.graph.constant_norms import compute_constant_norms
from normfold.graph.dead_channels import silence
from normfold.graph.inference import infer_shapes
from normfold.graph.operators import operators, opset
from normfold.graph.types import IR_OF_CONSTANTS, OLDEST_OPSET, Model, Value
from normfold.graph.view import Graph
from normfold.system.collector import uncollected
from normfold.system.failures import one_line

_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})
# Numbers in a tensor of sizes; how often a shape that came out may make the next one known.
_MOST_SIZES, _ROUNDS = 64, 8


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
    sizes: dict[str, NDArray[Any]] = {}
    for _ in range(_ROUNDS):
        known = len(sizes)
        sizes |= _computed_sizes(copy, but=sizes)
        if len(sizes) == known:
            break
        infer_shapes(copy, sizes)
    compute_constant_norms(copy)
    return copy


def _computed_sizes(model: Model, *, but: Collection[str]) -> dict[str, NDArray[Any]]:
    """What operators make of constants alone and others read whose own shape is not known: paddings, sizes, bounds.

    Older exporters compute them in the graph, and ONNX's inference does not follow.
    """
    given = {name for value in model.graph.inputs for name in _names(value.shape or ir.Shape([]))}
    lost = [node for node in model.graph if not all(_is_known(value, given) for value in node.outputs)]
    if not lost:
        return {}
    graph = Graph(model, operators(model))
    found: dict[str, NDArray[Any]] = {}
    for value in dict.fromkeys(value for node in lost for value in node.inputs):
        if value is None or value.is_initializer() or value.name in but or value.dtype not in _INTEGERS:
            continue
        dims = graph.dims(value)
        small = dims is not None and all(dim.static for dim in dims) and graph.size(value) <= _MOST_SIZES
        if value.name and small and graph.is_constant(value):
            with contextlib.suppress(GraphError):  # what cannot be computed stays unknown
                found[value.name] = graph.constant(value)
    return found


def _is_known(value: Value, given: Collection[object]) -> bool:
    """Whether each dimension of a tensor is a number, or has the name of one of the model's inputs."""
    if value.shape is None:
        return not isinstance(value.type, ir.TensorType | None)
    return all(isinstance(dim, int) or dim in given for dim in _names(value.shape))


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
