"""The operators of a model, in order, those of its subgraphs too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from normfold.graph.scopes import node_name
from normfold.graph.types import STANDARD, Model, Node, Op, Value


def _attributes(node: Node) -> dict[str, Any]:
    return {name: attr.value for name, attr in node.attributes.items()}


def _captured(node: Node) -> tuple[Value, ...]:
    """Values of the enclosing graph that the subgraphs of `node` read."""
    found: list[Value] = []
    for graph in bodies(node):
        inner = {id(value) for item in graph for value in item.outputs} | {id(value) for value in graph.inputs}
        reads = [value for item in graph for value in (*item.inputs, *_captured(item)) if value is not None]
        found += [value for value in (*reads, *graph.outputs) if id(value) not in inner]
    return tuple(found)


def operators(model: Model) -> list[Op]:
    """The main graph's operators, in order."""
    return [_operator(node, index) for index, node in enumerate(model.graph)]


def inner_operators(model: Model) -> list[Op]:
    """Those of the bodies of If, Loop and Scan, each with the index of the operator of the main graph that runs it."""
    found: list[Op] = []
    for index, node in enumerate(model.graph):
        waiting = bodies(node)
        while waiting:
            body = waiting.pop(0)
            found += [_operator(inner, index) for inner in body]
            waiting += [deeper for inner in body for deeper in bodies(inner)]
    return found


def _operator(node: Node, index: int) -> Op:
    return Op(
        type=node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}",
        index=index,
        name=node_name(node),
        inputs=tuple(node.inputs) + _captured(node),
        outputs=tuple(node.outputs),
        attributes=_attributes(node),
    )


def bodies(node: Node) -> list[ir.Graph]:
    """The graphs that an If, a Loop or a Scan runs."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.value
    return found


def opset(model: Model) -> int:
    """The version of the standard operators that `model` is written in."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", onnx.defs.onnx_opset_version()))


def live(ops: Sequence[Op], outputs: Iterable[Value]) -> list[Op]:
    """The operators of `ops` that the outputs depend on, in order."""
    wanted = set(outputs)
    kept: list[Op] = []
    for op in reversed(ops):
        if any(value in wanted for value in op.outputs):
            wanted.update(value for value in op.inputs if value is not None)
            kept.append(op)
    return kept[::-1]


def op_counts(model: Model) -> dict[str, int]:
    """How often each operator occurs in the main graph, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph).most_common())
