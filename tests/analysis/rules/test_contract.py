"""Einsum, and products of two computed tensors: which axes a frame may lie on."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.graphs import (
    FOLDED,
    Outcome,
    build,
    check,
    draw,
    fold,
    kept,
    op_types,
    outcomes,
    partial,
    same_function,
)

# x is (B, 3, 4, 5) = b i j k. equation, the weight's shape, the axis of the norm, and what becomes of it.
EQUATIONS: list[tuple[str, tuple[int, ...], int, Outcome]] = [
    ("bijk,kn->bijn", (5, 6), 3, FOLDED),
    ("bijk,nk->bijn", (6, 5), 3, FOLDED),
    ("bijk,kn->nbij", (5, 6), 3, FOLDED),
    ("bijk,jkn->bin", (4, 5, 6), 3, FOLDED),
    ("bijk,jkn->bin", (4, 5, 6), 2, FOLDED),
    ("bijk,ikn->bijn", (3, 5, 6), 1, FOLDED),
    ("bijk,ikn->bijn", (3, 5, 6), 3, FOLDED),
    ("bijk,ikn->bijn", (3, 5, 6), 2, kept("wall")),
    ("bijk,ijk->b", (3, 4, 5), 2, FOLDED),
    ("bijk,k->bijk", (5,), 3, FOLDED),
    ("bijk,kn->bijn", (5, 6), 1, kept("wall")),
    (" bijk , kn -> bijn ", (5, 6), 3, FOLDED),
    ("bijk,kn", (5, 6), 3, FOLDED),
    ("...k,kn->...n", (5, 6), 3, FOLDED),
    ("b...k,kn->bn...", (5, 6), 3, FOLDED),
    ("...k,kn", (5, 6), 3, FOLDED),
    ("...jk,jkn->n", (4, 5, 6), 3, kept("not-contracted")),
    ("b...,kn->b...n", (5, 6), 3, kept("not-contracted")),
    ("bijk,kn->bin", (5, 6), 3, kept("not-contracted")),
    ("bijk,kn->bij", (5, 6), 3, kept("not-contracted")),
]


@pytest.mark.parametrize(("equation", "weight", "axis", "outcome"), EQUATIONS)
@pytest.mark.parametrize("swapped", [False, True])
def test_einsum_with_a_weight(
    equation: str, weight: tuple[int, ...], axis: int, outcome: Outcome, swapped: bool
) -> None:
    operands = "n, w"
    if swapped and "->" in equation:
        (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
        equation, operands = f"{right},{left}->{out}", "w, n"
    text = f"""g (double[B,3,4,5] x) => (double y) {{{{
        h = Tanh(x)
        n = Mul(h, a)
        z = Einsum<equation = "{equation}">({operands})
        y = {{last}}
    }}}}"""
    tail = (1,) * (3 - axis)
    size = (0, 3, 4, 5)[axis]
    constants = {"a": (size, *tail), "b": (size, *tail), "w": weight}
    model, _ = check(text.format(last="Tanh(z)"), outcome, **constants)
    assert ("Mul" in op_types(model)) == (outcome is not FOLDED)
    if outcome is not FOLDED:
        return
    # The shift costs an Add behind it, or is taken by the one that stands there.
    shifted = text.replace("n = Mul(h, a)", "n0 = Mul(h, a)\nn = Add(n0, b)")
    model, plan = fold(build(shifted.format(last="Tanh(z)"), **constants))
    assert {status for status, _ in outcomes(plan)} <= {"folded", "partial"} and op_types(model).count("Add") == 1
    same_function(build(shifted.format(last="Tanh(z)"), **constants), model)
    model, _ = check(shifted.format(last="Add(z, c)"), FOLDED, c=(1,), **constants)
    assert op_types(model) == ["Tanh", "Einsum", "Add"]


BEHIND: list[tuple[str, tuple[int, ...], str, tuple[int, ...], Outcome]] = [
    ("bijk,kn->bijn", (5, 6), "bijn", (6,), FOLDED),
    ("bijk,kn->bnij", (5, 6), "bnij", (6, 1, 1), FOLDED),
    ("bijk,ikn->bijn", (3, 5, 6), "bijn", (3, 1, 1), FOLDED),
    ("bijk,ikn->bijn", (3, 5, 6), "bijn", (4, 1), kept("wall")),
    ("bijk,kn->bijn", (5, 6), "bijn", (3, 1, 1), kept("wall")),
]


@pytest.mark.parametrize(("equation", "weight", "_", "a", "outcome"), BEHIND)
def test_einsum_takes_a_norm_behind_it(
    equation: str, weight: tuple[int, ...], _: str, a: tuple[int, ...], outcome: Outcome
) -> None:
    text = f"""g (double[B,3,4,5] x) => (double y) {{
        h = Einsum<equation = "{equation}">(x, w)
        n0 = Mul(h, a)
        n = Add(n0, b)
        y = Tanh(n)
    }}"""
    model, _ = check(text, outcome, w=weight, a=a, b=a)
    assert ("Mul" in op_types(model)) == (outcome is not FOLDED)


@pytest.mark.parametrize(("equation", "weight"), [("bijk,kjn->bin", (5, 4, 6)), ("bijk,nkij->bn", (6, 5, 3, 4))])
def test_a_frame_on_two_axes_lies_on_the_weight_as_its_letters_do(equation: str, weight: tuple[int, ...]) -> None:
    text = f"""g (double[B,3,4,5] x) => (double y) {{
        h = Tanh(x)
        n = Mul(h, a)
        z = Einsum<equation = "{equation}">(n, w)
        y = Tanh(z)
    }}"""
    check(text, FOLDED, a=(4, 5), w=weight)


def test_an_einsum_that_broadcasts_an_index_refuses() -> None:
    """numpy repeats an index of size 1: there is then no weight for each of its values."""
    text = (
        'g (double[B,3,4] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\ny = Einsum<equation = "bij,ijn->bn">(n, w)\n}'
    )
    _, plan = fold(build(text, a=(4,), w=(1, 4, 6)))
    assert outcomes(plan) == [kept("unknown-shape")]
    check(text, FOLDED, a=(4,), w=(3, 4, 6))


def test_an_einsum_of_one_or_three_tensors_refuses() -> None:
    for equation, operands in (("bij->bji", "n"), ("bij,jk,kl->bil", "n, w, w")):
        text = (
            f"g (double[B,4,4] x) => (double y) {{\nh = Tanh(x)\nn = Mul(h, a)\n"
            f'y = Einsum<equation = "{equation}">({operands})\n}}'
        )
        check(text, kept("not-contracted"), a=(4,), w=(4, 4))


# Two computed tensors: p (B, 2, 3, 4) and v (B, 2, 4, 5).

TWO = """g (double[B,2,3,4] x, double[B,2,4,5] z) => (double y) {{
    p0 = {p}
    v0 = {v}
    {norm}
    {product}
    {last}
}}"""
PRODUCTS = {"MatMul": "o = MatMul(p, v)", "Einsum": 'o = Einsum<equation = "bhik,bhkj->bhij">(p, v)'}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    ("normed", "a", "reader", "w", "outcome"),
    [
        ("v", (5,), "MatMul(o, w)", (5, 6), FOLDED),
        ("v", (2, 1, 5), "MatMul(o, w)", (2, 5, 6), FOLDED),
        ("v", (2, 1, 1), "MatMul(o, w)", (2, 5, 6), FOLDED),
        ("p", (3, 1), "MatMul(w, o)", (6, 3), FOLDED),
        ("p", (2, 1, 1), "MatMul(o, w)", (2, 5, 6), FOLDED),
        ("v", (5,), "Tanh(o)", None, kept("wall")),
        ("v", (4, 1), "MatMul(o, w)", (5, 6), kept("two-tensors")),
        ("p", (4,), "MatMul(o, w)", (5, 6), kept("two-tensors")),
    ],
)
def test_a_scale_passes_off_the_contracted_axis(
    product: str, normed: str, a: tuple[int, ...], reader: str, w: tuple[int, ...] | None, outcome: Outcome
) -> None:
    other = "p" if normed == "v" else "v"
    norm = f"{normed} = Mul({normed}0, a)\n{other} = Identity({other}0)"
    text = TWO.format(p="Softmax(x)", v="Tanh(z)", norm=norm, product=PRODUCTS[product], last=f"y = {reader}")
    given = {"a": a} | ({} if w is None else {"w": w})
    check(text, outcome, **given)
    if outcome is FOLDED and a != (2, 1, 5):  # which is no map of the channels, but of heads and channels
        shifted = text.replace(f"{normed} = Mul", "n0 = Mul").replace(
            f"{other} = Id", f"{normed} = Add(n0, b)\n{other} = Id"
        )
        # The rows of a softmax add up to 1: of what it averages a shift passes, of what it writes itself none does.
        check(shifted, FOLDED if normed == "v" else partial("two-tensors"), **given, b=a)
        check(shifted.replace("Softmax(x)", "Tanh(x)"), partial("two-tensors"), **given, b=a)


@pytest.mark.parametrize(
    ("softmax", "product", "outcome"),
    [
        ("Softmax(x)", "MatMul(p, v)", FOLDED),
        ("Softmax<axis = 3>(x)", "MatMul(p, v)", FOLDED),
        # Columns that add up to 1 average what stands in front of them.
        ("Softmax<axis = -2>(x)", "MatMul(p, v)", partial("two-tensors")),
        ("Softmax<axis = 1>(x)", "MatMul(p, v)", partial("two-tensors")),
    ],
)
@pytest.mark.parametrize("identity", ["", "Identity"])
def test_a_shift_of_what_a_softmax_averages_passes(softmax: str, product: str, outcome: Outcome, identity: str) -> None:
    text = (
        "g (double[B,2,3,4] x, double[B,2,4,5] z) => (double y) {\n"
        f"p0 = {softmax}\np = {'Identity(p0)' if identity else 'Mul(p0, one)'}\nt = Tanh(z)\n"
        f"n = Mul(t, a)\nv = Add(n, b)\no = {product}\ny = MatMul(o, w)\n}}"
    )
    text = text if identity else text.replace("p = Mul(p0, one)\n", "").replace("MatMul(p, v)", "MatMul(p0, v)")
    check(text, outcome, a=(5,), b=(5,), w=(5, 6))


def test_a_shift_behind_an_average_goes_into_the_values() -> None:
    """softmax(q k) v, a norm, a ReLU: the scale and the shift both end in the weights of the values."""
    text = (
        "g (double[B,3,4] x, double[B,4,6] z) => (double y) {\np = Softmax(x)\nv0 = MatMul(z, u)\nv = Add(v0, c)\n"
        "o = MatMul(p, v)\nn = Mul(o, a)\nm = Add(n, b)\ny = Relu(m)\n}"
    )
    after, plan = check(text, FOLDED, u=(6, 5), c=(5,), a=(5,), b=(5,))
    assert op_types(after) == ["Softmax", "MatMul", "Add", "MatMul", "Relu"] and plan.sites[0].shift == "writer"


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    ("p", "v", "a", "outcome"),
    [
        ("Softmax(x)", "MatMul(z, u)", (5,), FOLDED),
        ("Softmax(x)", "MatMul(z, u2)", (2, 1, 1), FOLDED),
        ("MatMul(u3, x)", "Softmax(z)", (3, 1), FOLDED),
        ("Softmax(x)", "MatMul(z, u)", (3, 1), kept("wall")),
        ("Softmax(x)", "Softmax(z)", (5,), kept("wall")),
        ("Softmax(x)", "MatMul(z, u)", (3, 5), kept("wall")),
    ],
)
def test_a_scale_behind_goes_to_the_operand_that_has_its_axis(
    product: str, p: str, v: str, a: tuple[int, ...], outcome: Outcome
) -> None:
    text = TWO.format(
        p=p,
        v=v,
        norm="p = Identity(p0)\nv = Identity(v0)",
        product=PRODUCTS[product],
        last="n = Mul(o, a)\ny = Tanh(n)",
    )
    check(text, outcome, a=a, u=(5, 5), u2=(2, 5, 5), u3=(3, 3))


def test_both_operands_scaled() -> None:
    """The output's scale is their product; a norm behind it can be taken by either."""
    text = TWO.format(
        p="Softmax(x)",
        v="Tanh(z)",
        norm="p = Mul(p0, d)\nv = Mul(v0, a)",
        product=PRODUCTS["MatMul"],
        last="y = MatMul(o, w)",
    )
    check(text, FOLDED, FOLDED, a=(2, 1, 5), d=(2, 1, 1), w=(2, 5, 6))


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_scale_behind_joins_the_one_that_its_operand_has(product: str) -> None:
    text = TWO.format(
        p="Softmax(x)",
        v="MatMul(z, u)",
        norm="p = Identity(p0)\nv = Mul(v0, a)",
        product=PRODUCTS[product],
        last="n = Mul(o, d)\ny = Tanh(n)",
    )
    after, _ = check(text, FOLDED, FOLDED, a=(5,), d=(5,), u=(5, 5))
    assert "Mul" not in op_types(after)


