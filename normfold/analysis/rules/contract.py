"""MatMul and Einsum: contractions of two operands, read as labels on their axes.

With one operand constant, `out = x W` absorbs any frame on the axes that the weight has: `W' = s_in W / s_out` along
them, and `t_in W - t_out` has to be added behind it. With both operands computed a frame off the contracted axes
passes on: `s_z = s_x * s_y`; a shift does only where the other operand is a softmax whose rows add up to 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from normfold.analysis.edits import Edit, NewAdd, NewConstant
from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules.base import (
    OUT,
    Costs,
    Demands,
    FrameOf,
    Rule,
    SizeOf,
    Surroundings,
    name_of,
    rank_of,
    to_rank_of,
    value_at,
)
from normfold.analysis.rules.weights import size_by_weight, weight_without_mean
from normfold.graph.affine import Array, agree_each, compress, total
from normfold.graph.operators import opset
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph

Axes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """A name for every axis of both operands and of the output; equal names are one index."""

    operands: tuple[Axes, Axes]
    output: Axes

    def at(self, port: int) -> Axes:
        return self.output if port == OUT else self.operands[port]


def placed(array: Array, source: Axes, target: Axes) -> Array | None:
    """`array` over the axes `source`, as it lies on the axes `target`; None where it varies along one they lack."""
    varying = [axis for axis, size in enumerate(array.shape) if size != 1]
    if any(source[axis] not in target for axis in varying):
        return None
    order = sorted(varying, key=lambda axis: target.index(source[axis]))
    shape = [1] * len(target)
    for axis in order:
        shape[target.index(source[axis])] = array.shape[axis]
    return array.transpose(order + [axis for axis in range(array.ndim) if axis not in varying]).reshape(shape)


def _adds_up_along(graph: Graph, value: Value) -> int | None:
    """The axis along which the entries of a tensor add up to 1, where a Softmax wrote it."""
    op = graph.producer.get(value)
    while op is not None and op.type == "Identity" and op.inputs[0] is not None:
        op = graph.producer.get(op.inputs[0])
    rank = rank_of(graph, value)
    if op is None or op.type != "Softmax" or rank is None or set(op.attributes) - {"axis"}:
        return None
    # Before opset 13 all axes from this one on are normalised together.
    by_itself = opset(graph.model) >= 13
    axis = op.integer("axis", -1 if by_itself else 1) % rank
    return axis if by_itself or axis == rank - 1 else None


class _ContractionRule(Rule):
    """One contraction. It has no bias: a shift passes on to a bias behind it, or costs an Add."""

    @abstractmethod
    def labels(self, graph: Graph, op: Op) -> Labels | Refuse:
        """The axes, as the operator names them."""

    def _weight(self, graph: Graph, op: Op) -> int | None:
        """The input that holds the weight."""
        constant = self._constants(graph, op)
        return constant[0] if len(constant) == 1 else None

    def _constants(self, graph: Graph, op: Op) -> list[int]:
        return [port for port, value in enumerate(op.inputs) if value is not None and graph.is_constant(value)]

    def ports(self, graph: Graph, op: Op) -> tuple[int, ...]:
        constant = self._constants(graph, op)
        return (*(port for port in range(len(op.inputs)) if port not in constant), OUT)

    def scale(self, at: Surroundings) -> Demands:
        labels = self.labels(at.graph, at.op)
        if isinstance(labels, Refuse):
            return labels
        weight = self._weight(at.graph, at.op)
        if weight is None:
            return self._two_tensors(at, labels)
        for port in at.known:
            factor = self._factor(at, labels, weight, port)
            if isinstance(factor, Refuse):
                return factor
            if port == OUT and (refused := at.zero_output()):
                return refused
        return {}

    def _factor(self, at: Surroundings, labels: Labels, weight: int, port: int) -> Array | Refuse:
        """What the array on a port multiplies the weight by."""
        array, dims = at.known[port], at.graph.dims(value_at(at.op, weight))
        if dims is None:
            return at.refuse("unknown-shape", "the rank of its weight is not known")
        factor = placed(array, labels.at(port), labels.operands[weight])
        if factor is None or any(size not in (1, dim.size) for size, dim in zip(factor.shape, dims, strict=True)):
            return at.refuse("not-contracted", "its weight does not lie on the channels of the norm")
        return factor

    def _two_tensors(self, at: Surroundings, labels: Labels) -> Demands:
        contracted = [set(axes) - set(labels.output) for axes in labels.operands]
        operands = [port for port in self.ports(at.graph, at.op) if port != OUT]
        missing = [port for port in operands if port not in at.known]
        # A scale that is the same for all channels counts as one, which passes.
        scales = {port: compress(at.get(port), tuple(range(at.get(port).ndim))) for port in operands}
        for port, array in scales.items():
            if any(
                size != 1 and axis in contracted[port] for axis, size in zip(labels.at(port), array.shape, strict=True)
            ):
                return at.refuse("two-tensors", "contracts the channels of the norm with another computed tensor")
        parts = [placed(scales[port], labels.at(port), labels.output) for port in operands]
        computed = math.prod((part for part in parts if part is not None), start=np.ones((1,) * len(labels.output)))
        if OUT not in at.known or not missing or agree_each(at.known[OUT], computed):
            return {OUT: computed}
        return self._to_operand(at, labels, missing, computed)

    def _to_operand(self, at: Surroundings, labels: Labels, missing: list[int], computed: Array) -> Demands:
        """A scale that arrives on the output goes to the operand that has its axes, and whose writer can take it.

        computed: the output's scale as the operands have theirs now.
        """
        if np.any(computed == 0.0):
            return at.refuse("zero-scale", "a channel with scale 0 cannot be divided by")
        rest = compress(at.known[OUT] / computed, tuple(range(len(labels.output))))
        found = {port: placed(rest, labels.output, labels.at(port)) for port in missing}
        fitting = {
            port: part
            for port, part in found.items()
            if part is not None and to_rank_of(at.graph, at.value(port), part) is not None
        }
        if not fitting:
            return at.refuse("two-tensors", "the scales behind it belong to neither of the tensors that it multiplies")
        taker = min(fitting, key=lambda port: at.costs.writer_cost(at.value(port)))
        return {taker: at.get(taker) * fitting[taker]}

    def shift(self, at: Surroundings) -> Demands:
        labels = self.labels(at.graph, at.op)
        if isinstance(labels, Refuse):
            return labels
        weight = self._weight(at.graph, at.op)
        if weight is None:
            return self._shift_of_two(at, labels)
        for port in at.known:
            factor = self._factor(at, labels, weight, port)
            if isinstance(factor, Refuse):
                return factor
        source = 1 - weight
        if source in at.known and OUT not in at.known and at.costs.absorbs_shift(at.op.output):
            return {OUT: self._through(at.graph, at.op, at.known[source])}
        return {}

    def _shift_of_two(self, at: Surroundings, labels: Labels) -> Demands:
        """No shift passes a product of two tensors, but where the other one averages: `P (V + t) = P V + t`."""
        if not any(np.any(array != 0.0) for array in at.known.values()):
            return {}
        values = self._averaged(at.graph, at.op, labels)
        if values is None or any(port not in (values, OUT) and np.any(at.known[port] != 0.0) for port in at.known):
            return at.refuse("two-tensors", "multiplies two tensors, neither of them constant")
        port, other = (values, OUT) if values in at.known else (OUT, values)
        moved = placed(at.known[port], labels.at(port), labels.at(other))
        if moved is None or to_rank_of(at.graph, at.value(other), moved) is None:
            return at.refuse("two-tensors", "averages over the channels of the norm")
        return {other: moved}

    def _averaged(self, graph: Graph, op: Op, labels: Labels) -> int | None:
        """The operand of which the output is an average: the rows of the other add up to 1, for a softmax wrote it."""
        for values, other in ((1, 0), (0, 1)):
            contracted = [axis for axis in labels.operands[other] if axis not in labels.output]
            axis = _adds_up_along(graph, value_at(op, other))
            if axis is not None and contracted == [labels.operands[other][axis]]:
                return values
        return None

    def _values(self, graph: Graph, op: Op) -> Value | None:
        """`_averaged`, as the tensor; None where there is a weight."""
        labels = self.labels(graph, op)
        if isinstance(labels, Refuse) or self._constants(graph, op):
            return None
        values = self._averaged(graph, op, labels)
        return None if values is None else value_at(op, values)

    def _through(self, graph: Graph, op: Op, shift: Array) -> Array:
        """What a shift of the input adds to the output: t W, of the output's rank."""
        labels, weight = self.labels(graph, op), self._weight(graph, op)
        assert weight is not None and not isinstance(labels, Refuse)
        return graph.contract(
            value_at(op, weight), shift, labels.operands[weight], labels.at(1 - weight), labels.output
        )

    def _bias(self, graph: Graph, op: Op, incoming: Array, outgoing: Array) -> Array | None:
        """What the output lacks once both shifts are in place; None when they cancel."""
        if not np.any(incoming) and not np.any(outgoing):
            return None
        rest = total(self._through(graph, op, incoming), -outgoing)
        return rest if np.any(rest) else None

    def added_elements(self, graph: Graph, op: Op, shift: Callable[[Value], Array]) -> int:
        weight = self._weight(graph, op)
        if weight is None:
            return 0
        source = value_at(op, 1 - weight)
        return 0 if self._bias(graph, op, shift(source), shift(op.output)) is None else graph.size(op.output)

    def writer_cost(self, costs: Costs, op: Op) -> float:
        if (values := self._values(costs.graph, op)) is not None:
            return costs.writer_cost(values)
        if not self._absorbs(costs.graph, op):
            return math.inf
        return 0.0 if self.added_elements(costs.graph, op, costs.shift) else float(costs.graph.size(op.output))

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        passes = self._absorbs(costs.graph, op) or self._values(costs.graph, op) is not None
        return passes and costs.absorbs_shift(op.output)

    def _absorbs(self, graph: Graph, op: Op) -> bool:
        return self._weight(graph, op) is not None and not isinstance(self.labels(graph, op), Refuse)

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        labels, weight = self.labels(graph, op), self._weight(graph, op)
        if weight is None or isinstance(labels, Refuse):
            return
        incoming, outgoing, target = frame(value_at(op, 1 - weight)), frame(op.output), labels.operands[weight]
        times, over = (
            placed(incoming.scale, labels.at(1 - weight), target),
            placed(outgoing.scale, labels.output, target),
        )
        assert times is not None and over is not None
        if np.any(times != 1.0) or np.any(over != 1.0):
            yield NewConstant(name_of(op.output), weight, name_of(value_at(op, weight)), times=times, over=over)
        bias = self._bias(graph, op, incoming.shift, outgoing.shift)
        if bias is not None:
            yield NewAdd(name_of(op.output), bias / outgoing.scale)


