"""A float32 graph in float16, inputs and outputs too.

onnxruntime's own converter decides what changes its type: it knows the operators that have to stay in float32, and puts
Casts around them. The content of the constants is cast here: once, to the nearest number, new ones from the float64 in
which they were computed. The converter would move what is out of range, and zero out of small numbers; here that is an
error that names the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from normfold.errors import GraphError
from normfold.graph.write import EXACT, in_memory
from normfold.system.numbers import LARGEST_HALF, MASK
from normfold.system.ort import onnxruntime

SMALLEST = np.finfo(np.float16).smallest_subnormal


Content = Callable[[], NDArray[Any]]


def to_half(model: ir.Model) -> ir.Model:
    """`model`, which is left as it is, in float16.

    Raises GraphError naming a constant beyond 65504; what is beyond 1e30 is a mask and becomes 65504 with its sign.
    """
    onnxruntime()  # one build, without telemetry
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = _typed(model)
    for name, tensor in _constants(copy.graph):
        _check(name, tensor)
    exact = {name: value.meta[EXACT] for name, value in model.graph.initializers.items() if EXACT in value.meta}
    contents: dict[str, Content] = {
        name: exact.get(name, value.const_value.numpy)
        for name, value in copy.graph.initializers.items()
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT
    }
    proto: onnx.ModelProto = ir.to_proto(copy)
    try:
        converted = convert_float_to_float16(proto, keep_io_types=False, disable_shape_infer=True)
    except (AssertionError, ValueError) as error:
        raise GraphError(f"onnxruntime's converter cannot make this graph float16: {error}") from error
    half: ir.Model = ir.from_proto(converted)
    for name, value in half.graph.initializers.items():
        if name in contents and value.dtype == ir.DataType.FLOAT16:
            value.const_value = _cast(contents[name], value)
    # The converter appends the Casts that it makes.
    half.graph.sort()
    return half


def _typed(model: ir.Model) -> ir.Model:
    """A copy without functions and Constants, which the converter passes by, every tensor with its type."""
    copy = model.clone()
    for part in copy.graphs():
        for value in part.initializers.values():
            # The converter takes a reference to another file for an empty tensor.
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = in_memory(value.const_value)
    if copy.functions:
        passes.InlinePass()(copy)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    if any(value.dtype is None for node in copy.graph for value in node.outputs if value.name):
        passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy)
    return copy


def _cast(content: Content, value: ir.Value) -> ir.LazyTensor:
    def tensor() -> ir.Tensor[Any]:
        clipped = np.asarray(content())
        clipped = np.where(np.abs(clipped) >= MASK, np.sign(clipped) * LARGEST_HALF, clipped)
        half = clipped.astype(np.float16)
        # A number that is added before a root or a division keeps 0 away: it must not become 0 itself.
        half = np.where((half == 0.0) & (clipped > 0.0), SMALLEST, half) if half.size == 1 else half
        return ir.Tensor(np.ascontiguousarray(half), name=value.name)

    assert value.shape is not None
    return ir.LazyTensor(tensor, ir.DataType.FLOAT16, value.shape, name=value.name)


def _constants(graph: ir.Graph) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Initializers and Constants of float32, those of subgraphs too."""
    for part in (graph, *graph.subgraphs()):
        for name, value in part.initializers.items():
            if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
                yield name, value.const_value
        for node in part:
            yield from _of_attributes(node)


def _of_attributes(node: ir.Node) -> Iterable[tuple[str, ir.TensorProtocol]]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.FLOAT:
            yield f"{node.outputs[0].name} ({node.op_type})", attribute.value


def _check(name: str, tensor: ir.TensorProtocol) -> None:
    array = np.abs(tensor.numpy())
    beyond = array[(array < MASK) & (array.astype(np.float64) >= LARGEST_HALF + 16.0)]
    if beyond.size:
        raise GraphError(
            f"{name} holds {beyond.max():.6g}, and float16 ends at {LARGEST_HALF:.0f}: this model does not fit "
            "into it. Write it in float32 (leave --dtype out)"
        )
