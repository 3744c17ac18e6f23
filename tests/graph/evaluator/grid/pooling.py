"""Pooling: kernels, strides, dilations, pads, auto_pad, ceil_mode, what padding counts for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import F, N, U, V, const, row

AUTO = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def cases() -> Iterator[Case]:
    yield from maximum()
    yield from average()
    yield from jumping()
    yield from p_norm()
    yield from whole()
    yield from back()
    yield from regions()


PADS = (None, [1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 2, 1])


def maximum() -> Iterator[Case]:
    for pads, strides, ceil, dilations in product(PADS, (None, [2, 2], [3, 1]), (None, 1), (None, [2, 1])):
        forms = {"pads": pads, "strides": strides, "ceil_mode": ceil, "dilations": dilations}
        yield row("MaxPool", F(1, 2, 8, 9), kernel_shape=[3, 2 if pads != [1, 0, 2, 1] else 3], **forms)
    for auto, strides, size, ceil in product(AUTO, (None, [2, 2], [3, 2]), (8, 9), (None, 1)):
        yield row("MaxPool", F(1, 2, size, 7), kernel_shape=[3, 2], auto_pad=auto, strides=strides, ceil_mode=ceil)
    for order, pads, dilations in product((None, 1), (None, [1, 0, 0, 1]), (None, [1, 2])):
        forms = {"pads": pads, "dilations": dilations, "storage_order": order}
        yield row("MaxPool", F(2, 3, 6, 5), kernel_shape=[2, 2], strides=[2, 1], outputs=2, **forms)
    yield row(
        "MaxPool", V([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]).reshape(1, 1, 3, 4), kernel_shape=[2, 2], outputs=2
    )
    yield row("MaxPool", F(1, 2, 9), kernel_shape=[3], pads=[1, 2], strides=[2], ceil_mode=1)
    yield row("MaxPool", F(1, 2, 9), kernel_shape=[3], dilations=[3])
    yield row(
        "MaxPool", F(1, 2, 4, 5, 6), kernel_shape=[2, 3, 2], strides=[1, 2, 2], pads=[1, 0, 0, 0, 1, 1], outputs=2
    )
    yield row("MaxPool", F(1, 1, 5), kernel_shape=[2], strides=[3], ceil_mode=1)
    for dtype in (np.int8, np.uint8):
        yield row("MaxPool", N(0, 99, 1, 2, 5, 5, dtype=dtype), kernel_shape=[2, 2])
    yield row("MaxPool", N(-99, -9, 1, 2, 5, 5, dtype=np.int8), kernel_shape=[2, 2], pads=[1, 1, 0, 0])
    yield row("MaxPool", V(1, np.nan, 2, -np.inf, -np.inf).reshape(1, 1, 5), kernel_shape=[2])


def average() -> Iterator[Case]:
    for pads, strides, ceil, count in product(PADS, (None, [2, 2], [3, 1]), (None, 1), (None, 1)):
        forms = {"pads": pads, "strides": strides, "ceil_mode": ceil, "count_include_pad": count}
        kernel = [3, 2 if pads != [1, 0, 2, 1] else 3]
        yield row("AveragePool", F(1, 2, 8, 9), kernel_shape=kernel, **forms)
        yield row("AveragePool", F(1, 2, 8, 9), kernel_shape=kernel, dilations=[2, 1], **forms)
    for auto, strides, size, count in product(AUTO, (None, [2, 2], [3, 2]), (8, 9), (None, 1)):
        yield row(
            "AveragePool",
            F(1, 2, size, 7),
            kernel_shape=[3, 2],
            auto_pad=auto,
            strides=strides,
            count_include_pad=count,
        )
    for ceil, count in product((None, 1), (None, 1)):
        yield row(
            "AveragePool",
            F(1, 2, 9),
            kernel_shape=[4],
            strides=[3],
            pads=[1, 2],
            ceil_mode=ceil,
            count_include_pad=count,
        )
        yield row(
            "AveragePool",
            F(1, 2, 4, 5, 6),
            kernel_shape=[2, 3, 2],
            strides=[2, 2, 3],
            ceil_mode=ceil,
            count_include_pad=count,
        )
    yield row("AveragePool", F(1, 1, 5), kernel_shape=[2], strides=[3], ceil_mode=1, count_include_pad=1)


def jumping() -> Iterator[Case]:
    """auto_pad that has to take away: one window jumps over what the next does not cover."""
    for op, auto in product(("MaxPool", "AveragePool", "LpPool"), ("SAME_UPPER", "SAME_LOWER")):
        yield row(op, F(1, 1, 8), kernel_shape=[1], strides=[2], auto_pad=auto)
        yield row(op, F(1, 1, 8), kernel_shape=[1], strides=[4], auto_pad=auto, note="over gaps")


def p_norm() -> Iterator[Case]:
    for p, pads, strides in product((None, 1, 2, 3), (None, [1, 0, 0, 1]), (None, [2, 1])):
        yield row("LpPool", F(1, 2, 6, 7), kernel_shape=[3, 2], p=p, pads=pads, strides=strides)
        yield row(
            "LpPool", F(1, 2, 6, 7), kernel_shape=[2, 2], p=p, pads=pads, strides=strides, dilations=[2, 2], ceil_mode=1
        )
    for auto in AUTO:
        yield row("LpPool", F(1, 2, 7, 6), kernel_shape=[3, 2], strides=[2, 2], auto_pad=auto)
    yield row("LpPool", F(1, 2, 9), kernel_shape=[4], strides=[3], ceil_mode=1)


def whole() -> Iterator[Case]:
    for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        for shape in ((2, 3, 5), (2, 3, 4, 5), (1, 2, 2, 3, 4), (1, 2, 1, 1)):
            yield row(op, F(*shape))
    for p in (1, 2, 3):
        yield row("GlobalLpPool", F(2, 3, 4, 5), p=p)


def back() -> Iterator[Case]:
    indices = V([[5, 7], [13, 15]], dtype=np.int64).reshape(1, 1, 2, 2)
    yield row("MaxUnpool", F(1, 1, 2, 2), indices, kernel_shape=[2, 2], strides=[2, 2])
    yield row("MaxUnpool", F(1, 1, 2, 2), indices, [1, 1, 5, 5], kernel_shape=[2, 2], strides=[2, 2])
    yield row("MaxUnpool", F(1, 1, 2, 2), indices, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 0])
    yield row("MaxUnpool", F(1, 2, 3), V([[0, 2, 5], [7, 9, 10]], dtype=np.int64), kernel_shape=[2], strides=[2])


def regions() -> Iterator[Case]:
    boxes = V([0.5, 0.2, 5.7, 6.3], [1.1, 2.2, 9.4, 7.7], [-1, -2, 3, 3], [4, 4, 4.2, 4.1])
    batch = const(V(0, 1, 0, 1, dtype=np.int64))
    for mode, ratio, transform in product((None, "max"), (None, 1, 2, 3), (None, "half_pixel", "output_half_pixel")):
        forms = {"mode": mode, "sampling_ratio": ratio, "coordinate_transformation_mode": transform}
        yield row("RoiAlign", F(2, 3, 8, 9), boxes, batch, output_height=2, output_width=3, **forms)
    yield row("RoiAlign", F(2, 3, 8, 9), boxes * 2, batch, output_height=3, output_width=2, spatial_scale=0.5)
    yield row("RoiAlign", F(2, 3, 8, 9), boxes, batch)
    rois = V([0, 0, 0, 5, 6], [1, 1, 2, 7, 7], [0, 3, 3, 3, 3])
    yield row("MaxRoiPool", F(2, 3, 8, 9), rois, pooled_shape=[2, 3])
    yield row("MaxRoiPool", F(2, 3, 8, 9), rois * V(1, 2, 2, 2, 2), pooled_shape=[3, 2], spatial_scale=0.5)
    scores = U(0, 1, 1, 2, 6)
    corners = V([0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, -0.1, 1, 0.9], [0, 10, 1, 11], [0, 10.1, 1, 11.1], [0, 100, 1, 101])
    for center, most, overlap, least in product((None, 1), (0, 1, 3), (None, 0.3, 0.9), (None, 0.4)):
        given = [const(V(part, dtype=np.float32)) for part in (overlap or 0.0, least or 0.0)]
        operands = [const(V(most, dtype=np.int64)), *given]
        yield row("NonMaxSuppression", corners[None], scores, *operands, center_point_box=center)
    yield row("NonMaxSuppression", corners[None], scores)
    yield row("NonMaxSuppression", corners[None][..., [2, 3, 0, 1]], scores, const(V(5, dtype=np.int64)), const(V(0.5)))
