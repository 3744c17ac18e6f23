"""A graph made ready to run: every node bound to its function, every value freed after its last use.

Subgraphs read values of the graphs around them; onnx-ir gives these as the same objects, so that one mapping from value
to content, chained outwards, is all the scoping there is. A call of a model's own function becomes a body like those
of If and Loop, with the attributes of the call put in the place of the references to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import onnx
import onnx_ir as ir
import torch

from normfold.errors import CannotJudgeError, GraphError
from normfold.graph.evaluator.call import (
    Bound,
    Call,
    EvaluationError,
    Function,
    Node,
    NotCoveredError,
    label_of,
    operator_of,
)
from normfold.graph.evaluator.limits import Meter
from normfold.graph.evaluator.operators import lookup
from normfold.graph.evaluator.values import Value, from_numpy, size_of

# Told of every operator that ran: the node, what it read and what it wrote.
Watch = Callable[[Node, Sequence[Value], Sequence[Value]], None]

# Weights up to this size are widened to float64 once; larger ones for every use, so that they are held narrow.
_KEPT_BYTES = 1 << 20

_MISFITS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, ArithmeticError, AttributeError)

# Operators that give something else every time.
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


@dataclass(frozen=True, slots=True)
class Step:
    """One node. function: what computes it, None for a call of `inner`, a function of the model's own.

    bodies: its subgraphs, by attribute. dead: values that nobody reads after it.
    """

    node: Node
    version: int
    function: Function | None
    inner: Block | None
    bodies: Mapping[str, Block]
    constant: bool
    dead: tuple[ir.Value, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A graph, a subgraph or the body of a function."""

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    weights: Mapping[ir.Value, ir.TensorProtocol]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class _Body:
    """A subgraph of the step that is running, to be called with its inputs."""

    block: Block
    run: Callable[..., tuple[Value, ...]]

    @property
    def inputs(self) -> Sequence[ir.Value]:
        return self.block.inputs

    @property
    def outputs(self) -> Sequence[ir.Value]:
        return self.block.outputs

    def __call__(self, *inputs: Value) -> tuple[Value, ...]:
        return self.run(*inputs)


class Scope:
    """The values of a block that is running, and those of the blocks around it."""

    __slots__ = ("_outer", "_values")

    def __init__(self, outer: Scope | None = None) -> None:
        self._values: dict[ir.Value, Value] = {}
        self._outer = outer

    def __setitem__(self, key: ir.Value, value: Value) -> None:
        self._values[key] = value

    def __contains__(self, key: ir.Value) -> bool:
        return key in self._values or (self._outer is not None and key in self._outer)

    def __getitem__(self, key: ir.Value) -> Value:
        scope: Scope | None = self
        while scope is not None:
            if key in scope._values:
                return scope._values[key]
            scope = scope._outer
        raise KeyError(key)

    def free(self, key: ir.Value) -> None:
        """Forget a value of this block."""
        self._values.pop(key, None)


