"""From a plan to a new graph: constants replaced, maps that became no-ops bypassed, what has no reader removed.

The model that comes in is left as it is; the one that goes out shares its unchanged tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from normfold.analysis.edits import NewAdd, NewAttribute, NewConstant, NewMap
from normfold.analysis.plan import Branch, Merge, Plan
from normfold.errors import InternalError
from normfold.graph.affine import Array
from normfold.graph.constants import Rows
from normfold.graph.scopes import scopes
from normfold.graph.types import Model, Node, Value
from normfold.rewrite.copy import Content, Copy, spread
from normfold.system.collector import uncollected


@uncollected()
def rewrite(model: Model, plan: Plan) -> Model:
    """The folded copy of `model` that `plan`, made from this very model, describes."""
    if plan.is_empty:
        return model.clone()
    copy = _Folded(model)
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
    return copy.finish()


class _Folded(Copy):
    """The copy that a plan is carried out on."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.stands_for: dict[Value, Value] = {}
        self.made: dict[tuple[object, ...], Value] = {}

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
        key = (dtype, *edit.key)
        if key not in self.made:
            base = edit.source if edit.source is not None else f"{_path(node)}.bias"
            dims = self.source.dims(source) or () if source is not None else ()
            parts = [part.shape for part in (edit.times, edit.over, edit.add) if part is not None]
            shape = np.broadcast_shapes(tuple(dim.size for dim in dims), *parts)

            def compute(rows: Rows) -> Array:
                stored = np.zeros(()) if source is None else self._content(source, shape, rows)
                return edit.content(stored, lambda part: spread(part, shape, rows))

            self.made[key] = self.initializer(f"{base}.folded", compute, dtype, shape)
        return self.made[key]

    def _content(self, source: Value, shape: Sequence[int], rows: Rows) -> Array:
        """The source of a constant of `shape`, in these rows of it."""
        widened = tuple(dim.size for dim in self.source.dims(source) or ()) != tuple(shape)
        return spread(self.source.constant(source), shape, rows) if widened else self.source.rows(source, rows)

    def add_after(self, edit: NewAdd) -> None:
        value = self.values[edit.output]
        node = self.node(edit.output)
        array = _without_leading_ones(edit.add)
        bias = self.initializer(f"{_path(node)}.bias.folded", array.__getitem__, _dtype(value, node), array.shape)
        self._follow(value, node, "Add", [value, bias])

    def _follow(self, value: Value, after: Node, op_type: str, inputs: list[Value]) -> None:
        """Put an operator behind `value`; the readers of `value` read its result instead."""
        result = self.like(value, self.unused(f"{value.name}.shifted"))
        node = self._operator(op_type, inputs, result, after)
        self.model.graph.insert_after(after, node)
        for user, index in tuple(value.uses()):
            if user is not node:
                user.replace_input_with(index, result)
        self.take_over_output(value, result)
        self.stands_for[value] = result

    def write_map(self, written: NewMap) -> None:
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
            self.initializer(f"{stem}.weight.merged", lambda rows: summed()[rows], dtype, shape, by_rows=False),
            self.initializer(f"{stem}.bias.merged", lambda rows: bias()[rows], dtype, shape[:1]),
        ]
        result = self.like(target, self.unused(f"{target.name}.merged"))
        node = self._operator("Conv", [self.now(merge.input), *constants], result, base)
        node.attributes.update(base.attributes)
        self.model.graph.insert_before(last, node)
        self._replace(target, result, last)

    def _contents(self, branch: Branch) -> tuple[Content | None, Content | None]:
        """Weight and bias of a branch's Conv in float64, as they are now: later its node is gone."""
        if branch.conv is None:
            return None, None
        _, weight, *bias = self.node(branch.conv).inputs
        assert weight is not None
        return self._exactly(weight), self._exactly(bias[0]) if bias and bias[0] is not None else None

    def _exactly(self, value: Value) -> Content:
        if value in self.exact:
            return self.exact[value]
        original = self.original[str(value.name)]
        return lambda: self.source.constant(original)

    def _emit(self, op_type: str, source: Value, target: Value, last: Node, arrays: list[Array]) -> Value:
        dtype = _dtype(target, last)
        stem = f"{_path(last)}.{op_type.lower()}"
        constants = [self.initializer(stem, a.__getitem__, dtype, a.shape) for a in arrays]
        result = self.like(target, self.unused(f"{target.name}.{op_type.lower()}"))
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
        node = Node("", op_type, inputs, outputs=[result], name=self.unused(f"normfold_{op_type}"))
        node.metadata_props.update(like.metadata_props)
        return node

    def _replace(self, old: Value, new: Value, last: Node) -> None:
        """Let the readers of `old` read `new`."""
        for user, index in tuple(old.uses()):
            user.replace_input_with(index, new)
        self.stands_for[old] = new
        if old.is_graph_output() and (new.is_graph_input() or new.is_initializer() or new.is_graph_output()):
            copy = self.like(old, self.unused(f"{old.name}.copy"))
            self.model.graph.insert_before(last, self._operator("Identity", [new], copy, last))
            new = copy
        self.take_over_output(old, new)


def _diagonal(shape: tuple[int, ...]) -> Array:
    """The kernel, of one tap, that leaves its input as it is; group g of channels begins at g * shape[1]."""
    outputs, inputs = shape[:2]
    return np.tile(np.eye(inputs), (outputs // inputs, 1)).reshape(outputs, inputs, *(1,) * (len(shape) - 2))


def _dtype(value: Value, node: Node) -> ir.DataType:
    """The type of `value`; where the file does not tell, that of what `node` makes it from."""
    types = [item.dtype for item in (value, *node.inputs) if item is not None and item.dtype is not None]
    return next((found for found in types if found.is_floating_point()), ir.DataType.FLOAT)


def _path(node: Node) -> str:
    return next((path for path in reversed(scopes(node)) if path), None) or node.name or node.outputs[0].name or "norm"


def _without_leading_ones(array: Array) -> Array:
    first = next((axis for axis, size in enumerate(array.shape) if size != 1), max(array.ndim - 1, 0))
    return array.reshape(array.shape[first:])
