"""Concat and Split."""

from __future__ import annotations

import numpy as np
import pytest

from normfold.analysis.rules import rule_of
from tests.support.graphs import FOLDED, Outcome, build, check, draw, fold, graph_of, kept, op_types, outcomes


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


CONCAT = """g (double[B,3,4] x) => (double y) {{
    h = Tanh(x)
    n0 = Mul(h, a)
    n = Add(n0, b)
    {other}
    o = Concat<axis = {axis}>({parts})
    y0 = MatMul(o, w)
    y = Add(y0, c)
}}"""
CONSTANTS = {"a": (4,), "b": (4,), "c": (5,)}


@pytest.mark.parametrize("axis", [2, -1])
@pytest.mark.parametrize(
    ("other", "parts", "width"),
    [
        ("k = Sigmoid(x)", "n, k", 8),
        ("k = Sigmoid(x)", "k, n, k", 12),
        ("k = Identity(n)", "n, k", 8),
        ("k = Identity(x)", "n, n, k", 12),
        ("k = Identity(x)", "n, x", 8),
        ("k = Transpose<perm = [0, 2, 1]>(n)\nl = Transpose<perm = [0, 2, 1]>(k)", "l, h, n", 12),
    ],
)
def test_parts_along_the_channels_keep_their_own_frames(axis: int, other: str, parts: str, width: int) -> None:
    """Those that the flood does not reach stay as they are."""
    text = CONCAT.format(other=other, axis=axis, parts=parts)
    model, _ = check(text, FOLDED, **CONSTANTS, w=(width, 5))
    assert "Mul" not in op_types(model)


@pytest.mark.parametrize(
    ("other", "parts", "outcome"),
    [
        ("k = Sigmoid(x)", "n, k", kept("wall")),
        ("k = Identity(x)", "n, k", kept("graph-input")),
        ("k = MatMul(x, v)", "n, k", FOLDED),
        ("k = MatMul(x, v)", "k, n, k", FOLDED),
        ("k = Identity(n)", "n, k, n", FOLDED),
        ("k = Gather(table, zero)", "n, k", FOLDED),
    ],
)
def test_parts_along_another_axis_share_one_frame(other: str, parts: str, outcome: Outcome) -> None:
    text = CONCAT.format(other=other, axis=1, parts=parts)
    table = draw("table", 2, 4)
    if "Gather" in other:
        other = "k0 = Shape<end = 1>(x)\nk1 = Concat<axis = 0>(k0, tail)\nk = Expand(table, k1)"
        text = CONCAT.format(other=other, axis=1, parts=parts)
    check(text, outcome, **CONSTANTS, v=(4, 4), w=(4, 5), table=table, tail=ints(2, 4))


def test_constant_parts_are_rewritten() -> None:
    """A class token beside the tokens, or constant channels beside the channels."""
    fixed = CONCAT.replace("double[B,3,4]", "double[1,3,4]").format(other="k = Sigmoid(x)", axis=1, parts="token, n")
    model, _ = check(fixed, FOLDED, **CONSTANTS, w=(4, 5), token=(1, 1, 4))
    assert "Mul" not in op_types(model)
    channels = fixed.replace("axis = 1", "axis = 2")
    check(channels, FOLDED, **CONSTANTS, w=(6, 5), token=(1, 3, 2))
    zero = {**CONSTANTS, "a": np.array([1.0, 0.0, -1.0, 2.0])}
    check(fixed, kept("zero-scale"), **zero, w=(4, 5), token=(1, 1, 4))
    check(channels, FOLDED, **zero, w=(6, 5), token=(1, 3, 2))


def test_towards_the_producer_a_concat_is_cut() -> None:
    text = """g (double[B,3,4] x) => (double y) {{
        p = MatMul(x, v)
        q = MatMul(x, u)
        o = Concat<axis = {}>(p, {})
        n = Mul(o, a)
        y = Tanh(n)
    }}"""
    check(text.format(2, "q"), FOLDED, a=(6,), v=(4, 4), u=(4, 2))
    check(text.format(2, "x"), kept("wall"), a=(8,), v=(4, 4), u=(4, 2))
    check(text.format(1, "q"), FOLDED, a=(4,), v=(4, 4), u=(4, 4))


def test_parts_of_unknown_size_refuse() -> None:
    text = """g (double[B,3,4] x, double[B,3,K] z) => (double[B,3,5] y) {
        h = Tanh(x)
        n = Mul(h, a)
        o = Concat<axis = 2>(n, z)
        p = Slice(o, zero, eight, two)
        y = MatMul(p, w)
    }"""
    constants = {"a": (4,), "w": (8, 5), "zero": ints(0), "eight": ints(8), "two": ints(2)}
    assert outcomes(fold(build(text, **constants))[1]) == [kept("unknown-shape")]
    assert outcomes(fold(build(text.replace("3,K", "3,4"), **constants))[1]) == [FOLDED]


SPLIT = """g (double[B,3,6] x) => (double y, double z) {{
    h = Tanh(x)
    n0 = Mul(h, a)
    n = Add(n0, b)
    p, q{more} = Split<axis = {axis}{attributes}>(n{inputs})
    y0 = MatMul(p, v)
    y = Add(y0, c)
    z0 = MatMul({last}, u)
    z = Add(z0, c)
}}"""