class Program:
    """A model ready to run. Raises NotCoveredError for an operator that is not in the table.

    move: move every floating weight by up to half of this, relatively, at random; the negative number moves it as far
    the other way.
    """

    def __init__(self, model: ir.Model, *, move: float = 0.0) -> None:
        self._move, self._rng = move, torch.Generator().manual_seed(0)
        self.functions = model.functions
        self._kept: dict[ir.Value, Value] = {}
        self._constants: set[ir.Value] = set()
        self.weights: dict[ir.Value, ir.TensorProtocol] = {}
        try:
            self.main = self._block(model.graph, model.opset_imports, {})
        except RecursionError as error:
            raise GraphError("its subgraphs or functions are nested too deeply to be run") from error

    def _block(self, graph: ir.Graph | ir.Function, opsets: Mapping[str, int], bound: Mapping[str, ir.Attr]) -> Block:
        """bound: the attributes of the call, in the body of a function."""
        weights: dict[ir.Value, ir.TensorProtocol] = {}
        if isinstance(graph, ir.Graph):
            weights = {v: v.const_value for v in graph.initializers.values() if v.const_value is not None}
            self._constants |= weights.keys() - set(graph.inputs)
            self.weights |= weights
        nodes = list(graph)
        last = _last_uses(nodes, set(graph.outputs))
        steps = [self._step(node, opsets, bound, last.get(number, ())) for number, node in enumerate(nodes)]
        return Block(tuple(graph.inputs), tuple(graph.outputs), weights, tuple(steps))

    def _step(
        self, written: ir.Node, opsets: Mapping[str, int], bound: Mapping[str, ir.Attr], dead: Sequence[ir.Value]
    ) -> Step:
        node: Node = written
        attributes = _bound(node.attributes, bound)
        inner, function, version = None, None, 1
        own = self.functions.get(written.op_identifier())
        if own is not None:
            given = {name: attribute for name, attribute in own.attributes.items() if attribute.value is not None}
            inner = self._block(own, {**opsets, **own.opset_imports}, {**given, **attributes})
        else:
            version = schema_version(written, opsets)
            function = lookup(node.domain, node.op_type, version)
            if function is None:
                raise NotCoveredError(
                    f"{label_of(node)}: normfold does not know what {operator_of(node)} of opset {version} computes, "
                    "so there can be no verdict; `fold --no-verify` folds without one"
                )
        if attributes is not written.attributes and inner is None:
            node = Bound(node.name, node.domain, node.op_type, node.inputs, node.outputs, attributes)
        bodies = {
            name: self._block(attribute.value, opsets, bound)
            for name, attribute in attributes.items()
            if attribute.type == ir.AttributeType.GRAPH and inner is None
        }
        operands = [value for value in node.inputs if value is not None]
        constant = not bodies and node.op_type not in _RANDOM and all(value in self._constants for value in operands)
        if constant:
            self._constants.update(node.outputs)
        return Step(node, version, function, inner, bodies, constant, tuple(dead))

    def run(self, scope: Scope, meter: Meter, watch: Watch | None) -> tuple[Value, ...]:
        """Run the main graph; `scope` has its inputs."""
        return self._run(self.main, scope, meter, watch)

    def _run(self, block: Block, scope: Scope, meter: Meter, watch: Watch | None) -> tuple[Value, ...]:
        for step in block.steps:
            meter.run(label_of(step.node) if step.node.name else step.node.op_type)
            read = [None if value is None else self._value(value, scope) for value in step.node.inputs]
            written = self._written(step, read, scope, meter, watch)
            for value, content in zip(step.node.outputs, written, strict=False):
                scope[value] = content
            if watch is not None:
                watch(step.node, read, written)
            del read, written
            for value in step.dead:
                scope.free(value)
        return tuple(self._value(value, scope) for value in block.outputs)

    def _written(
        self, step: Step, read: Sequence[Value], scope: Scope, meter: Meter, watch: Watch | None
    ) -> tuple[Value, ...]:
        if step.inner is not None:
            return self._called(step.inner, None, meter, watch, *read)
        assert step.function is not None
        bodies = {
            name: _Body(body, partial(self._called, body, scope, meter, watch)) for name, body in step.bodies.items()
        }
        call = Call(step.node, step.version, meter, step.constant, bodies)
        return applied(step.function, call, read)

    def _called(
        self, body: Block, outer: Scope | None, meter: Meter, watch: Watch | None, *inputs: Value
    ) -> tuple[Value, ...]:
        scope = Scope(outer)
        for value in body.inputs:
            scope[value] = None
        for value, content in zip(body.inputs, inputs, strict=False):
            scope[value] = content
        return self._run(body, scope, meter, watch)

    def _value(self, value: ir.Value, scope: Scope) -> Value:
        if value in scope:
            return scope[value]
        kept = self._kept.get(value)
        if kept is not None:
            return kept
        stored = self.weights.get(value)
        if stored is None:
            raise EvaluationError(f"{value.name!r} is read and nothing writes it")
        found = from_numpy(stored.numpy())
        if self._move and isinstance(found, torch.Tensor) and found.is_floating_point():
            found *= 1.0 + self._move * (torch.rand(found.shape, generator=self._rng, dtype=found.dtype) - 0.5)
        if stored.nbytes <= _KEPT_BYTES:
            self._kept[value] = found
        return found


def applied(function: Function, call: Call, read: Sequence[Value]) -> tuple[Value, ...]:
    """What one operator computes. Raises EvaluationError, NotCoveredError, CannotJudgeError as `Evaluator.run` does."""
    try:
        written = function(call, *read)
    except (CannotJudgeError, GraphError):
        raise
    # torch, numpy and Python raise what they like where shapes or types do not fit: it always means the same.
    except (*_MISFITS, MemoryError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise CannotJudgeError(
                f"{call.label}: there is not enough memory for what it computes. Give smaller inputs (--input), or do "
                "without a verdict (`fold --no-verify`)"
            ) from error
        said = " ".join(str(error).split())[:200]
        raise EvaluationError(f"{call.label} cannot take what it is given: {said}") from error
    unread = sorted(set(call.node.attributes) - call.read)
    if unread:
        raise call.refuse(f"its attribute {unread[0]!r} is unknown")
    written = written if isinstance(written, tuple) else (written,)
    call.meter.wrote(sum(map(size_of, written)), call.label)
    return written


def _last_uses(nodes: Sequence[ir.Node], kept: set[ir.Value]) -> dict[int, list[ir.Value]]:
    """By number of the node: the values of this block that nobody reads behind it."""
    last: dict[ir.Value, int] = {}
    for number, node in enumerate(nodes):
        for value in node.outputs:
            last[value] = number
        for value in _reads(node):
            if value in last or not value.is_initializer():
                last[value] = number
    found: dict[int, list[ir.Value]] = {}
    for value, number in last.items():
        if value not in kept:
            found.setdefault(number, []).append(value)
    return found


def _reads(node: ir.Node) -> set[ir.Value]:
    """What a node reads, and what its subgraphs read of the graphs around them."""
    found = {value for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            for inner in attribute.value:
                found |= _reads(inner)
            found |= {value for value in attribute.value.outputs if value is not None}
    return found


def schema_version(node: ir.Node, opsets: Mapping[str, int]) -> int:
    """The opset that introduced the schema of this operator; 1 where the onnx package has none."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    opset = node.version or opsets.get(domain, 1)
    try:
        return int(onnx.defs.get_schema(node.op_type, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return 1


def _bound(attributes: Mapping[str, ir.Attr], bound: Mapping[str, ir.Attr]) -> Mapping[str, ir.Attr]:
    """Attributes with references to those of the call resolved; a reference to one that was not given is left out."""
    if not any(attribute.is_ref() for attribute in attributes.values()):
        return attributes
    found = {}
    for name, attribute in attributes.items():
        if not attribute.is_ref():
            found[name] = attribute
        elif attribute.ref_attr_name in bound:
            given = bound[str(attribute.ref_attr_name)]
            found[name] = ir.Attr(name, given.type, given.value)
    return found
