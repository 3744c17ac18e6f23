"""The input specifications that a model brings along: those of an ONNX graph, a program, an embedding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from normfold.errors import InputSpecError
from normfold.inputs import DTYPES, INTEGERS, InputSpec

_ONNX_NAMES = {"float": "float32", "double": "float64"}


def with_vocabulary(specs: tuple[InputSpec, ...], module: nn.Module) -> tuple[InputSpec, ...]:
    """Bound integer inputs that have no bound by the smallest embedding table: any smaller number is valid in all."""
    rows = [part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding)]
    return tuple(
        replace(spec, high=min(rows)) if rows and spec.high is None and spec.dtype in INTEGERS else spec
        for spec in specs
    )


def graph_inputs(model: ir.Model, path: Path) -> tuple[InputSpec, ...]:
    """The inputs of a graph that are no initializers; symbolic dimensions become letters. Raises InputSpecError."""
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        own = value.dtype.name.lower() if value.dtype is not None else "no"
        dtype = _ONNX_NAMES.get(own, own)
        if dtype not in DTYPES or value.shape is None:
            raise InputSpecError(f"{path}: input {value.name} has {dtype} dtype or no shape; normfold cannot feed it.")
        dims = tuple(_letter(dim, f"{value.name}_{axis}") for axis, dim in enumerate(value.shape))
        specs.append(InputSpec(str(value.name), dtype, dims, high=_table_rows(value)))
    return tuple(specs)


def _letter(dim: int | ir.SymbolicDim, unnamed: str) -> int | str:
    if isinstance(dim, int):
        return dim
    letter = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in str(dim.value or unnamed))
    return f"_{letter}" if letter[0].isdigit() else letter


def _table_rows(value: ir.Value) -> int | None:
    """The number of rows of the smallest constant table that an integer input indexes, None where there is none."""
    rows: list[int | None] = []
    for node in value.consumers():
        table = node.inputs[0]
        axis = node.attributes.get("axis")
        if node.op_type == "Cast":
            rows.append(_table_rows(node.outputs[0]))
        elif node.op_type == "Gather" and (axis is None or axis.as_int() == 0):
            constant = table.const_value if table is not None and node.inputs[1] is value else None
            rows.append(int(constant.shape.numpy()[0]) if constant is not None else None)
    return min((count for count in rows if count is not None), default=None)


def matching(given: tuple[InputSpec, ...], found: tuple[InputSpec, ...], path: Path) -> tuple[InputSpec, ...]:
    """Specifications given for a graph replace its own, where they agree with it."""
    by_name = {spec.name: spec for spec in found}
    for spec in given:
        own = by_name.get(spec.name)
        if own is None:
            raise InputSpecError(f"{path} has no input {spec.name!r}; its inputs are {', '.join(map(str, found))}.")
        clash = any(isinstance(o, int) and g != o for g, o in zip(spec.dims, own.dims, strict=False))
        if own.dtype != spec.dtype or len(own.dims) != len(spec.dims) or clash:
            raise InputSpecError(f"{path}: input {spec} contradicts the model's own {own}.")
    chosen = {spec.name: spec for spec in given}
    return tuple(
        replace(chosen[spec.name], high=chosen[spec.name].high or spec.high) if spec.name in chosen else spec
        for spec in found
    )


def program_inputs(program: torch.export.ExportedProgram) -> tuple[InputSpec, ...]:
    """The user inputs of an exported program; its symbolic sizes are the letters, its range constraints the limits."""
    fed = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for name in program.graph_signature.user_inputs:
        value = fed.get(name)
        if not isinstance(value, torch.Tensor):
            continue
        dims: list[int | str] = []
        limits: dict[str, int] = {}
        shape: tuple[Any, ...] = tuple(value.shape)
        for dim in shape:
            if isinstance(dim, int):
                dims.append(dim)
                continue
            letter = str(_letter(ir.SymbolicDim(str(dim.node.expr)), "axis"))
            dims.append(letter)
            allowed = program.range_constraints.get(dim.node.expr)
            if allowed is not None and allowed.upper.is_Integer:
                limits[letter] = int(allowed.upper)
        specs.append(InputSpec(name, str(value.dtype).removeprefix("torch."), tuple(dims), limits=limits))
    return tuple(specs)
