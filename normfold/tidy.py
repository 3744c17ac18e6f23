"""An exported graph made presentable: no source paths in it, weights and outputs under names that people know."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

_SCOPES = "pkg.torch.onnx.name_scopes"
_STACK = "pkg.torch.onnx.stack_trace"
_PROGRAM = "pkg.torch.export.ExportedProgram."


def strip_paths(model: ir.Model) -> None:
    """Remove metadata that shows the author's file system, or describes the program that the graph no longer is."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.pop(_STACK, None)
    for function in model.functions.values():
        for node in function:
            node.metadata_props.pop(_STACK, None)
    for key in [key for key in model.graph.metadata_props if key.startswith(_PROGRAM)]:
        del model.graph.metadata_props[key]


def name_weights(model: ir.Model, state: Mapping[str, torch.Tensor]) -> None:
    """Name transposed weights after their parameter: the exporter folds Linear's transpose into a `val_7`.

    `blocks.0.fc1.weight.T` is given only to an initializer that equals the transposed parameter of the module (the
    node's scope) that reads it.
    """
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if value.name in state or tensor is None or len(tensor.shape) != 2:
            continue
        for name in _scope_weights(value, state):
            parameter = state[name].detach()
            new = f"{name}.T"
            same = tuple(parameter.shape[::-1]) == tuple(tensor.shape.numpy()) and new not in model.graph.initializers
            if same and np.array_equal(parameter.numpy().T, tensor.numpy()):
                value.name = new
                break


def _scope_weights(value: ir.Value, state: Mapping[str, torch.Tensor]) -> Iterator[str]:
    for node in value.consumers():
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        # The last scope is the operator, the one before it the module that called it.
        prefix = f"{scopes[-2]}." if len(scopes) > 1 and scopes[-2] else ""
        yield from (name for name in state if name.startswith(prefix) and state[name].ndim == 2)


def name_outputs(model: ir.Model, program: torch.export.ExportedProgram) -> None:
    """Name the outputs `output`, `output_0`... or after the keys of the dict that the model returns."""
    outputs = model.graph.outputs
    spec = program.call_spec.out_spec
    if spec is None or spec.num_leaves != len(outputs):
        return
    structure = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    names = [_output_name(path) for path, _ in pytree.tree_flatten_with_path(structure)[0]]
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    taken |= {value.name for node in model.graph for value in node.outputs if value not in outputs}
    owned = [value.producer() is not None for value in outputs]
    if len(set(names)) < len(names) or len(set(outputs)) < len(names) or taken & set(names) or not all(owned):
        return
    for value, name in zip(outputs, names, strict=True):
        value.name = name


def _output_name(path: Sequence[Any]) -> str:
    """A dict's key stands for itself; a place in a tuple is numbered: `logits`, `output_0`, `hidden_1`."""
    keys = [str(getattr(step, "key", getattr(step, "idx", getattr(step, "name", step)))) for step in path]
    return "_".join(keys if keys and not keys[0].isdigit() else ["output", *keys])
