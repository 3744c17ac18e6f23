"""What is the same for every input of a model: initializers, and what operators make of them alone.

Older exporters hide parameters behind chains of Shape, Gather, Concat and Reshape; here they are constants again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import EllipsisType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from normfold.errors import GraphError
from normfold.foreign import one_line
from normfold.shapes import Dim

# Constants up to this size are widened to float64 once and kept; larger ones anew every time.
_KEPT_BYTES = 1 << 20

# A constant that operators make is computed up to this size: 1 GiB in float64.
LARGEST_COMPUTED = 1 << 27

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
        self._model = model
        self._values: dict[ir.Value, NDArray[Any]] = {}

    def holds(self, value: ir.Value) -> bool:
        """Whether `value` is the same for every input of the model."""
        if value.is_initializer():
            return value not in self._inputs and value.const_value is not None
        return value in self._made

    @cached_property
    def _made(self) -> frozenset[ir.Value]:
        """What operators make of constants alone: one pass, for a graph may be deeper than Python's stack."""
        made: set[ir.Value] = set()
        for node in self._model.graph:
            if node.domain in ("", "ai.onnx") and node.op_type in _CONSTANT_OPERATORS:
                made.update(value for value in node.outputs if self._makes(node, value, made))
        return frozenset(made)

    def _makes(self, node: ir.Node, value: ir.Value, made: set[ir.Value]) -> bool:
        inputs = [item for item in node.inputs if item is not None]
        if node.op_type == "Shape":
            source = self._dims(inputs[0]) if inputs else None
            return source is not None and all(dim.static for dim in source)
        if self._is_spread(node, value):
            inputs = inputs[:1]
        return all(item in made or (item.is_initializer() and self.holds(item)) for item in inputs)

    def _is_spread(self, node: ir.Node, value: ir.Value) -> bool:
        """A Reshape or an Expand to known sizes: where they come from does not matter.

        Older exporters compute them from a dynamic tensor's.
        """
        dims = self._dims(value) if node.op_type in ("Reshape", "Expand") and node.inputs else None
        return dims is not None and all(dim.static for dim in dims)

    def get(self, value: ir.Value) -> NDArray[Any]:
        """The content of a constant: float64 for every floating type, otherwise as stored. Raises GraphError."""
        found = dict(self._values)
        for item in self._needed(value):
            found[item] = _widen(self._compute(item, found))
            if found[item].nbytes <= _KEPT_BYTES:
                self._values[item] = found[item]
        return found[value]

    def _needed(self, value: ir.Value) -> list[ir.Value]:
        """What has to be computed for `value`, and it last; what is kept is not among it."""
        order: dict[ir.Value, None] = {}
        stack = [value]
        while stack:
            item = stack[-1]
            missing = [item for item in self._sources(item) if item not in self._values and item not in order]
            if missing and item not in self._values:
                stack += missing
                continue
            stack.pop()
            if item not in self._values:
                order[item] = None
        return list(order)

    def _sources(self, value: ir.Value) -> list[ir.Value]:
        """The constants that `value` is computed from."""
        node = None if value.is_initializer() else self._node[value]
        if node is None or node.op_type == "Shape":
            return []
        inputs = [item for item in node.inputs if item is not None]
        return inputs[:1] if self._is_spread(node, value) else inputs

    def rows(self, value: ir.Value, rows: Rows) -> NDArray[Any]:
        """`get(value)[rows]`; of an initializer no more than that is read."""
        if value.is_initializer() and value not in self._values:
            return _read(value, rows)
        return np.asarray(self.get(value)[rows])

    def _compute(self, value: ir.Value, found: Mapping[ir.Value, NDArray[Any]]) -> NDArray[Any]:
        if value.is_initializer():
            return _read(value, ...)
        node = self._node[value]
        first = node.inputs[0] if node.inputs else None
        if node.op_type == "Shape" and first is not None:
            sizes = np.array([dim.size for dim in self._dims(first) or ()], dtype=np.int64)
            start, end = (node.attributes.get(name) for name in ("start", "end"))
            return sizes[slice(start.value if start else None, end.value if end else None)]
        if first is not None and self._is_spread(node, value):
            shape = [dim.size for dim in self._dims(value) or ()]
            try:
                return (
                    found[first].reshape(shape) if node.op_type == "Reshape" else np.broadcast_to(found[first], shape)
                )
            except ValueError as error:
                raise GraphError(
                    f"{node.op_type} of {node.outputs[0].name} has constant operands that it cannot take: "
                    f"{one_line(error)}."
                ) from error
        if node.op_type == "Cast" and first is not None and _is_floating(node):
            # An integer made floating must be divided as one from here on.
            return found[first].astype(np.float64)
        return self._evaluate(node, node.outputs.index(value), found)

    def _evaluate(self, node: ir.Node, output: int, found: Mapping[ir.Value, NDArray[Any]]) -> NDArray[Any]:
        """Run one operator on float64 constants with onnx's reference implementation."""
        feeds = {str(item.name): found[item] for item in node.inputs if item is not None}
        try:
            size = _elements(node, list(feeds.values()))
            if size > LARGEST_COMPUTED:
                raise GraphError(
                    f"{node.op_type} of {node.outputs[0].name} would make a constant of {size} elements, more than "
                    f"normfold computes ({LARGEST_COMPUTED}); store it as an initializer."
                )
            proto = ir.to_proto(node)
            inputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in feeds]
            outputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in proto.output]
            graph = onnx.helper.make_graph([proto], "constant", inputs, outputs)
            model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self._opset)])
            results: Sequence[Any] = list(ReferenceEvaluator(model).run(None, feeds))
            return np.asarray(results[output])
        except GraphError:
            raise
        except Exception as error:  # the reference raises whatever numpy does
            raise GraphError(
                f"{node.op_type} of {node.outputs[0].name} has constant operands that it cannot take: "
                f"{one_line(error)}."
            ) from error


def _is_floating(node: ir.Node) -> bool:
    """Whether a Cast makes floating numbers."""
    to = node.attributes.get("to")
    return to is not None and to.type == ir.AttributeType.INT and ir.DataType(to.value).is_floating_point()


def _elements(node: ir.Node, inputs: Sequence[NDArray[Any]]) -> int:
    """How many elements an operator makes at most: a few bytes of a file can ask for any number."""
    sizes = [array.size for array in inputs]
    if node.op_type == "ConstantOfShape":
        return math.prod(int(size) for size in inputs[0])
    if node.op_type == "Expand":
        return math.prod(np.broadcast_shapes(inputs[0].shape, tuple(int(size) for size in inputs[1])))
    if node.op_type == "Tile":
        return sizes[0] * math.prod(int(count) for count in inputs[1])
    if node.op_type == "Range":
        start, limit, delta = (array.item() for array in inputs)
        return math.ceil((limit - start) / delta) if delta else 0
    if node.op_type == "Gather":
        return math.prod(sizes)
    if node.op_type == "Concat":
        return sum(sizes)
    if node.op_type in ("Add", "Sub", "Mul", "Div", "Pow"):
        return math.prod(np.broadcast_shapes(*(array.shape for array in inputs)))
    return max(sizes, default=0)


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
