"""Elements that are picked, summed up, sampled or padded along some axes: the frames of the others pass."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.rules.sandwich import DIRECTIONS, Sandwich
from tests.analysis.rules.test_layout import SINGLE, ints
from tests.support.graphs import FOLDED, Outcome, build, check, draw, fold, kept, op_types, outcomes, partial

SHUFFLED = """g (double[B,3,4] x) => (double y) {
    h = MatMul(x, v)
    m = Gather<axis = 2>(h, p)
    n = Mul(m, a)
    y = Tanh(n)
}"""


@pytest.mark.parametrize(
    ("picked", "equal", "outcome"),
    [
        ([3, 1, 0, 2], False, FOLDED),
        ([0, 1, 2, 3, 0], False, kept("wall")),
        ([0, 1, 2, 3, 0], True, FOLDED),
        ([0, 1, 3], False, kept("wall")),
    ],
)
def test_the_writer_of_channels_that_are_shuffled(picked: list[int], equal: bool, outcome: Outcome) -> None:
    """Every channel is read, and what is read twice is scaled alike: then it is the writer's to scale."""
    scale = draw("a", len(picked))
    scale[-1] = scale[0] if equal else scale[-1]
    model, _ = check(SHUFFLED, outcome, v=(4, 4), p=ints(*picked), a=scale)
    assert ("Mul" in op_types(model)) == (outcome is not FOLDED)


def test_the_readers_of_channels_that_are_picked() -> None:
    case = Sandwich("o = Gather<axis = 2>(i, p)", target="B,3,3", constants={"p": ints(1, 1, 3)})
    case.fold(FOLDED, "forward")
    single = Sandwich(
        "c = Gather<axis = 2>(i, p)\no = Unsqueeze(c, e)", target="B,3,1", constants={"p": np.array(2), "e": ints(2)}
    )
    single.fold(FOLDED, "forward")
    computed = Sandwich(
        "r = ReduceMax<keepdims = 0>(x)\nt = Cast<to = 7>(r)\nz = Sub(t, t)\nq = Add(z, p)\no = Gather<axis = 2>(i, q)",
        target="B,3,3",
        constants={"p": ints(1, 1, 3)},
    )
    computed.fold(kept("channels-cut"), "forward")


def test_elements_gathered_along_the_channels_refuse() -> None:
    index = np.array([0, 2, 1, 1] * 6).reshape(2, 3, 4)
    case = Sandwich("o = GatherElements<axis = 2>(i, p)", source="2,3,4", constants={"p": index})
    case.fold(kept("channels-cut"), "forward")
    # Fewer channels are looked at than there are: the reference implementation does not run that.
    text = """g (double[2,3,4] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        o = GatherElements<axis = 0>(n, p)
        y = MatMul(o, w)
    }"""
    _, plan = fold(build(text, a=(4,), w=(3, 5), p=index[..., :3] % 2))
    assert outcomes(plan) == [kept("channels-cut")]


@pytest.mark.parametrize("attributes", ["exclusive = 0", "exclusive = 1", "reverse = 1"])
def test_a_running_sum_takes_a_scale_off_its_axis(attributes: str) -> None:
    case = Sandwich(f"o = CumSum<{attributes}>(i, k)", constants={"k": np.array(1)})
    case.fold(partial("uneven-taps"), "forward")
    for direction in DIRECTIONS:
        case.fold(FOLDED, direction, "scale")
    Sandwich("o = CumSum(i, k)", constants={"k": np.array(-1)}).fold(kept("channels-cut"), "forward")
    run_time = "r = ReduceMax<keepdims = 0>(x)\nt = Cast<to = 7>(r)\nz = Sub(t, t)\nq = Add(z, k)\no = CumSum(i, q)"
    Sandwich(run_time, constants={"k": np.array(1)}).fold(kept("dynamic-axes"), "forward")


def test_a_sequence_reversed_along_the_channels_refuses() -> None:
    text = "o = ReverseSequence<batch_axis = 0, time_axis = 1>(i, p)"
    Sandwich(text, source="2,4,3", axis=1, constants={"p": ints(2, 3)}).fold(kept("channels-cut"), "forward")


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_a_grid_samples_zeros_beyond_the_border_or_none(mode: str) -> None:
    case = Sandwich(
        f'o = GridSample<mode = "{mode}">(i, p)',
        "2,4,5,5",
        "2,4,3,3",
        axis=1,
        constants={"p": (2, 3, 3, 2)},
        tolerance=SINGLE,
    )
    case.fold(partial("shift-meets-padding"), "forward")
    case.fold(FOLDED, "forward", "scale")
    text = f'o = GridSample<mode = "{mode}", padding_mode = "reflection", align_corners = 1>(i, p)'
    Sandwich(text, "2,4,5,5", "2,4,3,3", axis=1, constants={"p": (2, 3, 3, 2)}, tolerance=SINGLE).fold(
        FOLDED, "forward"
    )


def test_positions_that_a_grid_samples_have_no_frames_of_their_own() -> None:
    text = """g (double[2,3,5,4] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        o = GridSample<padding_mode = "border">(n, p)
        y = MatMul(o, w)
    }"""
    for along in ((5, 1), (4,)):
        check(text, kept("channels-cut"), a=along, p=(2, 5, 4, 2), w=(4, 3), tolerance=SINGLE)


POOLED = "f = Pad(i, p, low)\no = MaxPool<kernel_shape = [2], strides = [2]>(f)"


def test_padding_with_an_infinite_number_takes_a_shift_and_a_positive_scale() -> None:
    constants = {"p": ints(0, 0, 1, 0, 0, 0), "low": np.array(-np.inf)}
    case = Sandwich(POOLED, "B,4,3", "B,4,2", axis=1, constants=constants)
    for direction in DIRECTIONS:
        case.fold(FOLDED, direction, "positive")
    case.fold(kept("negative-scale"), "forward")
    finite = Sandwich(POOLED, "B,4,3", "B,4,2", axis=1, constants={**constants, "low": np.array(-9.0)})
    finite.fold(kept("fill-value"), "forward", "positive")