@final
class MatMulRule(_ContractionRule):
    """MatMul of matrices, with numpy's broadcasting of the axes in front."""

    bias_follows = True

    def magnitude(self, graph: Graph, op: Op, size: SizeOf) -> Array | None:
        return size_by_weight(graph, op, -2)

    def without_mean(self, graph: Graph, op: Op, port: int, axis: int) -> Mapping[int, int] | Refuse:
        if port != OUT:
            return super().without_mean(graph, op, port, axis)
        return weight_without_mean(graph, op, axis, channels=(rank_of(graph, op.output) or 0) - 1, columns=-1)

    def labels(self, graph: Graph, op: Op) -> Labels | Refuse:
        ranks = [len(dims) for value in op.inputs if value is not None and (dims := graph.dims(value)) is not None]
        if len(ranks) != 2 or min(ranks) < 2:
            return refuse(op, "unknown-shape", "an operand is a vector, or of unknown rank")
        batch = tuple(f"batch{axis}" for axis in range(max(ranks) - 2))
        left, right = (batch[len(batch) - rank + 2 :] for rank in ranks)
        return Labels(((*left, "row", "inner"), (*right, "inner", "column")), (*batch, "row", "column"))


@final
class EinsumRule(_ContractionRule):
    """Einsum of two operands, every index in two of the three terms at least and in each only once."""

    attributes = frozenset({"equation"})

    def labels(self, graph: Graph, op: Op) -> Labels | Refuse:
        equation = op.text("equation", "").replace(" ", "")
        terms, arrow, output = equation.partition("->")
        operands = terms.split(",")
        texts = [*operands, output]
        plain = bool(arrow) and len(operands) == 2 == len(op.inputs) and all(t.isalpha() or not t for t in texts)
        counts = {letter: sum(letter in text for text in texts) for letter in "".join(texts)}
        if not plain or any(len(set(t)) != len(t) for t in texts) or any(count < 2 for count in counts.values()):
            return refuse(op, "not-contracted", f"{equation} is no contraction of two operands that it names")
        dims = [graph.dims(value) for value in (*op.inputs, op.output) if value is not None]
        if [None if found is None else len(found) for found in dims] != [len(text) for text in texts]:
            return refuse(op, "unknown-shape", "the rank of a tensor is not known")
        sizes = [dict(zip(text, found or (), strict=True)) for text, found in zip(operands, dims, strict=False)]
        if any(sizes[1].get(letter, dim) != dim for letter, dim in sizes[0].items()):
            return refuse(op, "unknown-shape", "the operands have other sizes for one letter")
        return Labels((tuple(operands[0]), tuple(operands[1])), tuple(output))