def test_a_broadcast_operand_gets_no_frame_of_an_axis_that_it_lacks() -> None:
    text = (
        "g (double[2,3,4] x, double[4,5] z) => (double y) {\nv = MatMul(z, u)\n"
        "p = Softmax(x)\no = MatMul(p, v)\nn = Mul(o, a)\ny = Tanh(n)\n}"
    )
    check(text, kept("wall"), a=(2, 1, 1), u=(5, 5))
    check(text, FOLDED, a=(5,), u=(5, 5))


def test_a_tensor_times_itself() -> None:
    text = "g (double[B,4,4] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\no = MatMul(n, n)\ny = MatMul(o, w)\n}"
    check(text, kept("two-tensors"), a=(4,), w=(4, 3))
    check(text, FOLDED, a=np.full(4, 1.7), w=(4, 3))


def test_a_scale_of_zero_is_not_divided_by() -> None:
    """p's zero row makes the product's rows zero; what is behind it cannot be moved to v."""
    text = TWO.format(
        p="Softmax(x)",
        v="MatMul(z, u)",
        norm="p = Mul(p0, d)\nv = Identity(v0)",
        product=PRODUCTS["MatMul"],
        last="n = Mul(o, a)\ny = MatMul(w, n)",
    )
    zero = np.array([[1.0], [0.0], [2.0]])
    model, plan = fold(build(text, d=zero, a=(5,), u=(5, 5), w=(2, 3)))
    assert outcomes(plan)[0] == FOLDED and outcomes(plan)[1][0] == "kept"
    same_function(build(text, d=zero, a=(5,), u=(5, 5), w=(2, 3)), model)


