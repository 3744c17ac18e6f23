"""Products and quotients of two computed tensors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.rules.sandwich import Sandwich
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

FORWARD = {
    "Mul": ("o = Mul(i, k)", FOLDED),
    "Mul swapped": ("o = Mul(k, i)", FOLDED),
    "square": ("o = Mul(i, i)", FOLDED),
    "Div": ("o = Div(i, k)", FOLDED),
    "Div swapped": ("o = Div(k, i)", FOLDED),
    "Div by itself": ("o = Div(i, i)", FOLDED),
    "Div of a constant": ("o = Div(one, i)", FOLDED),
    "by its own gate": ("g = Sigmoid(i)\no = Mul(i, g)", kept("wall")),
    "narrow": ("m = ReduceMean(k, last)\no = Mul(i, m)", FOLDED),
    "wide": ("m = ReduceMax(k, first)\no = Div(i, m)", FOLDED),
}


@pytest.mark.parametrize("name", FORWARD)
def test_a_scale_passes_to_the_product(name: str) -> None:
    text, outcome = FORWARD[name]
    constants = {"one": np.array(1.0), "last": np.array([-1]), "first": np.array([1])}
    case = Sandwich(f"k = Exp(x)\n{text}", constants=constants)
    case.fold(outcome, "forward", "scale")
    case.fold(kept("wall") if outcome is not FOLDED else partial("two-tensors"), "forward")


BACKWARD = {
    "Mul": ("k = Sigmoid(x)\no = Mul(i, k)", FOLDED),
    "Mul swapped": ("k = Sigmoid(x)\no = Mul(k, i)", FOLDED),
    "Div": ("k = Exp(x)\no = Div(i, k)", FOLDED),
    "Div swapped": ("k = Sigmoid(x)\no = Div(k, i)", FOLDED),
    "narrow": ("j = ReduceMean(i, last)\nk = Sigmoid(x)\no = Mul(j, k)", kept("wall")),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_a_scale_behind_goes_to_the_operand_whose_writer_takes_it(name: str) -> None:
    text, outcome = BACKWARD[name]
    case = Sandwich(text, "B,4", "B,4", constants={"last": np.array([-1])})
    case.fold(outcome, "backward", "scale")
    case.fold(partial("wall") if outcome is FOLDED else outcome, "backward")


def test_a_scale_behind_a_square_goes_to_its_operand_as_a_root() -> None:
    case = Sandwich("o = Mul(i, i)", "B,4", "B,4")
    case.fold(FOLDED, "backward", "positive scale")
    case.fold(kept("wall"), "backward", "scale")
    small = {"n_scale": np.array([0.25, 1e-3, 2.0, 0.5])}
    Sandwich("o = Mul(i, i)", "B,4", "B,4", constants=small).fold(FOLDED, "backward", "positive scale")


GATE = """g (double[B,3,4] x) => (double y) {{
    h = Tanh(x)
    n = {norm}
    u = MatMul(n, wu)
    {up}
    g = MatMul(n, wg)
    s = Sigmoid(g)
    a = Mul(g, s)
    o = Mul(a, {o})
    {behind}
}}"""


def test_a_gated_unit_folds_on_both_sides() -> None:
    """SwiGLU: the norm in front into gate and up, the one behind into up, the one between through the product."""
    text = GATE.format(norm="Mul(h, c)", up="m = Mul(u, d)", o="m", behind="k = Mul(o, e)\ny = MatMul(k, w)")
    after, _ = check(text, FOLDED, FOLDED, FOLDED, c=(4,), d=(6,), e=(6,), wu=(4, 6), wg=(4, 6), w=(6, 3))
    assert op_types(after).count("Mul") == 2
    text = GATE.format(norm="Mul(h, c)", up="", o="u", behind="k = Mul(o, e)\ny = Tanh(k)")
    check(text, FOLDED, FOLDED, c=(4,), e=(6,), wu=(4, 6), wg=(4, 6))


ZERO = np.array([1.5, 0.0, -0.7, 2.0])


@pytest.mark.parametrize(
    ("product", "outcome"),
    [("Mul(n, k)", FOLDED), ("Div(n, k)", FOLDED), ("Div(k, m)", kept("zero-scale")), ("Mul(n, n)", FOLDED)],
)
def test_a_scale_of_zero_passes_and_is_never_divided_by(product: str, outcome: Outcome) -> None:
    text = f"""g (double[B,4] x) => (double y) {{
        h = Tanh(x)
        n = Mul(h, a)
        m = Add(n, b)
        k = Exp(x)
        o = {product}
        y = MatMul(o, w)
    }}"""
    model = build(text, a=ZERO, b=np.where(ZERO == 0.0, 1.0, 0.0), w=(4, 3))
    after, plan = fold(model)
    assert outcomes(plan) == [outcome]
    same_function(model, after)


def test_a_scale_of_zero_with_a_shift_stays() -> None:
    text = (
        "g (double[B,4] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\n"
        "m = Add(n, b)\nk = Exp(x)\no = Mul(m, k)\ny = MatMul(o, w)\n}"
    )
    check(text, kept("two-tensors"), a=ZERO, b=(4,), w=(4, 3))
    check(text, partial("two-tensors"), a=(4,), b=(4,), w=(4, 3))


def test_two_scales_meet_in_a_product() -> None:
    text = """g (double[B,4] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        k = Exp(x)
        m = Mul(k, e)
        o = {0}
        y = MatMul(o, w)
    }"""
    for product in ("Mul(n, m)", "Div(n, m)"):
        after, _ = check(text.replace("{0}", product), FOLDED, FOLDED, a=(4,), e=(4,), w=(4, 3))
        assert op_types(after).count("Mul") == int(product.startswith("Mul"))


@pytest.mark.parametrize("product", ["Mul(h, n)", "Mul(n, h)", "Div(h, n)", "Div(n, h)"])
def test_a_scale_behind_a_product_that_has_one_already(product: str) -> None:
    """The operand that takes it takes it beside the scale of the other one."""
    text = f"""g (double[B,4] x) => (double y) {{
        h = MatMul(x, w)
        k = Exp(x)
        n = Mul(k, a)
        o = {product}
        m = Mul(o, b)
        y = Tanh(m)
    }}"""
    after, _ = check(text, FOLDED, FOLDED, a=(4,), b=(4,), w=(4, 4))
    assert op_types(after).count("Mul") == int(product.startswith("Mul"))


def test_a_wider_constant_keeps_its_values() -> None:
    text = "g (double[1,4] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\no = Mul(n, rows)\ny = MatMul(o, w)\n}"
    check(text, FOLDED, a=(4,), rows=(3, 4), w=(4, 3), sizes=(1,))
    shifted = text.replace("n = Mul(h, a)", "n0 = Mul(h, a)\nn = Add(n0, b)")
    check(shifted, partial("two-tensors"), a=(4,), b=draw("b", 4), rows=(3, 4), w=(4, 3), sizes=(1,))


@pytest.mark.parametrize("product", ["Mul(p, q)", "Mul(q, p)"])
def test_a_scale_goes_to_the_operand_that_is_no_output_of_the_model(product: str) -> None:
    text = f"""g (double[B,4] x) => (double y, double p) {{
        p = MatMul(x, u)
        q = MatMul(x, v)
        o = {product}
        n = Mul(o, a)
        y = Tanh(n)
    }}"""
    after, _ = check(text, FOLDED, u=(4, 4), v=(4, 4), a=(4,))
    assert op_types(after) == ["MatMul", "MatMul", "Mul", "Tanh"]
