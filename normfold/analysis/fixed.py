"""Which LayerNorms and RMSNorms are fixed maps: those whose epsilon dwarfs the variance of all that they read.

    w * (x - mean(x)) / sqrt(var(x) + eps) + b,  where  1 - 1 / sqrt(1 + var / eps)  <=  var / (2 * eps)

Below 2^-24 the statistic cannot matter in float32: `var + eps` is rounded to `eps`. Networks that were trained to do
without their LayerNorms are published so, with an epsilon of 1e12 and a weight of 1e6 (Heimersheim 2024,
arXiv:2409.13710). What is left is a mean and a map of each channel: `w / sqrt(eps) * (x - mean(x)) + b`. The map folds
as any other; the mean goes into the weights that read it: `(x - mean(x)) W = x (W - mean of the rows of W)`.

Measured on inputs, not proved: other inputs may have a larger variance. rewrite/fixed.py carries it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normfold.analysis.centre import Centred
from normfold.analysis.recognition.naming import site_names
from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import name_of, others_are_read, rank_of, value_at, weight_and_bias
from normfold.analysis.rules.batch_norm import EPSILON
from normfold.graph.operators import operators
from normfold.graph.types import Model, Op, Value
from normfold.graph.view import Graph
from normfold.inputs.cases import SEEN, Array, Case, draw_cases
from normfold.inputs.spec import InputSpec
from normfold.norms.base import NormModule
from normfold.norms.kinds import token_norm_of

# Half the distance from 1 to the next float32: added to 1, less is nothing.
NOTHING = 2.0**-24
# The kind of a norm whose statistic cannot matter, behind what it is.
FIXED = " (fixed)"


@dataclass(frozen=True, slots=True)
class FixedNorm:
    """output: the tensor that the norm writes. name: for people. centred: whether it subtracts a mean.

    epsilon: its own. variance: the largest variance, or mean square, that it read, as a multiple of epsilon.
    """

    output: str
    name: str
    centred: bool
    epsilon: float
    variance: float

    @property
    def bound(self) -> float:
        """The relative error of the fixed map, on what it read, at most."""
        return self.variance / 2.0


@dataclass(frozen=True, slots=True)
class FixedStatistics:
    """norms: what becomes a fixed map. kept: the names of the others, and why."""

    norms: tuple[FixedNorm, ...] = ()
    kept: tuple[tuple[str, Refuse], ...] = ()

    def without(self, output: str, why: Refuse) -> FixedStatistics:
        """The same, where the norm that writes `output` stays as it is."""
        gone = [(norm.name, why) for norm in self.norms if norm.output == output]
        return FixedStatistics(tuple(norm for norm in self.norms if norm.output != output), (*self.kept, *gone))

    def renamed(self, norms: Sequence[NormModule]) -> list[NormModule]:
        """The norm modules of the source, those of them marked that are fixed maps."""
        fixed = {norm.name for norm in self.norms}
        return [NormModule(one.name, one.kind + FIXED, one.channels) if one.name in fixed else one for one in norms]


def plan_fixed(
    model: Model, specs: Sequence[InputSpec], norms: Sequence[NormModule], cases: Sequence[Case] | None = None
) -> FixedStatistics:
    """What the norms of `model`, which needs shapes (`graph.prepare`), read; those that are fixed maps by it.

    cases: the inputs that are looked at, by default `SEEN` drawn ones. Raises GraphError where the graph cannot run,
    CannotJudgeError where memory runs out or an operator is not known.
    """
    graph = Graph(model, operators(model))
    found = [(op, site_names(op, norms)[0]) for op in graph.ops if token_norm_of(op.type) is not None]
    kept = [(name, why) for op, name in found if (why := _no_map(graph, op)) is not None]
    candidates = [(op, name) for op, name in found if _no_map(graph, op) is None]
    if not candidates:
        return FixedStatistics(kept=tuple(kept))
    cases = draw_cases(specs, count=SEEN) if cases is None else cases
    largest = _variances(model, [op for op, _ in candidates], cases)
    fixed = []
    for op, name in candidates:
        epsilon = op.number("epsilon", EPSILON)
        variance = largest.get(op, np.inf) / epsilon if epsilon > 0.0 else np.inf
        if variance <= NOTHING:
            fixed.append(FixedNorm(name_of(op.output), name, _is_centred(op), epsilon, variance))
            continue
        said = f"its variance reaches {variance:.3g} times its epsilon, and its statistic matters from {NOTHING:.2g} on"
        kept.append((name, refuse(op, "statistic", said)))
    return FixedStatistics(tuple(fixed), tuple(kept))


def _is_centred(op: Op) -> bool:
    kind = token_norm_of(op.type)
    return kind is not None and kind.centred


def _no_map(graph: Graph, op: Op) -> Refuse | None:
    """Why a norm can be no fixed map of each channel, whatever it reads."""
    weight, bias = weight_and_bias(op)
    source, rank = op.inputs[0], rank_of(graph, op.output)
    if rank is None or source is None or source in graph.inputs:
        return refuse(op, "unknown-shape", "the rank of its input is not known, or that is an input of the model")
    if op.integer("axis", -1) % rank != rank - 1:
        return refuse(op, "statistic", "its statistic runs over more than the channels")
    if others_are_read(graph, op):
        return refuse(op, "statistic-read", "its mean or deviation is read")
    if weight is None or not all(value is None or graph.is_constant(value) for value in (weight, bias)):
        return refuse(op, "two-tensors", "its weight or its bias is not a constant")
    return None


def _variances(model: Model, norms: Sequence[Op], cases: Sequence[Case]) -> dict[Op, float]:
    """The largest variance of a token, or mean square where no mean is subtracted, that each norm reads."""
    # Here, for it imports torch, which most graphs are analysed without.
    from normfold.graph.float64 import graph_tensors

    readers: dict[str, list[Op]] = {}
    for op in norms:
        source = op.inputs[0]
        readers.setdefault("" if source is None else name_of(source), []).append(op)
    largest: dict[Op, float] = {}

    def keep(name: str, array: Array) -> None:
        for op in readers.get(name, ()) if array.size else ():
            square = array.var(axis=-1) if _is_centred(op) else np.square(array).mean(axis=-1)
            # What is not a number is no small variance.
            seen = float(square.max()) if np.all(np.isfinite(square)) else np.inf
            largest[op] = max(largest.get(op, 0.0), seen)

    for case in cases:
        graph_tensors(model, case, keep)
    return largest


def readers_of_mean(graph: Graph, value: Value, *, keep_tied: bool) -> list[Centred] | Refuse:
    """The weights that read `x - mean(x)`, the tensor `value`, and can read `x`; or who cannot do without its mean."""
    found: list[Centred] = []
    waiting: list[tuple[Value, int]] = [(value, (rank_of(graph, value) or 0) - 1)]
    while waiting:
        tensor, axis = waiting.pop()
        if tensor in graph.outputs:
            return Refuse("statistic", f"{tensor.name}: it is an output of the model, and its mean is subtracted")
        for op in graph.readers(tensor):
            rule, port = rule_of(op.type), op.inputs.index(tensor)
            weight = rule.contracting_weight(graph, op, port, axis) if rule.reads(op) else None
            if weight is not None:
                if keep_tied and len(graph.readers(value_at(op, weight[0]))) > 1:
                    return refuse(op, "shared-weight", "several operators read its weight, and copies are forbidden")
                found.append(Centred(name_of(op.output), *weight))
                continue
            axes = rule.without_mean(graph, op, port, axis)
            if isinstance(axes, Refuse) or any(port > 0 for port in axes) or op.inputs.count(tensor) > 1:
                return refuse(op, "statistic", "the mean that is subtracted in front of it cannot go into a weight")
            waiting += [(op.outputs[-1 - port], there) for port, there in axes.items() if port < 0]
    return found
