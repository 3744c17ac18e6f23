"""What newer opsets have as inputs and older ones as attributes: both are read, and the file keeps its spelling."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.rules.sandwich import DIRECTIONS, Direction, Sandwich
from tests.support.graphs import (
    FOLDED,
    Outcome,
    build,
    feeds_for,
    fold,
    kept,
    op_types,
    outcomes,
    partial,
    run_float32,
)

IMAGE = "B,4,5,5"
SINGLE = 1e-5

SPELLINGS = {
    "Split 2": Sandwich("o, p = Split<axis = 1, split = [2, 1]>(i)", target="B,2,4", opset=11),
    "Split 2 on the channels": Sandwich(
        "o, p = Split<axis = 1, split = [1, 3]>(i)", source="B,4,3", target="B,1,3", axis=1, opset=7
    ),
    "Slice 1": Sandwich("o = Slice<starts = [0], ends = [2], axes = [1]>(i)", target="B,2,4", opset=9),
    "Slice 1 without axes": Sandwich("o = Slice<starts = [0, 1], ends = [9, 3]>(i)", "2,3,4", "2,2,4", opset=9),
    "Squeeze 1": Sandwich("o = Squeeze<axes = [1]>(i)", "B,1,4", "B,4", opset=7),
    "Unsqueeze 1": Sandwich("o = Unsqueeze<axes = [1]>(i)", "B,4", "B,1,4", opset=7),
    "Pad 2 reflect": Sandwich(
        'o = Pad<mode = "reflect", pads = [0, 0, 1, 0, 0, 2]>(i)', "B,4,3", "B,4,6", axis=1, opset=10
    ),
}


# The channels behind this one are a part of those in front of it.
PARTS = {"Split 2 on the channels"}


@pytest.mark.parametrize(("name", "direction"), [(n, d) for n in SPELLINGS for d in DIRECTIONS if n not in PARTS])
def test_a_frame_passes_an_older_spelling(name: str, direction: Direction) -> None:
    case = SPELLINGS[name]
    model, _ = case.fold(FOLDED, direction)
    assert [entry.version for entry in model.opset_import] == [case.opset]


def test_a_part_of_the_channels_is_read() -> None:
    SPELLINGS["Split 2 on the channels"].fold(FOLDED, "forward")
    case = Sandwich("o = Slice<starts = [1], ends = [3], axes = [2]>(i)", target="B,3,2", opset=9)
    case.fold(FOLDED, "forward")
    case.fold(kept("wall"), "backward")


@pytest.mark.parametrize(
    ("attributes", "norm", "outcome"),
    [
        ("pads = [0, 0, 1, 0, 0, 2]", "affine", partial("shift-meets-padding")),
        ("pads = [0, 0, 1, 0, 0, 2]", "scale", FOLDED),
        ("pads = [0, 0, 1, 0, 0, 2], value = 0.0", "scale", FOLDED),
        ("pads = [0, 0, 1, 0, 0, 2], value = 1.5", "scale", kept("fill-value")),
        ("pads = [0, 1, 0, 0, 1, 0]", "scale", kept("channels-cut")),
    ],
)
def test_a_pad_is_told_by_attributes(attributes: str, norm: str, outcome: Outcome) -> None:
    target = "B,6,3" if outcome == kept("channels-cut") else "B,4,6"
    Sandwich(f"o = Pad<{attributes}>(i)", "B,4,3", target, axis=1, opset=10).fold(outcome, "forward", norm)  # type: ignore[arg-type]


ONE = """<ir_version: 6, opset_import: ["" : 10]>
g (float[B,4] x) => (float[B,3] y) {{
    h = Tanh(x)
    n = Mul(h, a)
    o = Clip<{}>(n)
    y = MatMul(o, w)
}}"""


@pytest.mark.parametrize(
    ("bounds", "scale", "outcome"),
    [
        ("min = 0.0", [0.5, 2.0, 0.25, 4.0], FOLDED),
        ("min = 0.0, max = 3.4028234663852886e+38", [0.5, 2.0, 0.25, 4.0], FOLDED),
        ("min = -0.25, max = 0.5", [2.0, 2.0, 2.0, 2.0], FOLDED),  # the bounds are divided by 2
        ("min = 0.0, max = 0.5", [0.5, 2.0, 0.25, 4.0], kept("one-bound")),
        ("min = 0.0", [0.5, -2.0, 0.25, 4.0], kept("negative-scale")),
    ],
)
def test_a_clip_has_bounds_as_attributes(bounds: str, scale: list[float], outcome: Outcome) -> None:
    constants = {"a": np.array(scale, np.float32), "w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}
    model = build(ONE.format(bounds), **constants)
    after, plan = fold(model)
    assert outcomes(plan) == [outcome]
    feeds = {name: 2.0 * value for name, value in feeds_for(model, 3).items()}
    np.testing.assert_allclose(run_float32(after, feeds)[0], run_float32(model, feeds)[0], atol=SINGLE)
    if outcome == FOLDED:
        assert op_types(after) == ["Tanh", "Clip", "MatMul"]


RESAMPLED = [
    (7, 'Upsample<mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]>(i)', FOLDED),
    (8, 'Upsample<mode = "linear", scales = [1.0, 1.0, 2.0, 2.0]>(i)', FOLDED),
    (9, 'Upsample<mode = "nearest">(i, f)', FOLDED),
    (10, 'Resize<mode = "linear">(i, f)', FOLDED),
    (9, 'Upsample<mode = "nearest">(i, k)', kept("channels-cut")),
]


@pytest.mark.parametrize(("opset", "operator", "outcome"), RESAMPLED)
def test_older_ways_to_resize(opset: int, operator: str, outcome: Outcome) -> None:
    """Held to the runtime: onnx's reference implementation does not know them."""
    text = f"""<ir_version: 6, opset_import: ["" : {opset}]>
    g (float[2,4,3,3] x) => (float y) {{
        h = Tanh(x)
        n = Mul(h, a)
        i = Add(n, b)
        o = {operator}
        y = Conv(o, w)
    }}"""
    channels = 8 if "k" in operator else 4
    rng = np.random.default_rng(0)
    constants = {
        "a": rng.uniform(0.5, 2.0, (4, 1, 1)).astype(np.float32) * np.float32([1, -1, 1, -1]).reshape(4, 1, 1),
        "b": rng.normal(size=(4, 1, 1)).astype(np.float32),
        "w": rng.normal(size=(3, channels, 1, 1)).astype(np.float32),
        "f": np.float32([1, 1, 2, 2]),
        "k": np.float32([1, 2, 1, 1]),
    }
    used = {name: value for name, value in constants.items() if name in "abw" or f", {name})" in operator}
    model = build(text, **used)
    after, plan = fold(model)
    assert outcomes(plan) == [outcome] and after.opset_import[0].version == opset
    feeds = feeds_for(model, 2)
    np.testing.assert_allclose(run_float32(after, feeds)[0], run_float32(model, feeds)[0], atol=SINGLE)
    assert ("Mul" in op_types(after)) == (outcome is not FOLDED)
