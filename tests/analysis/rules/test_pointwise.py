"""Activations, and the fixed maps themselves."""

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
    partial,
)

ACTIVATIONS = {
    "Relu": "o = Relu(i)",
    "LeakyRelu": "o = LeakyRelu<alpha = 0.2>(i)",
    "LeakyRelu that falls": "o = LeakyRelu<alpha = -0.3>(i)",
    "PRelu": "o = PRelu(i, slope)",
    "PRelu by a tensor": "q = Sigmoid(x)\no = PRelu(i, q)",
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_activations_pass_positive_scales_alone(name: str, direction: Direction) -> None:
    case = Sandwich(ACTIVATIONS[name], constants={"slope": np.array([0.0, 0.2, -0.3, 0.0])})
    case.fold(FOLDED, direction, "positive scale")
    case.fold(kept("negative-scale" if direction == "forward" else "wall"), direction, "scale")
    code = "shift-meets-activation" if direction == "forward" else "wall"
    case.fold(partial(code), direction, "positive")


@pytest.mark.parametrize("slope", [np.array(0.25), np.array([0.5]), draw("slope", 4, positive=True), draw("slope", 4)])
def test_a_negative_scale_turns_the_sides_of_a_slope(slope: np.ndarray) -> None:
    """`prelu(s x, a) = s a prelu(x, 1 / a)` for s < 0, where a is not 0; the slope is each channel's own then."""
    case = Sandwich("o = PRelu(i, slope)", constants={"slope": slope})
    model, _ = case.fold(FOLDED, "forward", "scale")
    assert op_types(model) == ["Tanh", "PRelu", "MatMul", "Add"]
    case.fold(partial("shift-meets-activation"), "forward")
    falls = bool(np.any(slope < 0.0))
    case.fold(kept("wall") if falls else FOLDED, "backward", "scale")


def test_a_slope_of_zero_or_next_to_it_has_no_other_side() -> None:
    for slope, outcome in ((0.0, kept("negative-scale")), (1e-6, kept("negative-scale")), (1e-2, FOLDED)):
        case = Sandwich("o = PRelu(i, slope)", constants={"slope": np.full(4, slope)})
        case.fold(outcome, "forward", "scale")
        case.fold(FOLDED, "forward", "positive scale")


def test_prelu_with_the_norm_on_its_slope_refuses() -> None:
    text = "g (double[B,4] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\nk = Sigmoid(x)\ny = PRelu(k, n)\n}"
    check(text, kept("wall"), a=(4,))
    check(text.replace("PRelu(k, n)", "PRelu(n, n)"), kept("wall"), a=(4,))


WALLS = {
    **{name: f"o = {name}(i)" for name in ("Tanh", "Sigmoid", "Gelu", "Elu", "Selu", "Mish", "Softmax")},
    **{name: f"o = {name}(i)" for name in ("LogSoftmax", "Hardmax", "Exp", "Erf", "Sign", "Sin", "Floor")},
    **{name: f"o = {name}(i)" for name in ("HardSigmoid", "HardSwish", "Softplus", "Softsign", "ThresholdedRelu")},
    "Gelu by tanh": 'o = Gelu<approximate = "tanh">(i)',
    "Pow by a tensor": "o = Pow(two, i)",
    "LpNormalization": "o = LpNormalization(i)",
    "Greater": "p = Greater(i, two)\no = Cast<to = 11>(p)",
}


@pytest.mark.parametrize("name", WALLS)
def test_walls(name: str) -> None:
    constants = {"two": np.array(2.0), "one": np.array(1)}
    case = Sandwich(WALLS[name], "B,4,3", axis=1, constants=constants)
    for norm in ("affine", "scale", "positive scale"):
        case.fold(kept("wall"), "forward", norm)


@pytest.mark.parametrize("operator", ["Pow(i, two)", "Pow(i, third)", "Sqrt(a)", "Reciprocal(i)"])
def test_a_positive_scale_passes_a_power(operator: str) -> None:
    before = "a = Abs(i)\n" if "(a)" in operator else ""
    constants = {name: array for name, array in (("two", np.array(2.0)), ("third", np.array(3.0))) if name in operator}
    case = Sandwich(f"{before}o = {operator}", "B,4,3", axis=1, constants=constants)
    case.fold(FOLDED, "forward", "positive scale")
    if not before:
        case.fold(kept("negative-scale"), "forward", "scale")


def test_other_domains_are_walls() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "com.example" : 1]>
    g (double[B,4] x) => (double[B,4] y) <double[B,4] o> {
        h = Tanh(x)
        n = Mul(h, a)
        o = com.example.Relu(n)
        y = MatMul(o, w)
    }"""
    for domain, outcome in (("com.example.", kept("wall")), ("", FOLDED)):
        model = build(text.replace("com.example.Relu", f"{domain}Relu"), a=draw("a", 4, positive=True), w=(4, 4))
        _, plan = fold(model)
        assert outcomes(plan) == [outcome], domain


# What is a fixed map: every spelling, from `h` to `n`, with constants a, b.

MAPS = {
    "Mul": "n = Mul(h, a)",
    "Mul swapped": "n = Mul(a, h)",
    "Div": "n = Div(h, a)",
    "Add": "n0 = Mul(h, a)\nn = Add(n0, b)",
    "Add swapped": "n0 = Mul(h, a)\nn = Add(b, n0)",
    "Sub": "n0 = Mul(h, a)\nn = Sub(n0, b)",
    "Sub swapped": "n0 = Mul(h, a)\nn = Sub(b, n0)",
    "Neg": "n0 = Mul(h, a)\nn = Neg(n0)",
    "long": "n1 = Div(h, a)\nn2 = Neg(n1)\nn3 = Mul(n2, b)\nn4 = Sub(a, n3)\nn = Add(n4, two)",
    "RepBN": "n0 = Mul(h, a)\nn1 = Add(n0, b)\nn2 = Mul(h, two)\nn = Add(n1, n2)",
    "RepBN difference": "n0 = Mul(h, a)\nn1 = Sub(n0, b)\nn2 = Mul(h, two)\nn = Sub(n2, n1)",
    "twice": "n0 = Mul(h, a)\nn = Add(n0, n0)",
    "residual of itself": "n0 = Mul(h, a)\nn = Add(n0, h)",
    "computed": "r = Sqrt(p)\nq = Reciprocal(r)\nk = Mul(a, q)\nn = Mul(h, k)",
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_fixed_maps(name: str, direction: Direction) -> None:
    first, last = ("Tanh(x)", "Gemm(n, w, c)") if direction == "forward" else ("Gemm(x, w, c)", "Tanh(n)")
    text = f"g (double[B,4] x) => (double y) {{\nh = {first}\n{MAPS[name]}\ny = {last}\n}}"
    constants = {"a": (4,), "b": (4,), "two": np.array(2.5), "p": draw("p", 4, positive=True), "w": (4, 4), "c": (4,)}
    model, _ = check(text, FOLDED, **constants)
    assert sorted(op_types(model)) == ["Gemm", "Tanh"]


def test_the_weights_of_a_dyt_fold() -> None:
    """`tanh(alpha x) gamma + beta`, arXiv:2503.10622: the tanh stays, what is behind it does not."""
    text = """g (double[B,3,4] x) => (double y) {
        h = MatMul(x, v)
        k = Mul(h, alpha)
        t = Tanh(k)
        n = Mul(t, gamma)
        m = Add(n, beta)
        y0 = MatMul(m, w)
        y = Add(y0, c)
    }"""
    model, _ = check(text, FOLDED, v=(4, 4), alpha=np.array(0.7), gamma=(4,), beta=(4,), w=(4, 3), c=(3,))
    assert op_types(model) == ["MatMul", "Mul", "Tanh", "MatMul", "Add"]


NOT_MAPS = {
    "reciprocal": "n = Div(a, h)",
    "division by zero": "n = Div(h, zero)",
    "square": "n = Mul(h, h)",
    "of two tensors": "n = Mul(h, x)",
    "power": "n = Pow(h, a)",
    "wider": "n = Mul(h, rows)",
    "higher rank": "n = Mul(h, lifted)",
    "difference to a reciprocal": "n0 = Div(a, h)\nn = Sub(n0, b)",
    "infinite": "n = Mul(h, huge)",
    "not a number": "n = Mul(h, nan)",
}


@pytest.mark.parametrize("name", NOT_MAPS)
def test_what_is_no_fixed_map_of_each_channel(name: str) -> None:
    shape = "1,4" if name == "wider" else "B,4"
    text = f"g (double[{shape}] x) => (double y) {{\nh = Sigmoid(x)\n{NOT_MAPS[name]}\ny = MatMul(n, w)\n}}"
    constants = {
        "a": (4,),
        "b": (4,),
        "zero": np.array([1.0, 0.0, 2.0, 3.0]),
        "rows": (3, 4),
        "lifted": (1, 1, 4),
        "huge": np.full(4, np.inf),
        "nan": np.full(4, np.nan),
        "w": (4, 3),
    }
    with np.errstate(all="ignore"):
        model = build(text, **constants)
        after, plan = fold(model)
        assert not plan.sites and plan.is_empty
        assert op_types(after) == op_types(model)


def test_maps_of_integers_stay() -> None:
    text = "g (int64[B,4] x) => (double y) {\nn = Div(x, a)\nm = Mul(n, a)\nf = Cast<to = 11>(m)\ny = MatMul(f, w)\n}"
    _, plan = check(text, a=np.array([2, 3, 4, 5]), w=(4, 3))
    assert plan.is_empty


def test_constants_made_of_integers_are_divided_as_floats() -> None:
    """7 / 2 is 3 among integers, and 3.5 once both are cast."""
    text = """g (double[B,4] x) => (double y) {
        h = Tanh(x)
        p = Cast<to = 11>(i)
        q = Cast<to = 11>(j)
        r = Div(p, q)
        s = Sqrt(r)
        n = Mul(h, s)
        y = MatMul(n, w)
    }"""
    check(text, FOLDED, i=np.array([7, 8, 9, 11]), j=np.array([2, 3, 2, 4]), w=(4, 3))


def test_a_part_of_a_shape_is_a_constant() -> None:
    """Shape has start and end since opset 15: read whole, it would be a scale of its own for each of three channels."""
    text = """g (double[2,4,3] x) => (double y) {{
        s = Shape<{}>(x)
        f = Cast<to = 11>(s)
        h = Tanh(x)
        n0 = Mul(h, f)
        n = Mul(n0, a)
        y = MatMul(n, w)
    }}"""
    for part in ("start = 2, end = 3", "start = -1", "start = 1, end = -1", "end = 1", "start = 0"):
        check(text.format(part), FOLDED, a=(3,), w=(3, 3))


def test_operators_with_attributes_they_do_not_have_are_no_maps() -> None:
    """Before opset 7, `axis` told where a constant is broadcast."""
    text = (
        "g (double[2,4,4] x) => (double[2,4,4] y) {\nh = Tanh(x)\n"
        "n = Mul<broadcast = 1, axis = 1>(h, a)\ny = MatMul(n, w)\n}"
    )
    _, plan = fold(build(text, a=(4,), w=(4, 4)))
    assert plan.is_empty and not plan.sites


# A scale of 0.

ZERO = np.array([1.5, 0.0, -0.7, 0.0])


@pytest.mark.parametrize("reader", ["Gemm(m, w, c)", "MatMul(m, w)"])
def test_a_channel_with_scale_zero_folds_towards_the_consumers(reader: str) -> None:
    text = f"g (double[B,4] x) => (double y) {{\nh = Tanh(x)\nn = Mul(h, a)\nm = Add(n, b)\ny = {reader}\n}}"
    model, _ = check(text, FOLDED, a=ZERO, b=(4,), w=(4, 3), c=(3,))
    assert "Mul" not in op_types(model)


def test_a_channel_with_scale_zero_is_never_divided_by() -> None:
    text = "g (double[B,4] x) => (double y) {\nh = MatMul(x, w)\nn = Mul(h, a)\nm = Add(n, b)\ny = Tanh(m)\n}"
    check(text, kept("wall"), a=ZERO, b=(4,), w=(4, 4))
    # Its shift would have to stay, as a multiple of 0.
    conv = (
        "g (double[B,4,5] x) => (double y) {\nh = Conv(x, v)\nn = Mul(h, a)\n"
        "m = Add(n, b)\ny = Conv<pads = [1, 1]>(m, w)\n}"
    )
    zero = ZERO[:, None]
    check(conv, kept("shift-meets-padding"), a=zero, b=(4, 1), v=(4, 4, 1), w=(8, 4, 3))
    # A map of biases behind the padding takes it.
    check(conv, FOLDED, a=zero, b=(4, 1), v=(4, 4, 1), w=(3, 4, 3))
    check(conv.replace("Add(n, b)", "Identity(n)"), FOLDED, a=zero, v=(4, 4, 1), w=(3, 4, 3))
    check(conv.replace("<pads = [1, 1]>", ""), FOLDED, a=zero, b=(4, 1), v=(4, 4, 1), w=(3, 4, 3))


def test_a_channel_with_scale_zero_meets_another_norm() -> None:
    text = """g (double[B,4] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        m = Add(n, b)
        k = Relu(x)
        s = Add(m, k)
        p = Mul(s, d)
        q = Add(p, e)
        y = Gemm(q, w)
    }"""
    check(text, kept("negative-scale"), FOLDED, a=ZERO, b=(4,), d=(4,), e=(4,), w=(4, 3))
    text = text.replace("k = Relu(x)\n", "").replace(
        "s = Add(m, k)", "s0 = Reshape(m, t)\ns = Transpose<perm = [0, 1]>(s0)"
    )
    check(text, FOLDED, a=ZERO, b=(4,), d=(4,), e=(4,), w=(4, 3), t=np.array([0, 4]))


# Sums.


# Sums and means of several tensors.
