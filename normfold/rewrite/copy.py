"""The copy of a model under construction: what every rewriting of a graph needs.

New constants are computed in float64 and cast once, when they are written: a large one is made only then, a block of
its rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import EllipsisType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from normfold.graph.affine import Array
from normfold.graph.constants import Rows
from normfold.graph.operators import bodies, live, operators
from normfold.graph.types import Model, Value
from normfold.graph.view import Graph
from normfold.graph.write import EXACT

# Smaller constants are computed once and kept; larger ones every time they are written.
_KEPT_BYTES = 1 << 20
# Of a larger one, this many elements are computed and written at a time.
_BLOCK_ELEMENTS = 1 << 22

# Rows of a constant, in float64.
Compute = Callable[[Rows], Array]
# All of it.
Content = Callable[[], NDArray[Any]]


class Copy:
    """A copy of `source` that shares its unchanged tensors.

    values, original: its tensors and those of the source, by the names that they have there. exact: new constants
    in float64, for what is made from one is not to be rounded twice.
    """

    def __init__(self, source: Model) -> None:
        self.source = Graph(source, operators(source))
        self.model = source.clone()
        self.original = {value.name: value for value in _values(source.graph)}
        self.values = {value.name: value for value in _values(self.model.graph)}
        self.exact: dict[Value, Content] = {}
        # Subgraphs see the names of the graph around them: a new one must not be another tensor's in there.
        parts = (self.model.graph, *self.model.graph.subgraphs())
        self._names = {value.name for part in parts for value in _values(part)}
        self._names |= {node.name for part in parts for node in part}
        self._counts: dict[str, int] = {}

    def unused(self, base: str) -> str:
        """A name that nothing has, made of `base`."""
        name, count = base, self._counts.get(base, 1)
        while name in self._names:
            count += 1
            name = f"{base}.{count}"
        self._counts[base] = count
        self._names.add(name)
        return name

    def initializer(
        self, base: str, compute: Compute, dtype: ir.DataType, shape: Sequence[int], *, by_rows: bool = True
    ) -> Value:
        """A new constant. by_rows: whether some of its rows take less work than all of them."""
        name = self.unused(base)
        tensor = _Computed(compute, dtype, shape, name, by_rows=by_rows)
        value = Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
        exact = partial(compute, ...)
        value.meta[EXACT] = exact
        self.model.graph.register_initializer(value)
        self.exact[value] = exact
        return value

    def like(self, value: Value, name: str) -> Value:
        """A tensor of the type and shape of `value`."""
        return Value(name=name, shape=value.shape, type=value.type)

    def take_over_output(self, old: Value, new: Value) -> None:
        """Where `old` is an output of the model, `new` becomes it, under its name."""
        outputs = self.model.graph.outputs
        for index, value in enumerate(outputs):
            if value is old:
                name, old.name = old.name, self.unused(f"{old.name}.before")
                new.name, new.shape, new.type, new.doc_string = name, old.shape, old.type, old.doc_string
                new.metadata_props.update(old.metadata_props)
                outputs[index] = new

    def stand_for(self, old: Value, new: Value) -> None:
        """`new` is read wherever `old` was, and has its name."""
        new.type, new.shape = old.type, old.shape
        for user, index in tuple(old.uses()):
            user.replace_input_with(index, new)
        for index, value in enumerate(self.model.graph.outputs):
            if value is old:
                self.model.graph.outputs[index] = new
        name, old.name = old.name, self.unused(f"{old.name}.before")
        new.name = name

    def finish(self) -> Model:
        """The copy, without operators and constants that have no reader."""
        # The pass does not see that what only a body of a removed operator reads is read no more.
        graph = self.model.graph
        alive = {value for op in live(operators(self.model), graph.outputs) for value in op.outputs}
        for node in [node for node in graph if alive.isdisjoint(node.outputs)]:
            for inner in (inner for body in bodies(node) for inner in ir.traversal.RecursiveGraphIterator(body)):
                inner.resize_inputs(0)
        passes.RemoveUnusedNodesPass()(self.model)
        return self.model


class _Computed(ir.LazyTensor):
    """A constant that `compute` gives in float64, row by row: cast last, and written one block of rows at a time."""

    def __init__(self, compute: Compute, dtype: ir.DataType, shape: Sequence[int], name: str, *, by_rows: bool) -> None:
        self._compute, self._sizes = compute, tuple(shape)
        rows = self._sizes[0] if self._sizes else 1
        elements = int(np.prod(self._sizes, dtype=np.int64))
        self._step = max(1, _BLOCK_ELEMENTS * rows // max(elements, 1) if by_rows else rows)
        small = elements * dtype.itemsize <= _KEPT_BYTES
        super().__init__(self._all, dtype, ir.Shape(shape), cache=small, name=name)

    def _blocks(self) -> Iterator[tuple[Rows, NDArray[Any]]]:
        starts = range(0, self._sizes[0], self._step) if self._sizes else [...]
        for start in starts:
            rows = start if isinstance(start, EllipsisType) else slice(start, start + self._step)
            yield rows, np.asarray(self._compute(rows)).astype(self.dtype.numpy())

    def _all(self) -> ir.Tensor[Any]:
        array = np.empty(self._sizes, self.dtype.numpy())
        for rows, block in self._blocks():
            array[rows] = block
        return ir.Tensor(array, name=self.name)

    def tofile(self, file: Any) -> None:
        """Write the bytes, no more than a block of them in memory."""
        for rows, block in self._blocks():
            shape = self._sizes if isinstance(rows, EllipsisType) else (block.shape[0], *self._sizes[1:])
            ir.Tensor(np.ascontiguousarray(np.broadcast_to(block, shape))).tofile(file)


def spread(part: Array, shape: Sequence[int], rows: Rows) -> Array:
    """These rows of `part`, spread over `shape`."""
    return np.broadcast_to(part, shape)[rows]


def _values(graph: ir.Graph) -> list[Value]:
    written = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *written]
