"""The input specifications that a model brings along: those of an ONNX graph, a program, an embedding."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from normfold.errors import InputSpecError
from normfold.inputs.guards import lowest
from normfold.inputs.spec import DTYPES, INTEGERS, InputSpec

# torch itself assumes that a size is 2 or more; a program that says so says nothing.
_LEAST_STATED = 3

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
        steps: dict[str, int] = {}
        dims = tuple(_dim(dim, f"{value.name}_{axis}", steps) for axis, dim in enumerate(value.shape))
        choice = _compared(value) if dtype in INTEGERS and math.prod(d for d in dims if isinstance(d, int)) == 1 else ()
        specs.append(InputSpec(str(value.name), dtype, dims, high=_vocabulary(value), steps=steps, values=choice))
    return tuple(specs)


def _dim(dim: int | ir.SymbolicDim, unnamed: str, steps: dict[str, int]) -> int | str:
    """A dimension as it is or as the letter of a dynamic axis; of `32*h` the 32 goes into `steps`."""
    multiple = None if isinstance(dim, int) else re.fullmatch(r"\s*([1-9]\d*)\s*\*\s*(\w+)\s*", str(dim.value))
    if multiple is None:
        return _letter(dim, unnamed)
    letter = str(_letter(ir.SymbolicDim(f"{multiple[2]}x{multiple[1]}"), unnamed))
    steps[letter] = int(multiple[1])
    return letter


def _letter(dim: int | ir.SymbolicDim, unnamed: str) -> int | str:
    if isinstance(dim, int):
        return dim
    # "?" and "-1", as some exporters write, are no names: two of them need not be equal.
    name = str(dim.value) if re.search("[A-Za-z]", str(dim.value or "")) else unnamed
    letter = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
    return f"_{letter}" if letter[0].isdigit() else letter


# Operators that hand the numbers of their first input on as they are.
_HANDED_ON = frozenset(
    {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)


def _vocabulary(value: ir.Value) -> int | None:
    """How many numbers from 0 on an integer input may be, the least of all its uses; None where nothing says so.

    A constant table has so many rows, one-hot vectors have so many entries.
    """
    counts = [
        _vocabulary(node.outputs[0]) if node.op_type in _HANDED_ON else _told_by(node, value)
        for node in value.consumers()
        if node.inputs[0] is value or node.op_type not in _HANDED_ON
    ]
    return min((count for count in counts if count is not None), default=None)


def _told_by(node: ir.Node, value: ir.Value) -> int | None:
    constants = [None if item is None else ir.convenience.get_const_tensor(item) for item in node.inputs]
    axis = node.attributes.get("axis")
    if node.op_type == "Gather" and node.inputs[1] is value and constants[0] is not None:
        return int(constants[0].shape.numpy()[0]) if axis is None or axis.as_int() == 0 else None
    if node.op_type == "OneHot" and node.inputs[0] is value and constants[1] is not None:
        return int(constants[1].numpy().reshape(-1)[0])
    # One-hot vectors in simpler operators: which of 0, 1, 2, ... it is.
    ranges = [c.numpy() for c in constants if c is not None and c.size > 1] if node.op_type == "Equal" else []
    return next((r.size for r in ranges if np.array_equal(r.reshape(-1), np.arange(r.size))), None)


def _compared(value: ir.Value) -> tuple[int, ...]:
    """The numbers that an integer is compared with, and one that it is not: what decides between branches."""
    found: set[int] = set()
    for node in value.consumers():
        if node.op_type in _HANDED_ON and node.inputs[0] is value:
            found.update(_compared(node.outputs[0]))
        elif node.op_type == "Equal":
            others = [item for item in node.inputs if item is not None and item is not value]
            constants = [ir.convenience.get_const_tensor(item) for item in others]
            found.update(int(number) for c in constants if c is not None and c.size == 1 for number in c.numpy().flat)
    return (*sorted(found), max(found) + 1) if found else ()


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
    guards = [guard for guard in getattr(program, "_guards_code", None) or () if isinstance(guard, str)]
    sizes: dict[str, int] = {}
    fed = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for name in program.graph_signature.user_inputs:
        value = fed.get(name)
        if not isinstance(value, torch.Tensor):
            continue
        dims: list[int | str] = []
        limits, lows, steps = dict[str, int](), dict[str, int](), dict[str, int]()
        shape: tuple[Any, ...] = tuple(value.shape)
        for dim in shape:
            if isinstance(dim, int):
                dims.append(dim)
                continue
            letter = str(_dim(ir.SymbolicDim(str(dim.node.expr)), "axis", steps))
            dims.append(letter)
            symbols = list(dim.node.expr.free_symbols)
            allowed = program.range_constraints.get(symbols[0]) if len(symbols) == 1 else None
            if allowed is None:
                continue
            step = steps.get(letter, 1)
            if allowed.upper.is_Integer:
                limits[letter] = step * int(allowed.upper)
            # Of a multiple the program checks that, of a size as it is it does not.
            if allowed.lower.is_Integer and int(allowed.lower) >= (_LEAST_STATED if step == 1 else 2):
                lows[letter] = step * int(allowed.lower)
            if dim.node.has_hint():
                sizes[letter] = int(dim.node.hint)
        specs.append(
            InputSpec(name, str(value.dtype).removeprefix("torch."), tuple(dims), limits=limits, lows=lows, steps=steps)
        )
    return tuple(_guarded(spec, specs, guards, sizes) for spec in specs)


def _guarded(spec: InputSpec, specs: Sequence[InputSpec], guards: Sequence[str], sizes: Mapping[str, int]) -> InputSpec:
    """With the least sizes that the program accepts: `Dim.AUTO` leaves them to what it checks."""
    dims, lows = {one.name: one.dims for one in specs}, dict(spec.lows)
    if not guards or any(letter not in sizes for one in specs for letter in one.dims if isinstance(letter, str)):
        return spec
    for letter in {dim for dim in spec.dims if isinstance(dim, str)}:
        step = spec.steps.get(letter, 1)
        low = max(spec.lows.get(letter, 1), step)
        least = lowest(guards, dims, sizes, letter, step=step, low=low)
        if least > low:
            lows[letter] = least
    return replace(spec, lows=lows)
