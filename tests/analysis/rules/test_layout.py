"""Operators that move elements: every attribute, folded through in both directions, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.rules.sandwich import DIRECTIONS, Direction, Sandwich
from tests.support.graphs import (
    FOLDED,
    build,
    check,
    draw,
    fold,
    kept,
    op_types,
    outcomes,
    parse,
    partial,
    same_function,
)

IMAGE = "B,4,5,5"
SINGLE = 1e-5  # the reference implementation weighs the samples of a grid in float32
LAST = np.iinfo(np.int64).max


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


CARRY = {
    "Identity": Sandwich("o = Identity(i)"),
    "Dropout": Sandwich("o = Dropout(i)"),
    "Dropout with ratio": Sandwich("o = Dropout<seed = 1>(i, r)", constants={"r": np.array(0.5)}),
    "Dropout not training": Sandwich(
        "o, mask = Dropout(i, r, t)", constants={"r": np.array(0.5), "t": np.array(False)}
    ),
    "Dropout opset 10": Sandwich("o = Dropout<ratio = 0.3>(i)", opset=10),
    "Cast": Sandwich("o = Cast<to = 11>(i)"),
    "Transpose": Sandwich("o = Transpose<perm = [0, 2, 1]>(i)", target="B,4,3", out_axis=1),
    "Transpose without perm": Sandwich("o = Transpose(i)", source="B,4,3", target="3,4,B", axis=1, out_axis=1),
    "Transpose square": Sandwich("o = Transpose<perm = [0, 2, 1]>(i)", source="4,4,4", out_axis=1),
    "Reshape -1": Sandwich("o = Reshape(i, s)", target="B,4", constants={"s": ints(-1, 4)}),
    "Reshape 0": Sandwich("o = Reshape(i, s)", target="B,1,3,4", constants={"s": ints(0, 1, 3, 4)}),
    "Reshape 0 and -1": Sandwich("o = Reshape(i, s)", target="B,3,1,4", constants={"s": ints(0, 0, 1, -1)}),
    "Reshape allowzero": Sandwich(
        "o = Reshape<allowzero = 1>(i, s)", source="2,3,4", target="6,4", constants={"s": ints(6, 4)}
    ),
    "Flatten axis 2": Sandwich("o = Flatten<axis = 2>(i)", target="B,4"),
    "Flatten axis -1": Sandwich("o = Flatten<axis = -1>(i)", target="B,4"),
    "Flatten merges ones": Sandwich("o = Flatten(i)", source="B,4,1,1", target="B,4", axis=1, out_axis=1),
    "Squeeze": Sandwich("o = Squeeze(i, s)", source="B,1,4", target="B,4", constants={"s": ints(1)}),
    "Squeeze negative": Sandwich(
        "o = Squeeze(i, s)", source="B,4,1", target="B,4", axis=1, out_axis=1, constants={"s": ints(-1)}
    ),
    "Squeeze attribute": Sandwich("o = Squeeze<axes = [1]>(i)", source="B,1,4", target="B,4", opset=11),
    "Unsqueeze": Sandwich("o = Unsqueeze(i, s)", source="B,4", target="B,4,1", out_axis=1, constants={"s": ints(2)}),
    "Unsqueeze negative": Sandwich(
        "o = Unsqueeze(i, s)", source="B,4,3", target="B,4,3,1", axis=1, constants={"s": ints(-1)}
    ),
    "Unsqueeze attribute": Sandwich("o = Unsqueeze<axes = [1]>(i)", source="B,4", target="B,1,4", opset=11),
    "Slice": Sandwich("o = Slice(i, a, b, c)", target="B,2,4", constants={"a": ints(1), "b": ints(LAST), "c": ints(1)}),
    "Slice without axes": Sandwich(
        "o = Slice(i, a, b)", source="2,3,4", target="1,2,4", constants={"a": ints(1, 0), "b": ints(2, 2)}
    ),
    "Slice step": Sandwich(
        "o = Slice(i, a, b, c, d)",
        source="B,5,4",
        target="B,3,4",
        constants={"a": ints(0), "b": ints(5), "c": ints(1), "d": ints(2)},
    ),
    "Slice negative step": Sandwich(
        "o = Slice(i, a, b, c, d)",
        target="B,3,4",
        constants={"a": ints(-1), "b": ints(-LAST - 1), "c": ints(-2), "d": ints(-1)},
    ),
    "GatherND": Sandwich(
        "o = GatherND(i, p)", source="5,3,4", target="2,3,4", constants={"p": ints(1, 3).reshape(2, 1)}
    ),
    "Gather position": Sandwich("o = Gather<axis = 1>(i, p)", target="B,4", constants={"p": np.array(1)}),
    "Gather negative": Sandwich("o = Gather<axis = -2>(i, p)", target="B,2,4", constants={"p": ints(-1, 0)}),
    "Gather matrix": Sandwich(
        "o = Gather<axis = 1>(i, p)", target="B,1,2,4", constants={"p": ints(-1, 0).reshape(1, 2)}
    ),
    "Gather shuffles": Sandwich("o = Gather<axis = 2>(i, p)", constants={"p": ints(2, 0, -1, 1)}),
    "Gather turns an image round": Sandwich(
        "o = Gather<axis = 1>(i, p)", source=IMAGE, axis=1, constants={"p": ints(3, 2, 1, 0)}
    ),
    "GatherElements": Sandwich(
        "o = GatherElements<axis = 1>(i, p)",
        source="2,3,4",
        target="2,2,4",
        constants={"p": np.array([0, 2, 1, 1] * 4).reshape(2, 2, 4)},
    ),
    "CastLike": Sandwich("o = CastLike(i, x)"),
    "ReverseSequence": Sandwich(
        "o = ReverseSequence<batch_axis = 0, time_axis = 1>(i, p)", source="2,3,4", constants={"p": ints(2, 3)}
    ),
    "GridSample border": Sandwich(
        'o = GridSample<padding_mode = "border">(i, p)',
        source="2,4,5,5",
        target="2,4,3,3",
        axis=1,
        constants={"p": (2, 3, 3, 2)},
        tolerance=SINGLE,
    ),
    "Expand": Sandwich("o = Expand(i, s)", source="B,1,4", target="B,3,4", constants={"s": ints(1, 3, 1)}),
    "Expand adds axes": Sandwich("o = Expand(i, s)", source="3,4", target="2,3,4", constants={"s": ints(2, 1, 4)}),
    "Pad zero": Sandwich(
        "o = Pad(i, p)", source="B,4,3", target="B,4,4", axis=1, constants={"p": ints(0, 0, 1, 0, 0, 0)}
    ),
    "Pad edge": Sandwich(
        'o = Pad<mode = "edge">(i, p)', source="B,4,3", target="B,4,6", axis=1, constants={"p": ints(0, 0, 1, 0, 0, 2)}
    ),
    "Pad reflect": Sandwich(
        'o = Pad<mode = "reflect">(i, p)',
        source="B,4,3",
        target="B,4,6",
        axis=1,
        constants={"p": ints(0, 0, 1, 0, 0, 2)},
    ),
    "MaxPool of one": Sandwich("o = MaxPool<kernel_shape = [1, 1]>(i)", source=IMAGE, axis=1),
}
POSITIVE = {"MaxPool of one"}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", [name for name in CARRY if name != "Pad zero"])
def test_carries(name: str, direction: Direction) -> None:
    CARRY[name].fold(FOLDED, direction, "positive" if name in POSITIVE else "affine")


def test_zero_padding_stops_a_shift() -> None:
    CARRY["Pad zero"].fold(partial("shift-meets-padding"), "forward")
    CARRY["Pad zero"].fold(FOLDED, "forward", "scale")
    CARRY["Pad zero"].fold(FOLDED, "backward", "scale")


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("source", ["B,3,4", "B,4,4", "4,B,5"])
def test_a_triangle_takes_a_scale_and_stops_a_shift(source: str, upper: int) -> None:
    case = Sandwich(f"o = Trilu<upper = {upper}>(i, k)", source=source, constants={"k": np.array(1)})
    case.fold(partial("shift-meets-padding"), "forward")
    case.fold(FOLDED, "forward", "scale")
    case.fold(FOLDED, "backward", "scale")


FILLED = {
    "o = Pad(i, p)": FOLDED,
    "o = Pad(i, p, zero)": FOLDED,
    "o = Pad(i, p, one)": kept("fill-value"),
    "o = Pad(i, p, zero, axes)": FOLDED,
    "f = ReduceMax<keepdims = 0>(x)\no = Pad(i, p, f)": kept("fill-value"),
    "f = Cast<to = 7>(x)\nk = Size(f)\nz = Sub(k, k)\nq = Mul(p, z)\no = Pad(i, q)": kept("dynamic-pad"),
}


@pytest.mark.parametrize("text", FILLED)
def test_padding_by_what_it_fills_with(text: str) -> None:
    constants = {"zero": np.array(0.0), "one": np.array(1.0), "axes": ints(0, 1, 2), "p": ints(0, 0, 1, 0, 0, 2)}
    target = "B,4,3" if "q" in text else "B,4,6"
    Sandwich(text, "B,4,3", target, axis=1, constants=constants).fold(FILLED[text], "forward", "scale")


def test_padding_the_channels_refuses() -> None:
    case = Sandwich("o = Pad(i, p)", target="B,3,6", constants={"p": ints(0, 0, 1, 0, 0, 1)})
    case.fold(kept("channels-cut"), "forward", "scale")
    case.fold(kept("wall"), "backward", "scale")


SPLIT_CHANNELS = """g (double[B,3,8] x) => (double y) {{
    x0 = Tanh(x)
    n = Mul(x0, a)
    m = Add(n, b)
    {0}
    y = MatMul(q, w)
}}"""


def test_reshape_splits_the_channel_axis() -> None:
    text = "p = Reshape(m, s)\nq = Transpose<perm = [0, 2, 1, 3]>(p)"
    constants = {"a": (8,), "b": (8,), "s": ints(0, 0, 2, 4), "w": (2, 4, 3)}
    model, _ = check(SPLIT_CHANNELS.format(text), FOLDED, **constants)
    assert op_types(model) == ["Tanh", "Reshape", "Transpose", "MatMul", "Add"]
    # The same weight for both halves cannot hold two scales.
    check(SPLIT_CHANNELS.format(text), kept("not-contracted"), **{**constants, "w": (4, 3)})
    equal = np.concatenate([draw("a", 4)] * 2)
    check(SPLIT_CHANNELS.format(text), FOLDED, **{**constants, "w": (4, 3), "a": equal, "b": equal})


def test_reshape_merges_the_channel_axis_with_a_static_one() -> None:
    text = "q = Reshape(m, s)"
    check(SPLIT_CHANNELS.format(text), FOLDED, a=(8,), b=(8,), s=ints(0, 24), w=(24, 3))
    check(SPLIT_CHANNELS.format("q = Flatten(m)"), FOLDED, a=(8,), b=(8,), w=(24, 3))


def test_reshape_merges_the_channel_axis_with_a_dynamic_one() -> None:
    text = SPLIT_CHANNELS.format("q = Reshape(m, s)").replace("B,3,8", "B,L,4")
    check(text, kept("reshaped-channels"), a=(4,), b=(4,), s=ints(2, -1, 2), w=(2, 3), sizes=(2, 4))
    check(text, FOLDED, a=(4,), b=(4,), s=ints(-1, 4), w=(4, 3), sizes=(2, 4))


def test_a_reshape_that_only_looks_like_a_transpose_refuses() -> None:
    """(4, 6) -> (6, 4): the channels land elsewhere in every row."""
    text = SPLIT_CHANNELS.format("q = Reshape(m, s)").replace("B,3,8", "B,4,6")
    check(text, kept("not-contracted"), a=(6,), b=(6,), s=ints(0, 6, 4), w=(4, 3))
    same = np.full(6, 1.5)
    check(text, FOLDED, a=same, b=same, s=ints(0, 6, 4), w=(4, 3))


@pytest.mark.parametrize("unknown", ["-1", "0"])
def test_dimensions_that_are_not_known_are_equal_to_none(unknown: str) -> None:
    """Exporters write 0 or -1 for what they do not know; no two of these are the same."""
    text = f"""g (double[B,4,6] x) => (double[N,3] y) <double[{unknown},4,6] h, double[{unknown},4] r> {{{{
        h = Tanh(x)
        n = Mul(h, a)
        r = Reshape(n, s)
        y = MatMul({{}}, w)
    }}}}"""
    constants = {"a": draw("a", 4, 1), "s": ints(-1, 4), "w": draw("w", 4, 3)}
    _, plan = fold(parse(text.format("r"), **constants))
    assert outcomes(plan) == [kept("reshaped-channels")]
    constants = {"a": draw("a", 4), "s": ints(-1, 4), "w": draw("w", 4, 3)}
    model = parse(text.format("r").replace("4,6]", "6,4]"), **constants)
    after, plan = fold(model)
    assert outcomes(plan) == [FOLDED]
    same_function(model, after)


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [
        (0, 2, 1),
        (1, LAST, 1),
        (-3, -1, 1),
        (0, 8, 2),
        (-1, -LAST - 1, -1),
        (6, 0, -3),
        (-1, -9, -1),
        (5, 2, -1),
        (0, 99, 3),
    ],
)
def test_slices_of_the_channels(start: int, end: int, step: int) -> None:
    """The kept channels keep their frames; towards the producer a part does not tell of the whole."""
    size = len(range(8)[slice(start, end if end > -(2**40) else None, step)])
    constants = {"a": ints(start), "b": ints(end), "c": ints(-1), "d": ints(step)}
    case = Sandwich("o = Slice(i, a, b, c, d)", source="B,3,8", target=f"B,3,{size}", constants=constants)
    case.fold(FOLDED, "forward")
    case.fold(kept("wall"), "backward")


def test_slices_computed_at_run_time() -> None:
    text = """g (double[B,L,4] x) => (double y) <double[B,K,4] o> {{
        f = Shape<start = 0, end = 1>(x)
        i0 = Tanh(x)
        i = Mul(i0, n)
        o = Slice(i, zero, f, {axes})
        y = MatMul(o, w)
    }}"""
    constants = {"zero": ints(0), "one": ints(1), "last": ints(2), "n": (4,), "w": (4, 3)}
    check(text.format(axes="one"), FOLDED, **constants)
    check(text.format(axes="last"), kept("channels-cut"), sizes=(5, 4), **constants)
    dynamic = text.replace("i0 =", "g = Sub(f, f)\ni0 =").format(axes="g")
    check(dynamic, kept("dynamic-slice"), **constants)


GATHER = """g (int64[B,L] ids) => (double y) {{
    e = Gather{axis}(table, ids)
    {flip}
    n = Mul(f, a)
    m = Add(n, b)
    y = {reader}
}}"""


@pytest.mark.parametrize("reader", ["MatMul(m, w)", "Tanh(m)"])
def test_an_embedding_takes_up_the_norm(reader: str) -> None:
    text = GATHER.format(axis="", flip="f = Identity(e)", reader=reader)
    model, _ = check(text, FOLDED, table=(3, 4), a=(4,), b=(4,), w=(4, 5))
    assert "Mul" not in op_types(model)
    axis = GATHER.format(axis="<axis = 1>", flip="f = Transpose<perm = [1, 2, 0]>(e)", reader=reader)
    check(axis.replace("Add(n, b)", "Identity(n)"), FOLDED, table=(4, 3), a=(4,), w=(4, 5))
    scalar = text.replace("int64[B,L]", "int64[1]").replace(
        "e = Gather(table, ids)", "i = Squeeze(ids)\ne = Gather(table, i)"
    )
    check(scalar, FOLDED, table=(3, 4), a=(4,), b=(4,), w=(4, 5))


def test_a_lookup_among_the_channels_is_for_its_readers() -> None:
    case = Sandwich("o = Gather<axis = -1>(i, p)", target="B,3,2", constants={"p": ints(3, 1)})
    case.fold(FOLDED, "forward")
    case.fold(kept("wall"), "backward")


def test_expanding_the_channels() -> None:
    """One value for all channels: forward it stays one, towards the producer it would have to be several."""
    case = Sandwich("o = Expand(i, s)", source="B,3,1", target="B,3,4", constants={"s": ints(1, 1, 4)})
    case.fold(kept("wall"), "backward")
    positions = """g (double[B,3,4] x) => (double y) {
        s = Shape(x)
        t = Expand(token, s)
        n = Mul(t, a)
        m = Add(n, b)
        y = Tanh(m)
    }"""
    check(positions, FOLDED, token=(1, 1, 4), a=(4,), b=(4,))
    check(positions, kept("wall"), token=(1, 1, 1), a=(4,), b=(4,))


INTEGERS = """g (int64[B,L] ids) => (double y) {{
    e = Gather(table, ids)
    f = Cast<to = 11>(e)
    n = Mul(f, a)
    y = {reader}(n{weight})
}}"""


def test_integers_take_no_frame() -> None:
    """Towards a table of integers the fold would round: only the way ahead is open."""
    table = np.arange(12).reshape(3, 4)
    check(INTEGERS.format(reader="Tanh", weight=""), kept("wall"), table=table, a=(4,))
    check(INTEGERS.format(reader="MatMul", weight=", w"), FOLDED, table=table, a=(4,), w=(4, 2))
    check(INTEGERS.format(reader="Tanh", weight=""), FOLDED, table=table.astype(np.float64), a=(4,))
    for to in (7, 9, 17):  # int64, bool, float8e4m3fn
        text = (
            f"g (double[B,4] x) => (double y) {{\nh = Tanh(x)\nn = Mul(h, a)\n"
            f"c = Cast<to = {to}>(n)\nd = Cast<to = 11>(c)\ny = MatMul(d, w)\n}}"
        )
        check(text, kept("not-floating"), a=(4,), w=(4, 2))
        # Nor does a shift, in either direction: rounded, it would be another number.
        ahead = text.replace("n = Mul(h, a)", "n = Add(h, b)\np = Mul(n, a)").replace("(n)", "(p)")
        check(ahead, kept("not-floating"), a=(4,), b=(4,), w=(4, 2))


@pytest.mark.parametrize("to", [7, 9, 6])
def test_a_shift_does_not_pass_a_cast_to_integers(to: int) -> None:
    """A weight on the near side takes the scale, and the shift with an Add; one on the far side would round it."""
    ahead = f"""g (double[B,4] x) => (double y) {{
        k = MatMul(x, v)
        n = Mul(k, a)
        m = Add(n, b)
        i = Cast<to = {to}>(m)
        f = Cast<to = 11>(i)
        y = Gemm(f, w, c)
    }}"""
    constants = {"v": (4, 4), "a": 3 * draw("a", 4), "b": 3 * draw("b", 4), "w": (4, 3), "c": (3,)}
    after, _ = check(ahead, FOLDED, **constants)
    assert op_types(after) == ["MatMul", "Add", "Cast", "Cast", "Gemm"]
    behind = f"""g (double[B,4] x) => (double y) {{
        k = Gemm(x, v, d)
        i = Cast<to = {to}>(k)
        f = Cast<to = 11>(i)
        n = Mul(f, a)
        m = Add(n, b)
        y = Tanh(m)
    }}"""
    check(behind, kept("wall"), **{**constants, "d": (4,)})
    # Where only the scale can go on, the shift stays behind the Cast.
    stopped = behind.replace("y = Tanh(m)", "r = Relu(m)\ny = Gemm(r, w, c)")
    check(stopped, partial("shift-meets-activation"), **{**constants, "d": (4,), "a": draw("a", 4, positive=True)})


def test_dropout_that_may_be_training_refuses() -> None:
    text = (
        "g (double[B,4] x{}) => (double y) {{\nh = Tanh(x)\nn = Mul(h, a)\nd = Dropout(n, r, t)\ny = MatMul(d, w)\n}}"
    )
    for given, flag in ((", bool t", {}), ("", {"t": np.array(True)})):
        _, plan = fold(build(text.format(given), a=(4,), w=(4, 2), r=np.array(0.5), **flag))
        assert outcomes(plan) == [kept("training-mode")]
    check(text.format(""), FOLDED, a=(4,), w=(4, 2), r=np.array(0.5), t=np.array(False))


def test_unknown_attributes_refuse() -> None:
    for text in ("Identity<novel = 1>(i)", "Transpose<perm = [0, 1, 2], novel = 1>(i)", "Relu<novel = 1>(i)"):
        text = (
            f"g (double[B,3,4] x) => (double[B,3,4] y) {{\nh = Tanh(x)\ni = Mul(h, a)\no = {text}\ny = MatMul(o, w)\n}}"
        )
        _, plan = fold(parse(text, a=draw("a", 4, positive=True), w=draw("w", 4, 4)))
        assert outcomes(plan) == [kept("wall")]
        known = text.replace(", novel = 1", "").replace("<novel = 1>", "")
        _, plan = fold(parse(known, a=draw("a", 4, positive=True), w=draw("w", 4, 4)))
        assert outcomes(plan) == [FOLDED]


def test_shapes_that_contradict_each_other_refuse() -> None:
    text = (
        "g (double[2,4] x) => (double[2,3] y) <double[2,5] r> {\nh = Tanh(x)\n"
        "n = Mul(h, a)\nr = Reshape(n, s)\ny = MatMul(r, w)\n}"
    )
    _, plan = fold(parse(text, a=draw("a", 4), w=draw("w", 5, 3), s=ints(2, 5)))
    assert outcomes(plan) == [kept("unknown-shape")]
