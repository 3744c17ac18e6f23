"""LayerNorm becomes RMSNorm where everything that writes its input can leave the mean out beforehand.

    LN(x) = w * (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) + b = RMSNorm(x - mean(x)) + b

The mean over channels is linear. If every tensor of a residual stream is written by linear operators and sums, each of
them can write `y - mean(y)` instead: `W' = W - mean of W over its output channels`, biases, tables and constant parts
likewise. Nothing but LayerNorms may read the stream: they do not see the difference. Exact; all or nothing per stream.
Source: Jiang et al., NeurIPS 2023, arXiv:2305.14858, section 3.1.

Decided first (`plan_centring`), on a folded graph: a fixed map per channel in the stream (LayerScale, a norm) does not
commute with the mean, and folding takes it away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import TABLE
from normfold.analysis.rules.base import name_of
from normfold.analysis.rules.layout import CarryRule
from normfold.analysis.rules.normalize import parameters
from normfold.graph.affine import Array
from normfold.graph.operators import operators, opset
from normfold.graph.types import Model, Op, Value
from normfold.graph.view import Graph
from normfold.graph.write import EXACT

# The first with RMSNormalization.
LOWEST_OPSET = 23

# Layout, and means over other axes: they commute with the mean over channels. Other rows of the table bend.
_CARRIED = frozenset(
    {
        "Cast",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "GlobalAveragePool",
        "Identity",
        "ReduceMean",
        "Reshape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


@dataclass(frozen=True, slots=True)
class Centred:
    """Input `input` of the operator that writes `output` loses its mean along `axis`."""

    output: str
    input: int
    axis: int


@dataclass(frozen=True, slots=True)
class Centring:
    """norms: the outputs of the LayerNormalizations that become RMSNormalizations, and their names. constants: what is
    centred for them. kept: the names of the others, and why.
    """

    norms: tuple[tuple[str, str], ...] = ()
    constants: tuple[Centred, ...] = ()
    kept: tuple[tuple[str, Refuse], ...] = ()


def plan_centring(model: Model) -> Centring:
    """Which streams of `model`, which needs shapes (`graph.prepare`), can do without their mean. Nothing is changed."""
    graph = Graph(model, operators(model))
    norms = [op for op in graph.ops if op.type == "LayerNormalization"]
    if opset(model) < LOWEST_OPSET:
        why = Refuse("not-centred", f"RMSNormalization needs opset {LOWEST_OPSET}, and the graph has {opset(model)}")
        return Centring(kept=tuple((op.name, why) for op in norms))
    done: list[tuple[str, str]] = []
    constants: list[Centred] = []
    kept: list[tuple[str, Refuse]] = []
    seen: set[Op] = set()
    for op in norms:
        if op in seen:
            continue
        stream = _Stream(graph)
        refused = stream.follow(op)
        members = {op, *stream.norms} - seen
        seen |= members
        if refused is not None:
            kept += [(member.name, refused) for member in norms if member in members]
            continue
        done += [(name_of(member.output), member.name) for member in norms if member in members]
        constants += stream.constants
    return Centring(tuple(done), tuple(dict.fromkeys(constants)), tuple(kept))


@dataclass(slots=True)
class _Stream:
    """The tensors that one LayerNormalization drags along, each with its channel axis."""

    graph: Graph
    axes: dict[Value, int] = field(default_factory=dict)
    norms: list[Op] = field(default_factory=list)
    constants: list[Centred] = field(default_factory=list)

    def follow(self, norm: Op) -> Refuse | None:
        """Reach all of it; the refusal of the first operator that stands in the way."""
        source, found = norm.inputs[0], None
        todo: list[Value] = []
        rank = None if source is None else self._rank(source)
        if source is None or rank is None:
            return _stays(norm, "the rank of its input is not known")
        found = self._join(norm, source, rank - 1, todo)
        while todo and found is None:
            value = todo.pop()
            found = self._outward(value, todo)
        return found

    def _outward(self, value: Value, todo: list[Value]) -> Refuse | None:
        producer = self.graph.producer.get(value)
        if producer is None or value in self.graph.outputs:
            where = "an input" if producer is None else "an output"
            return Refuse("not-centred", f"{value.name}: it is {where} of the model, which has a mean")
        for op in (producer, *self.graph.readers(value)):
            if refused := self._relate(op, value, todo):
                return refused
        return None

    def _relate(self, op: Op, value: Value, todo: list[Value]) -> Refuse | None:
        """What `op` asks of the tensors around it, once `value` has no mean."""
        rule = TABLE.get(op.type)
        if rule is not None and set(op.attributes) <= rule.attributes:
            if op.type == "LayerNormalization" and value is op.inputs[0] and value not in op.inputs[1:]:
                return self._read(op)
            if op.type in ("Add", "Sub"):
                return self._sum(op, self.axes[value] - (self._rank(value) or 0), todo)
            if op.type in ("MatMul", "Gemm", "Conv") and value is op.output:
                return self._write(op)
            if op.type in ("Concat", "Split"):
                return self._part(op, self.axes[value], todo)
            if op.type in _CARRIED and isinstance(rule, CarryRule) and value in (op.inputs[0], op.output):
                return self._carry(op, rule, value, todo)
        if value in op.outputs:
            return _stays(op, f"it writes {value.name}, and nothing in it could leave the mean out")
        return _stays(op, f"it reads {value.name}, and would see that the mean is gone")

    def _read(self, op: Op) -> Refuse | None:
        rank = self._rank(op.output) or 0
        weight, bias = parameters(op)
        constant = weight is not None and all(part is None or self.graph.is_constant(part) for part in (weight, bias))
        if op.integer("axis", -1) % rank != rank - 1 or self.axes[op.inputs[0] or op.output] != rank - 1:
            return _stays(op, "its mean runs along other axes than the channels of the stream")
        if not constant or any(self.graph.readers(v) or v in self.graph.outputs for v in op.outputs[1:]):
            return _stays(op, "its weight is no constant, or its mean or deviation is read")
        if op not in self.norms:
            self.norms.append(op)
        return None

    def _sum(self, op: Op, axis: int, todo: list[Value]) -> Refuse | None:
        """axis: of the channels, counted from the last."""
        for value in (*op.inputs, op.output):
            rank = None if value is None else self._rank(value)
            if value is None or rank is None or rank < -axis:
                return _stays(op, "one value is broadcast over the channels")
            if refused := self._join(op, value, rank + axis, todo):
                return refused
        return None

    def _write(self, op: Op) -> Refuse | None:
        """The output channels of a constant weight, and of the bias."""
        axis, weight = self.axes[op.output], op.inputs[1]
        columns = {"MatMul": -1, "Gemm": -2 if op.integer("transB", 0) else -1, "Conv": 0}[op.type]
        expected = 1 if op.type == "Conv" else (self._rank(op.output) or 0) - 1
        fits = weight is not None and self.graph.is_constant(weight) and (self._rank(weight) or 0) > 1
        if not fits or axis != expected or (op.type == "Conv" and op.integer("group", 1) != 1):
            return _stays(op, "it has no constant weight whose output channels are those of the stream")
        self.constants.append(Centred(name_of(op.output), 1, columns))
        bias = op.inputs[2] if len(op.inputs) > 2 else None
        if bias is not None:
            dims = self.graph.dims(bias)
            if not self.graph.is_constant(bias) or not dims or dims[-1] != (self.graph.dims(op.output) or ())[axis]:
                return _stays(op, "its bias is no constant of one entry per channel")
            self.constants.append(Centred(name_of(op.output), 2, -1))
        return None

    def _part(self, op: Op, axis: int, todo: list[Value]) -> Refuse | None:
        rank = self._rank(op.output) or 0
        if op.integer("axis", 0) % rank == axis:
            return _stays(op, "it cuts or joins channels")
        parts = (*op.inputs, op.output) if op.type == "Concat" else (op.inputs[0], *op.outputs)
        for value in parts:
            if value is not None and (refused := self._join(op, value, axis, todo)):
                return refused
        return None

    def _carry(self, op: Op, rule: CarryRule, value: Value, todo: list[Value]) -> Refuse | None:
        source = op.inputs[0]
        mapped = rule.axis_map(self.graph, op)
        dims = self.graph.dims(value)
        if source is None or dims is None or isinstance(mapped, Refuse):
            return mapped if isinstance(mapped, Refuse) else _stays(op, "the rank of a tensor is not known")
        if not (self.graph.is_floating(source) and self.graph.is_floating(op.output)):
            return _stays(op, "it rounds to integers")
        axis = self.axes[value]
        # Channels numbered from 1 on: on the other side they have to be the same channels in the same order.
        numbers = np.arange(1.0, dims[axis].size + 1.0).reshape([-1 if k == axis else 1 for k in range(len(dims))])
        there = mapped.forward(numbers) if value is source else mapped.backward(numbers)
        if isinstance(there, Refuse):
            return there
        found = [k for k, size in enumerate(there.shape) if size == numbers.size]
        if there.size != numbers.size or not found or not np.array_equal(there.ravel(), numbers.ravel()):
            return _stays(op, "it moves, cuts or merges channels")
        return self._join(op, op.output if value is source else source, found[0], todo)

    def _join(self, op: Op, value: Value, axis: int, todo: list[Value]) -> Refuse | None:
        """`value` loses its mean along `axis`; a constant does so where `op` reads it."""
        dims = self.graph.dims(value)
        if dims is None or not dims[axis].static or dims[axis].size < 2:
            return _stays(op, f"the channels of {value.name} are broadcast, or their number is not known")
        if self.graph.is_constant(value):
            inputs = [port for port, item in enumerate(op.inputs) if item is value]
            self.constants += [Centred(name_of(op.output), port, axis - len(dims)) for port in inputs]
            return None
        if value not in self.axes:
            self.axes[value] = axis
            todo.append(value)
        if self.axes[value] != axis:
            return _stays(op, f"two ways through the graph take other axes of {value.name} for its channels")
        return None

    def _rank(self, value: Value) -> int | None:
        dims = self.graph.dims(value)
        return None if dims is None else len(dims)


def _stays(op: Op, why: str) -> Refuse:
    return Refuse("not-centred", f"{op.label}: {why}")


def centre(model: Model, centring: Centring) -> Model:
    """The copy of `model` that `centring`, made from this very model, describes. Constants are cast once, last."""
    copy = _Copy(model)
    for edit in centring.constants:
        copy.set_constant(edit)
    for output, _ in centring.norms:
        copy.to_rms(output)
    passes.RemoveUnusedNodesPass()(copy.model)
    return copy.model


class _Copy:
    """The copy under construction."""

    def __init__(self, model: Model) -> None:
        self.source = Graph(model, operators(model))
        written = [value for node in model.graph for value in node.outputs]
        self.original = {name_of(value): value for value in (*model.graph.initializers.values(), *written)}
        self.model = model.clone()
        self.nodes = {value.name or "": node for node in self.model.graph for value in node.outputs}
        self.made: dict[tuple[str, int], Value] = {}
        parts = (self.model.graph, *self.model.graph.subgraphs())
        self.names = {value.name for part in parts for node in part for value in node.outputs}
        self.names |= {name for part in parts for name in (*part.initializers, *(node.name for node in part))}

    def set_constant(self, edit: Centred) -> None:
        node = self.nodes[edit.output]
        source = node.inputs[edit.input]
        assert source is not None, "the plan names a constant"
        key = (name_of(source), edit.axis)
        if key not in self.made:
            self.made[key] = self._without_mean(source, edit.axis)
        node.replace_input_with(edit.input, self.made[key])

    def _without_mean(self, source: Value, axis: int) -> Value:
        """A new initializer; of a constant that was folded, out of what it was before it was cast."""
        original = self.original[name_of(source)]
        content: Callable[[], Array] = original.meta.get(EXACT) or partial(self.source.constant, original)
        dtype = source.dtype or ir.DataType.FLOAT
        shape = ir.Shape([dim.size for dim in self.source.dims(original) or ()])
        name = self._unused(f"{source.name}.centred")

        def compute() -> Array:
            array: Array = np.asarray(content(), dtype=np.float64)
            mean: Array = array.mean(axis=axis, keepdims=True)
            return array - mean

        def tensor() -> ir.Tensor[Any]:
            return ir.Tensor(np.ascontiguousarray(compute().astype(dtype.numpy())), name=name)

        lazy = ir.LazyTensor(tensor, dtype, shape, name=name)
        value = Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=lazy)
        value.meta[EXACT] = compute
        self.model.graph.register_initializer(value)
        return value

    def to_rms(self, output: str) -> None:
        """The norm without its mean; a bias that is not zero follows as an Add."""
        node = self.nodes[output]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        # RMSNormalization has the attributes of LayerNormalization, with the same meaning and defaults.
        rms = ir.Node("", "RMSNormalization", node.inputs[:2], node.attributes.values(), name=node.name)
        last = rms
        if bias is not None and np.any(self.source.constant(self.original[name_of(bias)])):
            result = rms.outputs[0]
            result.name, result.type, result.shape = self._unused(f"{output}.rms"), *_kind(node.outputs[0])
            last = ir.Node("", "Add", [result, bias], name=self._unused(f"{node.name}.bias"))
        for made in dict.fromkeys((rms, last)):
            made.metadata_props.update(node.metadata_props)
            self.model.graph.insert_before(node, made)
        self._stand_for(node.outputs[0], last.outputs[0])
        self.model.graph.remove(node, safe=True)

    def _stand_for(self, old: Value, new: Value) -> None:
        new.type, new.shape = _kind(old)
        for user, index in tuple(old.uses()):
            user.replace_input_with(index, new)
        for index, value in enumerate(self.model.graph.outputs):
            if value is old:
                self.model.graph.outputs[index] = new
        name, old.name = old.name, self._unused(f"{old.name}.before")
        new.name = name

    def _unused(self, base: str) -> str:
        name, count = base, 1
        while name in self.names:
            count += 1
            name = f"{base}.{count}"
        self.names.add(name)
        return name


def _kind(value: Value) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
    return value.type, value.shape
