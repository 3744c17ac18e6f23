"""Tile, Resize, DepthToSpace and SpaceToDepth."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.rules.sandwich import DIRECTIONS, Direction, Sandwich
from tests.support.graphs import (
    EXACT,
    FOLDED,
    Outcome,
    as_float32,
    build,
    check,
    draw,
    fold,
    kept,
    outcomes,
    partial,
    run_float32,
)

TILES = {
    "positions": ("B,3,4", [1, 2, 1], "B,6,4"),
    "batch": ("B,3,4", [3, 1, 1], "C,3,4"),
    "channels": ("B,3,4", [1, 1, 2], "B,3,8"),
    "all": ("B,3,4", [2, 2, 3], "C,6,12"),
}


@pytest.mark.parametrize("name", TILES)
def test_tiles_repeat_the_frame(name: str) -> None:
    source, repeats, target = TILES[name]
    case = Sandwich("o = Tile(i, r)", source, target, constants={"r": np.array(repeats)})
    case.fold(FOLDED, "forward")
    # Behind repeated channels, a norm that differs between the repetitions has no place before them.
    case.fold(FOLDED if repeats[2] == 1 else kept("wall"), "backward")


def test_a_norm_that_repeats_as_its_channels_do_goes_back_through_a_tile() -> None:
    text = (
        "g (double[B,4] x) => (double y) {\nh = Gemm(x, w, c)\n"
        "o = Tile(h, r)\nn0 = Mul(o, a)\nn = Add(n0, b)\ny = Tanh(n)\n}"
    )
    twice = {name: np.tile(draw(name, 4), 2) for name in "ab"}
    check(text, FOLDED, w=(4, 4), c=(4,), r=np.array([1, 2]), **twice)
    check(text, kept("wall"), w=(4, 4), c=(4,), r=np.array([1, 2]), a=(8,), b=(8,))


def test_a_tile_that_is_computed_passes_what_it_does_not_repeat() -> None:
    text = (
        "g (double[B,1,4] x, int64[3] r) => (double[B,3,5] y) {\n"
        "h = Tanh(x)\nn = Mul(h, a)\no = Tile(n, r)\ny = MatMul(o, w)\n}"
    )
    for dims, outcome in (("B,K,4", FOLDED), ("B,K,D", kept("channels-cut")), ("B,3,8", kept("channels-cut"))):
        model = build(text, a=(4,), w=(4, 5))
        model.graph.value_info.extend(
            build(f"g (double[{dims}] o) => (double[{dims}] q) {{\nq = Tanh(o)\n}}").graph.input
        )
        _, plan = fold(model)
        assert outcomes(plan) == [outcome], dims


# Depth and space.


@pytest.mark.parametrize(("mode", "block"), [("DCR", 2), ("CRD", 2), ("DCR", 3), ("CRD", 3)])
def test_depth_to_space_carries_what_is_alike_within_a_block(mode: str, block: int) -> None:
    area = block**2
    text = f"""g (double[B,{2 * area},2,3] x) => (double y) {{
        h = Tanh(x)
        n0 = Mul(h, a)
        n = Add(n0, b)
        o = DepthToSpace<blocksize = {block}, mode = "{mode}">(n)
        y = Conv(o, w, c)
    }}"""
    tiled, repeated = (
        {name: of(draw(name, 2), area).reshape(-1, 1, 1) for name in "ab"} for of in (np.tile, np.repeat)
    )
    alike, other = (tiled, repeated) if mode == "DCR" else (repeated, tiled)
    check(text, FOLDED, **alike, w=(3, 2, 1, 1), c=(3,))
    check(text, kept("reshaped-channels"), **other, w=(3, 2, 1, 1), c=(3,))
    check(text, kept("reshaped-channels"), a=(2 * area, 1, 1), b=(2 * area, 1, 1), w=(3, 2, 1, 1), c=(3,))


@pytest.mark.parametrize(("mode", "block"), [("DCR", 2), ("CRD", 2), ("DCR", 3), ("CRD", 3)])
def test_a_norm_goes_back_through_depth_to_space(mode: str, block: int) -> None:
    """The subpixel convolution: the norm behind it, into the convolution in front of it."""
    text = f"""g (double[B,4,2,3] x) => (double y) {{
        h = Conv(x, w, c)
        o = DepthToSpace<blocksize = {block}, mode = "{mode}">(h)
        n0 = Mul(o, a)
        n = Add(n0, b)
        y = Tanh(n)
    }}"""
    check(text, FOLDED, w=(2 * block**2, 4, 1, 1), c=(2 * block**2,), a=(2, 1, 1), b=(2, 1, 1))
    check(text, kept("wall"), w=(2 * block**2, 4, 1, 1), c=(2 * block**2,), a=(2 * block, 1), b=(2 * block, 1))


@pytest.mark.parametrize("block", [2, 3])
def test_space_to_depth(block: int) -> None:
    """Checked by onnxruntime: onnx's reference implementation reads depth-first only in square images."""
    size = f"{2 * block},{3 * block}"
    text = f"g (double[B,4,{size}] x) => (double y) {{\nh = Tanh(x)\nn0 = Mul(h, a)\nn = Add(n0, b)\n"
    text += f"o = SpaceToDepth<blocksize = {block}>(n)\ny = Conv(o, w, c)\n}}"
    check(text, FOLDED, a=(4, 1, 1), b=(4, 1, 1), w=(3, 4 * block**2, 1, 1), c=(3,))
    back = f"g (double[B,4,{size}] x) => (double y) {{\nh = Conv(x, w, c)\no = SpaceToDepth<blocksize = {block}>(h)\n"
    back += "n0 = Mul(o, a)\nn = Add(n0, b)\ny = Tanh(n)\n}"
    alike, other = ({n: of(draw(n, 4), block**2).reshape(-1, 1, 1) for n in "ab"} for of in (np.tile, np.repeat))
    check(back, FOLDED, w=(4, 4, 1, 1), c=(4,), **alike)
    check(back, kept("wall"), w=(4, 4, 1, 1), c=(4,), **other)