@pytest.mark.parametrize(
    ("axis", "attributes", "inputs", "more", "sizes"),
    [
        (2, ", num_outputs = 2", "", "", (3, 3)),
        (-1, ", num_outputs = 3", "", ", r", (2, 2)),
        (2, "", ", cut", "", (2, 4)),
        (-1, "", ", cut", "", (4, 2)),
        (1, "", ", cut", "", (1, 2)),
        (1, ", num_outputs = 2", "", "", (2, 1)),
        (-2, ", num_outputs = 3", "", ", r", (1, 1)),
    ],
)
def test_splits(axis: int, attributes: str, inputs: str, more: str, sizes: tuple[int, ...]) -> None:
    channels = axis in (2, -1)
    text = SPLIT.format(axis=axis, attributes=attributes, inputs=inputs, more=more, last="r" if more == ", r" else "q")
    width = dict(zip("pq", sizes, strict=True)) if channels else {"p": 6, "q": 6}
    constants = {"a": (6,), "b": (6,), "c": (5,), "v": (width["p"], 5), "u": (width["q"], 5), "cut": ints(*sizes)}
    check(text, FOLDED, **constants)


def test_a_part_of_a_split_that_refuses_holds_all() -> None:
    text = SPLIT.format(axis=2, attributes=", num_outputs = 2", inputs="", more="", last="q")
    constants = {"a": (6,), "b": (6,), "c": (5,), "v": (3, 5), "u": (3, 5)}
    check(text, FOLDED, **constants)
    check(text.replace("MatMul(q, u)", "Softmax(q)").replace("Add(z0, c)", "Identity(z0)"), kept("wall"), **constants)


def test_towards_the_producer_a_split_joins_its_parts() -> None:
    """Only one of the parts is normed: the other keeps its frame."""
    text = """g (double[B,3,4] x) => (double y, double z) {
        h = MatMul(x, w)
        p, q = Split<axis = 2, num_outputs = 2>(h)
        n = Mul(p, a)
        y = Tanh(n)
        z = Tanh(q)
    }"""
    model, _ = check(text, FOLDED, w=(4, 6), a=(3,))
    assert "Mul" not in op_types(model)
    both = text.replace("z = Tanh(q)", "m = Mul(q, b)\nz = Tanh(m)")
    check(both, FOLDED, FOLDED, w=(4, 6), a=(3,), b=(3,))
    other = text.replace("axis = 2", "axis = 1").replace("[B,3,4]", "[B,4,4]").replace("z = Tanh(q)", "z = Tanh(q)")
    check(other, kept("wall"), w=(4, 6), a=(6,))


def test_pixel_unshuffle_of_patch_merging() -> None:
    """Swin: four strided slices of one tensor, side by side."""
    text = """g (double[B,4,4,3] x) => (double y) {
        e = MatMul(x, v)
        n = Mul(e, a)
        m = Add(n, b)
        p = Slice(m, oo, far, axes, steps)
        q = Slice(m, io, far, axes, steps)
        r = Slice(m, oi, far, axes, steps)
        s = Slice(m, ii, far, axes, steps)
        t = Concat<axis = -1>(p, q, r, s)
        u = Reshape(t, shape)
        y = MatMul(u, w)
    }"""
    constants = {
        "oo": ints(0, 0),
        "io": ints(1, 0),
        "oi": ints(0, 1),
        "ii": ints(1, 1),
        "far": ints(2**62, 2**62),
        "axes": ints(1, 2),
        "steps": ints(2, 2),
        "shape": ints(0, -1, 12),
    }
    model, _ = check(text, FOLDED, a=(3,), b=(3,), v=(3, 3), w=(12, 8), **constants)
    assert "Mul" not in op_types(model)


def test_two_parts_that_are_known_already_are_compared() -> None:
    """The frame of the first part may be the whole's own: the second must still be looked at."""
    text = """g (double[2,4,5] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        d = Div(n, e)
        o = Concat<axis = 2>(n, d, d)
        y = Conv(o, w)
    }"""
    check(text, FOLDED, kept("frame-conflict"), a=(4, 1), e=(4, 1), w=(3, 4, 1))


@pytest.mark.parametrize(("second", "known"), [("B,4", True), ("B,C", False)])
def test_how_large_what_is_joined_along_rows_of_unknown_number_is(second: str, known: bool) -> None:
    """Where nobody knows how many rows a part has, all parts count alike, if no row is different from another."""
    axis = 0 if known else 1
    text = f"g (double[B,4] x, double[{second}] z) => (double y) {{ y = Concat<axis = {axis}>(x, z) }}"
    model = build(text)
    graph = graph_of(model)
    (op,) = graph.ops
    sizes = {0: np.array([[1.0, 2.0, 3.0, 4.0]]), 1: np.array([[3.0, 2.0, 1.0, 4.0]])}
    found = rule_of("Concat").magnitude(graph, op, sizes.get)
    if not known:
        assert found is None
        return
    assert found is not None
    np.testing.assert_allclose(found, [[5.0**0.5, 2.0, 5.0**0.5, 4.0]])


def test_how_large_a_part_of_a_split_is_nobody_knows() -> None:
    model = build("g (double[B,4] x) => (double y, double z) { y, z = Split<axis = 1>(x, s) }", s=ints(2, 2))
    graph = graph_of(model)
    (op,) = graph.ops
    sizes = {0: np.array([[1.0, 2.0, 3.0, 4.0]]), 1: np.array([[1.0]])}
    assert rule_of("Split").magnitude(graph, op, sizes.get) is None
