from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.evaluator.one_node import agrees, evaluated, floats, grid

SIZES = {1: (11,), 2: (9, 8), 3: (6, 7, 8)}
# Every kernel with every pair of the others; SAME and pads exclude each other.
PADS = [None, [1, 0, 0, 1], [0, 0, 2, 1], [1, 1, 1, 1]]
PLAIN = [
    *grid(kernel_shape=[[3, 2], [3, 3]], strides=[None, [2, 3]], pads=PADS),
    *grid(kernel_shape=[[3, 2], [3, 3]], strides=[None, [2, 3]], auto_pad=["SAME_UPPER", "SAME_LOWER", "VALID"]),
]
CEILED = grid(kernel_shape=[[3, 2], [3, 3]], strides=[[2, 3], [3, 2]], pads=PADS, ceil_mode=[1])
GAPS = grid(kernel_shape=[[3, 2]], dilations=[[2, 1]], strides=[None, [2, 3]], pads=PADS[:2], ceil_mode=[None, 1])


@pytest.mark.parametrize("form", [*PLAIN, *CEILED, *GAPS], ids=str)
def test_pools_of_images(form: dict[str, Any]) -> None:
    x = floats(2, 3, 9, 8)
    for opset in (10, 12, 22) if "ceil_mode" in form or "dilations" in form else (7, 8, 11, 22):
        agrees("MaxPool", opset, [x], form)
    for opset in (10, 12):
        agrees("MaxPool", opset, [x], form, outputs=2)
        agrees("MaxPool", opset, [x], {**form, "storage_order": 1}, outputs=2)
    averages = (19, 22) if "dilations" in form else (10, 11, 19) if "ceil_mode" in form else (7, 10, 11, 22)
    for opset in averages:
        for include in (0, 1):
            agrees("AveragePool", opset, [x], {**form, "count_include_pad": include})
    for opset in (18, 22) if "ceil_mode" in form or "dilations" in form else (7, 11, 22):
        agrees("LpPool", opset, [x], {**form, "p": 3})


@pytest.mark.parametrize("axes", [1, 3])
def test_pools_of_other_ranks(axes: int) -> None:
    x = floats(2, 3, *SIZES[axes])
    form = {"kernel_shape": [3, 2, 3][:axes], "strides": [2, 1, 2][:axes], "pads": [1, 0, 2][:axes] + [0, 1, 1][:axes]}
    for ceil in (0, 1):
        agrees("MaxPool", 12, [x], {**form, "ceil_mode": ceil}, outputs=2)
        agrees("MaxPool", 12, [x], {**form, "ceil_mode": ceil, "storage_order": 1}, outputs=2)
        agrees("AveragePool", 19, [x], {**form, "ceil_mode": ceil, "count_include_pad": 1})
        agrees("LpPool", 18, [x], {**form, "ceil_mode": ceil})


def test_max_of_integers_of_equals_and_of_nothing() -> None:
    form = {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1]}
    for kind in (np.int8, np.uint8):
        whole = np.random.default_rng(3).integers(0, 100, (2, 3, 9, 8)).astype(kind)
        agrees("MaxPool", 12, [whole], form)
        agrees("MaxPool", 12, [whole], form, outputs=2)
    agrees("MaxPool", 12, [np.zeros((2, 3, 9, 8), np.float32)], form, outputs=2)
    agrees("MaxPool", 12, [floats(0, 3, 9, 8)], form, outputs=2)


def test_same_pads_never_cut() -> None:
    """onnxruntime's kernels disagree with one another here: some begin at pixel 1."""
    x = np.arange(9, dtype=np.float32).reshape(1, 1, 9)
    (found,) = evaluated("AveragePool", 19, [x], {"kernel_shape": [1], "strides": [3], "auto_pad": "SAME_UPPER"})
    np.testing.assert_array_equal(found.reshape(-1), [0, 3, 6])


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 2)])
def test_global_pools(shape: tuple[int, ...]) -> None:
    agrees("GlobalAveragePool", 7, [floats(*shape)])
    agrees("GlobalMaxPool", 7, [floats(*shape)])
    for order in (1, 2, 3):
        agrees("GlobalLpPool", 7, [floats(*shape)], {"p": order})


@pytest.mark.parametrize(
    "form", grid(kernel_shape=[[2, 2], [3, 3]], strides=[None, [2, 3]], pads=[None, [0, 1, 1, 0]]), ids=str
)
def test_max_unpool(form: dict[str, Any]) -> None:
    strides, pads = form.get("strides", [1, 1]), form.get("pads", [0] * 4)
    height, width = (
        (size - 1) * strides[axis] - pads[axis] - pads[axis + 2] + form["kernel_shape"][axis]
        for axis, size in enumerate((3, 4))
    )
    places = np.random.default_rng(4).permutation(6 * height * width)[:72].reshape(2, 3, 3, 4)
    for opset in (9, 11):
        agrees("MaxUnpool", opset, [floats(2, 3, 3, 4), places], form)
        agrees("MaxUnpool", opset, [floats(2, 3, 3, 4), places, np.array([2, 3, height + 1, width + 2])], form)


def boxes(scale: float) -> np.ndarray:
    """Six boxes (x1, y1, x2, y2) on an image of 9 x 11, some of them beyond it."""
    corner, size = np.random.default_rng(5).uniform(-2, 7, (6, 2)), np.random.default_rng(6).uniform(0, 10, (6, 2))
    return (np.concatenate([corner, corner + size], axis=1) / scale).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 0.0625])
def test_regions(scale: float) -> None:
    x, images = floats(2, 3, 9, 11), np.array([0, 1, 1, 0, 0, 1])
    # Many small products of coordinates, in float32.
    loose = {"relative": 1e-4, "absolute": 2e-5}
    for mode in ("avg", "max"):
        for points in (0, 1, 3):
            form = {
                "mode": mode,
                "output_height": 3,
                "output_width": 2,
                "sampling_ratio": points,
                "spatial_scale": scale,
            }
            agrees("RoiAlign", 10, [x, boxes(scale), images], form, **loose)
            for shift in ("half_pixel", "output_half_pixel"):
                form["coordinate_transformation_mode"] = shift
                agrees("RoiAlign", 16, [x, boxes(scale), images], form, **loose)
    rows = np.concatenate([images[:, None], boxes(scale)], axis=1).astype(np.float32)
    for shape in ([1, 1], [3, 2], [7, 7]):
        agrees("MaxRoiPool", 7, [x, rows], {"pooled_shape": shape, "spatial_scale": scale})
