"""What torch.export says of the sizes of inputs: conditions such as `(1 + (((-1) + L['x'].size()[2]) // 2)) != 1`.

They are parsed and computed, never executed: a program comes from a file.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

# Longer conditions, and more sizes, are not checked here.
_LONGEST = 2000
_MOST_SIZES = 4096

_ARITHMETIC: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}

Dims = Mapping[str, Sequence[int | str]]


class _UnreadableError(Exception):
    pass


def lowest(guards: Iterable[str], dims: Dims, sizes: Mapping[str, int], letter: str, *, step: int, low: int) -> int:
    """The least size of the axis `letter` from which on, up to `sizes[letter]`, all guards hold that can be read.

    dims: of every input, by its name; letters are dynamic axes. sizes: of every letter, which the guards allow. step:
    what it has to be a multiple of. low: nothing below it is tried.
    """
    read = [tree for guard in guards if (tree := _parsed(guard)) is not None]
    least = sizes[letter]
    for size in range(least - step, max(low, least - step * _MOST_SIZES) - 1, -step):
        if not all(_holds(tree, dims, {**sizes, letter: size}) for tree in read):
            break
        least = size
    return least


def hold_throughout(guards: Iterable[str], dims: Dims, axes: Mapping[str, Sequence[int]]) -> bool:
    """Whether all guards can be read and hold at all these sizes of the axes, each on its own and all together.

    axes: sizes of every letter, the first of which the others have while it changes.
    """
    read = [_parsed(guard) for guard in guards]
    first = {letter: sizes[0] for letter, sizes in axes.items()}
    steps = [{**first, letter: size} for letter, sizes in axes.items() for size in sizes]
    steps += [{letter: sizes[at % len(sizes)] for letter, sizes in axes.items()} for at in range(_MOST_SIZES)]
    try:
        return all(tree is not None and _value(tree, dims, sizes) for tree in read for sizes in steps)
    except (_UnreadableError, ZeroDivisionError):
        return False


def _parsed(guard: str) -> ast.expr | None:
    try:
        return ast.parse(guard, mode="eval").body if len(guard) <= _LONGEST else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _holds(guard: ast.expr, dims: Dims, sizes: Mapping[str, int]) -> bool:
    try:
        return bool(_value(guard, dims, sizes))
    except _UnreadableError:
        return True
    except ZeroDivisionError:
        return False


def _value(node: ast.expr, dims: Dims, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, dims, sizes)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not _value(inner, dims, sizes)
        case ast.BoolOp(op=kind, values=parts):
            found = [bool(_value(part, dims, sizes)) for part in parts]
            return all(found) if isinstance(kind, ast.And) else any(found)
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _ARITHMETIC:
            return _ARITHMETIC[type(kind)](_value(left, dims, sizes), _value(right, dims, sizes))
        case ast.Compare(left=left, ops=[kind], comparators=[right]) if type(kind) in _COMPARISONS:
            return _COMPARISONS[type(kind)](_value(left, dims, sizes), _value(right, dims, sizes))
        case ast.Subscript(
            value=ast.Call(
                func=ast.Attribute(value=ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str(name)))),
                args=[],
            ),
            slice=ast.Constant(value=int(axis)),
        ) if name in dims and 0 <= axis < len(dims[name]):
            dim = dims[name][axis]
            return dim if isinstance(dim, int) else sizes[dim]
    raise _UnreadableError
