"""The input specifications that an ONNX graph brings along. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from normfold.errors import InputSpecError
from normfold.inputs.spec import DTYPES, INTEGERS, InputSpec

_NUMBER = re.compile("[0-9]{1,9}")
_MULTIPLE = re.compile(r"\s*([1-9][0-9]{0,8})\s*\*\s*(\w+)\s*")
_ONNX_NAMES = {"float": "float32", "double": "float64"}


def graph_inputs(model: ir.Model, path: Path) -> tuple[InputSpec, ...]:
    """The inputs of a graph that are no initializers; symbolic dimensions become letters. Raises InputSpecError."""
    specs: list[InputSpec] = []
    fed = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    for value in fed:
        own = value.dtype.name.lower() if value.dtype is not None else "no"
        dtype = _ONNX_NAMES.get(own, own)
        if value.shape is None:
            raise InputSpecError(
                f"{path}: input {value.name} has no shape, which ONNX requires of inputs (onnx.checker says so too); "
                "write its rank into the file, sizes may stay unknown."
            )
        if dtype not in DTYPES:
            raise InputSpecError(f"{path}: input {value.name} has {dtype} dtype, which normfold cannot feed.")
        steps: dict[str, int] = {}
        dims = tuple(dim_of(dim, f"{value.name}_{axis}", steps) for axis, dim in enumerate(value.shape))
        choice = _compared(value) if dtype in INTEGERS and math.prod(d for d in dims if isinstance(d, int)) == 1 else ()
        specs.append(InputSpec(str(value.name), dtype, dims, high=_vocabulary(value), steps=steps, values=choice))
    return tuple(
        replace(spec, dims=_summed(spec.dims, value.shape, specs)) for spec, value in zip(specs, fed, strict=True)
    )


def dim_of(dim: int | ir.SymbolicDim, unnamed: str, steps: dict[str, int]) -> int | str:
    """A dimension as it is or as the letter of a dynamic axis; of `32*h` the 32 goes into `steps`."""
    multiple = None if isinstance(dim, int) else _MULTIPLE.fullmatch(str(dim.value))
    if multiple is None:
        return _letter(dim, unnamed)
    letter = str(_letter(ir.SymbolicDim(f"{multiple[2]}x{multiple[1]}"), unnamed))
    steps[letter] = int(multiple[1])
    return letter


def _summed(dims: tuple[int | str, ...], written: ir.Shape | None, specs: Sequence[InputSpec]) -> tuple[int | str, ...]:
    """The dimensions with those that the file writes as sums of axes of its inputs: a mask, beside a cache."""
    known = {letter for spec in specs for letter in spec.letters}

    def summed(own: int | str, dim: int | ir.SymbolicDim) -> int | str:
        parts = [part.strip() for part in str("" if isinstance(dim, int) else dim.value or "").split("+")]
        letters = [p if _NUMBER.fullmatch(p) else str(_letter(ir.SymbolicDim(p), p)) for p in parts if p]
        if not 1 < len(letters) == len(parts) or letters[0] not in known:
            return own
        return "+".join(letters) if all(one in known or _NUMBER.fullmatch(one) for one in letters) else own

    return tuple(map(summed, dims, written or ()))


def _letter(dim: int | ir.SymbolicDim, unnamed: str) -> int | str:
    if isinstance(dim, int):
        return dim
    # "?" and "-1", as some exporters write, are no names: two of them need not be equal.
    name = str(dim.value).strip() if re.search("[A-Za-z]", str(dim.value or "")) else unnamed
    letter = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
    return f"_{letter}" if letter[0].isdigit() else letter


# Operators that hand the numbers of their first input on as they are.
_HANDED_ON = frozenset(
    {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)


# Operators that read tables: which of their inputs these are, and which say what rows are read.
TABLES = {"EmbedLayerNormalization": ((2, 0), (4, 1)), "Gather": ((0, 1),), "GatherND": ((0, 1),)}
# What integers are looked for among, in the attributes of TfIdfVectorizer and LabelEncoder.
_KEYS = ("pool_int64s", "keys_int64s")


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
    for table, rows in TABLES.get(node.op_type, ()):
        content = constants[table] if len(constants) > table and node.inputs[rows] is value else None
        if content is not None:
            return int(content.shape.numpy()[0]) if axis is None or axis.as_int() == 0 else None
    if keys := next((node.attributes[name] for name in _KEYS if name in node.attributes), None):
        return max((*keys.as_ints(), -1)) + 2  # one more: what is no key
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
