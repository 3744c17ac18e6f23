"""How an array of frame coefficients (of a tensor's rank, size 1 where it does not vary) looks beyond an operator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normfold.analysis.refusal import Refuse, refuse
from normfold.graph.affine import Array, compress, varying_axes
from normfold.graph.dims import Dim, Layout, product, reshape_groups, reshape_layout, transpose_layout
from normfold.graph.types import Op


class AxisMap(ABC):
    """Where the axes of an operator's input are on its output, and back."""

    __slots__ = ()

    @abstractmethod
    def forward(self, array: Array) -> Array | Refuse:
        """An array on the input, as it looks on the output."""

    @abstractmethod
    def backward(self, array: Array) -> Array | Refuse:
        """An array on the output, as it looks on the input."""

    def rearranged(self, layout: Layout) -> Layout | None:
        """The layout of the output, for one of the input; None where it does not only put elements in another order."""
        return None


@dataclass(frozen=True, slots=True)
class Same(AxisMap):
    """Input and output have the same axes."""

    def rearranged(self, layout: Layout) -> Layout:
        return layout

    def forward(self, array: Array) -> Array:
        return array

    def backward(self, array: Array) -> Array:
        return array


@dataclass(frozen=True, slots=True)
class Permuted(AxisMap):
    """A Transpose."""

    permutation: tuple[int, ...]

    def rearranged(self, layout: Layout) -> Layout:
        return transpose_layout(layout, self.permutation)

    def forward(self, array: Array) -> Array:
        return array.transpose(self.permutation)

    def backward(self, array: Array) -> Array:
        return array.transpose(np.argsort(self.permutation))


@dataclass(frozen=True, slots=True)
class Regrouped(AxisMap):
    """A Reshape: runs of axes that hold the same elements."""

    op: Op
    source: tuple[Dim, ...]
    target: tuple[Dim, ...]

    def rearranged(self, layout: Layout) -> Layout | None:
        return reshape_layout(layout, self.source, self.target)

    def forward(self, array: Array) -> Array | Refuse:
        return self._carry(array, self.source, self.target)

    def backward(self, array: Array) -> Array | Refuse:
        return self._carry(array, self.target, self.source)

    def _carry(self, array: Array, source: Sequence[Dim], target: Sequence[Dim]) -> Array | Refuse:
        if all(dim.static for dim in (*source, *target)) and product(source) != product(target):
            return refuse(self.op, "unknown-shape", "the shapes that the file gives for it contradict each other")
        full = [1] * len(source)
        shape = [1] * len(target)
        joined: list[int] = []
        for group in reshape_groups(source, target):
            if all(array.shape[axis] == 1 for axis in group.source):
                continue
            dims = [source[axis] for axis in group.source] + [target[axis] for axis in group.target]
            if not all(dim.static for dim in dims) or not group.target:
                return refuse(self.op, "reshaped-channels", "channels are merged with, or split from, a dynamic axis")
            for axis in group.source:
                full[axis] = source[axis].size
            for axis in group.target:
                shape[axis] = target[axis].size
            if len(group.source) > 1 or len(group.target) > 1:
                joined += group.target
        return compress(np.broadcast_to(array, full).reshape(shape), tuple(joined))


@dataclass(frozen=True, slots=True)
class Windowed(AxisMap):
    """Some axes are cut, widened or repeated; a frame passes where it does not vary along them."""

    op: Op
    axes: frozenset[int]
    cut: tuple[slice, ...] | None = None  # the exact cut of every axis, when it is known

    def forward(self, array: Array) -> Array | Refuse:
        if not self.axes & set(varying_axes(array)):
            return array
        if self.cut is None:
            return refuse(self.op, "channels-cut", "changes the axis that the norm's channels lie on")
        return array[tuple(cut if size != 1 else slice(None) for cut, size in zip(self.cut, array.shape, strict=True))]

    def backward(self, array: Array) -> Array | Refuse:
        if self.axes & set(varying_axes(array)):
            return refuse(self.op, "channels-cut", "reads only a part of the norm's channels")
        return array


@dataclass(frozen=True, slots=True)
class Dropped(AxisMap):
    """Some axes are gone from the output (or are of size 1 there, with `keep`)."""

    op: Op
    axes: tuple[int, ...]
    keep: bool = False

    def forward(self, array: Array) -> Array | Refuse:
        if set(self.axes) & set(varying_axes(array)):
            return refuse(self.op, "across-channels", "works across the channels of the norm")
        return array if self.keep else array.reshape([s for k, s in enumerate(array.shape) if k not in self.axes])

    def backward(self, array: Array) -> Array:
        return array if self.keep else np.expand_dims(array, self.axes)


@dataclass(frozen=True, slots=True)
class Expanded(AxisMap):
    """An Expand: leading axes are added, axes of size 1 widened."""

    op: Op
    added: int
    widened: frozenset[int]

    def forward(self, array: Array) -> Array:
        return array.reshape((1,) * self.added + array.shape)

    def backward(self, array: Array) -> Array | Refuse:
        if self.widened & set(varying_axes(array)):
            return refuse(self.op, "broadcast", "repeats one value over channels that would need different frames")
        return array.reshape(array.shape[self.added :])


@dataclass(frozen=True, slots=True)
class Gathered(AxisMap):
    """One axis is looked up: it is replaced by the axes of the indices.

    picked: the indices, where they are constant (a channel shuffle). size: of the axis that is looked up.
    """

    op: Op
    axis: int
    index_rank: int
    picked: NDArray[np.int64] | None = None
    size: int = 0

    def forward(self, array: Array) -> Array | Refuse:
        if array.shape[self.axis] != 1 and self.picked is not None:
            return array.take(self.picked, axis=self.axis)
        if array.shape[self.axis] != 1:
            return refuse(self.op, "channels-cut", "looks up single channels of the norm")
        return array.reshape(array.shape[: self.axis] + (1,) * self.index_rank + array.shape[self.axis + 1 :])

    def backward(self, array: Array) -> Array | Refuse:
        end = self.axis + self.index_rank
        if any(size != 1 for size in array.shape[self.axis : end]):
            if self.picked is not None:
                return self._put_back(array, self.picked)
            return refuse(self.op, "channels-cut", "looks up single channels of the norm")
        return array.reshape((*array.shape[: self.axis], 1, *array.shape[end:]))

    def _put_back(self, array: Array, picked: NDArray[np.int64]) -> Array | Refuse:
        """Every channel has what its copies have; refused where one has none, or they differ."""
        before, behind = array.shape[: self.axis], array.shape[self.axis + self.index_rank :]
        copies = np.broadcast_to(array, (*before, *picked.shape, *behind)).reshape(*before, picked.size, *behind)
        _, first = np.unique(picked, return_index=True)
        if not np.array_equal(np.unique(picked), np.arange(self.size)):
            return refuse(self.op, "channels-cut", "reads only a part of the norm's channels")
        found = copies.take(first, axis=self.axis)
        if not np.array_equal(found.take(picked.reshape(-1), axis=self.axis), copies):
            return refuse(self.op, "broadcast", "repeats channels that would need different frames")
        return found
