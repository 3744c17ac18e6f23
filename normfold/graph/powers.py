"""A graph stored in powers of two: it computes the same in float32, bit by bit, and fits where it did not.

Which powers is decided in analysis/frames/powers.py. Here they are data, small enough for a manifest, and carried out:
`fold` and `verify` each make the same graph of the same source.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from normfold.errors import GraphError
from normfold.graph.operators import operators
from normfold.graph.scopes import unused
from normfold.graph.types import Model, Node, Value
from normfold.graph.view import Graph
from normfold.system.plain import as_text

# Beyond these no float32 is scaled without a loss.
_MOST = 126
_ATTRIBUTES = frozenset({"epsilon"})


@dataclass(frozen=True, slots=True)
class Rescaling:
    """What to change in a graph.

    constants: `(output, input, e)`: what the operator that writes tensor `output` reads at `input` is stored times
    2^e. attributes: `(output, name, value)` of that operator. products: `(tensor, result, e, readers)`: the operators
    that write one of `readers`, or whoever there is where none is named, read `result = tensor * 2^e` in the place of
    `tensor`, one Mul more; in this order, so that `tensor` may be a result.
    """

    constants: tuple[tuple[str, int, int], ...] = ()
    attributes: tuple[tuple[str, str, float], ...] = ()
    products: tuple[tuple[str, str, int, tuple[str, ...]], ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the graph stays as it is."""
        return not (self.constants or self.attributes or self.products)

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""
        return {name: [list(row) for row in getattr(self, name)] for name in ("constants", "attributes", "products")}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Rescaling:
        """What `to_json` gave. Raises what a wrong type or a missing key raises, ValueError for wrong numbers."""
        found = Rescaling(
            tuple((as_text(output), _whole(port), _whole(power)) for output, port, power in content["constants"]),
            tuple((as_text(output), as_text(name), float(value)) for output, name, value in content["attributes"]),
            tuple(_product(*row) for row in content["products"]),
        )
        powers = [*(row[2] for row in found.constants), *(row[2] for row in found.products)]
        if any(abs(power) > _MOST for power in powers) or not all(
            name in _ATTRIBUTES and math.isfinite(value) for _, name, value in found.attributes
        ):
            raise ValueError("a power of two, or an attribute, that no graph is stored in")
        return found


def rescale(model: Model, rescaling: Rescaling) -> Model:
    """A copy of `model` (see `graph.prepare`) in these powers of two.

    Raises GraphError where it lacks what they name.
    """
    copy = model.clone()
    values = {value.name: value for value in (*copy.graph.inputs, *(v for node in copy.graph for v in node.outputs))}
    taken = {*values, *copy.graph.initializers}
    graph = Graph(copy, operators(copy))
    made: dict[tuple[Value, int], Value] = {}
    for output, port, power in rescaling.constants:
        node = _written(values, output)
        source = node.inputs[port] if 0 <= port < len(node.inputs) else None
        if source is None or not graph.is_constant(source) or not graph.is_floating(source):
            raise _missing(f"a constant at input {port} of the operator that writes {output}")
        if (source, power) not in made:
            made[source, power] = _constant(graph, source, power, unused(f"{source.name}.scaled", taken))
        node.replace_input_with(port, made[source, power])
    for output, name, number in rescaling.attributes:
        _written(values, output).attributes[name] = ir.AttrFloat32(name, number)
    for tensor, result, power, readers in rescaling.products:
        if tensor not in values or result in taken:
            raise _missing(f"tensor {tensor}" if tensor not in values else f"room for a tensor {result}")
        users = {user for user, _ in values[tensor].uses()}
        if readers:
            users = {node for name in readers if (node := _written(values, name)) in users}
        values[result] = _multiply(copy, values[tensor], users, unused(result, taken), power, taken)
    for value in made.values():
        copy.graph.register_initializer(value)
    passes.RemoveUnusedNodesPass()(copy)
    return copy


def _written(values: Mapping[str | None, Value], output: str) -> Node:
    node = values[output].producer() if output in values else None
    if node is None:
        raise _missing(f"an operator that writes {output}")
    return node


def _constant(graph: Graph, source: Value, power: int, name: str) -> Value:
    """A new initializer, computed when it is written. What operators make is computed now: they may be gone by then."""
    stored = source.const_value if source.is_initializer() else None
    dtype = source.dtype or ir.DataType.FLOAT
    content = stored or ir.Tensor(graph.constant(source))
    shape = ir.Shape(content.shape.numpy())

    def tensor() -> ir.Tensor[Any]:
        array = content.numpy()
        return ir.Tensor(np.ascontiguousarray(_times(array, power).astype(dtype.numpy(), copy=False)), name=name)

    lazy = ir.LazyTensor(tensor, dtype, shape, name=name)
    return Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=lazy)


def _times(array: NDArray[Any], power: int) -> NDArray[Any]:
    # bfloat16 is no type of numpy's own.
    return np.ldexp(array, power) if array.dtype.kind == "f" else array.astype(np.float64) * 2.0**power


def _multiply(model: Model, value: Value, users: Collection[Node], result: str, power: int, taken: set[Any]) -> Value:
    dtype, factor = value.dtype or ir.DataType.FLOAT, unused(f"{result}.factor", taken)
    tensor = ir.Tensor(np.array(2.0**power, dtype.numpy()), name=factor)
    constant = Value(name=factor, shape=ir.Shape([]), type=ir.TensorType(dtype), const_value=tensor)
    model.graph.register_initializer(constant)
    scaled = Value(name=result, shape=value.shape, type=value.type)
    node = Node("", "Mul", [value, constant], outputs=[scaled], name=f"{result}.Mul")
    before = value.producer()
    if before is None:
        model.graph.insert_before(model.graph[0], node)
    else:
        node.metadata_props.update(before.metadata_props)
        model.graph.insert_after(before, node)
    for user, index in tuple(value.uses()):
        if user in users:
            user.replace_input_with(index, scaled)
    return scaled


def _missing(what: str) -> GraphError:
    return GraphError(
        f"the powers of two that the model is stored in do not fit its source, which lacks {what}: if it was made from "
        "another file, name that (--against SOURCE)"
    )


def _product(tensor: Any, result: Any, power: Any, readers: Any = ()) -> tuple[str, str, int, tuple[str, ...]]:
    if not isinstance(readers, list | tuple):
        raise TypeError(f"a {type(readers).__name__} where a list of names belongs")
    return as_text(tensor), as_text(result), _whole(power), tuple(map(as_text, readers))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a {type(value).__name__} where a whole number belongs")
    return value
