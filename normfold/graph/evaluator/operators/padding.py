"""Pad in all its modes, and CenterCropPad."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import Tensor, axis_in, by_bits


def pad_2(call: Call, x: Tensor) -> Tensor:
    """X with more around it, or less: the pads and the value are attributes."""
    value = torch.tensor(call.number("value", 0.0), dtype=torch.float64)
    return _padded(call, x, call.integers("pads") or [], range(x.ndim), value)


def pad(call: Call, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    """X with more around it, or less where pads are negative: what is cut is gone before the rest is repeated."""
    chosen = range(x.ndim) if axes is None else [axis_in(axis, x.ndim) for axis in axes.reshape(-1).tolist()]
    return _padded(call, x, pads.reshape(-1).tolist(), chosen, value)


def _padded(call: Call, x: Tensor, pads: Sequence[int], axes: Sequence[int], value: Tensor | None) -> Tensor:
    mode = call.text("mode", "constant")
    if len(pads) != 2 * len(axes):
        raise ValueError(f"{len(pads)} pads for {len(axes)} axes")
    ends = {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    for axis, (before, after) in ends.items():
        first, last = max(-before, 0), x.shape[axis] - max(-after, 0)
        x = x.narrow(axis, first, last - first)
    more = {axis: (max(before, 0), max(after, 0)) for axis, (before, after) in ends.items() if max(before, after) > 0}
    call.reserve(*(size + sum(more.get(axis, (0, 0))) for axis, size in enumerate(x.shape)))
    if mode == "constant":
        fill = torch.zeros((), dtype=x.dtype) if value is None else value.reshape(()).to(x.dtype)
        flat = [count for axis in reversed(range(x.ndim)) for count in more.get(axis, (0, 0))]
        found: Tensor = by_bits(lambda values, one: F.pad(values, flat, value=one.item()), x, fill)
        return found
    for axis, (before, after) in more.items():
        x = x.index_select(axis, _places(mode, x.shape[axis], before, after))
    return x.clone() if not more else x


def _places(mode: str, size: int, before: int, after: int) -> Tensor:
    """Which elements of an axis stand along the padded one."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    if mode == "reflect":
        if max(before, after) >= size:
            raise ValueError(f"{max(before, after)} elements cannot be mirrored from {size}")
        period = max(2 * (size - 1), 1)
        places = places.remainder(period)
        return torch.where(places < size, places, period - places)
    raise ValueError(f"there is no mode {mode!r}")


def center_crop_pad(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """X cut or padded with 0 to a shape, around its centre; what is odd goes to the end."""
    axes = [axis_in(axis, x.ndim) for axis in call.integers("axes", range(x.ndim)) or ()]
    flat = [0] * (2 * x.ndim)
    sizes = list(x.shape)
    for axis, size in zip(axes, shape.tolist(), strict=True):
        more = size - x.shape[axis]
        before = more // 2 if more > 0 else -(-more // 2)
        sizes[axis] = size
        place = 2 * (x.ndim - 1 - axis)
        flat[place : place + 2] = before, more - before
    call.reserve(*sizes)
    found: Tensor = by_bits(lambda values: F.pad(values, flat), x)
    return found


ROWS: Rows = {
    "CenterCropPad": {(18,): center_crop_pad},
    "Pad": {(2,): pad_2, (11, 13, 18, 19, 21, 23, 24, 25): pad},
}
