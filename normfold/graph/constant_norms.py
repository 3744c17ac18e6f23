"""Norms of weights instead of tensors, computed once.

Networks that standardise their weights (NFNet, the BiT ResNets) call a batch norm on them: exported, it is a
BatchNormalization that is the same for every input. It is no norm of the model, and what it makes is a constant.
"""

from __future__ import annotations

import contextlib

import onnx_ir as ir
import onnx_ir.passes.common as passes

from normfold.errors import GraphError
from normfold.graph.constants import store_content
from normfold.graph.operators import bodies, operators
from normfold.graph.types import BATCH_NORM, STANDARD, Model, Node, Value
from normfold.graph.view import Graph


def compute_constant_norms(model: Model) -> None:
    """Store what every such norm makes, in place; computed in float64 and cast once."""
    found = _constant_norms(model)
    if not found:
        return
    graph = Graph(model, operators(model))
    for node in found:
        value = node.outputs[0]
        if value.name and value.dtype is not None and graph.is_constant(value):
            with contextlib.suppress(GraphError):  # what cannot be computed stays
                array = graph.constant(value).astype(value.dtype.numpy())
                store_content(model, value, ir.tensor(array, dtype=value.dtype), f"{value.name}.computed")
    passes.RemoveUnusedNodesPass()(model)


def _constant_norms(model: Model) -> list[Node]:
    """The BatchNormalizations that no input of the model reaches, and of which only the first output is read."""
    reached: set[Value] = set(model.graph.inputs)
    found = []
    for node in model.graph:
        if reached.isdisjoint(value for value in node.inputs if value is not None) and not bodies(node):
            if node.op_type == BATCH_NORM and node.domain in STANDARD and _only_first(model, node):
                found.append(node)
        else:
            reached.update(node.outputs)
    return found


def _only_first(model: Model, node: Node) -> bool:
    others = node.outputs[1:]
    return node.outputs[0] not in model.graph.outputs and not any(
        value.uses() or value in model.graph.outputs for value in others
    )
