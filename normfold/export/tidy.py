"""An exported graph made presentable: fewer operators for the same values, no source paths, names that people know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer._constant_folding import FoldConstantsPass
from onnxscript.rewriter import RewritePass, pattern
from onnxscript.rewriter.rules import common as rules
from torch.utils import _pytree as pytree

from normfold.graph.scopes import scopes

_STACK = "pkg.torch.onnx.stack_trace"
_PROGRAM = "pkg.torch.export.ExportedProgram."

# Constants of more elements than these are left to be computed (onnxscript's own limits).
_LARGEST_FOLDED, _LARGEST_RESULT = 8192, 512 * 512
# A rewrite makes constants that the next round folds; what two rounds leave is little.
_ROUNDS = 2


def simplify(model: ir.Model) -> None:
    """Fold constants and drop what does nothing; the function stays what it was, to the last digit.

    The exporter's own optimiser compares constants with 0 and 1 to within a tolerance (1e-8 and 1e-5), and with that
    drops the epsilon of a quotient; it merges batch norms into weights, and computes its merges in float32. So these
    are its passes with other rules: those that only move values about, and the operations with exactly 0 and 1.
    """
    rounds = ir.passes.PassManager(
        [
            FoldConstantsPass(
                shape_inference=True, input_size_limit=_LARGEST_FOLDED, output_size_limit=_LARGEST_RESULT
            ),
            RewritePass([*_NEUTRAL, *_MOVING]),
            passes.RemoveUnusedNodesPass(),
            passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            passes.RemoveUnusedOpsetsPass(),
        ],
        steps=_ROUNDS,
    )
    ir.passes.Sequential(
        passes.InlinePass(),
        rounds,
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)


def _neutral(operator: str, number: int, *, commutes: bool = False) -> list[pattern.RewriteRule]:
    """The rules that drop `x operator number`, for a constant that is this very number."""

    def operation(op: Any, x: Any, constant: Any) -> Any:
        return getattr(op, operator)(x, constant)

    def same(op: Any, x: Any, **_: Any) -> Any:
        return op.Identity(x)

    def is_neutral(context: Any, constant: ir.Value, **_: Any) -> bool:
        tensor = ir.convenience.get_const_tensor(constant)
        # Without axes, it does not broadcast `x` to another shape.
        return tensor is not None and not len(tensor.shape) and bool(tensor.numpy() == number)

    rule = pattern.RewriteRule(operation, same, is_neutral, name=f"{operator} {number}")
    return list(rule.commute()) if commutes else [rule]


_NEUTRAL = (
    *_neutral("Mul", 1, commutes=True),
    *_neutral("Add", 0, commutes=True),
    *_neutral("Sub", 0),
    *_neutral("Div", 1),
)
# Of onnxscript's default rules those that compute nothing anew. Left out: no-op arithmetic (approximate), merges of
# batch norms, of Min, Max, Clip and Relu (wrong for a bound below 0), of two Casts (which round twice), of two Slices
# into a Split (wrong for odd sizes).
_MOVING = (
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule,  # before the next: it makes work for it
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.fuse_pad_into_conv_rule,  # of padding with exactly 0
    rules.remove_optional_bias_from_conv_rule,  # of exactly 0
    rules.remove_optional_bias_from_conv_transpose_rule,
    rules.remove_optional_bias_from_gemm_rule,
)


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
        path = scopes(node)
        prefix = f"{path[-1]}." if path and path[-1] else ""
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
