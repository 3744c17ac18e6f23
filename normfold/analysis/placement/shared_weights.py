"""Weights that several operators read: what a fold would make of them.

Tied embeddings, a layer called twice: where the operators that read one weight end up in the same frames, one new
weight serves them all. Otherwise each gets a copy of its own, and the file grows by it. Vectors do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from normfold.analysis.edits import NewConstant
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import FrameOf, value_at
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph

# Untying is free at run time: every copy is read as often as its original was. It costs bytes, on disk and in memory;
# this many are not worth a refusal (docs/decisions/0007-tied-weights.md).
ALLOWED_BYTES = 1 << 20
ALLOWED_SHARE = 0.25


class SharedWeights:
    """The weights that several operators read, and the bytes that copies of them may add.

    keep: forbid every copy. Otherwise they may add ALLOWED_SHARE of the model's weights, or ALLOWED_BYTES.
    """

    def __init__(self, graph: Graph, *, keep: bool) -> None:
        self.graph = graph
        self.readers = {weight: found for weight, found in _weights(graph).items() if len(found) > 1}
        self.weights_of: dict[Op, list[Value]] = {}
        for weight, found in self.readers.items():
            for op, _ in found:
                self.weights_of.setdefault(op, []).append(weight)
        self.limit = 0.0 if keep else max(ALLOWED_BYTES, ALLOWED_SHARE * _total(graph))

    def added_bytes(self, reached: Iterable[Op], frame_of: FrameOf) -> dict[Value, int]:
        """What the copies of every shared weight around `reached` add, were tensors stored in these frames."""
        touched = dict.fromkeys(weight for op in reached for weight in self.weights_of.get(op, ()))
        found: dict[Value, int] = {}
        for weight in touched:
            own = _bytes(self.graph, weight)
            # What an operator reads may be a part of the weight: the parts together are no copy.
            versions = {
                version: own if version is None else _bytes(self.graph, value_at(op, index))
                for op, index in self.readers[weight]
                for version in [_version(self.graph, op, index, frame_of)]
            }
            found[weight] = max(0, sum(versions.values()) - own)
        return found

    def refusal(self, before: Mapping[Value, int], after: Mapping[Value, int]) -> Refuse | None:
        """Why the copies that would be added are too many, or None. before: the bytes of those that there are."""
        more = [weight for weight, size in after.items() if size > before.get(weight, 0)]
        total = sum({**before, **after}.values())
        if not more or total <= self.limit:
            return None
        why = f"several operators read it, and the fold would need copies of it ({total} bytes more)"
        return Refuse("shared-weight", f"{more[0].name}: {why}")


def _version(graph: Graph, op: Op, index: int, frame_of: FrameOf) -> tuple[object, ...] | None:
    """What becomes of input `index`; None while it stays as it is."""
    values = [value for value in (*op.inputs, *op.outputs) if value is not None and not graph.is_constant(value)]
    if all(frame_of(value).is_identity for value in values):
        return None
    for edit in rule_of(op.type).edits(graph, op, frame_of):
        if isinstance(edit, NewConstant) and edit.input == index:
            return edit.key
    return None


def _weights(graph: Graph) -> dict[Value, list[tuple[Op, int]]]:
    """Every stored weight, with the operators that read it, or what constant operators make of it, and the input."""
    found: dict[Value, list[tuple[Op, int]]] = {}
    for op in graph.ops:
        if op.outputs and all(graph.is_constant(value) for value in op.outputs):
            continue
        for index, value in enumerate(op.inputs):
            if value is None or not graph.is_constant(value):
                continue
            for weight in _stored(graph, value):
                if len(graph.dims(weight) or ()) > 1 and graph.is_floating(weight):
                    found.setdefault(weight, []).append((op, index))
    return found


def _stored(graph: Graph, value: Value) -> list[Value]:
    """What a constant is made from."""
    found: list[Value] = []
    seen, left = {value}, [value]
    while left:
        source = left.pop()
        before = graph.made_from(source)
        if not before:
            found.append(source)
        left += [one for one in dict.fromkeys(before) if one not in seen]
        seen.update(before)
    return found


def _bytes(graph: Graph, value: Value) -> int:
    return int(graph.size(value) * (value.dtype.itemsize if value.dtype is not None else 4))


def _total(graph: Graph) -> int:
    tensors = (value.const_value for value in graph.model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
