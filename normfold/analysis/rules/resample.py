"""Tile, Resize, DepthToSpace and SpaceToDepth: more, or other, positions for the same channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules.axis_maps import AxisMap, Windowed
from normfold.analysis.rules.spellings import told
from normfold.graph.affine import Array
from normfold.graph.operators import opset
from normfold.graph.types import Op
from normfold.graph.view import Graph

# With these every resized position is a mean of positions, and an axis whose size stays is left as it is.
_MEANS = frozenset({"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"})


@dataclass(frozen=True, slots=True)
class Tiled(AxisMap):
    """Every axis is repeated; None: how often is not known."""

    op: Op
    repeats: tuple[int | None, ...]

    def forward(self, array: Array) -> Array | Refuse:
        if any(times is None and size != 1 for times, size in zip(self.repeats, array.shape, strict=True)):
            return refuse(self.op, "channels-cut", "repeats the norm's channels, how often is not known")
        return np.tile(
            array, [times if size != 1 and times else 1 for times, size in zip(self.repeats, array.shape, strict=True)]
        )

    def backward(self, array: Array) -> Array | Refuse:
        for axis, times in enumerate(self.repeats):
            size = array.shape[axis]
            if size == 1 or times == 1:
                continue
            if times is None or size % times:
                return refuse(self.op, "channels-cut", "repeats the norm's channels, how often is not known")
            first = array.take(range(size // times), axis=axis)
            if not np.array_equal(np.concatenate([first] * times, axis=axis), array):
                return refuse(self.op, "broadcast", "repeats channels that would need different frames")
            array = first
        return array


def tiled(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Tile; an axis whose size stays is not repeated, also where the repeats are computed at run time."""
    source = graph.dims(op.inputs[0]) if op.inputs[0] is not None else None
    target = graph.dims(op.output)
    if source is None or target is None or len(source) != len(target):
        return refuse(op, "unknown-shape", "a shape is not known")
    given = op.inputs[1]
    if given is not None and graph.is_constant(given):
        return Tiled(op, tuple(int(times) for times in graph.constant(given).reshape(-1)))
    return Tiled(op, tuple(1 if a == b else None for a, b in zip(source, target, strict=True)))


