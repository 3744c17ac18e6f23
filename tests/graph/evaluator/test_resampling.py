from __future__ import annotations

import numpy as np
import pytest

from normfold.graph.evaluator.call import NotCoveredError
from tests.graph.evaluator.one_node import agrees, evaluated, floats, grid, initializer

# onnxruntime's coordinates are float32: their errors, times the difference of neighbours.
ABSOLUTE = 3e-5

SHIFTS = [
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
]
NOTHING = np.zeros(0, np.float32)
REGION = np.array([0, 0, 0.1, 0.2, 1, 1, 0.8, 1.1], np.float32)
SCALES = [(3, 2), (1.3, 0.6), (1, 0.3)]
FORMS = [
    *grid(mode=["nearest"], nearest_mode=["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    *grid(mode=["linear"], antialias=[0, 1]),
    *grid(mode=["cubic"], antialias=[0, 1], exclude_outside=[0, 1], cubic_coeff_a=[None, -0.5]),
    {"mode": "linear", "antialias": 1, "exclude_outside": 1},
]


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("shift", SHIFTS)
def test_resize(shift: str, scales: tuple[float, float]) -> None:
    x = floats(2, 3, 7, 10)
    roi, value = (REGION, {"extrapolation_value": 7.0}) if shift == "tf_crop_and_resize" else (NOTHING, {})
    whole = initializer(np.array([1, 1, *scales], np.float32))
    sizes = initializer(np.array([2, 3, int(7 * scales[0]), int(10 * scales[1])]))
    for form in FORMS:
        form = {**form, **value, "coordinate_transformation_mode": shift}
        agrees("Resize", 19, [x, roi, whole], form, absolute=ABSOLUTE)
        if "antialias" not in form or form["antialias"] == 0:
            form.pop("antialias", None)
            for opset in (11, 13) if shift != "half_pixel_symmetric" else ():
                agrees(
                    "Resize",
                    opset,
                    [x, roi, initializer(NOTHING) if opset == 11 else None, sizes],
                    form,
                    absolute=ABSOLUTE,
                )


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_old_forms_divide_by_the_scale(mode: str) -> None:
    for scales in ((1, 1, 2, 2), (1, 1, 3, 2.5), (1, 1, 1.3, 2)):
        agrees("Upsample", 7, [floats(2, 3, 4, 5)], {"scales": [float(scale) for scale in scales], "mode": mode})
        agrees("Upsample", 9, [floats(2, 3, 4, 5), np.array(scales, np.float32)], {"mode": mode})
    for scales in ((1, 1, 3, 2.5), (1, 1, 0.6, 0.5), (1, 1, 2, 0.4), (2, 3), (1, 1, 2, 2, 0.5)):
        shape = (2, 3, 7, 10, 4)[: len(scales)]
        agrees("Resize", 10, [floats(*shape), np.array(scales, np.float32)], {"mode": mode})


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
@pytest.mark.parametrize("axes", [[2, 3], [3, 2]])
def test_axes_and_aspect_ratios(axes: list[int], policy: str) -> None:
    x = floats(1, 2, 5, 6)
    for sizes in ([7, 8], [3, 11], [2, 2]):
        for mode in ("nearest", "linear"):
            form = {"axes": axes, "mode": mode}
            agrees(
                "Resize",
                18,
                [x, None, None, initializer(np.array(sizes))],
                {**form, "keep_aspect_ratio_policy": policy},
                absolute=ABSOLUTE,
            )
            agrees("Resize", 18, [x, None, initializer(np.array(sizes, np.float32) / 4)], form, absolute=ABSOLUTE)


def test_the_middle_between_two_pixels_is_as_wide_as_onnxruntime_has_it() -> None:
    x = np.arange(40, dtype=np.float32).reshape(1, 1, 40, 1)
    for off in (0, 1e-7, -1e-6, 1e-6, 1e-5, -1e-5):
        scales = initializer(np.array([1, 1, 2 - off, 1], np.float32))
        for nearest in ("round_prefer_floor", "round_prefer_ceil"):
            form = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": nearest}
            agrees("Resize", 13, [x, None, scales], form)


def test_integers_are_resized_by_the_nearest_only() -> None:
    x, scales = np.arange(60, dtype=np.uint8).reshape(1, 2, 5, 6), initializer(np.array([1, 1, 1.5, 2], np.float32))
    agrees("Resize", 13, [x, None, scales])
    with pytest.raises(NotCoveredError, match="interpolation of integers"):
        evaluated("Resize", 13, [x, None, scales], {"mode": "linear"})


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [0, 1])
def test_grid_sample(padding: str, aligned: int) -> None:
    form = {"padding_mode": padding, "align_corners": aligned}
    image, volume = floats(2, 3, 5, 6), floats(2, 3, 5, 6, 4)
    for reach in (1.1, 4):
        places = np.random.default_rng(7).uniform(-reach, reach, (2, 4, 7, 2)).astype(np.float32)
        for opset, modes in ((16, ("nearest", "bilinear", "bicubic")), (20, ("nearest", "linear", "cubic"))):
            for mode in modes:
                agrees("GridSample", opset, [image, places], {**form, "mode": mode}, absolute=ABSOLUTE)
        places = np.random.default_rng(8).uniform(-reach, reach, (2, 4, 7, 3, 3)).astype(np.float32)
        for mode in ("nearest", "linear"):
            agrees("GridSample", 20, [volume, places], {**form, "mode": mode}, absolute=ABSOLUTE)


def test_halves_of_a_grid_are_found_as_onnxruntime_finds_them() -> None:
    down, right = np.meshgrid((2 * np.arange(4) + 1) / 4 - 1, (2 * np.arange(6) + 1) / 6 - 1, indexing="ij")
    places = np.stack([right, down], axis=-1)[None].astype(np.float32)
    agrees("GridSample", 20, [floats(1, 3, 8, 12), places], {"mode": "nearest"})


def test_affine_grid() -> None:
    for aligned in (0, 1):
        agrees("AffineGrid", 20, [floats(2, 2, 3), np.array([2, 3, 4, 5])], {"align_corners": aligned})
        agrees("AffineGrid", 20, [floats(2, 3, 4), np.array([2, 3, 4, 5, 6])], {"align_corners": aligned})
