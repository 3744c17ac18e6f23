"""What is the same for every input of a model: initializers, and what operators make of them alone.

Older exporters hide parameters behind chains of Shape, Gather, Concat and Reshape; here they are constants again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from normfold.errors import GraphError
from normfold.shapes import Dim

# Constants up to this size are widened to float64 once and kept; larger ones anew every time.
_KEPT_BYTES = 1 << 20

# Entries of the first axis of a constant, or all of it.
Rows = slice | EllipsisType

# Deterministic operators that make parameters out of parameters; anything else with constant inputs is left to the
# runtime.
_CONSTANT_OPERATORS = frozenset(
    {
        "Abs",
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Mul",
        "Neg",
        "Pow",
        "Range",
        "Reciprocal",
        "Reshape",
        "Shape",
        "Slice",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


class Constants:
    """The constants of the main graph of `model`, computed when they are asked for.

    dims: the dimensions of a tensor, or None. opset: of the standard operators.
    """

    def __init__(self, model: ir.Model, dims: Callable[[ir.Value], tuple[Dim, ...] | None], opset: int) -> None:
        self._dims = dims
        self._opset = opset
        self._inputs = frozenset(model.graph.inputs)
        self._node = {value: node for node in model.graph for value in node.outputs}
        self._known: dict[ir.Value, bool] = {}
        self._values: dict[ir.Value, NDArray[Any]] = {}

    def holds(self, value: ir.Value) -> bool:
        """Whether `value` is the same for every input of the model."""
        if value not in self._known:
            self._known[value] = self._find_constant(value)
        return self._known[value]

    def _find_constant(self, value: ir.Value) -> bool:
        if value.is_initializer():
            return value not in self._inputs and value.const_value is not None
        node = self._node.get(value)
        if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _CONSTANT_OPERATORS:
            return False
        inputs = [item for item in node.inputs if item is not None]
        dims = self._dims(value)
        if node.op_type == "Shape":
            source = self._dims(inputs[0])
            return source is not None and all(dim.static for dim in source)
        if node.op_type in ("Reshape", "Expand") and dims is not None and all(dim.static for dim in dims):
            # Older exporters compute the target shape from a dynamic tensor's; only the result's shape matters.
            return self.holds(inputs[0])
        return all(self.holds(item) for item in inputs)

    def get(self, value: ir.Value) -> NDArray[Any]:
        """The content of a constant: float64 for every floating type, otherwise as stored."""
        if value in self._values:
            return self._values[value]
        array = _widen(self._compute(value))
        if array.nbytes <= _KEPT_BYTES:
            self._values[value] = array
        return array

    def rows(self, value: ir.Value, rows: Rows) -> NDArray[Any]:
        """`get(value)[rows]`; of an initializer no more than that is read."""
        if value.is_initializer() and value not in self._values:
            return _read(value, rows)
        return np.asarray(self.get(value)[rows])

    def _compute(self, value: ir.Value) -> NDArray[Any]:
        if value.is_initializer():
            return _read(value, ...)
        node = self._node[value]
        first = node.inputs[0] if node.inputs else None
        dims = self._dims(value)
        if node.op_type == "Shape" and first is not None:
            sizes = np.array([dim.size for dim in self._dims(first) or ()], dtype=np.int64)
            start, end = (node.attributes.get(name) for name in ("start", "end"))
            return sizes[slice(start.value if start else None, end.value if end else None)]
        if (
            node.op_type in ("Reshape", "Expand")
            and first is not None
            and dims is not None
            and all(d.static for d in dims)
        ):
            source, shape = self.get(first), [dim.size for dim in dims]
            return source.reshape(shape) if node.op_type == "Reshape" else np.broadcast_to(source, shape)
        if (
            node.op_type == "Cast"
            and first is not None
            and ir.DataType(node.attributes["to"].value).is_floating_point()
        ):
            # An integer made floating must be divided as one from here on.
            return self.get(first).astype(np.float64)
        return self._evaluate(node, node.outputs.index(value))

    def _evaluate(self, node: ir.Node, output: int) -> NDArray[Any]:
        """Run one operator on float64 constants with onnx's reference implementation."""
        feeds = {str(item.name): self.get(item) for item in node.inputs if item is not None}
        proto = ir.to_proto(node)
        inputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in feeds]
        outputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in proto.output]
        graph = onnx.helper.make_graph([proto], "constant", inputs, outputs)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self._opset)])
        results: Sequence[Any] = list(ReferenceEvaluator(model).run(None, feeds))
        return np.asarray(results[output])


def _read(value: ir.Value, rows: Rows) -> NDArray[Any]:
    """Entries of the first axis of an initializer, widened. Nothing of a file stays mapped."""
    tensor = value.const_value
    if tensor is None:
        raise GraphError(f"The initializer {value.name} has no content; the file is damaged.")
    try:
        if not isinstance(tensor, ir.ExternalTensor):
            return _widen(np.asarray(tensor.numpy()[rows]))
        try:
            return _widen(tensor.numpy()[rows]).copy()
        finally:
            # Pages that were read would count as this process's memory for as long as they are mapped.
            tensor.release()
    except (OSError, ValueError, TypeError) as error:
        raise GraphError(f"The initializer {value.name} cannot be read: {error}.") from error


def _widen(array: NDArray[Any]) -> NDArray[Any]:
    floating = array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
    return array.astype(np.float64, copy=False) if floating else array