@dataclass(frozen=True, slots=True)
class Blocks:
    """Channels (N, C * b * b, H, W) laid out as positions (N, C, H * b, W * b).

    first: whether the block is the slower part of the channel axis (mode DCR), or the faster (CRD).
    """

    op: Op
    block: int
    first: bool

    def spread(self, array: Array) -> Array | Refuse:
        """From many channels to few: all channels that come to lie side by side in one must share a frame."""
        if array.shape[2:] != (1, 1):
            return self._refuse()
        if array.shape[1] == 1:
            return array
        area = self.block**2
        shape = (area, array.shape[1] // area) if self.first else (array.shape[1] // area, area)
        split = array.reshape(array.shape[0], *shape)
        one = split.take([0], axis=1 if self.first else 2)
        if not np.array_equal(np.broadcast_to(one, split.shape), split):
            return self._refuse()
        return one.reshape(array.shape[0], -1, 1, 1)

    def gathered(self, array: Array) -> Array | Refuse:
        """From few channels to many."""
        if array.shape[2:] != (1, 1):
            return self._refuse()
        if array.shape[1] == 1:
            return array
        return np.tile(array, (1, self.block**2, 1, 1)) if self.first else np.repeat(array, self.block**2, axis=1)

    def _refuse(self) -> Refuse:
        return refuse(self.op, "reshaped-channels", "lays channels with different frames out as positions of one")


@dataclass(frozen=True, slots=True)
class ToSpace(AxisMap):
    """DepthToSpace."""

    blocks: Blocks

    def forward(self, array: Array) -> Array | Refuse:
        return self.blocks.spread(array)

    def backward(self, array: Array) -> Array | Refuse:
        return self.blocks.gathered(array)


@dataclass(frozen=True, slots=True)
class ToDepth(AxisMap):
    """SpaceToDepth."""

    blocks: Blocks

    def forward(self, array: Array) -> Array | Refuse:
        return self.blocks.gathered(array)

    def backward(self, array: Array) -> Array | Refuse:
        return self.blocks.spread(array)


def depth_to_space(graph: Graph, op: Op) -> AxisMap | Refuse:
    """DepthToSpace: (N, C, H, W) to (N, C / b^2, H * b, W * b); before opset 11 it had one mode, DCR."""
    blocks = _blocks(graph, op, op.text("mode", "DCR"))
    return blocks if isinstance(blocks, Refuse) else ToSpace(blocks)


def space_to_depth(graph: Graph, op: Op) -> AxisMap | Refuse:
    """SpaceToDepth: (N, C, H, W) to (N, C * b^2, H / b, W / b)."""
    blocks = _blocks(graph, op, "DCR")
    return blocks if isinstance(blocks, Refuse) else ToDepth(blocks)


def _blocks(graph: Graph, op: Op, mode: str) -> Blocks | Refuse:
    dims, block = graph.dims(op.output), op.integer("blocksize", 0)
    if dims is None or len(dims) != 4 or block < 1:
        return refuse(op, "unknown-shape", "its output is not known to be an image")
    if mode not in ("DCR", "CRD"):
        return refuse(op, "wall", f"normfold does not know its mode {mode}")
    return Blocks(op, block, first=mode == "DCR")


def resized(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Resize, and Upsample before it: a frame passes where it does not vary along a resized axis.

    An axis is left alone when its scale is 1, or when sizes are given and its own stays.
    """
    source = graph.dims(op.inputs[0]) if op.inputs[0] is not None else None
    target = graph.dims(op.output)
    if source is None or target is None or len(source) != len(target):
        return refuse(op, "unknown-shape", "a shape is not known")
    if opset(graph.model) < 11:  # nearest or linear, asymmetric
        factors = told(graph, op, 1, "scales")
        return _widened(op, range(len(source)), None if factors is None else factors.numbers)
    mode = op.text("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize":
        return refuse(op, "fill-value", "crops, and fills with a number what lies outside")
    if mode not in _MEANS or op.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return refuse(op, "wall", "normfold does not follow this way to resize")
    axes = [axis % len(source) for axis in op.integers("axes") or range(len(source))]
    if len(op.inputs) > 3 and op.inputs[3] is not None:
        return Windowed(op, frozenset(axis for axis in axes if source[axis] != target[axis]))
    factors = told(graph, op, 2, "scales")
    return _widened(op, axes, None if factors is None else factors.numbers)


def _widened(op: Op, axes: Sequence[int], factors: Sequence[float] | None) -> AxisMap:
    """factors: of these axes; None where they are computed."""
    if factors is None or len(factors) != len(axes):
        return Windowed(op, frozenset(axes))
    return Windowed(op, frozenset(axis for axis, factor in zip(axes, factors, strict=True) if factor != 1.0))


def sampled(graph: Graph, op: Op) -> AxisMap | Refuse:
    """GridSample: every position is a mean of positions of its channel; outside, zeros or the border."""
    dims = graph.dims(op.output)
    if dims is None:
        return refuse(op, "unknown-shape", "the rank of its output is not known")
    return Windowed(op, frozenset(range(2, len(dims))))


def samples_zeros(graph: Graph, op: Op) -> Refuse | None:
    """Whether a GridSample reads zeros beyond the border."""
    if op.text("padding_mode", "zeros") == "zeros":
        return refuse(op, "shift-meets-padding", "reads zeros beyond the border, which would not receive the shift")
    return None


def weighs_unevenly(graph: Graph, op: Op) -> Refuse | None:
    """Whether the weights of a resized position may add up to something else than 1."""
    if op.integer("antialias", 0) or op.integer("exclude_outside", 0):
        return refuse(op, "uneven-taps", "its weights are not known to add up to 1 at every position")
    return None
