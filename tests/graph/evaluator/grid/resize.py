"""Sampling: Resize in all its modes, Upsample, GridSample, AffineGrid."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import F, N, U, V, const, row

TRANSFORMS = (
    "half_pixel",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "half_pixel_symmetric",
    "tf_crop_and_resize",
)
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
SCALES = ([1.0, 1.0, 2.0, 1.5], [1.0, 1.0, 0.6, 0.8], [1.0, 1.0, 3.0, 0.5])
SIZES = ([1, 2, 8, 6], [1, 2, 3, 2], [1, 2, 1, 9])
REGION = V(0, 0, 0.2, 0.3, 1, 1, 0.8, 0.7)


def cases() -> Iterator[Case]:
    yield from resize()
    yield from resize_more()
    yield from upsample()
    yield from grids()


def resize() -> Iterator[Case]:
    x = F(1, 2, 4, 5)
    for transform, mode in product(TRANSFORMS, (*NEAREST, "linear", "cubic")):
        forms = {"coordinate_transformation_mode": transform, "mode": "nearest" if mode in NEAREST else mode}
        if mode in NEAREST:
            forms["nearest_mode"] = mode
        region = const(REGION) if transform == "tf_crop_and_resize" else None
        for scales in SCALES:
            yield row("Resize", x, region, const(V(*scales)), **forms)
            if region is None:  # opset 11 wants one, empty
                yield row("Resize", x, const(V()), const(V(*scales)), **forms)
        for sizes in SIZES:
            yield row("Resize", x, region, None, sizes, **forms)
            yield row("Resize", x, region or const(V()), const(V()), sizes, **forms)
    for scales, mode in product(SCALES, ("nearest", "linear")):
        yield row("Resize", x, const(V(*scales)), mode=mode)
        yield row("Resize", x, V(*scales), mode=mode)


def resize_more() -> Iterator[Case]:
    x = F(1, 2, 4, 5)
    for mode, scales in product(("linear", "cubic"), SCALES):
        yield row("Resize", x, None, const(V(*scales)), mode=mode, antialias=1)
        yield row("Resize", x, None, const(V(*scales)), mode=mode, antialias=1, exclude_outside=1)
        yield row(
            "Resize", x, None, const(V(*scales)), mode=mode, antialias=1, coordinate_transformation_mode="align_corners"
        )
    for a, outside, scales in product((None, -0.5), (None, 1), SCALES):
        yield row("Resize", x, None, const(V(*scales)), mode="cubic", cubic_coeff_a=a, exclude_outside=outside)
    for policy, mode, axes in product(
        ("stretch", "not_larger", "not_smaller"), ("nearest", "linear", "cubic"), ([2, 3], [3, 2], [-1, -2])
    ):
        yield row("Resize", x, None, None, [7, 8], mode=mode, axes=axes, keep_aspect_ratio_policy=policy)
    for mode, axes in product(("nearest", "linear"), ([2, 3], [3])):
        yield row("Resize", x, None, const(V(*([0.7, 1.6][: len(axes)]))), mode=mode, axes=axes)
    region = const(V(0.4, 0.6, 1.2, 1.7))
    for mode in ("nearest", "linear", "cubic"):
        forms = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.5}
        yield row("Resize", x, region, None, [5, 6], mode=mode, axes=[2, 3], **forms)
        yield row("Resize", x, region, None, [5, 6], mode=mode, axes=[3, 2], **forms)
    for shape, scales in [
        ((2, 3, 5), (1, 1, 1.7)),
        ((5,), (2.5,)),
        ((4, 5), (1.5, 0.7)),
        ((1, 1, 2, 3, 4), (1, 1, 2, 1.5, 0.6)),
    ]:
        for mode in ("nearest", "linear"):
            yield row("Resize", F(*shape), None, const(V(*scales)), mode=mode)
    yield row("Resize", F(1, 4, 5, 2), None, const(V(1, 1.5, 2, 1)), mode="linear")
    yield row("Resize", F(2, 2, 3, 3), None, const(V(2, 2, 1, 1)), mode="nearest")
    for dtype in (np.int8, np.uint8, np.int32):
        yield row("Resize", N(0, 99, 1, 2, 4, 5, dtype=dtype), None, const(V(1, 1, 2, 2)), mode="nearest")
    yield row("Resize", N(0, 99, 1, 2, 4, 5, dtype=np.uint8), None, const(V(1, 1, 2, 2)), mode="linear")
    yield row("Resize", F(1, 2, 4, 5), None, const(V(1, 1, 1, 1)), mode="cubic")
    for mode, anti, scales in product(("nearest", "linear", "cubic"), (None, 1), ([1, 1, 1.2, 1.1], [1, 1, 1.2, 1.7])):
        if mode != "nearest" or not anti:  # sizes of which one or both stay
            yield row("Resize", x, None, const(V(*scales)), mode=mode, antialias=anti)
            yield row(
                "Resize", x, const(REGION), const(V(*scales)), mode=mode, coordinate_transformation_mode=TRANSFORMS[-1]
            )
    yield row("Resize", x, V(1, 1, 1.2, 1.1), mode="linear")
    yield row("Upsample", x, V(1, 1, 1.2, 1.1), mode="linear")


def upsample() -> Iterator[Case]:
    for mode, scales in product(
        ("nearest", "linear"), ([1.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.5, 2.5], [1.0, 1.0, 1.0, 1.0])
    ):
        yield row("Upsample", F(1, 2, 3, 4), mode=mode, scales=scales)
        yield row("Upsample", F(1, 2, 3, 4), const(V(*scales)), mode=mode)
        yield row("Upsample", F(1, 2, 3, 4), V(*scales), mode=mode)
    yield row("Upsample", F(2, 3), const(V(2, 2)), mode="nearest")
    yield row("Upsample", F(2, 3, 4), const(V(1, 1, 2)), mode="nearest")


def grids() -> Iterator[Case]:
    modes = ("linear", "nearest", "cubic", "bilinear", "bicubic")
    for mode, padding, align in product(modes, (None, "zeros", "border", "reflection"), (None, 1)):
        grid = U(-1.4, 1.4, 2, 3, 4, 2)
        yield row("GridSample", F(2, 2, 5, 6), grid, mode=mode, padding_mode=padding, align_corners=align)
    for mode, padding in product(("linear", "nearest"), ("zeros", "border", "reflection")):
        yield row("GridSample", F(1, 2, 3, 4, 5), U(-1.4, 1.4, 1, 2, 3, 2, 3), mode=mode, padding_mode=padding)
    yield row("GridSample", F(1, 1, 4, 4), V([0, 0], [0.25, -0.25], [-1, 1]).reshape(1, 1, 3, 2), mode="nearest")
    for align in (None, 1):
        yield row("AffineGrid", F(2, 2, 3), [2, 3, 4, 5], align_corners=align)
        yield row("AffineGrid", F(2, 3, 4), [2, 3, 2, 4, 5], align_corners=align)
        yield row("AffineGrid", F(2, 2, 3), [2, 3, 1, 5], align_corners=align)
        yield row("AffineGrid", F(2, 3, 4), [2, 3, 2, 1, 1], align_corners=align)
