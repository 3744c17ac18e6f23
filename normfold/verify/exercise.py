"""What the samples of a verification reached of a graph, and what they did not: nothing is proved of the rest.

Watched are the branches of If, the conditions of Where, the rows of constant tables that Gather and its like read, and
the channels that enter a layer with weights or a BatchNormalization, which may become part of one (where one is 0 in
every sample, the weights that it meets are not tested).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from normfold.graph.evaluator.call import Node
from normfold.inputs.of_graph import TABLES
from normfold.system.text import first_few

# Operators whose result jumps where a float passes a threshold or another float.
JUMPS = frozenset(
    {"ArgMax", "ArgMin", "Ceil", "Floor", "Hardmax", "NonMaxSuppression", "NonZero", "Round", "Sign", "TopK", "Unique"}
)
_LAYERS = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "FusedConv", "FusedMatMul", "Gemm", "MatMul"})
_ON_AXIS_1 = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "FusedConv"})


class Exercise:
    """What every run of the graph reaches, collected by `saw`."""

    def __init__(self, model: ir.Model) -> None:
        nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
        nodes += [node for function in model.functions.values() for node in function]
        self.jumps = any(node.op_type in JUMPS for node in nodes)
        self._constants = {
            value
            for graph in model.graphs()
            for value in graph.initializers.values()
            if value.const_value is not None and value not in model.graph.inputs
        }
        self._constants |= {value for node in nodes if node.op_type == "Constant" for value in node.outputs}
        self._branches: dict[str, set[bool]] = {}
        self._conditions: dict[str, set[bool]] = {}
        self._rows: dict[ir.Value, torch.Tensor] = {}
        self._channels: dict[ir.Value, torch.Tensor] = {}

    def saw(self, node: Node, read: Sequence[Any], written: Sequence[Any]) -> None:
        """One operator has run."""
        kind = node.op_type
        if kind == "If":
            self._branches.setdefault(_label(node), set()).add(bool(read[0].reshape(-1)[0]))
        elif kind == "Where" and node.inputs[0] not in self._constants and read[0].numel():
            seen = self._conditions.setdefault(_label(node), set())
            seen.update(found for found in (True, False) if bool((read[0] == found).any()))
        elif kind in TABLES:
            for table, rows in TABLES[kind]:
                given = len(node.inputs) > max(table, rows) and node.inputs[table] in self._constants
                if given and node.inputs[rows] is not None and node.inputs[rows] not in self._constants:
                    self._read_rows(node, table, read[table], read[rows])
        elif kind in _LAYERS and node.inputs[1] in self._constants and node.inputs[0] not in self._constants:
            self._read_channels(node, read[0])

    def _read_rows(self, node: Node, number: int, table: Any, indices: Any) -> None:
        """number: which input of the operator the table is."""
        value = node.inputs[number]
        axes = [node.attributes[name].as_int() for name in ("axis", "batch_dims") if name in node.attributes]
        if value is None or not isinstance(table, torch.Tensor) or table.dim() < 2 or any(axes):
            return
        if node.op_type == "GatherND":
            indices = indices[..., 0]
        seen = self._rows.setdefault(value, torch.zeros(table.shape[0], dtype=torch.bool))
        seen[indices.reshape(-1).long() % table.shape[0]] = True

    def _read_channels(self, node: Node, x: torch.Tensor) -> None:
        value, axis = node.inputs[0], 1 if node.op_type in _ON_AXIS_1 else x.dim() - 1
        if value is None or x.dim() < 2 or not x.numel():
            return
        turned = node.attributes.get("transA")
        axis = 0 if turned is not None and turned.as_int() else axis
        before = self._channels.get(value)
        if before is not None and (before.numel() != x.shape[axis] or bool(before.all())):
            return
        silent = torch.arange(x.shape[axis]) if before is None else torch.nonzero(~before)[:, 0]
        chosen = x if before is None else x.index_select(axis, silent)
        alive = torch.zeros(x.shape[axis], dtype=torch.bool) if before is None else before
        alive[silent] = (chosen != 0).any(dim=[other for other in range(x.dim()) if other != axis])
        self._channels[value] = alive

    def missed(self) -> tuple[str, ...]:
        """What no run has reached: a line for every kind."""
        found = []
        branches = [
            f"{'else' if True in seen else 'then'} of {name}" for name, seen in self._branches.items() if len(seen) < 2
        ]
        if branches:
            found.append(f"branches never taken: {first_few(branches)}")
        sides = [f"{name} was always {seen == {True}}" for name, seen in self._conditions.items() if len(seen) == 1]
        if sides:
            found.append(f"conditions with one outcome only: {first_few(sides)}")
        found += _counted("rows of a table never read", self._rows)
        found += _counted("channels that were 0 in every sample", self._channels)
        return tuple(found)


def _counted(what: str, seen: dict[ir.Value, torch.Tensor]) -> list[str]:
    short = {str(value.name): (int((~mask).sum()), mask.numel()) for value, mask in seen.items() if not mask.all()}
    if not short:
        return []
    missing, of = (sum(numbers) for numbers in zip(*short.values(), strict=True))
    listed = first_few([f"{name} ({count:,} of {total:,})" for name, (count, total) in short.items()])
    return [f"{what}: {missing:,} of {of:,}, in {listed}"]


def _label(node: Node) -> str:
    return str(node.name or next((value.name for value in node.outputs if value.name), node.op_type))