# Resize.

# The weights of a cubic are computed in float32 whatever the image is: they add up to 1 as far as that goes.
CUBIC = 2e-6
MODES = {
    "nearest": 'mode = "nearest"',
    "nearest, floor": 'coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
    "linear": 'mode = "linear"',
    "linear, corners": 'mode = "linear", coordinate_transformation_mode = "align_corners"',
    "linear, torch": 'mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"',
    "linear, symmetric": 'mode = "linear", coordinate_transformation_mode = "half_pixel_symmetric"',
    "cubic": 'mode = "cubic"',
    "cubic of a": 'mode = "cubic", cubic_coeff_a = -0.5, coordinate_transformation_mode = "asymmetric"',
}
TO = {"sizes": ("(i, , , size)", "B,4,7,3"), "scales": ("(i, , scales)", "B,4,10,4")}


def resize(attributes: str, to: str, **constants: np.ndarray) -> Sandwich:
    inputs, target = TO[to]
    given = {"size": np.array([2, 4, 7, 3]), "scales": np.array([1.0, 1.0, 2.0, 0.7], np.float32), **constants}
    return Sandwich(
        f"o = Resize<{attributes}>{inputs}",
        "2,4,5,6",
        target.replace("B", "2"),
        axis=1,
        constants=given,
        tolerance=CUBIC if "cubic" in attributes else EXACT,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_resizing_passes_scales_and_shifts(mode: str, to: str, direction: Direction) -> None:
    resize(MODES[mode], to).fold(FOLDED, direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_resizing_chosen_axes(direction: Direction) -> None:
    for axes, sizes in (([2, 3], [7, 3]), ([3, 2], [3, 7])):
        case = resize(f"axes = {axes}", "sizes", size=np.array(sizes))
        case.fold(FOLDED, direction)


@pytest.mark.parametrize("attribute", ["antialias = 1", "exclude_outside = 1"])
def test_weights_that_may_not_add_up_let_no_shift_through(attribute: str) -> None:
    case = resize(f'mode = "cubic", {attribute}', "sizes")
    case.fold(partial("uneven-taps"), "forward")
    case.fold(FOLDED, "forward", "scale")
    resize(f'mode = "cubic", {attribute.replace("1", "0")}', "sizes").fold(FOLDED, "forward")


REFUSED: list[tuple[str, str, dict[str, np.ndarray], Outcome]] = [
    ('coordinate_transformation_mode = "tf_crop_and_resize"', "(i, roi, , size)", {}, kept("fill-value")),
    ('mode = "nearest", keep_aspect_ratio_policy = "not_larger"', "(i, , , size)", {}, kept("wall")),
    ('mode = "nearest"', "(i, , scales)", {"scales": np.array([1, 1.1, 2, 1], np.float32)}, kept("channels-cut")),
    ('mode = "nearest"', "(i, , , size)", {"size": np.array([2, 8, 7, 3])}, kept("channels-cut")),
    ('mode = "nearest"', "(i, , , size)", {}, FOLDED),
]


@pytest.mark.parametrize(("attributes", "inputs", "constants", "outcome"), REFUSED)
def test_what_is_not_followed(attributes: str, inputs: str, constants: dict[str, np.ndarray], outcome: Outcome) -> None:
    text = (
        f"g (double[2,4,5,6] x) => (double y) {{\nh = Tanh(x)\n"
        f"i = Mul(h, a)\no = Resize<{attributes}>{inputs}\ny = Tanh(o)\n}}"
    )
    given = {"size": np.array([2, 4, 7, 3]), "roi": np.array([0.0, 0, 0, 0, 1, 1, 1, 1]), **constants}
    text = text.replace("y = Tanh(o)", "y = Conv(o, w)") if "channels-cut" not in str(outcome) else text
    _, plan = fold(build(text, a=(4, 1, 1), w=(3, 4, 1, 1), **given))
    assert outcomes(plan) == [outcome]


def test_onnxruntime_agrees_on_shifts_through_every_mode() -> None:
    checked = 0
    for mode in MODES.values():
        text = (
            f"g (double[2,4,5,6] x) => (double y) {{\nh = Tanh(x)\nn0 = Mul(h, a)\n"
            f"n = Add(n0, b)\no = Resize<{mode}>(n, , , size)\ny = Conv(o, w, c)\n}}"
        )
        given = {"a": (4, 1, 1), "b": (4, 1, 1), "w": (3, 4, 1, 1), "c": (3,), "size": np.array([2, 4, 7, 3])}
        model = as_float32(build(text, **given))
        after, plan = fold(model)
        assert outcomes(plan) == [FOLDED]
        feeds = {"x": np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)}
        truth, found = (run_float32(each, feeds)[0] for each in (model, after))
        assert np.abs(truth - found).max() < 1e-5 * np.abs(truth).max()
        checked += 1
    assert checked == len(MODES)
