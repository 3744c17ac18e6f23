"""The input specifications that a torch module or an exported program brings along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

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
            if allowed.lower.is_Integer and int(allowed.lower) >= _LEAST_STATED:
                lows[letter] = step * int(allowed.lower)
        specs.append(
            InputSpec(name, str(value.dtype).removeprefix("torch."), tuple(dims), limits=limits, lows=lows, steps=steps)
        )
    return tuple(specs)