def test_attention_folds_norms_of_its_values() -> None:
    """Probabilities x values, heads and all: the value channel's scale comes out at the output projection."""
    text = """g (double[B,6,4] x) => (double y) {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v0 = MatMul(x, wv)
        v = Mul(v0, a)
        q1 = Reshape(q, heads)
        q2 = Transpose<perm = [0, 2, 1, 3]>(q1)
        k1 = Reshape(k, heads)
        k2 = Transpose<perm = [0, 2, 3, 1]>(k1)
        v1 = Reshape(v, heads)
        v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
        s = MatMul(q2, k2)
        p = Softmax(s)
        o = MatMul(p, v2)
        o1 = Transpose<perm = [0, 2, 1, 3]>(o)
        o2 = Reshape(o1, flat)
        n = Mul(o2, d)
        y = MatMul(n, w)
    }"""
    constants = {name: draw(name, 4, 4) for name in ("wq", "wk", "wv", "w")}
    ints = {"heads": np.array([0, 0, 2, 2]), "flat": np.array([0, 0, 4])}
    after, _ = check(text, FOLDED, FOLDED, a=(4,), d=(4,), **constants, **ints)
    assert "Mul" not in op_types(after)


# The Attention operator, which exporters write since opset 23.

ATTENTION = """<ir_version: 11, opset_import: ["" : 23]>
g (double[B,{heads},3,4] q, double[B,2,5,4] k, double[B,2,5,6] z{more}) => ({outputs}) {{
    h = Tanh(z)
    v = Mul(h, a)
    {attention}
    y = MatMul(o, w)
}}"""


