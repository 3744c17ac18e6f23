"""LayerNorm and RMSNorm written out: their weight and bias stay unless asked; what only looks alike folds."""

from __future__ import annotations

import pytest

from normfold.analysis.plan import Plan
from tests.support.graphs import FOLDED, check, draw, kept, op_types, partial

RMS = """square = Mul(h, h)
    mean = ReduceMean<keepdims = 1>(square, last)
    more = Add(mean, eps)
    root = Sqrt(more)
    r = Reciprocal(root)
    m = Mul(h, r)"""
LAYER = """middle = ReduceMean<keepdims = 1>(h, last)
    c = Sub(h, middle)
    square = Pow(c, two)
    mean = ReduceMean<keepdims = 1>(square, last)
    more = Add(mean, eps)
    root = Sqrt(more)
    m = Div(c, root)"""
STATISTIC = kept("statistic")
CONSTANTS = {"a": (4,), "b": (4,), "w": (4, 5), "d": (5,)}


def graph(statistic: str, affine: str) -> str:
    """`affine` makes n of m, which a Linear reads."""
    return f"""g (double[B,3,4] x) => (double y)
    <int64[1] last = {{-1}}, double eps = {{0.01}}, double two = {{2.0}}> {{
    h = Tanh(x)
    {statistic}
    {affine}
    p = MatMul(n, w)
    q = Add(p, d)
    y = Tanh(q)
}}"""


def kinds(plan: Plan) -> list[str]:
    return [site.kind for site in plan.sites]


@pytest.mark.parametrize(("statistic", "kind"), [(RMS, "RMSNorm"), (LAYER, "LayerNorm")])
@pytest.mark.parametrize("affine", ["n = Mul(m, a)", "s = Mul(a, m)\nn = Add(s, b)"])
def test_weight_and_bias_stay_unless_asked(statistic: str, kind: str, affine: str) -> None:
    text = graph(statistic, affine)
    after, plan = check(text, STATISTIC, **CONSTANTS)
    assert plan.is_empty and kinds(plan) == [kind]
    bare, plan = check(text, partial("statistic"), options={"norm_affine": True}, **CONSTANTS)
    assert kinds(plan) == [kind]
    assert len(op_types(bare)) == len(op_types(after)) - 1 - affine.count("Add")


def test_a_cast_between_the_statistic_and_the_weight_is_looked_through() -> None:
    check(graph(f"{RMS}\nk = Cast<to = 11>(m)", "n = Mul(k, a)"), STATISTIC, **CONSTANTS)


NORM = {"gamma": (4,), "beta": (4,), "mean0": (4,), "var": draw("var", 4, positive=True)}
BATCH_NORM = "t = Transpose<perm = [0, 2, 1]>({}) k = BatchNormalization(t, gamma, beta, mean0, var) "
BATCH_NORM += "n = Transpose<perm = [0, 2, 1]>(k)"


@pytest.mark.parametrize(
    ("statistic", "affine"),
    [
        # The statistic of something else than the channels.
        (RMS.replace("square, last", "square, first"), "n = Mul(m, a)"),
        # More than a weight: a LayerScale behind it.
        (RMS, "s = Mul(m, a)\nn = Mul(s, b)"),
        # A BatchNorm behind the statistic, and one behind its weight.
        (RMS, BATCH_NORM.format("m")),
        (RMS, f"o = Mul(m, a)\n{BATCH_NORM.format('o')}"),
        # A gate is no statistic.
        (RMS.replace("Reciprocal", "Sigmoid"), "n = Mul(m, a)"),
        # Nor is what two tensors make.
        (
            RMS.replace("Add(mean, eps)", "Max(mean, other)").replace("mean =", "other = ReduceMax(h)\nmean ="),
            "n = Mul(m, a)",
        ),
    ],
)
def test_what_only_looks_alike_folds(statistic: str, affine: str) -> None:
    text = graph(statistic, affine).replace("last = {-1}", "last = {-1}, int64[1] first = {1}")
    check(text, FOLDED, **CONSTANTS, **NORM)
