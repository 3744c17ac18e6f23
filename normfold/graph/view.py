"""Reading an ONNX graph: its operators, shapes, constants and the names that people gave them.

The in-memory graph is onnx-ir's (docs/decisions/0001-graph-library.md). This module adds what the analysis asks of
it: `Op`, a read-only view of one operator, and `Graph`, who produces and who consumes what, dimensions, and
constants in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from normfold.errors import GraphError
from normfold.graph.affine import Array, Frame
from normfold.graph.constants import SIZES, Constants, Rows
from normfold.graph.dims import Dim, parse, reshaped
from normfold.graph.inference import infer_shapes
from normfold.system.collector import uncollected
from normfold.system.failures import one_line
from normfold.system.text import listed

Value = ir.Value
Node = ir.Node
Model = ir.Model

# Before it, operators broadcast by attributes, and BatchNormalization trained unless told not to.
OLDEST_OPSET = 7
# Before it every initializer was an input as well, and no runtime let another value be fed for it.
IR_OF_CONSTANTS = 4

BATCH_NORM = "BatchNormalization"

SCOPES = "pkg.torch.onnx.name_scopes"
CLASSES = "pkg.torch.onnx.class_hierarchy"


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """A fixed map `y = scale * x + shift` with constant coefficients, however many operators spell it.

    frame: (scale, shift), broadcastable to y. nodes: the operators that compute it. has_scale / has_shift: whether
    it holds a constant of that kind, which can take up a change of frame. is_norm: a batch norm, or a scale that
    differs from channel to channel; a scalar or a bias is never folded for its own sake. centres: a constant that it
    adds differs from channel to channel as well, as a statistic does. inside: the tensors between x and y, which other
    operators may read too.
    """

    frame: Frame
    nodes: tuple[Node, ...]
    has_scale: bool
    has_shift: bool
    is_norm: bool
    centres: bool = False
    inside: frozenset[Value] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operator as the analysis sees it. `type` is the ONNX operator, or "Affine" for a collapsed fixed map."""

    type: str
    index: int
    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    affine: Affine | None = None

    @property
    def output(self) -> Value:
        return self.outputs[0]

    @property
    def label(self) -> str:
        return f"{self.name} ({self.type})"

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers, or None when it is not written."""
        value = self.attributes.get(name)
        return None if value is None else tuple(int(item) for item in value)

    def number(self, name: str, default: float) -> float:
        """A floating attribute. ONNX stores float32, and so are its defaults: 1e-5 is 9.99999975e-6."""
        return float(np.float32(self.attributes.get(name, default)))

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        return str(self.attributes.get(name, default))


def scopes(node: Node) -> tuple[str, ...]:
    """The module paths an exporter left on `node`, outermost first; the last entry names the operation itself."""
    return listed(node.metadata_props.get(SCOPES))[:-1]


def classes(node: Node) -> tuple[str, ...]:
    """The class names that belong to `scopes(node)`."""
    return listed(node.metadata_props.get(CLASSES))[:-1]


def node_name(node: Node) -> str:
    """What people call an operator: the module that an exporter names, else its own name, else its output's."""
    path = scopes(node)
    return (
        (path[-1] if path and path[-1] else None) or node.name or (node.outputs[0].name if node.outputs else "") or "?"
    )


def _attributes(node: Node) -> dict[str, Any]:
    return {name: attr.value for name, attr in node.attributes.items()}


def _captured(node: Node) -> tuple[Value, ...]:
    """Values of the enclosing graph that the subgraphs of `node` read."""
    found: list[Value] = []
    for graph in bodies(node):
        inner = {id(value) for item in graph for value in item.outputs} | {id(value) for value in graph.inputs}
        reads = [value for item in graph for value in (*item.inputs, *_captured(item)) if value is not None]
        found += [value for value in (*reads, *graph.outputs) if id(value) not in inner]
    return tuple(found)


def operators(model: Model) -> list[Op]:
    """The main graph's operators, in order."""
    return [_operator(node, index) for index, node in enumerate(model.graph)]


def inner_operators(model: Model) -> list[Op]:
    """Those of the bodies of If, Loop and Scan, each with the index of the operator of the main graph that runs it."""
    found: list[Op] = []
    for index, node in enumerate(model.graph):
        waiting = bodies(node)
        while waiting:
            body = waiting.pop(0)
            found += [_operator(inner, index) for inner in body]
            waiting += [deeper for inner in body for deeper in bodies(inner)]
    return found


def _operator(node: Node, index: int) -> Op:
    return Op(
        type=node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}",
        index=index,
        name=node_name(node),
        inputs=tuple(node.inputs) + _captured(node),
        outputs=tuple(node.outputs),
        attributes=_attributes(node),
    )


def bodies(node: Node) -> list[ir.Graph]:
    """The graphs that an If, a Loop or a Scan runs."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.value
    return found


def opset(model: Model) -> int:
    """The version of the standard operators that `model` is written in."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", onnx.defs.onnx_opset_version()))


_FLOATING = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})


