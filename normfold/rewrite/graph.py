"""From a plan to a new graph: constants replaced, maps that became no-ops bypassed, what nobody reads removed.

The model that comes in is left as it is; the one that goes out shares its unchanged tensors. New weights are
computed in float64 and cast once, when they are written: a large one is made only then, so that no more than one is
in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import EllipsisType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from normfold.analysis.edits import NewAdd, NewAttribute, NewConstant
from normfold.analysis.plan import Branch, Map, Merge, Plan
from normfold.errors import InternalError
from normfold.graph.affine import Array
from normfold.graph.constants import Rows
from normfold.graph.operators import bodies, live, operators
from normfold.graph.scopes import scopes
from normfold.graph.types import Model, Node, Value
from normfold.graph.view import Graph
from normfold.graph.write import EXACT
from normfold.system.collector import uncollected

# Smaller constants are computed once and kept; larger ones every time they are written.
_KEPT_BYTES = 1 << 20
# Of a larger one, this many elements are computed and written at a time.
_BLOCK_ELEMENTS = 1 << 22

Compute = Callable[[Rows], Array]

_Content = Callable[[], NDArray[Any]]


@uncollected()
def rewrite(model: Model, plan: Plan) -> Model:
    """The folded copy of `model` that `plan`, made from this very model, describes."""
    if plan.is_empty:
        return model.clone()
    copy = _Copy(model)
    for edit in plan.edits:
        if isinstance(edit, NewConstant):
            copy.set_constant(edit)
        elif isinstance(edit, NewAttribute):
            copy.node(edit.output).attributes[edit.name] = ir.AttrFloat32(edit.name, edit.value)
    for edit in plan.edits:
        if isinstance(edit, NewAdd):
            copy.add_after(edit)
    for written in plan.maps:
        copy.write_map(written)
    for merge in plan.merges:
        copy.merge(merge)
    copy.finish()
    return copy.model


class _Copy:
    """The copy under construction."""

    def __init__(self, model: Model) -> None:
        self.source = Graph(model, operators(model))
        self.model = model.clone()
        graph = self.model.graph
        self.original = {v.name: v for v in _values(model.graph)}
        self.values = {v.name: v for v in _values(graph)}
        self.stands_for: dict[Value, Value] = {}
        self.made: dict[tuple[object, ...], Value] = {}
        # New constants in float64: what is made from one is not to be rounded twice.
        self.exact: dict[Value, _Content] = {}
        # Subgraphs see the names of the graph around them: a new one must not be another tensor's in there.
        parts = (graph, *graph.subgraphs())
        self.names = {value.name for part in parts for value in _values(part)}
        self.names |= {node.name for part in parts for node in part}
        self.counts: dict[str, int] = {}

    def node(self, output: str) -> Node:
        node = self.values[output].producer()
        if node is None:
            raise InternalError(f"the plan names {output}, which no operator writes")
        return node

    def now(self, name: str) -> Value:
        """The tensor that stands where `name` stood."""
        value = self.values[name]
        while value in self.stands_for:
            value = self.stands_for[value]
        return value

    def set_constant(self, edit: NewConstant) -> None:
        node = self.node(edit.output)
        if edit.input >= len(node.inputs):
            node.resize_inputs(edit.input + 1)
        node.replace_input_with(edit.input, self._constant(edit, node))

    def _constant(self, edit: NewConstant, node: Node) -> Value:
        """A new initializer; one that is already there for the same content (a layer called twice) is shared."""
        source = self.original[edit.source] if edit.source is not None else None
        dtype = (source.dtype if source is not None else None) or _dtype(node.outputs[0], node)
        key = (edit.source, dtype, *(_digest(part) for part in (edit.times, edit.over, edit.add)))
        if key not in self.made:
            base = edit.source if edit.source is not None else f"{_path(node)}.bias"
            dims = self.source.dims(source) or () if source is not None else ()
            parts = [part.shape for part in (edit.times, edit.over, edit.add) if part is not None]
            shape = np.broadcast_shapes(tuple(dim.size for dim in dims), *parts)

            def compute(rows: Rows) -> Array:
                array = np.zeros(()) if source is None else self._content(source, shape, rows)
                array = array if edit.times is None else array * _spread(edit.times, shape, rows)
                array = array if edit.over is None else array / _spread(edit.over, shape, rows)
                return array if edit.add is None else array + _spread(edit.add, shape, rows)

            self.made[key] = self._initializer(f"{base}.folded", compute, dtype, shape)
        return self.made[key]

    def _content(self, source: Value, shape: Sequence[int], rows: Rows) -> Array:
        """The source of a constant of `shape`, in these rows of it."""
        whole = tuple(dim.size for dim in self.source.dims(source) or ()) != tuple(shape)
        return _spread(self.source.constant(source), shape, rows) if whole else self.source.rows(source, rows)

    def _initializer(self, base: str, compute: Compute, dtype: ir.DataType, shape: Sequence[int]) -> Value:
        name = self._unused(base)
        tensor = _Computed(compute, dtype, shape, name)
        value = Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
        exact = partial(compute, ...)
        value.meta[EXACT] = exact
        self.model.graph.register_initializer(value)
        self.exact[value] = exact
        return value

    def _unused(self, base: str) -> str:
        name, count = base, self.counts.get(base, 1)
        while name in self.names:
            count += 1
            name = f"{base}.{count}"
        self.counts[base] = count
        self.names.add(name)
        return name

    def add_after(self, edit: NewAdd) -> None:
        value = self.values[edit.output]
        node = self.node(edit.output)
        array = _without_leading_ones(edit.add)
        bias = self._initializer(f"{_path(node)}.bias.folded", array.__getitem__, _dtype(value, node), array.shape)
        self._follow(value, node, "Add", [value, bias])

    def _follow(self, value: Value, after: Node, op_type: str, inputs: list[Value]) -> None:
        """Put an operator behind `value`; whoever read `value` reads its result."""
        result = self._like(value, self._unused(f"{value.name}.shifted"))
        node = self._operator(op_type, inputs, result, after)
        self.model.graph.insert_after(after, node)
        for user, index in tuple(value.uses()):
            if user is not node:
                user.replace_input_with(index, result)
        self._take_over_output(value, result)
        self.stands_for[value] = result

    def write_map(self, written: Map) -> None:
        source, target = self.now(written.input), self.values[written.output]
        last = self.node(written.output)
        if written.scale is not None and written.shift is not None and written.batch_norm:
            source = self._batch_norm(source, target, last, written.scale, written.shift)
        else:
            for op_type, array in (("Mul", written.scale), ("Add", written.shift)):
                if array is not None:
                    # A bias of one axis, as exporters write it: runtimes fuse no other with the activation behind it.
                    source = self._emit(op_type, source, target, last, [_without_leading_ones(array)])
        self._replace(target, source, last)

    def merge(self, merge: Merge) -> None:
        """One Conv in the place of a sum of branches, its kernel and bias the sums of theirs."""
        target, base, last = self.now(merge.output), self.node(merge.base), self.node(merge.output)
        kernel = base.inputs[1]
        assert kernel is not None
        # A stored one that is an output too may declare sizes that are not its own.
        sizes = kernel.shape if kernel.const_value is None else kernel.const_value.shape
        assert sizes is not None
        shape, dtype = tuple(sizes.numpy()), _dtype(target, base)

        parts = [(branch, *self._contents(branch)) for branch in merge.branches]
        every = tuple(range(size) for size in shape[:2])

        def summed() -> Array:
            total = np.zeros(shape)
            for branch, weight, _ in parts:
                scale = np.broadcast_to(branch.scale, shape[:1]).reshape(-1, *(1,) * (len(shape) - 1))
                total[np.ix_(*every, *branch.taps)] += (_diagonal(shape) if weight is None else weight()) * scale
            return total

        def bias() -> Array:
            total = np.zeros(shape[0])
            for branch, _, own in parts:
                total += branch.shift if own is None else own() * branch.scale + branch.shift
            return total

        stem = _path(base)
        constants = [
            self._initializer(f"{stem}.weight.merged", lambda rows: summed()[rows], dtype, shape),
            self._initializer(f"{stem}.bias.merged", lambda rows: bias()[rows], dtype, shape[:1]),
        ]
        result = self._like(target, self._unused(f"{target.name}.merged"))
        node = self._operator("Conv", [self.now(merge.input), *constants], result, base)
        node.attributes.update(base.attributes)
        self.model.graph.insert_before(last, node)
        self._replace(target, result, last)

    def _contents(self, branch: Branch) -> tuple[_Content | None, _Content | None]:
        """Weight and bias of a branch's Conv in float64, as they are now: later its node is gone."""
        if branch.conv is None:
            return None, None
        _, weight, *bias = self.node(branch.conv).inputs
        assert weight is not None
        return self._exactly(weight), self._exactly(bias[0]) if bias and bias[0] is not None else None

    def _exactly(self, value: Value) -> _Content:
        if value in self.exact:
            return self.exact[value]
        original = self.original[str(value.name)]
        return lambda: self.source.constant(original)

    def _emit(self, op_type: str, source: Value, target: Value, last: Node, arrays: list[Array]) -> Value:
        dtype = _dtype(target, last)
        stem = f"{_path(last)}.{op_type.lower()}"
        constants = [self._initializer(stem, a.__getitem__, dtype, a.shape) for a in arrays]
        result = self._like(target, self._unused(f"{target.name}.{op_type.lower()}"))
        self.model.graph.insert_before(last, self._operator(op_type, [source, *constants], result, last))
        return result

    def _batch_norm(self, source: Value, target: Value, last: Node, scale: Array, shift: Array) -> Value:
        channels = max(scale.size, shift.size)
        a, b = (np.broadcast_to(part.reshape(-1), (channels,)) for part in (scale, shift))
        result = self._emit("BatchNormalization", source, target, last, [a, b, np.zeros(channels), np.ones(channels)])
        node = result.producer()
        assert node is not None
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
        return result

    def _operator(self, op_type: str, inputs: list[Value], result: Value, like: Node) -> Node:
        node = Node("", op_type, inputs, outputs=[result], name=self._unused(f"normfold_{op_type}"))
        node.metadata_props.update(like.metadata_props)
        return node

    def _like(self, value: Value, name: str) -> Value:
        return Value(name=name, shape=value.shape, type=value.type)

    def _replace(self, old: Value, new: Value, last: Node) -> None:
        """Whoever read `old` reads `new`."""
        for user, index in tuple(old.uses()):
            user.replace_input_with(index, new)
        self.stands_for[old] = new
        if old.is_graph_output() and (new.is_graph_input() or new.is_initializer() or new.is_graph_output()):
            copy = self._like(old, self._unused(f"{old.name}.copy"))
            self.model.graph.insert_before(last, self._operator("Identity", [new], copy, last))
            new = copy
        self._take_over_output(old, new)

    def _take_over_output(self, old: Value, new: Value) -> None:
        """Where `old` is an output of the model, `new` becomes it, under its name."""
        outputs = self.model.graph.outputs
        for index, value in enumerate(outputs):
            if value is old:
                name, old.name = old.name, self._unused(f"{old.name}.before")
                new.name, new.shape, new.type, new.doc_string = name, old.shape, old.type, old.doc_string
                new.metadata_props.update(old.metadata_props)
                outputs[index] = new

    def finish(self) -> None:
        # The pass does not see that what only a body of a removed operator reads is read no more.
        graph = self.model.graph
        alive = {value for op in live(operators(self.model), graph.outputs) for value in op.outputs}
        for node in [node for node in graph if alive.isdisjoint(node.outputs)]:
            for inner in (inner for body in bodies(node) for inner in ir.traversal.RecursiveGraphIterator(body)):
                inner.resize_inputs(0)
        passes.RemoveUnusedNodesPass()(self.model)


