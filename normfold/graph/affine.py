"""The algebra of frames: numpy float64, nothing else.

Every tensor `v` of a folded graph is stored in a frame `(scale, shift)`: `v = scale * stored + shift`. Both
are arrays of the rank of `v` whose every dimension is either 1 (the frame is the same all along that axis) or the
size of that axis; so a frame on the channels of an (N, L, C) tensor has the shape (1, 1, C), and a layout operator
carries it exactly as it carries the tensor. `(1, 0)` is the identity.

Scales and shifts obey separate systems. Where `shift` is counted in units of `v`, not of the stored tensor, the scales
around an operator never enter the relation between its shifts: so scales are folded first, and shifts are placed
afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Two ways around a loop multiply the same factors in another order: they may differ by a few roundings of float64.
AGREEMENT = 1e-10
# A sum that is this much smaller than its terms is what rounding has left of 0.
CANCELLED = 1e-13


@dataclass(frozen=True, slots=True)
class Frame:
    """`v = scale * stored + shift`; both float64, of the rank of `v`, each dimension 1 or that of `v`."""

    scale: Array
    shift: Array

    @staticmethod
    def identity(rank: int) -> Frame:
        return Frame(np.ones((1,) * rank), np.zeros((1,) * rank))

    def then(self, scale: Array, shift: Array) -> Frame:
        """The frame of `scale * v + shift`, for `v` in this frame."""
        return Frame(scale * self.scale, scale * self.shift + shift)

    def between(self, before: Frame, after: Frame) -> Frame:
        """This map as one of stored tensors: its input is stored in `before`, its output in `after`.

        Where the scale of `after` is 0 the output is its shift, whatever is stored, and nothing is divided by 0.
        """
        size = after.scale if np.all(after.scale) else np.where(after.scale == 0.0, 1.0, after.scale)
        shift = self.scale * before.shift + self.shift - after.shift
        return Frame(self.scale * before.scale / size, shift / size)

    def plus(self, other: Frame, sign: float) -> Frame:
        """The frame of `v + sign * w`, for `v` and `w` both fixed maps of one stored tensor."""
        return Frame(self.scale + sign * other.scale, self.shift + sign * other.shift)

    @property
    def is_identity(self) -> bool:
        return bool(np.all(self.scale == 1.0) and np.all(self.shift == 0.0))


def varying_axes(array: Array) -> tuple[int, ...]:
    """The axes along which `array` may differ."""
    return tuple(axis for axis, size in enumerate(array.shape) if size != 1)


def agree(first: Array, second: Array) -> bool:
    """Equal up to rounding of float64: shifts, which are sums, are near zero when they are so beside the largest."""
    return _agree(first, second, floor=AGREEMENT * 1e-3)


def agree_each(first: Array, second: Array) -> bool:
    """Equal up to rounding of float64, each element for itself: scales, which are products, of any size."""
    return _agree(first, second, floor=0.0)


def _agree(first: Array, second: Array, *, floor: float) -> bool:
    try:
        difference = np.abs(first - second)
    except ValueError:
        return False
    size = np.maximum(np.abs(first), np.abs(second))
    return bool(np.all(difference <= AGREEMENT * size + floor * float(size.max(initial=0.0))))


def total(*terms: Array) -> Array:
    """The sum of `terms`, exactly 0 where they cancel up to rounding."""
    value = sum(terms[1:], start=terms[0])
    size = sum((np.abs(term) for term in terms[1:]), start=np.abs(terms[0]))
    return np.where(np.abs(value) <= CANCELLED * size, 0.0, value)


def compress(array: Array, axes: tuple[int, ...]) -> Array:
    """Drop to size 1 those of `axes` along which `array` is constant."""
    for axis in axes:
        if array.shape[axis] != 1:
            first = array.take([0], axis=axis)
            array = first if bool(np.all(first == array)) else array
    return array


def to_rank(array: Array, rank: int) -> Array | None:
    """`array` under numpy broadcasting at another rank; None when a dropped leading axis varies."""
    extra = array.ndim - rank
    if extra <= 0:
        return array.reshape((1,) * -extra + array.shape)
    if any(size != 1 for size in array.shape[:extra]):
        return None
    return array.reshape(array.shape[extra:])
