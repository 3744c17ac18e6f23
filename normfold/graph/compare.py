"""What differs between two graphs: their inputs and outputs, operators, weights and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.graph.operators import op_counts, opset
from normfold.graph.types import Model, Node, Value


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant that both graphs have under one name. largest: the largest difference of an entry; relative: to the
    largest entry. why: what else differs, its type or its shape; empty where only values do.
    """

    name: str
    largest: float = 0.0
    relative: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """From one graph to another.

    values: inputs and outputs, by what they are called: how they are declared here and there (None: not at all).
    counts: operators whose number differs. removed, added: operators by name and type that only one graph has.
    changed: those of one name whose type, inputs or attributes differ, and how. weights: constants of one name with
    other contents; equal: how many are the same. lost, new: constants that only one graph has, with their elements.
    """

    opsets: tuple[int, int]
    values: Mapping[str, tuple[str | None, str | None]] = field(default_factory=dict)
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    removed: tuple[tuple[str, str], ...] = ()
    added: tuple[tuple[str, str], ...] = ()
    changed: Mapping[str, str] = field(default_factory=dict)
    weights: tuple[Weight, ...] = ()
    equal: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    new: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether the graphs are the same, but for metadata and the names of tensors inside."""
        parts = (self.values, self.counts, self.removed, self.added, self.changed, self.weights, self.lost, self.new)
        return self.opsets[0] == self.opsets[1] and not any(parts)


def compare(first: Model, second: Model) -> Difference:
    """What is different in `second`. Operators are matched by their names, constants by theirs."""
    counts = [op_counts(model) for model in (first, second)]
    nodes = [_by_name(model) for model in (first, second)]
    weights = [_constants(model) for model in (first, second)]
    both = [name for name in weights[0] if name in weights[1]]
    compared = [_weight(name, weights[0][name], weights[1][name]) for name in both]
    differing = tuple(weight for weight in compared if weight.why or weight.largest)
    return Difference(
        opsets=(opset(first), opset(second)),
        values=_values(first, second),
        counts={
            op: (counts[0].get(op, 0), counts[1].get(op, 0))
            for op in sorted({*counts[0], *counts[1]})
            if counts[0].get(op, 0) != counts[1].get(op, 0)
        },
        removed=tuple((name, node.op_type) for name, node in nodes[0].items() if name not in nodes[1]),
        added=tuple((name, node.op_type) for name, node in nodes[1].items() if name not in nodes[0]),
        changed={
            name: why for name, node in nodes[0].items() if name in nodes[1] and (why := _changed(node, nodes[1][name]))
        },
        weights=tuple(sorted(differing, key=lambda weight: -weight.relative)),
        equal=len(both) - len(differing),
        lost={name: tensor.size for name, tensor in weights[0].items() if name not in weights[1]},
        new={name: tensor.size for name, tensor in weights[1].items() if name not in weights[0]},
    )


def _by_name(model: Model) -> dict[str, Node]:
    """The operators of the main graph; of two of one name, and those without, the output makes the name."""
    found: dict[str, Node] = {}
    for node in model.graph:
        name = node.name or ""
        if not name or name in found:
            name = f"{name or node.op_type} -> {node.outputs[0].name if node.outputs else ''}"
        found[name] = node
    return found


def _values(first: Model, second: Model) -> dict[str, tuple[str | None, str | None]]:
    sides = []
    for model in (first, second):
        inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
        told = {f"input {value.name}": _declared(value) for value in inputs}
        sides.append(told | {f"output {value.name}": _declared(value) for value in model.graph.outputs})
    names = dict.fromkeys((*sides[0], *sides[1]))
    return {
        name: (sides[0].get(name), sides[1].get(name)) for name in names if sides[0].get(name) != sides[1].get(name)
    }


def _declared(value: Value) -> str:
    kind = value.dtype.name.lower() if value.dtype is not None else "?"
    return f"{kind}[{','.join(str(dim) for dim in value.shape)}]" if value.shape is not None else kind


def _constants(model: Model) -> dict[str, ir.TensorProtocol]:
    return {
        str(name): value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def _weight(name: str, first: ir.TensorProtocol, second: ir.TensorProtocol) -> Weight:
    if first.dtype != second.dtype:
        return Weight(name, why=f"{first.dtype.name.lower()} -> {second.dtype.name.lower()}")
    if first.shape != second.shape:
        return Weight(name, why=f"{list(first.shape.numpy())} -> {list(second.shape.numpy())}")
    left, right = first.numpy(), second.numpy()
    if not left.size or not _is_number(left):
        same = bool(np.array_equal(left, right))
        return Weight(name, why="" if same else "other contents")
    left, right = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(all="ignore"):
        apart = np.where((left == right) | (np.isnan(left) & np.isnan(right)), 0.0, np.abs(left - right))
        largest, scale = float(np.max(apart)), float(np.max(np.abs(left)))
    return Weight(name, largest, largest / scale if scale else float("inf") if largest else 0.0)


def _is_number(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "biuf" or array.dtype.itemsize <= 2


def _changed(first: Node, second: Node) -> str:
    """How an operator of one name differs, in words; empty where it does not."""
    if (first.domain, first.op_type) != (second.domain, second.op_type):
        return f"{first.op_type} -> {second.op_type}"
    parts = []
    inputs = [[value.name if value is not None else None for value in node.inputs] for node in (first, second)]
    if len(inputs[0]) != len(inputs[1]):
        parts.append(f"{len(inputs[0])} -> {len(inputs[1])} inputs")
    for name in sorted({*first.attributes, *second.attributes}):
        left, right = (_text(node, name) for node in (first, second))
        if left != right:
            parts.append(f"{name}: {left} -> {right}")
    return ", ".join(parts)


def _text(node: Node, name: str) -> str:
    attribute = node.attributes.get(name)
    if attribute is None:
        return "none"
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "a graph"
    value = attribute.value
    return f"tensor {value.numpy().tolist()}" if isinstance(value, ir.TensorProtocol) else str(value)
