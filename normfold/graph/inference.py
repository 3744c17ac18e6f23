"""What ONNX's own shape inference knows of a graph, taken over into it.

onnx-ir's pass for this takes every result for a tensor, sequences included, and such a graph loads nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.graph.constants import store_content
from normfold.graph.types import STANDARD
from normfold.system.subprocess_copy import AbortedError, isolated

_OPERATOR, _ERRORS = "(op_type:", "Inference error(s):"
# Behind an operator that it does not know, inference knows no types: no fault of the file.
_UNTYPED = "expected to have type but instead is null"

# Entries of a shape that inference may write out.
_LONG = 1 << 16
# Inference reads the content of shapes and axes, never that of weights, which a message could not hold anyway.
_SMALL_BYTES = 1000


def infer_shapes(model: ir.Model, sizes: Mapping[str, NDArray[Any]] = MappingProxyType({})) -> None:
    """Fill in the types and shapes of the main graph's tensors, as far as ONNX can tell. What it cannot stays as is.

    sizes: contents of tensors that operators compute of constants alone, which ONNX does not follow.
    """
    try:
        proto = _inferred(model, strict=False, sizes=sizes)
    except MemoryError:
        raise
    # The C++ behind it raises what it likes; a graph that it cannot take is analysed with the shapes that the file has.
    except Exception:
        return
    found = {info.name: info.type for info in (*proto.graph.value_info, *proto.graph.output)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in found:
                _take(value, found[value.name])


def _inferred(
    model: ir.Model, *, strict: bool, sizes: Mapping[str, NDArray[Any]] = MappingProxyType({})
) -> onnx.ModelProto:
    """Isolated: a Slice of a tensor whose inferred size is negative aborts the process (onnx 1.23)."""
    copy = _without_weights(model)
    _write_out(copy, sizes)
    proto = ir.to_proto(copy).SerializeToString()
    found = onnx.ModelProto()
    found.ParseFromString(isolated(_infer, proto, strict, _longest_shape(model) <= _LONG))
    return found


def _infer(proto: bytes, strict: bool, data_prop: bool) -> bytes:
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=strict, data_prop=data_prop)
    return bytes(inferred.SerializeToString())


def _longest_shape(model: ir.Model) -> int:
    """How long the longest shape is that a Concat may make.

    Data propagation writes shapes out, and forty Concats of a shape with itself make it 2^40 numbers long.
    """
    lengths: dict[ir.Value, int] = {}
    for node in model.graph:
        if node.op_type == "Concat":
            lengths[node.outputs[0]] = sum(
                lengths.get(value, _length(value)) for value in node.inputs if value is not None
            )
    return max(lengths.values(), default=0)


def _length(value: ir.Value) -> int:
    tensor = value.const_value
    return tensor.size if tensor is not None and len(tensor.shape) <= 1 else 1


def check_shapes(model: ir.Model) -> str:
    """How the shapes in a file contradict each other; empty where they do not. A fold would go by them."""
    try:
        inferred = _inferred(model, strict=True)
    except AbortedError:
        return "ONNX's shape inference aborts on them"
    except MemoryError:
        raise
    # As above, but here what it says is of interest.
    except Exception as error:
        found = [line.strip() for line in str(error).splitlines() if _OPERATOR in line and _UNTYPED not in line]
        # Inside the body of an operator that is a function, attributes are still references: no fault of the file.
        return next((line.split(_ERRORS)[-1].strip() for line in found if line.count(_OPERATOR) == 1), "")
    sizes = _sizes(inferred.graph)
    return next(filter(None, (_misfit(node, sizes) for node in _layouts(inferred.graph))), "")


def _layouts(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The operators whose attributes ONNX does not compare with their operands."""
    return [node for node in graph.node if node.domain in STANDARD and node.op_type in ("Transpose", "Conv")]


def _misfit(node: onnx.NodeProto, sizes: Callable[[str], list[int] | None]) -> str:
    """How the attributes of an operator contradict its operands; 0 stands for a size that is not known."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    operands = [sizes(name) for name in node.input]
    if node.op_type == "Transpose":
        perm, data = attributes.get("perm"), operands[0]
        if perm is None or data is None or sorted(perm) == list(range(len(data))):
            return ""
        return f"Transpose of {node.output[0]} permutes {list(perm)} of {len(data)} axes"
    groups, data, weight = attributes.get("group", 1), *operands[:2]
    if weight is None or len(weight) < 3:
        return ""
    divides = groups > 0 and weight[0] % groups == 0
    reads = data is None or 0 in (*data[1:2], weight[1]) or data[1:2] == [weight[1] * groups]
    return "" if divides and reads else f"Conv of {node.output[0]} has {groups} groups and a weight of {weight}"


def _sizes(graph: onnx.GraphProto) -> Callable[[str], list[int] | None]:
    infos = (*graph.input, *graph.value_info, *graph.output)
    known = {info.name: info.type.tensor_type for info in infos if info.type.HasField("tensor_type")}
    found = {
        name: [dim.dim_value for dim in kind.shape.dim] for name, kind in known.items() if kind.HasField("shape")
    } | {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return found.get


def _without_weights(model: ir.Model) -> ir.Model:
    """A copy whose weights are inputs."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and (value.shape is None or not value.is_graph_input()):
            # Its own sizes, whatever an output of its name declares.
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        if tensor is not None and tensor.nbytes <= _SMALL_BYTES:
            continue
        value.const_value = None
        copy.graph.initializers.pop(name)
        if not value.is_graph_input():
            copy.graph.inputs.append(value)
    return copy


def _write_out(model: ir.Model, sizes: Mapping[str, NDArray[Any]]) -> None:
    """Let those who read one of these tensors read its content."""
    made = [value for node in model.graph for value in node.outputs if value.name in sizes]
    for value in made:
        store_content(model, value, ir.tensor(sizes[str(value.name)]), f"{value.name}.content")


def _take(value: ir.Value, proto: onnx.TypeProto) -> None:
    kind, shape = ir.serde.deserialize_type_proto_for_type(proto), ir.serde.deserialize_type_proto_for_shape(proto)
    if kind is not None:
        value.type = kind
    if shape is not None:
        value.shape = shape
