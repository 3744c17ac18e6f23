"""The axes of a contraction by name, and arrays that vary along some of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.analysis.rules.base import OUT
from normfold.graph.affine import Array, agree_each, varying_axes

Axes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """A name for every axis of both operands and of the output; equal names are one index."""

    operands: tuple[Axes, Axes]
    output: Axes

    def at(self, port: int) -> Axes:
        return self.output if port == OUT else self.operands[port]


def placed(array: Array, source: Axes, target: Axes) -> Array | None:
    """`array` over the axes `source`, as it lies on the axes `target`; None where it varies along one they lack."""
    varying = [axis for axis, size in enumerate(array.shape) if size != 1]
    if any(source[axis] not in target for axis in varying):
        return None
    order = sorted(varying, key=lambda axis: target.index(source[axis]))
    shape = [1] * len(target)
    for axis in order:
        shape[target.index(source[axis])] = array.shape[axis]
    return array.transpose(order + [axis for axis in range(array.ndim) if axis not in varying]).reshape(shape)


def apart(array: Array, axes: Axes, weight: Axes) -> tuple[Array, Array] | None:
    """`array` as a product: of what varies along axes that the weight has not, and of what varies along its own.

    None where it is no such product.
    """
    own = tuple(axis for axis in varying_axes(array) if axes[axis] in weight)
    other = tuple(axis for axis in varying_axes(array) if axes[axis] not in weight)
    if not own or not other:
        alone = np.ones((1,) * array.ndim)
        return (array, alone) if other else (alone, array)
    passed, first = _first(array, own), _first(array, (*own, *other))
    if np.any(first == 0.0):
        return None
    taken = _first(array, other) / first
    return (passed, taken) if agree_each(passed * taken, array) else None


def multiple(array: Array, other: Array) -> float | None:
    """The number by which `other` is multiplied in `array`; None where there is none."""
    # What is alike for all channels may be written out for each, or once.
    if array.shape != other.shape:
        array, other = np.broadcast_arrays(array, other)
    at = np.argmax(np.abs(other))
    if other.flat[at] == 0.0:
        return None
    factor = float(array.flat[at] / other.flat[at])
    return factor if factor and agree_each(array, factor * other) else None


def _first(array: Array, along: tuple[int, ...]) -> Array:
    """`array` at the first place of some axes."""
    return array[tuple(slice(0, 1) if axis in along else slice(None) for axis in range(array.ndim))]


DOTS = "..."


def is_plain(text: str) -> bool:
    """Whether a term of an Einsum is letters, with one ellipsis at most."""
    return all(letter.isalpha() for letter in text.replace(DOTS, "", 1))


def terms(equation: str) -> list[str]:
    """The terms of an Einsum, the output last; where no arrow names it, it has the letters that occur once."""
    terms, arrow, output = equation.partition("->")
    operands = terms.split(",")
    if arrow:
        return [*operands, output]
    letters = terms.replace(DOTS, "").replace(",", "")
    once = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    return [*operands, (DOTS if DOTS in terms else "") + once]


def axes_of(text: str, rank: int) -> Axes | None:
    """A name for each of `rank` axes, those of an ellipsis counted from its end; None where they are not as many."""
    front, dots, back = text.partition(DOTS)
    hidden = rank - len(front) - len(back)
    if hidden < 0 or (hidden and not dots):
        return None
    return (*front, *(f"{DOTS}{number}" for number in reversed(range(hidden))), *back)
