"""Operators of a file in an order in which they can run: some converters append what belongs in front.

onnxruntime sorts for itself, so that nobody notices; everything here relies on the order that the standard asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from onnx import ModelProto, NodeProto

from normfold.graph.wellformed import subgraphs


def sort(model: ModelProto) -> None:
    """Bring the operators of the main graph into order, in place; those of a cycle stay as they are.

    Within a body, onnxruntime asks for order itself.
    """
    nodes = model.graph.node
    writer = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    try:
        needs = {number: {writer[name] for name in _reads(node) if name in writer} for number, node in enumerate(nodes)}
        if all(before < number for number, needed in needs.items() for before in needed):
            return
        order = tuple(TopologicalSorter(needs).static_order())
    except (CycleError, RecursionError):  # the check of the whole file says so
        return
    copies = [NodeProto.FromString(nodes[number].SerializeToString()) for number in order]
    for node, copy in zip(nodes, copies, strict=True):
        node.CopyFrom(copy)


def _reads(node: NodeProto) -> Iterator[str]:
    """The tensors that an operator reads, those that its bodies take from around them too."""
    yield from node.input
    for body in subgraphs(node):
        own = {name for inner in body.node for name in inner.output}
        own |= {value.name for value in (*body.input, *body.initializer)}
        read = [name for inner in body.node for name in _reads(inner)] + [value.name for value in body.output]
        yield from (name for name in read if name not in own)
