"""What ONNX's own shape inference knows of a graph, taken over into it.

onnx-ir's pass for this takes every result for a tensor, sequences included, and such a graph loads nowhere.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

_OPERATOR, _ERRORS = "(op_type:", "Inference error(s):"

# Inference reads the content of shapes and axes, never that of weights, which a message could not hold anyway.
_SMALL_BYTES = 1000


def infer_shapes(model: ir.Model) -> None:
    """Fill in the types and shapes of the main graph's tensors, as far as ONNX can tell. What it cannot stays as is."""
    try:
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(_without_weights(model)), data_prop=True)
    # The C++ behind it raises what it likes; a graph that it cannot take is analysed with the shapes that the file has.
    except Exception:
        return
    found = {info.name: info.type for info in (*proto.graph.value_info, *proto.graph.output)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in found:
                _take(value, found[value.name])


def check_shapes(model: ir.Model) -> str:
    """How the shapes in a file contradict each other; empty where they do not. A fold would go by them."""
    try:
        onnx.shape_inference.infer_shapes(ir.to_proto(_without_weights(model)), strict_mode=True, data_prop=True)
    # As above, but here what it says is of interest.
    except Exception as error:
        found = [line.strip() for line in str(error).splitlines() if _OPERATOR in line]
        # Inside the body of an operator that is a function, attributes are still references: no fault of the file.
        return next((line.split(_ERRORS)[-1].strip() for line in found if line.count(_OPERATOR) == 1), "")
    return ""


def _without_weights(model: ir.Model) -> ir.Model:
    """A copy whose weights are inputs."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes <= _SMALL_BYTES:
            continue
        if tensor is not None:
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
            value.const_value = None
        copy.graph.initializers.pop(name)
        if not value.is_graph_input():
            copy.graph.inputs.append(value)
    return copy


def _take(value: ir.Value, proto: onnx.TypeProto) -> None:
    kind, shape = ir.serde.deserialize_type_proto_for_type(proto), ir.serde.deserialize_type_proto_for_shape(proto)
    if kind is not None:
        value.type = kind
    if shape is not None:
        value.shape = shape
