"""ConvTranspose: the product of its attributes; which shifts it takes is measured on the operator itself."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.support.graphs import (
    FOLDED,
    Outcome,
    as_float32,
    build,
    check,
    draw,
    feeds_for,
    fold,
    kept,
    op_types,
    outcomes,
    partial,
    run,
    run_float32,
)

SPATIAL = {1: (7,), 2: (5, 4), 3: (3, 4, 3)}


def header(rank: int, channels: int = 4) -> str:
    return f"double[B,{channels}{''.join(f',{size}' for size in SPATIAL[rank])}] x"


def attributes(
    rank: int, *, group: int = 1, stride: int = 1, dilation: int = 1, pads: tuple[int, int] = (0, 0), extra: int = 0
) -> str:
    found = [f"group = {group}", f"strides = {[stride] * rank}", f"dilations = {[dilation] * rank}"]
    found.append(f"pads = {[pads[0]] * rank + [pads[1]] * rank}")
    return ", ".join(found + ([f"output_padding = {[extra] * rank}"] if extra else []))


@pytest.mark.parametrize("group", [1, 2])
def test_the_definition_is_the_one_that_onnxruntime_has(group: int) -> None:
    """What the other tests measure against."""
    given = attributes(2, group=group, stride=2, dilation=2, pads=(1, 2), extra=1)
    text = f"g ({header(2)}) => (double y) {{\ny = ConvTranspose<{given}>(x, w, c)\n}}"
    model = as_float32(build(text, w=(4, 3, 3, 2), c=(3 * group,)))
    feeds = feeds_for(model, 2)
    ours, theirs = run(model, feeds)[0], run_float32(model, feeds)[0]
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-5


def before(rank: int, given: str, bias: bool) -> str:
    """A norm in front of the operator."""
    return f"""g ({header(rank)}) => (double y) {{
        h = Tanh(x)
        n0 = Mul(h, a)
        n = Add(n0, b)
        z = ConvTranspose<{given}>(n, w{", c" if bias else ""})
        y = Tanh(z)
    }}"""


def takes_a_shift(rank: int, given: str, weight: NDArray[np.float64], shift: NDArray[np.float64]) -> bool:
    """Whether a tensor that is `shift` everywhere comes out as one constant of each channel."""
    text = f"g ({header(rank)}) => (double y) {{\ny = ConvTranspose<{given}>(x, w)\n}}"
    flat = np.broadcast_to(shift, (1, 4, *SPATIAL[rank]))
    out = run(build(text, w=weight), {"x": flat})[0]
    return bool(np.ptp(out.reshape(*out.shape[:2], -1), axis=-1).max() < 1e-9)


CASES = [
    (rank, group, size, stride, dilation, pads, extra)
    for rank, group, size, stride, dilation, pads, extra in product(
        SPATIAL, (1, 2, 4), (1, 2, 3), (1, 2), (1, 2), ((0, 0), (1, 1), (2, 2), (1, 2)), (0, 1)
    )
    # The output may not vanish; what is added at its end must be less than the stride.
    if (2 if rank == 3 else 3) * stride + (size - 1) * dilation + 1 - stride - sum(pads) + extra > 1 and extra < stride
]


# Of each rank and group; together they meet every attribute, and both outcomes.
SAMPLE = 10


@pytest.mark.parametrize("rank", SPATIAL)
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("even", [False, True])
def test_a_norm_in_front_folds_as_far_as_every_position_gets_the_same_of_it(rank: int, group: int, even: bool) -> None:
    """even: all taps of a kernel are alike, so that the phases of a stride add up alike where they have as many."""
    seen: set[bool] = set()
    rng = np.random.default_rng(rank * 10 + group)
    cases = [case for case in CASES if case[:2] == (rank, group)]
    # The first is a kernel of one tap, which every position receives.
    for index in {0, *rng.choice(len(cases), size=min(len(cases), SAMPLE), replace=False).tolist()}:
        _, _, size, stride, dilation, pads, extra = cases[index]
        given = attributes(rank, group=group, stride=stride, dilation=dilation, pads=pads, extra=extra)
        weight = draw(f"w{index}", 4, 2, *(1 if even else size,) * rank)
        weight = np.ascontiguousarray(np.broadcast_to(weight, (4, 2, *(size,) * rank)))
        shift, tail = draw("b", 4), (1,) * rank
        whole = takes_a_shift(rank, given, weight, shift.reshape(4, *tail))
        bias = bool(index % 2)
        constants = {"a": (4, *tail), "b": shift.reshape(4, *tail), "w": weight}
        constants |= {"c": draw("c", 2 * group)} if bias else {}
        expected = FOLDED if whole else partial("uneven-taps")
        after, _ = check(before(rank, given, bias), expected, **constants)
        assert ("Add" in op_types(after)) == (not whole) and "Mul" not in op_types(after)
        seen.add(whole)
    assert seen == {True, False}


@pytest.mark.parametrize("rank", SPATIAL)
@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_norm_behind_folds_whatever_the_attributes(rank: int, group: int) -> None:
    tail = (1,) * rank
    checked = 0
    for stride, pads, bias in product((1, 2), ((0, 0), (1, 2)), (True, False)):
        given = attributes(rank, group=group, stride=stride, pads=pads)
        text = f"""g ({header(rank)}) => (double y) {{
            h = ConvTranspose<{given}>(x, w{", c" if bias else ""})
            n0 = Mul(h, a)
            n = Add(n0, b)
            y = Tanh(n)
        }}"""
        constants = {"a": (2 * group, *tail), "b": (2 * group, *tail), "w": (4, 2, *(3,) * rank)}
        after, _ = check(text, FOLDED, **constants, **({"c": (2 * group,)} if bias else {}))
        assert op_types(after) == ["ConvTranspose", "Tanh"]
        checked += 1
    assert checked == 8


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_stride_equal_to_the_kernel_makes_a_shift_a_constant_of_each_phase(kernel: int) -> None:
    """Not of each channel: but where the taps of a channel add up alike, contracted with the shift, it is one."""
    given = attributes(1, stride=kernel)
    weight = draw("w", 4, 3, kernel)
    shift = draw("b", 4, 1)
    constants = {"a": (4, 1), "b": shift}
    check(before(1, given, False), FOLDED if kernel == 1 else partial("uneven-taps"), w=weight, **constants)
    # The last input makes up for the others, tap by tap: the phases differ in each kernel, but not in what they add.
    weight[3] = (1.0 - (weight[:3] * shift[:3, :, None]).sum(axis=0)) / shift[3, 0]
    check(before(1, given, False), FOLDED, w=weight, **constants)


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ('auto_pad = "VALID"', FOLDED),
        ('auto_pad = "NOTSET"', FOLDED),
        ('auto_pad = "SAME_UPPER"', partial("uneven-taps")),
        ("output_shape = [7]", partial("uneven-taps")),
    ],
)
def test_padding_that_is_left_to_the_runtime_lets_no_shift_through(given: str, outcome: Outcome) -> None:
    text = before(1, given, True)
    _, plan = fold(build(text, a=(4, 1), b=(4, 1), w=(4, 3, 1), c=(3,)))
    assert outcomes(plan) == [outcome]


def test_computed_weights_and_other_axes_refuse() -> None:
    text = "g (double[B,4,4] x{more}) => (double y) {{\nh = Tanh(x)\nn = Mul(h, a)\ny = ConvTranspose(n, w{bias})\n}}"
    check(text.format(more=", double[4,3,2] w", bias=""), kept("two-tensors"), a=(4, 1))
    check(text.format(more=", double[3] c", bias=", c"), kept("two-tensors"), a=(4, 1), w=(4, 3, 2))
    check(text.format(more="", bias=""), kept("not-contracted"), a=(4,), w=(4, 3, 2))
    check(text.format(more="", bias=""), FOLDED, a=(4, 1), w=(4, 3, 2))


def test_a_channel_with_scale_zero_is_never_divided_by() -> None:
    text = "g (double[B,4,5] x) => (double y) {\nh = ConvTranspose(x, w)\nn = Mul(h, a)\ny = Tanh(n)\n}"
    check(text, kept("wall"), a=np.array([1.0, 0.0, 2.0])[:, None], w=(4, 3, 2))
    check(text, FOLDED, a=(3, 1), w=(4, 3, 2))


def test_a_reader_that_takes_the_shift_unevenly_is_no_reader_for_nothing() -> None:
    """The stream may carry its shift on to a ConvTranspose of even phases, not to another."""
    text = """g (double[B,4,5] x) => (double y) {
        h = Tanh(x)
        n0 = Mul(h, a)
        n = Add(n0, b)
        k = Conv(n, v)
        y = ConvTranspose<strides = [2]>(k, w, c)
    }"""
    constants = {"a": (4, 1), "b": (4, 1), "v": (4, 4, 1), "c": (3,)}
    for kernel in (1, 2, 3):
        after, _ = check(text, FOLDED, **constants, w=(4, 3, kernel))
        assert onnx.checker.check_model(after) is None and op_types(after) == ["Tanh", "Conv", "ConvTranspose"]


def test_attributes_that_are_left_out_have_their_defaults() -> None:
    """One step, no gaps: with two of padding each position behind it has all three taps."""
    given = "pads = [2, 2]"
    assert takes_a_shift(1, given, draw("w", 4, 3, 3), draw("b", 4, 1))
    check(before(1, given, bias=True), FOLDED, a=(4, 1), b=(4, 1), w=(4, 3, 3), c=(3,))
    check(before(1, "pads = [1, 2]", bias=True), partial("uneven-taps"), a=(4, 1), b=(4, 1), w=(4, 3, 3), c=(3,))
