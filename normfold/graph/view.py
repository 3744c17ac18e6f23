"""`Graph`: who produces and who consumes what, dimensions, and constants in float64. Read-only."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.graph.affine import Array
from normfold.graph.constants import SIZES, Constants, Rows
from normfold.graph.dims import Dim, parse, reshaped
from normfold.graph.operators import opset
from normfold.graph.types import STANDARD, Model, Node, Op, Value

_FLOATING = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})


class Graph:
    """Operators with their producers, consumers, dimensions and constants. Read-only."""

    def __init__(self, model: Model, ops: Sequence[Op]) -> None:
        self.model = model
        self.ops = tuple(ops)
        self.inputs = frozenset(model.graph.inputs)
        self.outputs = frozenset(model.graph.outputs)
        self.producer: Mapping[Value, Op] = MappingProxyType({value: op for op in self.ops for value in op.outputs})
        consumers: dict[Value, list[Op]] = {}
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                if value is not None:
                    consumers.setdefault(value, []).append(op)
        self.consumers: Mapping[Value, tuple[Op, ...]] = MappingProxyType(
            {v: tuple(ops) for v, ops in consumers.items()}
        )
        self._readers = {v: tuple([op for op in ops if op.type not in SIZES]) for v, ops in consumers.items()}
        self._dims: dict[Value, tuple[Dim, ...] | None] = {}
        self._constants = Constants(model, self.dims, opset(model))
        self._products: dict[tuple[Hashable, ...], Array] = {}

    def nodes(self) -> Iterator[Node]:
        """Every operator of the model as it is written, those of subgraphs included."""
        return iter(ir.traversal.RecursiveGraphIterator(self.model.graph))

    def readers(self, value: Value) -> tuple[Op, ...]:
        """The operators that read the values of `value`; `consumers` has those that ask for its sizes too."""
        return self._readers.get(value, ())

    def dims(self, value: Value) -> tuple[Dim, ...] | None:
        """The dimensions of `value`, or None when not even its rank is known."""
        if value not in self._dims:
            written = self._written_dims(value)
            self._dims[value] = written if written is None else tuple(dim.renamed(self._renamed) for dim in written)
        return self._dims[value]

    def _written_dims(self, value: Value) -> tuple[Dim, ...] | None:
        """The dimensions as the file has them; a stored tensor has its own, whatever an output of its name declares."""
        if value.const_value is not None and value.is_initializer() and value not in self.inputs:
            return tuple(map(Dim, value.const_value.shape.numpy()))
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
            if node.op_type != "Reshape" or node.domain not in STANDARD or len(node.inputs) != 2:
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
