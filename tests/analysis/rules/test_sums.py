"""Sums of tensors: which frames they tie, and what stops them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.rules.test_pointwise import ZERO
from tests.support.graphs import FOLDED, Outcome, build, check, fold, kept, op_types, outcomes, same_function

SUM = """g (double[B,3,4] x{more}) => (double y) {{
    h = Tanh(x)
    n0 = Mul(h, a)
    n = Add(n0, b)
    {other}
    s = {sum}
    y0 = MatMul(s, w)
    y = Add(y0, c)
}}"""


@pytest.mark.parametrize("sum_", ["Add(n, k)", "Add(k, n)", "Sub(n, k)", "Sub(k, n)"])
@pytest.mark.parametrize(
    ("other", "outcome"),
    [
        ("k = MatMul(x, v)", FOLDED),
        ("k0 = MatMul(x, v)\nk = Add(k0, d)", FOLDED),
        ("k = Identity(x)", kept("graph-input")),
        ("k = Sigmoid(x)", kept("wall")),
        ("k = Mul(x, b)", FOLDED),
        ("k0 = Relu(x)\nk = Mul(k0, two)", FOLDED),
    ],
)
def test_sums_tie_their_scales(sum_: str, other: str, outcome: Outcome) -> None:
    constants = {"a": (4,), "b": (4,), "v": (4, 4), "d": (4,), "w": (4, 3), "c": (3,), "two": np.array(2.0)}
    text = SUM.format(more="", other=other, sum=sum_)
    model = build(text, **constants)
    after, plan = fold(model)
    assert outcome in outcomes(plan)
    same_function(model, after)


@pytest.mark.parametrize(
    ("more", "k", "outcome"),
    [
        (", double[4] z", "MatMul(z, v)", FOLDED),
        (", double[1,4] z", "MatMul(z, v)", FOLDED),
        (", double[B,1,4] z", "MatMul(z, v)", FOLDED),
        (", double[3,4] z", "MatMul(z, v)", FOLDED),
        (", double[B,3,4] z", "MatMul(z, u)", kept("broadcast")),
        (", double[3,1] z", "MatMul(z, one)", FOLDED),
        (", double[B,3,D] z", "Identity(z)", kept("broadcast")),
    ],
)
def test_sums_that_broadcast(more: str, k: str, outcome: Outcome) -> None:
    constants = {"a": (4,), "b": (4,), "v": (4, 4), "u": (4, 1), "one": (1, 4), "w": (4, 3), "c": (3,)}
    text = SUM.format(more=more, other=f"k = {k}", sum="Add(n, k)")
    check(text, outcome, sizes=(4, 1) if "D" not in more else (3,), **constants)


def test_positions_added_to_a_normed_tensor_move_into_its_frame() -> None:
    text = SUM.format(more="", other="k = Identity(n)", sum="Add(k, positions)")
    model, _ = check(text, FOLDED, a=(4,), b=(4,), positions=(3, 4), w=(4, 3), c=(3,))
    assert "Mul" not in op_types(model)


def test_conflicting_frames_around_a_loop_refuse() -> None:
    """Two norms of different tensors meet in one sum: one of them keeps what the other needs."""
    text = """g (double[B,4] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        r = Transpose<perm = [1, 0]>(n)
        q = Transpose<perm = [1, 0]>(r)
        f = Slice(n, one, end, axis)
        g0 = Slice(n, zero, three, axis)
        s = Add(f, g0)
        y = MatMul(s, w)
    }"""
    ints = {
        "one": np.array([1]),
        "end": np.array([4]),
        "axis": np.array([1]),
        "zero": np.array([0]),
        "three": np.array([3]),
    }
    check(text, kept("frame-conflict"), a=(4,), w=(3, 2), **ints)
    check(text, FOLDED, a=np.full(4, 1.7), w=(3, 2), **ints)


def test_a_tiny_channel_is_told_from_another_tiny_channel() -> None:
    """Scales agree each for itself: 1e-15 and 3e-15 are not the same because another channel has 1."""
    text = """g (double[B,2] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        k = Sigmoid(x)
        m = Mul(k, d)
        s = Add(n, m)
        t = Mul(s, e)
        y = MatMul(t, w)
    }"""
    tiny = np.array([1.0, 1e-15])
    model = build(text, a=tiny, d=tiny * [1, 3], e=1 / tiny, w=(2, 2))
    after, plan = fold(model)
    assert outcomes(plan)[0] == FOLDED and outcomes(plan)[1][0] == "kept"
    same_function(model, after)


def test_a_shift_behind_a_channel_with_scale_zero_stays_possible() -> None:
    """An Add that stays cannot be written on a tensor that is stored as nothing: 0 times what?"""
    text = """g (double[B,4] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        r = Reshape(n, s)
        p = Add(r, b)
        q = Reshape(p, t)
        k = Mul(q, d)
        y = {0}
    }"""
    constants = {"a": ZERO, "b": (2, 2), "d": (4,), "w": (4, 3), "s": np.array([-1, 2, 2]), "t": np.array([-1, 4])}
    for reader in ("Tanh(k)", "Gemm(k, w)"):
        model = build(text.replace("{0}", reader), **constants)
        after, plan = fold(model)
        assert outcomes(plan)[0] == kept("zero-scale")
        same_function(model, after)
        whole = build(text.replace("{0}", reader), **{**constants, "a": (4,)})
        after, plan = fold(whole)
        assert outcomes(plan)[0] == FOLDED
        same_function(whole, after)


SEVERAL = """g (double[B,3,4] x) => (double y) {{
    h = Tanh(x)
    n0 = Mul(h, a)
    n = Add(n0, b)
    p = MatMul(x, v)
    k0 = MatMul(x, u)
    k = Add(k0, d)
    {more}
    s = {sum}
    y = MatMul(s, w)
}}"""


@pytest.mark.parametrize("operator", ["Sum", "Mean"])
@pytest.mark.parametrize(
    ("more", "operands", "outcome"),
    [
        ("", "n", FOLDED),
        ("", "n, k", FOLDED),
        ("", "k, n, p", FOLDED),
        ("", "n, n, k", FOLDED),
        ("m = Mul(h, d)", "k, n, m", FOLDED),
        ("q = Sigmoid(x)", "k, n, q", kept("wall")),
        ("", "n, k, rows", FOLDED),
        ("", "k, rows, n, lifted", FOLDED),
        ("q = MatMul(k, e)", "n, q", kept("broadcast")),
    ],
)
def test_several_summands_share_a_scale_and_divide_a_shift(
    operator: str, more: str, operands: str, outcome: Outcome
) -> None:
    """The shift goes into the bias that one of them has, as often as they are counted; else z carries it on."""
    text = SEVERAL.format(more=more, sum=f"{operator}({operands})")
    constants = {"a": (4,), "b": (4,), "d": (4,), "u": (4, 4), "v": (4, 4), "w": (4, 3), "rows": (3, 4), "e": (4, 1)}
    constants |= {"lifted": (1,)}
    model = build(text, **constants)
    after, plan = fold(model)
    assert outcome in outcomes(plan)
    same_function(model, after)


@pytest.mark.parametrize("operator", ["Sum", "Mean"])
def test_a_norm_behind_several_summands(operator: str) -> None:
    text = f"""g (double[B,4] x) => (double y) {{
        h = MatMul(x, v)
        k = Gemm(x, u, d)
        p = MatMul(x, w)
        s = {operator}(h, k, p)
        n0 = Mul(s, a)
        n = Add(n0, b)
        y = Tanh(n)
    }}"""
    after, _ = check(text, FOLDED, a=(4,), b=(4,), v=(4, 4), u=(4, 4), w=(4, 4), d=(4,))
    assert sorted(op_types(after)) == sorted(["MatMul", "Gemm", "MatMul", operator, "Tanh"])


@pytest.mark.parametrize(
    ("sum_", "left"),
    [
        ("Sum(h, b)", ["Tanh", "MatMul", "Add"]),
        ("Sum(b, h, d)", ["Tanh", "MatMul", "Add"]),
        ("Mean(h, b)", ["Tanh", "MatMul", "Add"]),
    ],
)
def test_a_sum_with_constants_alone_is_a_fixed_map(sum_: str, left: list[str]) -> None:
    text = f"""g (double[B,4] x) => (double y) {{
        h0 = Tanh(x)
        h = Mul(h0, a)
        s = {sum_}
        y0 = MatMul(s, w)
        y = Add(y0, c)
    }}"""
    model, _ = check(text, FOLDED, a=(4,), b=(4,), d=(4,), w=(4, 3), c=(3,))
    assert op_types(model) == left


WIDER = """g (double[B,1,4] x) => (double y) {{
    h = {first}
    n0 = Mul(h, a)
    n = Add(n0, b)
    s = {sum}
    y = {last}
}}"""


@pytest.mark.parametrize("sum_", ["Add(n, rows)", "Add(rows, n)", "Sub(n, rows)", "Sub(rows, n)"])
def test_a_constant_that_is_wider_than_the_tensor_takes_what_arrives(sum_: str) -> None:
    """Position embeddings on one class token: divided by the scale, less the shift."""
    text = WIDER.format(first="Tanh(x)", sum=sum_, last="MatMul(s, w)")
    model, _ = check(text, FOLDED, a=(4,), b=(4,), rows=(3, 4), w=(4, 3))
    assert op_types(model) == ["Tanh", sum_[:3], "MatMul"]
    zero = check(text, kept("zero-scale"), a=ZERO, b=(4,), rows=(3, 4), w=(4, 3))
    assert zero
    behind = f"""g (double[B,1,4] x) => (double y) {{
        n = MatMul(x, v)
        s = {sum_}
        n0 = Mul(s, a)
        n1 = Add(n0, b)
        y = Tanh(n1)
    }}"""
    model, _ = check(behind, FOLDED, v=(4, 4), a=(4,), b=(4,), rows=(3, 4))
    assert op_types(model) == ["MatMul", sum_[:3], "Tanh"]


def test_a_mask_that_would_leave_its_range_keeps_the_norm() -> None:
    text = WIDER.format(first="Tanh(x)", sum="Add(n, mask)", last="MatMul(s, w)")
    mask = np.where(np.arange(12).reshape(3, 4) % 2, 0.0, -1.7e308)
    model = build(text, a=np.full(4, 0.01) * [1, 2, 3, 4], b=(4,), mask=mask, w=(4, 3))
    assert outcomes(fold(model)[1]) == [kept("scale-range")]
    assert outcomes(fold(build(text, a=(4,), b=(4,), mask=(3, 4), w=(4, 3)))[1]) == [FOLDED]


@pytest.mark.parametrize("operator", ["Add", "Sum"])
def test_a_sum_with_a_constant_has_no_scale_that_could_take_one(operator: str) -> None:
    text = f"""g (double[B,4] x) => (double y, double z) {{
        h = Tanh(x)
        n = Mul(h, a)
        s = {operator}(n, c)
        y = MatMul(s, w)
        z = MatMul(n, v)
    }}"""
    after, _ = check(text, FOLDED, a=(4,), c=(4,), w=(4, 3), v=(4, 3))
    assert op_types(after) == ["Tanh", "Add", "MatMul", "MatMul"]
