"""MatMul and Einsum: contractions of two operands, read as labels on their axes.

With one operand constant, `out = x W` absorbs any frame on the axes that the weight has: `W' = s_in W / s_out` along
them, and `t_in W - t_out` has to be added behind it. A scale on an axis that both tensors have and the weight has not
(the channels, where tokens are mixed) passes; a shift there is another one for every output of the weight: a map. With
both operands computed a frame off the contracted axes passes on: `s_z = s_x * s_y`; a shift does only where the other
operand is a softmax whose rows add up to 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cache
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
from normfold.analysis.rules.labels import DOTS, Axes, Labels, apart, axes_of, is_plain, multiple, placed, terms
from normfold.analysis.rules.weights import contracted_with, size_by_weight, weight_without_mean
from normfold.analysis.rules.windows import map_elements
from normfold.graph.affine import Array, agree_each, compress, total, varying_axes
from normfold.graph.operators import opset
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph


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


def _beside(array: Array, axes: Axes, weight: Axes) -> bool:
    """Whether an array over `axes` varies along one that the weight has not."""
    return any(axes[axis] not in weight for axis in varying_axes(array))


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
        source = 1 - weight
        parts = {port: self._parts(at, labels, weight, port) for port in (source, OUT)}
        refused = next((one for one in parts.values() if isinstance(one, Refuse)), None)
        if refused is not None:
            return refused
        (in_passed, in_taken), (out_passed, out_taken) = (one for one in parts.values() if not isinstance(one, Refuse))
        # No bias behind it could be written as a multiple of 0.
        if any(np.any(part == 0.0) for part in (in_passed, out_passed, out_taken)):
            return at.refuse("zero-scale", "a channel with scale 0 cannot be restored")
        known, other, passed, held, taken = (
            (source, OUT, in_passed, out_passed, out_taken)
            if source in at.known
            else (OUT, source, out_passed, in_passed, in_taken)
        )
        moved = placed(passed, labels.at(known), labels.at(other))
        if moved is None or to_rank_of(at.graph, at.value(other), moved) is None:
            return at.refuse("not-contracted", "its weight does not lie on the channels of the norm")
        # One number for all of them is left to the weight.
        if multiple(moved, held) is not None:
            return {}
        if np.any(taken == 0.0):
            return at.refuse("zero-scale", "what passes it would be lost in a channel with scale 0")
        return {other: moved * taken}

    def _parts(self, at: Surroundings, labels: Labels, weight: int, port: int) -> tuple[Array, Array] | Refuse:
        """The array on a port as what passes times what the weight takes."""
        dims, found = (
            at.graph.dims(value_at(at.op, weight)),
            apart(at.get(port), labels.at(port), labels.operands[weight]),
        )
        if dims is None:
            return at.refuse("unknown-shape", "the rank of its weight is not known")
        factor = None if found is None else placed(found[1], labels.at(port), labels.operands[weight])
        fits = factor is not None and all(size in (1, dim.size) for size, dim in zip(factor.shape, dims, strict=True))
        if found is None or not fits:
            return at.refuse("not-contracted", "its weight does not lie on the channels of the norm")
        return found

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
        source = 1 - weight
        for port in (source, OUT):
            if not self._spreads(at, labels, weight, port):
                return at.refuse("not-contracted", "its weight does not lie on the channels of the norm")
        if source in at.known and OUT not in at.known and at.costs.absorbs_shift(at.op.output):
            return {OUT: self._through(at.graph, at.op, at.known[source])}
        by_token = any(_beside(at.get(port), labels.at(port), labels.operands[weight]) for port in (source, OUT))
        if by_token and map_elements(at.graph, at.op.output) > at.map_limit:
            rest = self._bias(at.graph, at.op, at.get(source), at.get(OUT))
            if rest is not None and _beside(rest, labels.output, labels.operands[weight]):
                return at.refuse("not-contracted", "a bias for every token behind it would cost more than one Add here")
        return {}

    def _spreads(self, at: Surroundings, labels: Labels, weight: int, port: int) -> bool:
        """Whether an array on a port is of one size with the weight along the axes that both have."""
        dims = dict(zip(labels.operands[weight], at.graph.dims(value_at(at.op, weight)) or (), strict=False))
        if at.get(port).ndim != len(labels.at(port)):  # the rank of its tensor is not known
            return False
        sizes = zip(labels.at(port), at.get(port).shape, strict=True)
        return all(size == 1 or axis not in dims or dims[axis].size == size for axis, size in sizes)

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

    def _taken(self, scale: Array, axes: Axes, weight: Axes) -> tuple[Array, Array]:
        """What of a scale passes, and what the weight takes, along its axes."""
        found = apart(scale, axes, weight)
        taken = None if found is None else placed(found[1], axes, weight)
        assert found is not None and taken is not None
        return found[0], taken

    def _bias(self, graph: Graph, op: Op, incoming: Array, outgoing: Array) -> Array | None:
        """What the output lacks once both shifts are in place; None when they cancel."""
        if not np.any(incoming) and not np.any(outgoing):
            return None
        rest = total(self._through(graph, op, incoming), -outgoing)
        return compress(rest, tuple(range(rest.ndim))) if np.any(rest) else None

    def added_elements(self, graph: Graph, op: Op, shift: Callable[[Value], Array]) -> int:
        weight = self._weight(graph, op)
        if weight is None:
            return 0
        rest = self._bias(graph, op, shift(value_at(op, 1 - weight)), shift(op.output))
        if rest is None:
            return 0
        labels = self.labels(graph, op)
        by_token = not isinstance(labels, Refuse) and _beside(rest, labels.output, labels.operands[weight])
        return map_elements(graph, op.output) if by_token else graph.size(op.output)

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
        (passed, times), (left, over) = (
            self._taken(incoming.scale, labels.at(1 - weight), target),
            self._taken(outgoing.scale, labels.output, target),
        )
        moved = placed(passed, labels.at(1 - weight), labels.output)
        factor = None if moved is None else multiple(moved, left)
        assert factor is not None
        times = factor * times
        if np.any(times != 1.0) or np.any(over != 1.0):
            yield NewConstant(name_of(op.output), weight, name_of(value_at(op, weight)), times=times, over=over)
        bias = self._bias(graph, op, incoming.shift, outgoing.shift)
        if bias is not None:
            yield NewAdd(name_of(op.output), bias / outgoing.scale)


@final
class MatMulRule(_ContractionRule):
    """MatMul of matrices and vectors, with numpy's broadcasting of the axes in front."""

    bias_follows = True

    def magnitude(self, graph: Graph, op: Op, size: SizeOf) -> Array | None:
        return size_by_weight(graph, op, -2)

    def contracting_weight(self, graph: Graph, op: Op, port: int, axis: int) -> tuple[int, int] | None:
        channels = (rank_of(graph, value_at(op, 0)) or 0) - 1
        rows = -1 if rank_of(graph, value_at(op, 1)) == 1 else -2
        return contracted_with(graph, op, port, axis, channels=channels, rows=rows)

    def without_mean(self, graph: Graph, op: Op, port: int, axis: int) -> Mapping[int, int] | Refuse:
        if port != OUT:
            return super().without_mean(graph, op, port, axis)
        return weight_without_mean(graph, op, axis, channels=(rank_of(graph, op.output) or 0) - 1, columns=-1)

    def labels(self, graph: Graph, op: Op) -> Labels | Refuse:
        ranks = [len(dims) for value in op.inputs if value is not None and (dims := graph.dims(value)) is not None]
        if len(ranks) != 2 or min(ranks) < 1:
            return refuse(op, "unknown-shape", "an operand is of unknown rank")
        return _of_product(*ranks)


