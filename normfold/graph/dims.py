"""Tensor dimensions with names in them, and what a Reshape does to them.

Exporters write dynamic dimensions as names or products of names (`batch`, `64*batch`). A dimension is kept as its
integer coefficient and its sorted names, so that `64*batch` is known to be `batch` times 64; any other expression
is one opaque name, equal only to itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_PRODUCT = re.compile(r"^\(?\s*[\w.]+(\s*\*\s*[\w.]+)*\s*\)?$")
# A larger number in a name is no size.
_NUMBER, _MOST = re.compile("[0-9]{1,18}"), 1 << 62


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension: `size` times the product of `names`."""

    size: int
    names: tuple[str, ...] = ()

    @property
    def static(self) -> bool:
        return not self.names

    def __mul__(self, other: Dim) -> Dim:
        return Dim(self.size * other.size, tuple(sorted(self.names + other.names)))

    def divides(self, other: Dim) -> bool:
        rest = list(other.names)
        for name in self.names:
            if name not in rest:
                return False
            rest.remove(name)
        return self.size != 0 and other.size % self.size == 0

    def over(self, other: Dim) -> Dim:
        """The quotient, for an `other` that divides this dimension."""
        rest = list(self.names)
        for name in other.names:
            rest.remove(name)
        return Dim(self.size // other.size, tuple(rest))

    def renamed(self, names: Mapping[str, Dim]) -> Dim:
        """This dimension with some of its names replaced by what they stand for."""
        if names.keys().isdisjoint(self.names):
            return self
        return product([Dim(self.size), *(names.get(name, Dim(1, (name,))) for name in self.names)])


ONE = Dim(1)


def parse(text: int | str | None, unknown: str) -> Dim:
    """A dimension from ONNX; `unknown` names the dimension when the file does not.

    Some exporters write 0 or -1 for a dimension that they do not know.
    """
    if isinstance(text, int) and text > 0:
        return Dim(text)
    if isinstance(text, int) or not text:
        return Dim(1, (f"?{unknown}",))
    if not _PRODUCT.match(text):
        return Dim(1, (text,))
    size, names = 1, []
    for factor in text.strip("() ").split("*"):
        factor = factor.strip()
        if _NUMBER.fullmatch(factor):
            size *= int(factor)
        else:
            names.append(factor)
    return Dim(size, tuple(sorted(names))) if size <= _MOST else Dim(1, (text,))


def product(dims: Iterable[Dim]) -> Dim:
    """The number of elements of `dims`."""
    result = ONE
    for dim in dims:
        result = result * dim
    return result


def elements(dims: Sequence[Dim]) -> int:
    """Elements per unit of every dynamic axis: what an elementwise operator touches."""
    return math.prod(dim.size for dim in dims)


def reshaped(source: Sequence[Dim], shape: Sequence[int], *, zero_copies: bool) -> tuple[Dim, ...] | None:
    """The dimensions after a Reshape to `shape`, with its 0 and -1 resolved; None when the -1 cannot be told."""
    dims = [
        source[axis] if size == 0 and zero_copies and axis < len(source) else Dim(size)
        for axis, size in enumerate(shape)
    ]
    if -1 in shape:
        free = list(shape).index(-1)
        others = product(dim for axis, dim in enumerate(dims) if axis != free)
        whole = product(source)
        if others.size == 0 or not others.divides(whole):
            return None
        dims[free] = whole.over(others)
    return tuple(dims)


@dataclass(frozen=True, slots=True)
class Group:
    """A run of source axes that holds the same elements as a run of target axes (axes of size 1 belong to no group)."""

    source: tuple[int, ...]
    target: tuple[int, ...]
    matched: bool  # False: the sizes could not be compared, only the totals are equal


def reshape_groups(source: Sequence[Dim], target: Sequence[Dim]) -> list[Group]:
    """Match runs of dimensions whose products agree, from the left, then from the right; the rest is one group."""
    left = [axis for axis, dim in enumerate(source) if dim != ONE]
    right = [axis for axis, dim in enumerate(target) if dim != ONE]
    head = _match(source, target, left, right)
    for group in head:
        left, right = left[len(group.source) :], right[len(group.target) :]
    tail = _match(source, target, left[::-1], right[::-1])
    for group in tail:
        left, right = left[: len(left) - len(group.source)], right[: len(right) - len(group.target)]
    rest = [Group(tuple(left), tuple(right), matched=False)] if left or right else []
    return head + rest + [Group(group.source[::-1], group.target[::-1], True) for group in reversed(tail)]


def _match(source: Sequence[Dim], target: Sequence[Dim], left: list[int], right: list[int]) -> list[Group]:
    groups: list[Group] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start = (i, j)
        taken, wanted = source[left[i]], target[right[j]]
        i, j = i + 1, j + 1
        while taken != wanted:
            if _smaller(taken, wanted) and i < len(left):
                taken, i = taken * source[left[i]], i + 1
            elif _smaller(wanted, taken) and j < len(right):
                wanted, j = wanted * target[right[j]], j + 1
            else:
                return groups
        groups.append(Group(tuple(left[start[0] : i]), tuple(right[start[1] : j]), matched=True))
    return groups


def _smaller(first: Dim, second: Dim) -> bool:
    if first.names == second.names:
        return first.size < second.size
    return first.divides(second)


@dataclass(frozen=True, slots=True)
class Atom:
    """A factor of one axis of a base tensor; `path` tells which part, when a Reshape has split it."""

    axis: int
    path: tuple[int, ...]
    dim: Dim
    siblings: int = 1


Layout = tuple[tuple[Atom, ...], ...]


def base_layout(dims: Sequence[Dim]) -> Layout:
    """The layout of a tensor relative to itself."""
    return tuple(() if dim == ONE else (Atom(axis, (), dim),) for axis, dim in enumerate(dims))


def transpose_layout(layout: Layout, permutation: Sequence[int]) -> Layout:
    """Where the base tensor's axes are after a Transpose."""
    return tuple(layout[axis] for axis in permutation)


def reshape_layout(layout: Layout, source: Sequence[Dim], target: Sequence[Dim]) -> Layout | None:
    """Where the base tensor's axes are after a Reshape; None when that cannot be told."""
    axes: list[tuple[Atom, ...]] = [()] * len(target)
    for group in reshape_groups(source, target):
        atoms = [atom for axis in group.source for atom in layout[axis]]
        if len(group.target) == 1:
            axes[group.target[0]] = _merge(atoms)
            continue
        parts = _distribute(atoms, [target[axis] for axis in group.target])
        if parts is None:
            return None
        for axis, part in zip(group.target, parts, strict=True):
            axes[axis] = _merge(part)
    return tuple(axes)


def _distribute(atoms: list[Atom], dims: list[Dim]) -> list[list[Atom]] | None:
    """Fill `dims` with `atoms` in order; one atom that has to be spread over several dims is split."""
    parts: list[list[Atom]] = []
    position = 0
    for start, dim in enumerate(dims):
        part: list[Atom] = []
        have = ONE
        while have != dim and position < len(atoms) and (have * atoms[position].dim).divides(dim):
            part.append(atoms[position])
            have, position = have * atoms[position].dim, position + 1
        if have != dim:
            rest = dims[start:]
            if not part and position == len(atoms) - 1 and product(rest) == atoms[position].dim:
                return parts + [[atom] for atom in _split(atoms[position], rest)]
            return None
        parts.append(part)
    return parts if position == len(atoms) else None


def _split(atom: Atom, dims: list[Dim]) -> list[Atom]:
    return [Atom(atom.axis, (*atom.path, index), dim, len(dims)) for index, dim in enumerate(dims)]


def _merge(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """Put adjacent parts of one atom together again when all of them are there, in order."""
    merged = list(atoms)
    index = 0
    while index < len(merged):
        first = merged[index]
        run = merged[index : index + first.siblings]
        whole = (
            first.path
            and len(run) == first.siblings
            and all(a.axis == first.axis and a.path == (*first.path[:-1], k) for k, a in enumerate(run))
        )
        if whole:
            merged[index : index + first.siblings] = [Atom(first.axis, first.path[:-1], product(a.dim for a in run))]
            index = 0
        else:
            index += 1
    return tuple(merged)