class Graph:
    """Operators with their producers, consumers, dimensions and constants. Read-only."""

    def __init__(self, model: Model, ops: Sequence[Op]) -> None:
        self.model = model
        self.ops = tuple(ops)
        self.inputs = frozenset(model.graph.inputs)
        self.outputs = frozenset(model.graph.outputs)
        self.producer: dict[Value, Op] = {value: op for op in self.ops for value in op.outputs}
        self.consumers: dict[Value, list[Op]] = {}
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                if value is not None:
                    self.consumers.setdefault(value, []).append(op)
        self._readers = {v: [op for op in ops if op.type not in SIZES] for v, ops in self.consumers.items()}
        self._dims: dict[Value, tuple[Dim, ...] | None] = {}
        self._constants = Constants(model, self.dims, opset(model))
        self._products: dict[tuple[Hashable, ...], Array] = {}

    def nodes(self) -> Iterator[Node]:
        """Every operator of the model as it is written, those of subgraphs included."""
        return iter(ir.traversal.RecursiveGraphIterator(self.model.graph))

    def readers(self, value: Value) -> list[Op]:
        """The operators that read the values of `value`; `consumers` has those that ask for its sizes too."""
        return self._readers.get(value, [])

    def dims(self, value: Value) -> tuple[Dim, ...] | None:
        """The dimensions of `value`, or None when not even its rank is known."""
        if value not in self._dims:
            written = self._written_dims(value)
            self._dims[value] = written if written is None else tuple(dim.renamed(self._renamed) for dim in written)
        return self._dims[value]

    def _written_dims(self, value: Value) -> tuple[Dim, ...] | None:
        """The dimensions as the file has them; a stored tensor has its own, whatever an output of its name declares."""
        if value.const_value is not None and value.is_initializer() and value not in self.inputs:
            sizes = value.const_value.shape.numpy()
            return tuple(parse(size, f"{value.name}.{axis}") for axis, size in enumerate(sizes))
        if value.shape is None:
            return None
        return tuple(
            parse(dim if isinstance(dim, int) else dim.value, f"{value.name}.{axis}")
            for axis, dim in enumerate(value.shape)
        )

    @cached_property
    def _renamed(self) -> dict[str, Dim]:
        """What the names that shape inference invents for the -1 of a Reshape stand for."""
        names: dict[str, Dim] = {}
        given = {dim.value for value in self.inputs for dim in value.shape or () if not isinstance(dim, int)}
        for node in self.model.graph:
            if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx") or len(node.inputs) != 2:
                continue
            data, shape = node.inputs
            if data is None or shape is None or not shape.is_initializer() or shape in self.inputs:
                continue
            if shape.const_value is None:
                continue
            source, target = self._written_dims(data), self._written_dims(node.outputs[0])
            if source is None or target is None:
                continue
            copies = "allowzero" not in node.attributes or not node.attributes["allowzero"].value
            source = tuple(dim.renamed(names) for dim in source)
            found = reshaped(source, shape.const_value.numpy().tolist(), zero_copies=bool(copies))
            for written, known in zip(target, found or (), strict=False):
                invented = written.size == 1 and len(written.names) == 1 and written.names[0] not in given
                if invented and written != known:
                    names.setdefault(written.names[0], known)
        return names

    def is_constant(self, value: Value) -> bool:
        """Whether `value` is the same for every input of the model."""
        return self._constants.holds(value)

    def constant(self, value: Value) -> NDArray[Any]:
        """The content of a constant: float64 for every floating type, otherwise as stored."""
        return self._constants.get(value)

    def made_from(self, value: Value) -> list[Value]:
        """The constants whose values a constant is computed from: not those whose sizes alone count."""
        return self._constants.sources(value)

    def rows(self, value: Value, rows: Rows) -> NDArray[Any]:
        """Some entries of the first axis of `constant(value)`, without reading the rest."""
        return self._constants.rows(value, rows)

    def product(self, of: Hashable, shift: Array, compute: Callable[[], Array]) -> Array:
        """What `compute` makes of a shift for `of`; kept: it reads a whole weight and is asked for several times."""
        key = (of, shift.shape, shift.tobytes())
        if key not in self._products:
            self._products[key] = compute()
        return self._products[key]

    def contract(
        self, weight: Value, shift: Array, axes: tuple[str, ...], source: tuple[str, ...], output: tuple[str, ...]
    ) -> Array:
        """`shift`, with `source` naming its axes, contracted with the weight, whose axes are `axes`; float64.

        The shift is spread over the axes that the weight has too.
        """

        def compute() -> Array:
            matrix = self.constant(weight)
            sizes = dict(zip(axes, matrix.shape, strict=True))
            spread = [max(size, sizes.get(axis, 1)) for size, axis in zip(shift.shape, source, strict=True)]
            letter = {axis: chr(ord("a") + index) for index, axis in enumerate(dict.fromkeys((*source, *axes)))}
            left, right, out = ("".join(letter[axis] for axis in row) for row in (source, axes, output))
            found: Array = np.einsum(f"{left},{right}->{out}", np.broadcast_to(shift, spread), matrix, optimize=True)
            return found

        return self.product((weight, axes, source, output), shift, compute)

    def size(self, value: Value) -> int:
        """Elements of `value` at size 1 of every dynamic axis."""
        dims = self.dims(value) or ()
        return int(np.prod([dim.size for dim in dims], dtype=np.int64))

    def is_floating(self, value: Value) -> bool:
        """Whether `value` is of a type that can hold a frame: not integers, nor floats of eight bits and less."""
        return value.dtype is None or value.dtype in _FLOATING


def live(ops: Sequence[Op], outputs: Iterable[Value]) -> list[Op]:
    """The operators of `ops` that the outputs depend on, in order."""
    wanted = set(outputs)
    kept: list[Op] = []
    for op in reversed(ops):
        if any(value in wanted for value in op.outputs):
            wanted.update(value for value in op.inputs if value is not None)
            kept.append(op)
    return kept[::-1]


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


def op_counts(model: Model) -> dict[str, int]:
    """How often each operator occurs in the main graph, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph).most_common())
