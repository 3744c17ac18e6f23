"""Pooling. Sums and maxima over windows are taken one axis after the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.windows import Windows, padded, taps_of, windows
from normfold.graph.evaluator.values import Tensor


def _pooled_windows(call: Call, x: Tensor) -> tuple[Windows, tuple[int, ...]]:
    """The windows of a pooling node, and how many there are.

    With ceil_mode a last window may reach beyond the padding, if it begins before the padding behind.
    """
    sizes = x.shape[2:]
    layout = windows(call, sizes, call.integers("kernel_shape") or [], same_counts_gaps=False)
    if not call.integer("ceil_mode", 0):
        return layout, layout.counts(sizes)
    counts = []
    for size, extent, stride, begin, end in zip(
        sizes, layout.extents, layout.strides, layout.begins, layout.ends, strict=True
    ):
        count = -((extent - size - begin - end) // stride) + 1
        counts.append(count - 1 if (count - 1) * stride >= size + begin else count)
    if min(counts, default=1) < 1:
        raise ValueError(f"a window of {list(layout.extents)} is larger than the padded input")
    return layout, tuple(counts)


def _reduced(
    x: Tensor, layout: Windows, counts: Sequence[int], fill: float, reduce: Callable[[Tensor], Tensor]
) -> Tensor:
    """`reduce` takes the windows of one axis as the last axis of a view."""
    x = padded(x, layout.begins, _behind(x.shape[2:], layout, counts), fill)
    for axis, (extent, stride, gap) in enumerate(zip(layout.extents, layout.strides, layout.dilations, strict=True)):
        if extent > 1 or stride > 1:
            x = reduce(x.unfold(2 + axis, extent, stride)[..., ::gap])
    return x


def _behind(sizes: Sequence[int], layout: Windows, counts: Sequence[int]) -> list[int]:
    """The padding behind that makes the last windows whole; negative: what no window reads."""
    return [
        (count - 1) * stride + extent - size - begin
        for count, stride, extent, size, begin in zip(
            counts, layout.strides, layout.extents, sizes, layout.begins, strict=True
        )
    ]


def max_pool(call: Call, x: Tensor) -> Any:
    """The largest of every window, and its place in the flattened input; padding is never the largest."""
    layout, counts = _pooled_windows(call, x)
    by_column = call.integer("storage_order", 0)
    call.reserve(*x.shape[:2], *counts)
    if call.wants(1):
        return _max_with_places(x, layout, counts, by_column=bool(by_column))
    return _reduced(x, layout, counts, _lowest(x), lambda view: view.amax(dim=-1))


def _lowest(x: Tensor) -> float:
    return -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min


def _max_with_places(x: Tensor, layout: Windows, counts: Sequence[int], *, by_column: bool) -> tuple[Tensor, Tensor]:
    """The first of equals wins. by_column: places count the first spatial axis fastest."""
    sizes = x.shape[2:]
    before = [math.prod(sizes[:axis] if by_column else sizes[axis + 1 :]) for axis in range(len(sizes))]
    whole = padded(x, layout.begins, _behind(sizes, layout, counts), _lowest(x))
    best = x.new_full((*x.shape[:2], *counts), _lowest(x))
    place = torch.full(best.shape, -1)
    corner = _outer(
        [
            torch.arange(count) * stride - begin
            for count, stride, begin in zip(counts, layout.strides, layout.begins, strict=True)
        ],
        before,
    )
    shifts = [
        sum(tap * gap * step for tap, gap, step in zip(taps, layout.dilations, before, strict=True))
        for taps in itertools.product(*map(range, layout.kernel))
    ]
    for tap, shift in zip(taps_of(layout, counts), shifts, strict=True):
        read = whole[(slice(None), slice(None), *tap)]
        better = read > best
        best = torch.where(better, read, best)
        place = torch.where(better, corner + shift, place)
    images = torch.arange(x.shape[0] * x.shape[1]) * math.prod(sizes)
    return best, place + images.reshape(*x.shape[:2], *[1] * len(sizes))


def _outer(axes: Sequence[Tensor], steps: Sequence[int]) -> Tensor:
    """sum(axis * step), each along an axis of its own."""
    found = torch.zeros([1] * len(axes), dtype=torch.int64)
    for number, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        found = found + (axis * step).reshape([-1 if number == other else 1 for other in range(len(axes))])
    return found


def average_pool(call: Call, x: Tensor, *, in_order: bool = False) -> Tensor:
    """The mean of every window, with or without what is padded.

    in_order: as onnxruntime's quantised pool does: add with the last axis fastest, whose float32 sums decide something,
    and with padding count all taps of a window, those that ceil_mode adds behind the padding too.
    """
    layout, counts = _pooled_windows(call, x)
    include = bool(call.integer("count_include_pad", 0))
    call.reserve(*x.shape[:2], *counts)
    if in_order:
        whole = padded(x, layout.begins, _behind(x.shape[2:], layout, counts))
        y = x.new_zeros((*x.shape[:2], *counts))
        for tap in taps_of(layout, counts):
            y += whole[(slice(None), slice(None), *tap)]
    else:
        y = _reduced(x, layout, counts, 0.0, lambda view: view.sum(dim=-1))
    if in_order and include:
        return y.div_(math.prod(layout.kernel))
    return y.div_(_counted(x.shape[2:], layout, counts, include=include))


def _counted(sizes: Sequence[int], layout: Windows, counts: Sequence[int], *, include: bool) -> Tensor:
    """How many elements of every window count; what only ceil_mode adds behind the padding never does."""
    found = torch.ones(tuple(counts), dtype=torch.float64)
    for axis, (size, begin, end) in enumerate(zip(sizes, layout.begins, layout.ends, strict=True)):
        first, last = (0, size + begin + end) if include else (begin, begin + size)
        starts = torch.arange(counts[axis])[:, None] * layout.strides[axis]
        taps = starts + torch.arange(layout.kernel[axis]) * layout.dilations[axis]
        counted = ((taps >= first) & (taps < last)).sum(dim=1)
        found *= counted.reshape(-1, *[1] * (len(counts) - 1 - axis))
    return found


def lp_pool(call: Call, x: Tensor) -> Tensor:
    """The norm of every window."""
    layout, counts = _pooled_windows(call, x)
    order = call.integer("p", 2)
    call.reserve(*x.shape[:2], *counts)
    y = _reduced(x.abs().pow_(order), layout, counts, 0.0, lambda view: view.sum(dim=-1))
    return y.pow_(1 / order)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def global_average_pool(_: Call, x: Tensor) -> Tensor:
    """The mean of every channel."""
    return x.mean(dim=_spatial(x), keepdim=True) if x.dim() > 2 else x


def global_max_pool(_: Call, x: Tensor) -> Tensor:
    """The largest of every channel."""
    return x.amax(dim=_spatial(x), keepdim=True) if x.dim() > 2 else x


def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """The norm of every channel."""
    order = call.integer("p", 2)
    found: Tensor = torch.linalg.vector_norm(x.flatten(2), ord=order, dim=2)
    return found.reshape(*x.shape[:2], *[1] * (x.dim() - 2))


def max_unpool(call: Call, x: Tensor, places: Tensor, output_shape: Tensor | None = None) -> Tensor:
    """Every number back at its place in the flattened output, zero elsewhere."""
    layout = windows(call, x.shape[2:], call.integers("kernel_shape") or [])
    shape = [
        *x.shape[:2],
        *(
            (size - 1) * stride - begin - end + extent
            for size, stride, begin, end, extent in zip(
                x.shape[2:], layout.strides, layout.begins, layout.ends, layout.kernel, strict=True
            )
        ),
    ]
    if output_shape is not None:
        shape = output_shape.tolist()
    call.reserve(*shape)
    y = x.new_zeros(math.prod(shape))
    y[places.reshape(-1)] = x.reshape(-1)
    return y.reshape(shape)


ROWS: Rows = {
    "AveragePool": {(7, 10, 11, 19, 22): average_pool},
    "GlobalAveragePool": {(1, 22): global_average_pool},
    "GlobalLpPool": {(2, 22): global_lp_pool},
    "GlobalMaxPool": {(1, 22): global_max_pool},
    "LpPool": {(2, 11, 18, 22): lp_pool},
    "MaxPool": {(1, 8, 10, 11, 12, 22): max_pool},
    "MaxUnpool": {(9, 11, 22): max_unpool},
}
