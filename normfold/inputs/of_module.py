"""The input specifications that a torch module or an exported program brings along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from normfold.inputs.guards import lowest
from normfold.inputs.of_graph import dim_of
from normfold.inputs.spec import INTEGERS, InputSpec

# torch itself assumes that a size is 2 or more; a program that says so says nothing.
_LEAST_STATED = 3


def with_vocabulary(specs: tuple[InputSpec, ...], module: nn.Module) -> tuple[InputSpec, ...]:
    """Bound integer inputs that have no bound by the smallest embedding table: any smaller number is valid in all."""
    rows = [part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding)]
    return tuple(
        replace(spec, high=min(rows)) if rows and spec.high is None and spec.dtype in INTEGERS else spec
        for spec in specs
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
            letter = str(dim_of(ir.SymbolicDim(str(dim.node.expr)), "axis", steps))
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