@cache
def _of_product(left_rank: int, right_rank: int) -> Labels:
    """The axes of a MatMul of operands of these ranks."""
    ranks = (left_rank, right_rank)
    batch = tuple(f"batch{axis}" for axis in range(max(*ranks, 2) - 2))
    left, right = (batch[len(batch) - max(rank, 2) + 2 :] for rank in ranks)
    # A vector is a row on the left and a column on the right, and has no such axis, nor has the product then.
    row, column = (("row",) if left_rank > 1 else ()), (("column",) if right_rank > 1 else ())
    return Labels(((*left, *row, "inner"), (*right, "inner", *column)), (*batch, *row, *column))


@final
class EinsumRule(_ContractionRule):
    """Einsum of two operands, every index in two of the three terms at least and in each only once."""

    attributes = frozenset({"equation"})

    def labels(self, graph: Graph, op: Op) -> Labels | Refuse:
        equation = op.text("equation", "").replace(" ", "")
        texts = terms(equation)
        plain = len(texts) == 3 == len(op.inputs) + 1 and all(map(is_plain, texts))
        dims = [graph.dims(value) for value in (*op.inputs, op.output) if value is not None]
        if plain and (len(dims) < 3 or any(found is None for found in dims)):
            return refuse(op, "unknown-shape", "the rank of a tensor is not known")
        axes = [axes_of(text, len(found or ())) for text, found in zip(texts, dims, strict=False)]
        names = [name for one in axes for name in one or ()]
        plain = plain and all(one is not None and len(set(one)) == len(one) for one in axes)
        if not plain or any(names.count(name) < 2 for name in names):
            return refuse(op, "not-contracted", f"{equation} is no contraction of two operands that it names")
        left, right, output = (one or () for one in axes)
        if any(name.startswith(DOTS) and name not in output for name in names):
            return refuse(op, "not-contracted", f"{equation} adds up axes that it does not name")
        sizes = [dict(zip(one, found or (), strict=True)) for one, found in zip((left, right), dims, strict=False)]
        if any(sizes[1].get(name, dim) != dim for name, dim in sizes[0].items()):
            return refuse(op, "unknown-shape", "the operands have other sizes for one letter")
        return Labels((left, right), output)
