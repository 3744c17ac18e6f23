"""Parallel branches: a sum of convolutions of one tensor is one convolution.

`conv(x, K1) + conv(x, K2) + a * x = conv(x, K1 + K2 + diag(a))` where the smaller kernels fit into the largest one:
same strides and groups, and every tap reads where one of the largest kernel's taps reads. RepVGG's blocks (arXiv
2101.03697) are this once their norms are folded. A norm that could not fold alone goes with it: in a branch (a channel
with scale 0), or behind the sum (QARepVGG's, arXiv 2212.01593, where a skip and a ReLU are on either side of it).

Only branches that hold a norm, or whose convolutions took one up, are merged: a graph without norms stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np

from normfold.analysis.merge.stored_maps import is_unchanged, stored_map
from normfold.analysis.placement.propagate import State
from normfold.analysis.plan import Branch, Merge
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import name_of, only_along, value_at
from normfold.analysis.rules.windows import Window, kernel_of
from normfold.graph.affine import Array
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph

# Sums of more are no parallel branches of one layer; a chain of Adds as long as a network would be walked at each.
_MOST_BRANCHES = 32


@dataclass(frozen=True, slots=True)
class Merged:
    """A merge, and the operators that it takes up: the convolution that stays, and the fixed maps of its branches."""

    merge: Merge
    into: Op
    maps: tuple[Op, ...]


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One summand, `scale * conv + shift` on stored tensors; the shared tensor itself where there is no convolution.

    maps: the fixed maps that lie in it.
    """

    conv: Op | None
    scale: Array
    shift: Array
    maps: tuple[Op, ...] = ()


def merges(state: State, *, leave: Collection[Op]) -> list[Merged]:
    """Every sum of branches that becomes one convolution.

    leave: operators that are to stay: norms that were not asked for, convolutions whose weight others read too.
    """
    found: list[Merged] = []
    inner: set[Op] = set()
    # From the last operator backwards: the outermost of nested sums is seen first.
    for op in reversed(state.graph.ops):
        if op in inner or _sign(op) is None:
            continue
        merged, sums = _merge(state, op, frozenset(leave))
        if merged is not None:
            found.append(merged)
            inner.update(sums)
    return found[::-1]


def _sign(op: Op) -> float | None:
    """With which sign an operator adds its second operand to its first; None where it does something else."""
    return rule_of(op.type).sign_of_second if len(op.inputs) == 2 else None


def _serves_one(graph: Graph, value: Value) -> bool:
    return len(graph.readers(value)) == 1 and value not in graph.outputs


def _merge(state: State, op: Op, leave: frozenset[Op]) -> tuple[Merged | None, list[Op]]:
    """The one convolution that a sum is, and the sums that only serve it, itself included."""
    dims = state.graph.dims(op.output)
    source = _source(state, op)
    if dims is None or len(dims) < 3 or source is None:
        return None, []
    sums: list[Op] = []
    leaves = _summands(state, op, source, (np.ones(1), np.zeros(1)), sums)
    if leaves is None or any(one in leave for leaf in leaves for one in (*leaf.maps, leaf.conv)):
        return None, []
    behind = _behind(state, op, leave)
    return _assembled(state, op, source, leaves, behind) if _touched(state, leaves, behind) else None, sums


def _source(state: State, op: Op) -> Value | None:
    """What the first convolution in a sum reads."""
    waiting, seen = [value_at(op, 1), value_at(op, 0)], 0
    while waiting and seen < _MOST_BRANCHES:
        value, seen = waiting.pop(), seen + 1
        producer = state.graph.producer.get(value)
        while producer is not None and producer.affine is not None:
            producer = state.graph.producer.get(value_at(producer, 0))
        if producer is None:
            continue
        if rule_of(producer.type).convolves:
            return _resolved(state, value_at(producer, 0))
        if _sign(producer) is not None:
            waiting += [value_at(producer, 1), value_at(producer, 0)]
    return None


def _resolved(state: State, value: Value) -> Value:
    """The tensor that stands for `value` once the maps that became no-ops are gone."""
    while (op := state.graph.producer.get(value)) is not None and op.affine is not None and is_unchanged(state, op):
        value = value_at(op, 0)
    return value


def _summands(state: State, op: Op, source: Value, outer: tuple[Array, Array], sums: list[Op]) -> list[_Leaf] | None:
    """The summands of `scale * op + shift`; None unless each is one of `source`, of the shape of the sum.

    outer: scale and shift; the shift goes with the first. sums: takes up the sums that were walked through.
    """
    sums.append(op)
    operands, sign, dims = [value_at(op, 0), value_at(op, 1)], _sign(op), state.graph.dims(op.output)
    if len(sums) >= _MOST_BRANCHES or sign is None or any(state.graph.dims(value) != dims for value in operands):
        return None
    if operands[0] is operands[1]:
        return None
    scale, shift = outer
    first = _branch(state, operands[0], source, (scale, shift), sums)
    second = _branch(state, operands[1], source, (sign * scale, np.zeros(1)), sums)
    return None if first is None or second is None else [*first, *second]


