"""Sequences, which are lists here, and optionals, which are a value or None."""

from __future__ import annotations

from typing import Any

import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import Tensor, Value, axis_in, moved, size_of

Sequence = list[Value]


def construct(call: Call, *items: Value) -> Sequence:
    """A sequence of the inputs."""
    return list(items)


def empty_sequence(call: Call) -> Sequence:
    """A sequence of nothing."""
    call.attribute("dtype")
    return []


def at(call: Call, items: Sequence, position: Tensor) -> Value:
    """The item at a position; negative ones count from the end."""
    return items[axis_in(int(position), len(items))]


def insert(call: Call, items: Sequence, item: Value, position: Tensor | None = None) -> Sequence:
    """The sequence with one more item in front of a position, by default at the end."""
    place = len(items) if position is None else int(position)
    if place != len(items):
        axis_in(place, len(items))
    return [*items[:place], item, *items[place:]]


def erase(call: Call, items: Sequence, position: Tensor | None = None) -> Sequence:
    """The sequence without the item at a position, by default the last."""
    place = axis_in(-1 if position is None else int(position), len(items))
    return [*items[:place], *items[place + 1 :]]


def length(call: Call, items: Sequence) -> Tensor:
    """How many items there are."""
    return torch.tensor(len(items), dtype=torch.int64)


def split_to_sequence(call: Call, x: Value, split: Tensor | None = None) -> Sequence:
    """Parts of X along an axis: of these sizes, of this one size, or single slices, by default with their axis."""
    axis, keep = axis_in(call.integer("axis", 0), x.ndim), call.integer("keepdims", 1)
    whole = x.shape[axis]
    if split is None:
        sizes = [1] * whole
    elif split.ndim == 0:
        size = int(split)
        sizes = [min(size, whole - start) for start in range(0, whole, size)]
    else:
        sizes = split.tolist()
    if not sizes:
        return []
    drop = split is None and not keep

    def parts(values: Tensor) -> list[Tensor]:
        found = [part.clone() for part in torch.split(values, sizes, axis)]
        return [part.squeeze(axis) for part in found] if drop else found

    return list(moved(parts, x))


def concat_from_sequence(call: Call, items: Sequence) -> Value:
    """The items, one behind the other, along an axis that they have, or a new one."""
    new = call.integer("new_axis", 0)
    axis = axis_in(call.integer("axis", 0), items[0].ndim + new)
    call.reserve(sum(map(size_of, items)))
    return moved(lambda *values: torch.stack(values, axis) if new else torch.cat(values, axis), *items)


def sequence_map(call: Call, items: Sequence, *others: Value) -> tuple[Sequence, ...]:
    """The body on every item; other sequences go along, other tensors are the same for all."""
    body = call.body("body")
    found: list[Sequence] = [[] for _ in body.outputs]
    for number, item in enumerate(items):
        call.meter.run(call.label)
        results = body(item, *(other[number] if isinstance(other, list) else other for other in others))
        for column, result in zip(found, results, strict=True):
            column.append(result)
    return tuple(found)


def optional(call: Call, x: Value = None) -> Value:
    """The input, or nothing of a type."""
    call.attribute("type")
    return x


def has_element(call: Call, x: Value = None) -> Tensor:
    """Whether there is something."""
    return torch.tensor(x is not None)


def get_element(call: Call, x: Any) -> Value:
    """What is there."""
    if x is None:
        raise ValueError("there is no element")
    return x


ROWS: Rows = {
    "ConcatFromSequence": {(11,): concat_from_sequence},
    "Optional": {(15, 28): optional},
    "OptionalGetElement": {(15, 18, 28): get_element},
    "OptionalHasElement": {(15, 18, 28): has_element},
    "SequenceAt": {(11,): at},
    "SequenceConstruct": {(11,): construct},
    "SequenceEmpty": {(11,): empty_sequence},
    "SequenceErase": {(11,): erase},
    "SequenceInsert": {(11,): insert},
    "SequenceLength": {(11,): length},
    "SequenceMap": {(17,): sequence_map},
    "SplitToSequence": {(11, 24): split_to_sequence},
}