@pytest.mark.parametrize(
    ("heads", "attention", "a", "outcome"),
    [
        (2, "o = Attention(q, k, v)", (6,), FOLDED),
        (2, "o = Attention<is_causal = 1, scale = 0.3>(q, k, v)", (6,), FOLDED),
        (2, "o = Attention(q, k, v)", (2, 1, 1), FOLDED),
        (2, "o = Attention(q, k, v)", (2, 1, 6), FOLDED),
        (2, "o = Attention(q, k, v)", (5, 1), kept("two-tensors")),
        (2, "n = Mul(k, c)\no = Attention(q, n, h)", None, kept("wall")),
        (4, "o = Attention(q, k, v)", (6,), FOLDED),
        (4, "o = Attention(q, k, v)", (2, 1, 1), kept("two-tensors")),
    ],
)
def test_attention_passes_the_scale_of_its_values(
    heads: int, attention: str, a: tuple[int, ...] | None, outcome: Outcome
) -> None:
    text = ATTENTION.format(heads=heads, more="", outputs="double y", attention=attention)
    check(text, outcome, a=a or (6,), c=(4,), w=(heads, 6, 3))
    if outcome is FOLDED and a == (6,):
        check(
            text.replace("v = Mul(h, a)", "u = Mul(h, a)\nv = Add(u, b)"),
            partial("two-tensors"),
            a=a,
            b=a,
            w=(heads, 6, 3),
        )
        behind = text.replace("v = Mul(h, a)", "v = MatMul(z, u)").replace("MatMul(o, w)", "Mul(o, a)")
        model, _ = check(behind.replace("y = Mul(o, a)", "p = Mul(o, a)\ny = Tanh(p)"), FOLDED, a=a, u=(6, 6))
        assert op_types(model) == ["MatMul", "Attention", "Tanh"]