def _diagonal(shape: tuple[int, ...]) -> Array:
    """The kernel, of one tap, that leaves its input as it is; group g of channels begins at g * shape[1]."""
    outputs, inputs = shape[:2]
    return np.tile(np.eye(inputs), (outputs // inputs, 1)).reshape(outputs, inputs, *(1,) * (len(shape) - 2))


class _Computed(ir.LazyTensor):
    """A constant that `compute` gives in float64, row by row: cast last, and written one block of rows at a time."""

    def __init__(self, compute: Compute, dtype: ir.DataType, shape: Sequence[int], name: str) -> None:
        self._compute, self._sizes = compute, tuple(shape)
        rows = self._sizes[0] if self._sizes else 1
        elements = int(np.prod(self._sizes, dtype=np.int64))
        self._step = max(1, _BLOCK_ELEMENTS * rows // max(elements, 1))
        small = elements * dtype.itemsize <= _KEPT_BYTES
        super().__init__(self._whole, dtype, ir.Shape(shape), cache=small, name=name)

    def _blocks(self) -> Iterator[tuple[Rows, NDArray[Any]]]:
        starts = range(0, self._sizes[0], self._step) if self._sizes else [...]
        for start in starts:
            rows = start if isinstance(start, EllipsisType) else slice(start, start + self._step)
            yield rows, np.asarray(self._compute(rows)).astype(self.dtype.numpy())

    def _whole(self) -> ir.Tensor[Any]:
        array = np.empty(self._sizes, self.dtype.numpy())
        for rows, block in self._blocks():
            array[rows] = block
        return ir.Tensor(array, name=self.name)

    def tofile(self, file: Any) -> None:
        """Write the bytes, no more than a block of them in memory."""
        for rows, block in self._blocks():
            shape = self._sizes if isinstance(rows, EllipsisType) else (block.shape[0], *self._sizes[1:])
            ir.Tensor(np.ascontiguousarray(np.broadcast_to(block, shape))).tofile(file)


def _spread(part: Array, shape: Sequence[int], rows: Rows) -> Array:
    """These rows of `part`, spread over `shape`."""
    return np.broadcast_to(part, shape)[rows]


def _values(graph: ir.Graph) -> list[Value]:
    written = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *written]


def _dtype(value: Value, node: Node) -> ir.DataType:
    """The type of `value`; where the file does not tell, that of what `node` makes it from."""
    types = [item.dtype for item in (value, *node.inputs) if item is not None and item.dtype is not None]
    return next((found for found in types if found.is_floating_point()), ir.DataType.FLOAT)


def _path(node: Node) -> str:
    return next((path for path in reversed(scopes(node)) if path), None) or node.name or node.outputs[0].name or "norm"


def _without_leading_ones(array: Array) -> Array:
    first = next((axis for axis, size in enumerate(array.shape) if size != 1), max(array.ndim - 1, 0))
    return array.reshape(array.shape[first:])


def _digest(array: Array | None) -> str | None:
    return (
        None if array is None else f"{array.shape}{hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
    )
