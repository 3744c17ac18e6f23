"""Operators that move elements: every attribute, folded through in both directions, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import FOLDED, Outcome, check, draw, kept, op_types, partial
from tests.rules.sandwich import DIRECTIONS, Direction, Sandwich

IMAGE = "B,4,5,5"
LAST = np.iinfo(np.int64).max


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


CARRY = {
    "Identity": Sandwich("o = Identity(i)"),
    "Dropout": Sandwich("o = Dropout(i)"),
    "Dropout with ratio": Sandwich("o = Dropout<seed = 1>(i, r)", constants={"r": np.array(0.5)}),
    "Dropout not training": Sandwich("o, mask = Dropout(i, r, t)", constants={"r": np.array(0.5), "t": np.array(False)}),
    "Dropout opset 10": Sandwich("o = Dropout<ratio = 0.3>(i)", opset=10),
    "Cast": Sandwich("o = Cast<to = 11>(i)"),
    "Transpose": Sandwich("o = Transpose<perm = [0, 2, 1]>(i)", target="B,4,3", out_axis=1),
    "Transpose without perm": Sandwich("o = Transpose(i)", source="B,4,3", target="3,4,B", axis=1, out_axis=1),
    "Transpose square": Sandwich("o = Transpose<perm = [0, 2, 1]>(i)", source="4,4,4", out_axis=1),
    "Reshape -1": Sandwich("o = Reshape(i, s)", target="B,4", constants={"s": ints(-1, 4)}),
    "Reshape 0": Sandwich("o = Reshape(i, s)", target="B,1,3,4", constants={"s": ints(0, 1, 3, 4)}),
    "Reshape 0 and -1": Sandwich("o = Reshape(i, s)", target="B,3,1,4", constants={"s": ints(0, 0, 1, -1)}),
    "Reshape allowzero": Sandwich("o = Reshape<allowzero = 1>(i, s)", source="2,3,4", target="6,4", constants={"s": ints(6, 4)}),
    "Flatten axis 2": Sandwich("o = Flatten<axis = 2>(i)", target="B,4"),
    "Flatten axis -1": Sandwich("o = Flatten<axis = -1>(i)", target="B,4"),
    "Flatten merges ones": Sandwich("o = Flatten(i)", source="B,4,1,1", target="B,4", axis=1, out_axis=1),
    "Squeeze": Sandwich("o = Squeeze(i, s)", source="B,1,4", target="B,4", constants={"s": ints(1)}),
    "Squeeze negative": Sandwich("o = Squeeze(i, s)", source="B,4,1", target="B,4", axis=1, out_axis=1, constants={"s": ints(-1)}),
    "Squeeze attribute": Sandwich("o = Squeeze<axes = [1]>(i)", source="B,1,4", target="B,4", opset=11),
    "Unsqueeze": Sandwich("o = Unsqueeze(i, s)", source="B,4", target="B,4,1", out_axis=1, constants={"s": ints(2)}),
    "Unsqueeze negative": Sandwich("o = Unsqueeze(i, s)", source="B,4,3", target="B,4,3,1", axis=1, constants={"s": ints(-1)}),
    "Unsqueeze attribute": Sandwich("o = Unsqueeze<axes = [1]>(i)", source="B,4", target="B,1,4", opset=11),
    "Slice": Sandwich("o = Slice(i, a, b, c)", target="B,2,4", constants={"a": ints(1), "b": ints(LAST), "c": ints(1)}),
    "Slice without axes": Sandwich("o = Slice(i, a, b)", source="2,3,4", target="1,2,4", constants={"a": ints(1, 0), "b": ints(2, 2)}),
    "Slice step": Sandwich("o = Slice(i, a, b, c, d)", source="B,5,4", target="B,3,4", constants={"a": ints(0), "b": ints(5), "c": ints(1), "d": ints(2)}),
    "Slice negative step": Sandwich("o = Slice(i, a, b, c, d)", target="B,3,4", constants={"a": ints(-1), "b": ints(-LAST - 1), "c": ints(-2), "d": ints(-1)}),
    "Slice at run time": Sandwich("f = Shape<start = 1, end = 2>(x)\no = Slice(i, a, f, c)", source="B,L,4", constants={"a": ints(0), "c": ints(1)}),
    "Gather position": Sandwich("o = Gather<axis = 1>(i, p)", target="B,4", constants={"p": np.array(1)}),
    "Gather negative": Sandwich("o = Gather<axis = -2>(i, p)", target="B,2,4", constants={"p": ints(-1, 0)}),
    "Gather matrix": Sandwich("o = Gather<axis = 1>(i, p)", target="B,1,2,4", constants={"p": ints(-1, 0).reshape(1, 2)}),
    "Expand": Sandwich("o = Expand(i, s)", source="B,1,4", target="B,3,4", constants={"s": ints(1, 3, 1)}),
    "Expand adds axes": Sandwich("o = Expand(i, s)", source="3,4", target="2,3,4", constants={"s": ints(2, 1, 4)}),
    "Pad zero": Sandwich("o = Pad(i, p)", source="B,4,3", target="B,4,4", axis=1, constants={"p": ints(0, 0, 0, 0, 0, 0)}),
    "Pad edge": Sandwich('o = Pad<mode = "edge">(i, p)', source="B,4,3", target="B,4,6", axis=1, constants={"p": ints(0, 0, 1, 0, 0, 2)}),
    "Pad reflect": Sandwich('o = Pad<mode = "reflect">(i, p)', source="B,4,3", target="B,4,6", axis=1, constants={"p": ints(0, 0, 1, 0, 0, 2)}),
    "Pad crops": Sandwich('o = Pad<mode = "edge">(i, p)', source="B,4,3", target="B,4,1", axis=1, constants={"p": ints(0, 0, -1, 0, 0, -1)}),
    "MaxPool of one": Sandwich("o = MaxPool<kernel_shape = [1, 1]>(i)", source=IMAGE, axis=1),
}
POSITIVE = {"MaxPool of one"}
# Adding 0 amounts of zeros is refused like any zero padding: it is rarer than it would be worth.
REFUSED_SHIFT = {"Pad zero"}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CARRY)
def test_carries(name: str, direction: Direction) -> None:
    case = CARRY[name]
    expected = partial("shift-meets-padding") if name in REFUSED_SHIFT else FOLDED
    case.fold(expected, direction, "positive" if name in POSITIVE else "affine")