def test_attention_of_three_axes_has_its_heads_within_the_channels() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23]>
    g (double[B,3,{width}] q, double[B,5,8] k, double[B,5,6] z) => (double y) {{
        h = Tanh(z)
        v = Mul(h, a)
        o = Attention<q_num_heads = {heads}, kv_num_heads = 2>(q, k, v)
        y = MatMul(o, w)
    }}"""
    check(text.format(width=8, heads=2), FOLDED, a=(6,), w=(6, 3))
    check(text.format(width=16, heads=4), kept("two-tensors"), a=(6,), w=(12, 3))


def test_attention_with_a_cache_keeps_its_values() -> None:
    """Those of the past would be in another frame; those that come out are for the next run."""
    past = ", double[B,2,2,4] pk, double[B,2,2,6] pv"
    cases = [
        (past, "double y", "o = Attention(q, k, v, , pk, pv)", kept("two-tensors")),
        (past, "double y, double f", "o, e, f = Attention(q, k, v, , pk, pv)", kept("two-tensors")),
        ("", "double y, double[B,2,7,6] f", "o, e, f = Attention(q, k, v)", kept("two-tensors")),
        ("", "double y", "o = Attention(q, k, v)", FOLDED),
    ]
    for more, outputs, attention, outcome in cases:
        text = ATTENTION.format(heads=2, more=more, outputs=outputs, attention=attention)
        _, plan = fold(build(text, a=(6,), w=(2, 6, 3)))
        assert outcomes(plan) == [outcome]


def test_attention_to_constant_values_takes_nothing() -> None:
    """Nothing writes them that could take a scale up."""
    text = """<ir_version: 11, opset_import: ["" : 23]>
    g (double[2,2,3,4] q, double[2,2,5,4] k) => (double y) {
        o = Attention(q, k, v)
        n = Mul(o, a)
        y = Tanh(n)
    }"""
    model, _ = check(text, kept("wall"), v=(2, 2, 5, 6), a=(6,), sizes=(2,))
    assert op_types(model) == ["Attention", "Mul", "Tanh"]
