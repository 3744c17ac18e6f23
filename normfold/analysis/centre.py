"""Which LayerNorms can become RMSNorms: those whose input can be written without its mean.

    LN(x) = w * (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) + b = RMSNorm(x - mean(x)) + b

The mean over channels is linear. If every tensor of a residual stream is written by linear operators and sums, each of
them can write `y - mean(y)` instead: `W' = W - mean of W over its output channels`, biases, tables and constant parts
likewise. Nothing but LayerNorms may read the stream: they do not see the difference. Exact; all or nothing per stream.
Source: Jiang et al., NeurIPS 2023, arXiv:2305.14858, section 3.1.

Decided on a folded graph: a fixed map per channel in the stream (LayerScale, a norm) does not commute with the mean,
and folding takes it away. rewrite/centre.py carries it out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import WALL, rule_of
from normfold.analysis.rules.base import keeps_mean, name_of, rank_of, value_at
from normfold.graph.operators import operators, opset
from normfold.graph.types import Model, Op, Value
from normfold.graph.view import Graph
from normfold.norms.kinds import token_norm, token_norm_of


@dataclass(frozen=True, slots=True)
class Centred:
    """Input `input` of the operator that writes `output` loses its mean along `axis`, counted from the last: -1."""

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
    norms = [op for op in graph.ops if (kind := token_norm_of(op.type)) is not None and kind.centred]
    rms = token_norm(centred=False)
    if opset(model) < rms.opset:
        why = Refuse("not-centred", f"{rms.operators[0]} needs opset {rms.opset}, and the graph has {opset(model)}")
        return Centring(kept=tuple((op.name, why) for op in norms))
    done: list[tuple[str, str]] = []
    constants: list[Centred] = []
    kept: list[tuple[str, Refuse]] = []
    seen: set[Op] = set()
    for op in norms:
        if op in seen:
            continue
        stream = _Stream(graph, frozenset(norms))
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
    """The tensors that have to lose their mean with one LayerNormalization, each with its channel axis.

    candidates: all LayerNormalizations. norms: those of them that the stream has reached. constants: what is rewritten.
    """

    graph: Graph
    candidates: Collection[Op]
    axes: dict[Value, int] = field(default_factory=dict)
    norms: list[Op] = field(default_factory=list)
    constants: list[Centred] = field(default_factory=list)
    todo: list[Value] = field(default_factory=list)

    def follow(self, norm: Op) -> Refuse | None:
        """Reach all of it; the refusal of the first operator that stands in the way."""
        source = norm.inputs[0]
        rank = None if source is None else rank_of(self.graph, source)
        if source is None or rank is None:
            return keeps_mean(norm, "the rank of its input is not known")
        found = self._lose(norm, source, rank - 1)
        while self.todo and found is None:
            found = self._around(self.todo.pop())
        return found

    def _around(self, value: Value) -> Refuse | None:
        """What the operators that write and read `value` ask of the tensors around them."""
        producer = self.graph.producer.get(value)
        if producer is None or value in self.graph.outputs:
            where = "an input" if producer is None else "an output"
            return Refuse("not-centred", f"{value.name}: it is {where} of the model, which has a mean")
        writes = -1 - producer.outputs.index(value)
        ports = [(producer, writes), *((op, op.inputs.index(value)) for op in self.graph.readers(value))]
        for op, port in ports:
            if refused := self._relate(op, port, value):
                return refused
        return None

    def _relate(self, op: Op, port: int, value: Value) -> Refuse | None:
        rule = rule_of(op.type)
        if not rule.reads(op):
            rule = WALL
        axes = rule.without_mean(self.graph, op, port, self.axes[value])
        if isinstance(axes, Refuse):
            return axes
        if not axes and op in self.candidates and op not in self.norms:
            self.norms.append(op)
        for other, axis in axes.items():
            if refused := self._lose(op, value_at(op, other), axis):
                return refused
        return None

    def _lose(self, op: Op, value: Value, axis: int) -> Refuse | None:
        """`value` loses its mean along `axis`; a constant does so where `op` reads it."""
        dims = self.graph.dims(value)
        if dims is None or not dims[axis].static or dims[axis].size < 2:
            return keeps_mean(op, f"the channels of {value.name} are broadcast, or their number is not known")
        if self.graph.is_constant(value):
            inputs = [port for port, item in enumerate(op.inputs) if item is value]
            self.constants += [Centred(name_of(op.output), port, axis - len(dims)) for port in inputs]
            return None
        if value not in self.axes:
            self.axes[value] = axis
            self.todo.append(value)
        if self.axes[value] != axis:
            return keeps_mean(op, f"two ways through the graph take other axes of {value.name} for its channels")
        return None