def _branch(
    state: State, value: Value, source: Value, outer: tuple[Array, Array], sums: list[Op]
) -> list[_Leaf] | None:
    """The summands of `scale * value + shift`: see `_summands`."""
    graph, (scale, shift) = state.graph, outer
    maps: list[Op] = []
    while _resolved(state, value) is not source:
        op = graph.producer.get(value)
        if op is None or not _serves_one(graph, value):
            return None
        if op.affine is not None:
            parts = stored_map(state, op)
            if not all(only_along(part, (1,)) for part in parts):
                return None
            a, b = (part.reshape(-1) for part in parts)
            scale, shift = scale * a, shift + scale * b
            maps.append(op)
            value = value_at(op, 0)
        elif _sign(op) is not None:
            leaves = _summands(state, op, source, (scale, shift), sums)
            return None if leaves is None else [replace(leaves[0], maps=(*maps, *leaves[0].maps)), *leaves[1:]]
        else:
            return [_Leaf(op, scale, shift, tuple(maps))] if _is_plain(state, op, source) else None
    return [_Leaf(None, scale, shift, tuple(maps))]


def _behind(state: State, op: Op, leave: frozenset[Op]) -> tuple[Op, ...]:
    """The fixed maps that follow on a sum, as far as nothing else reads what is in between."""
    maps: list[Op] = []
    value = op.output
    while _serves_one(state.graph, value):
        (reader,) = state.graph.readers(value)
        if reader.affine is None or reader in leave:
            break
        if not all(only_along(part, (1,)) for part in stored_map(state, reader)):
            break
        maps.append(reader)
        value = reader.output
    while maps and is_unchanged(state, maps[-1]):
        maps.pop()
    return tuple(maps)


def _is_plain(state: State, op: Op, source: Value) -> bool:
    """Whether `op` is a convolution of `source` with constant weights, and no map of biases behind it."""
    graph, rule = state.graph, rule_of(op.type)
    if not rule.convolves or not rule.reads(op):
        return False
    weights = [value for value in op.inputs[1:] if value is not None]
    if not all(graph.is_constant(value) for value in weights) or _resolved(state, value_at(op, 0)) is not source:
        return False
    return not state.added_elements(op)


def _touched(state: State, leaves: list[_Leaf], behind: tuple[Op, ...]) -> bool:
    """Whether a norm lies in the branches or behind their sum, or was folded into their convolutions."""
    maps = [*behind, *(op for leaf in leaves for op in leaf.maps)]
    if any(op.affine is not None and op.affine.is_norm for op in maps):
        return True
    convolutions = [leaf.conv for leaf in leaves if leaf.conv is not None]
    return any(True for op in convolutions for _ in rule_of(op.type).edits(state.graph, op, state.frame))


def _assembled(state: State, op: Op, source: Value, leaves: list[_Leaf], behind: tuple[Op, ...]) -> Merged | None:
    graph = state.graph
    convolutions = [leaf.conv for leaf in leaves if leaf.conv is not None]
    base = max(convolutions, key=lambda one: int(np.prod(kernel_of(graph, one))))
    around = rule_of(base.type).window(graph, base)
    dims = graph.dims(source)
    if around is None or dims is None or not dims[1].static:
        return None
    branches = []
    outer, rest = _composed(state, behind)
    for leaf in leaves:
        taps = _taps(graph, base, around, leaf.conv)
        if taps is None or (leaf.conv is None and graph.dims(op.output) != dims):
            return None
        conv = None if leaf.conv is None else name_of(leaf.conv.output)
        branches.append(Branch(conv, taps, outer * leaf.scale, outer * leaf.shift + rest))
        rest = np.zeros(1)  # a shift of the sum is one of its first branch
    names = tuple(leaf.conv.name if leaf.conv is not None else "identity" for leaf in leaves)
    last = behind[-1] if behind else op
    merge = Merge(name_of(last.output), name_of(source), name_of(base.output), tuple(branches), base.name, names)
    return Merged(merge, base, (*behind, *(one for leaf in leaves for one in leaf.maps)))


def _taps(graph: Graph, base: Op, around: Window, conv: Op | None) -> tuple[tuple[int, ...], ...] | None:
    """Which taps of the largest kernel, axis by axis, read where those of `conv` read; None where one is missing.

    Tap k of a kernel reads `position * stride + k * dilation - padding`; an identity reads `position`.
    """
    kernel = kernel_of(graph, base)
    one = (1,) * len(kernel)
    if conv is None:
        own, small = Window(one, one, (0,) * len(kernel), (0,) * len(kernel)), one
    else:
        found = rule_of(conv.type).window(graph, conv)
        if found is None or conv.integer("group", 1) != base.integer("group", 1):
            return None
        own, small = found, kernel_of(graph, conv)
    if own.strides != around.strides:
        return None
    taps = []
    for axis, size in enumerate(small):
        reads = [k * own.dilations[axis] - own.begins[axis] + around.begins[axis] for k in range(size)]
        if any(read % around.dilations[axis] for read in reads):
            return None
        taps.append(tuple(read // around.dilations[axis] for read in reads))
        if not all(0 <= tap < kernel[axis] for tap in taps[-1]):
            return None
    return tuple(taps)


def _composed(state: State, maps: Iterable[Op]) -> tuple[Array, Array]:
    """Fixed maps one after the other, on stored tensors."""
    scale, shift = np.ones(1), np.zeros(1)
    for op in maps:
        a, b = stored_map(state, op)
        scale, shift = scale * a.reshape(-1), shift * a.reshape(-1) + b.reshape(-1)
    return scale, shift
