"""What is the same for every input of a model: initializers, and what operators make of them alone.

Older exporters hide parameters behind chains of Shape, Gather, Concat and Reshape; here they are constants again.
"""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from types import EllipsisType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.errors import GraphError
from normfold.graph.constant_operators import OPERATORS, compute
from normfold.graph.dims import Dim
from normfold.graph.types import STANDARD
from normfold.system.failures import one_line

# Constants up to this size are widened to float64 once and kept; larger ones anew every time.
_KEPT_BYTES = 1 << 20
# What is kept of those that operators make takes no more than this.
_MOST_KEPT_BYTES = 1 << 28

# A constant that operators make is computed up to this size, 512 MiB in float64, or that of the largest it is made of.
LARGEST_COMPUTED = 1 << 26
# So many of that size may be in memory at once.
_MOST_AT_ONCE = 3
# Elements that operators may make of little, in all: a minute's work, and more than any model needs. What they make of
# stored weights does not count, up to so many times their number: a file can only hold so many.
_MOST_MADE = 1 << 32
_TIMES_STORED = 64

# They read a tensor's sizes, never its values.
SIZES = frozenset({"Shape", "Size"})

# Entries of the first axis of a constant, or all of it.
Rows = slice | EllipsisType

# What numpy and Python raise where shapes or types do not fit.
_MISFITS = (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError)


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
        self._kept = 0
        self._made_of_little = 0

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
            if node.domain in STANDARD and (node.op_type in OPERATORS or node.op_type in SIZES):
                made.update(value for value in node.outputs if self._makes(node, value, made))
        return frozenset(made)

    def _makes(self, node: ir.Node, value: ir.Value, made: set[ir.Value]) -> bool:
        inputs = [item for item in node.inputs if item is not None]
        if node.op_type in SIZES:
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
        if dims is None or not all(dim.static for dim in dims):
            return False
        return math.prod(dim.size for dim in dims) <= LARGEST_COMPUTED

    def get(self, value: ir.Value) -> NDArray[Any]:
        """The content of a constant: float64 for every floating type, otherwise as stored. Raises GraphError."""
        order = self._needed(value)
        left = Counter(source for item in order for source in self.sources(item))
        found: dict[ir.Value, NDArray[Any]] = {}
        known = ChainMap(found, self._values)
        stored = sum(item.const_value.size for item in order if item.is_initializer() and item.const_value is not None)
        made = at_once = 0
        for item in order:
            found[item] = array = _widen(self._compute(item, known))
            self._keep(item, array)
            if not item.is_initializer():
                made, at_once = made + array.size, at_once + array.size
                self._check_budget(item, made - _TIMES_STORED * stored, at_once - _MOST_AT_ONCE * stored)
            for source in self.sources(item):
                left[source] -= 1
                if not left[source] and source in found:
                    size = found.pop(source).size
                    at_once -= 0 if source.is_initializer() else size
        self._made_of_little += max(0, made - _TIMES_STORED * stored)
        return known[value]

    def _check_budget(self, value: ir.Value, made: int, at_once: int) -> None:
        """made: elements made of little for one constant; at_once: of those, what is in memory."""
        if self._made_of_little + made > _MOST_MADE or at_once > _MOST_AT_ONCE * LARGEST_COMPUTED:
            raise self._too_large(value, max(made, at_once))

    def _keep(self, value: ir.Value, array: NDArray[Any]) -> None:
        size = 0 if value.is_initializer() else array.nbytes
        if array.nbytes <= _KEPT_BYTES and self._kept + size <= _MOST_KEPT_BYTES:
            self._values[value] = array
            self._kept += size

    def _needed(self, value: ir.Value) -> list[ir.Value]:
        """What has to be computed for `value`, and it last; what is kept is not among it."""
        order: dict[ir.Value, None] = {}
        stack = [value]
        while stack:
            item = stack[-1]
            missing = [item for item in self.sources(item) if item not in self._values and item not in order]
            if missing and item not in self._values:
                stack += missing
                continue
            stack.pop()
            if item not in self._values:
                order[item] = None
        return list(order)

    def sources(self, value: ir.Value) -> list[ir.Value]:
        """The constants whose values `value` is computed from."""
        node = None if value.is_initializer() else self._node[value]
        if node is None or node.op_type in SIZES:
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
        if node.op_type in SIZES and first is not None:
            sizes = np.array([dim.size for dim in self._dims(first) or ()], dtype=np.int64)
            if node.op_type == "Size":
                return np.asarray(sizes.prod())
            start, end = (node.attributes.get(name) for name in ("start", "end"))
            return sizes[slice(start.value if start else None, end.value if end else None)]
        if first is not None and self._is_spread(node, value):
            shape = [dim.size for dim in self._dims(value) or ()]
            try:
                return (
                    found[first].reshape(shape) if node.op_type == "Reshape" else np.broadcast_to(found[first], shape)
                )
            except ValueError as error:
                raise _misfit(node, error) from error
        return self._evaluate(node, node.outputs.index(value), found)

    def _too_large(self, value: ir.Value, size: int) -> GraphError:
        return GraphError(
            f"{self._node[value].op_type} of {value.name} would make a constant of {size} elements, with those that it "
            f"is made of, more than normfold computes ({LARGEST_COMPUTED}); store it as an initializer."
        )

    def _evaluate(self, node: ir.Node, output: int, found: Mapping[ir.Value, NDArray[Any]]) -> NDArray[Any]:
        """Run one operator on constants, in float64; a Cast rounds to its type."""
        inputs = [None if item is None else found[item] for item in node.inputs]
        given = [array for array in inputs if array is not None]
        try:
            size = OPERATORS[node.op_type].elements(node, given)
        except _MISFITS as error:
            raise _misfit(node, error) from error
        if size > max(LARGEST_COMPUTED, *(array.size for array in given), 0):
            raise self._too_large(node.outputs[output], size)
        try:
            return compute(node, self._opset, inputs)[output]
        except _MISFITS as error:
            raise _misfit(node, error) from error


def store_content(model: ir.Model, value: ir.Value, content: ir.TensorProtocol, name: str) -> None:
    """Let the readers of `value` read a new initializer with its content instead, in place."""
    kind = ir.TensorType(content.dtype)
    stored = ir.Value(name=name, const_value=content, shape=ir.Shape(content.shape.numpy()), type=kind)
    model.graph.register_initializer(stored)
    for user, index in tuple(value.uses()):
        user.replace_input_with(index, stored)


def _misfit(node: ir.Node, error: Exception) -> GraphError:
    said = one_line(error)
    return GraphError(f"{node.op_type} of {node.outputs[0].name} has constant operands that it cannot take: {said}.")


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
