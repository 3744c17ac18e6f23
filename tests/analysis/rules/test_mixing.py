"""Weights that mix tokens, and products with a vector: axes that the weight does not have."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from normfold.analysis.rules import rule_of
from normfold.analysis.rules.windows import map_elements
from tests.support.graphs import (
    FOLDED,
    Outcome,
    build,
    check,
    draw,
    fold,
    graph_of,
    kept,
    op_types,
    outcomes,
    same_function,
)

# A weight that mixes tokens: the channels lie on an axis that it does not have.

MIXED = """g (double[B,3,4] x) => (double y) {{
    h = {first}
    {norm}
    t = Transpose<perm = [0, 2, 1]>(n)
    m = MatMul(t, w)
    k = Add(m, c)
    o = Transpose<perm = [0, 2, 1]>(k)
    {last}
}}"""
MIXING = {"w": (3, 3), "c": (3,), "a": (4,), "b": (4,), "v": (4, 5), "u": (4, 4), "a2": (4,), "b2": (4,)}


def mixed(expected: tuple[Outcome, ...], **parts: str) -> onnx.ModelProto:
    text = MIXED.format(**parts)
    return check(text, *expected, **{name: shape for name, shape in MIXING.items() if f" {name})" in text})[0]


def test_a_norm_in_front_of_mixed_tokens_goes_to_the_weight_behind_them() -> None:
    """The scale passes; the shift becomes a map in the bias that is there."""
    norm = "n0 = Mul(h, a)\nn = Add(n0, b)"
    model = mixed((FOLDED,), first="Tanh(x)", norm=norm, last="y = MatMul(o, v)")
    assert op_types(model) == ["Tanh", "Transpose", "MatMul", "Add", "Transpose", "MatMul"]
    bias = model.graph.node[3].input[1]
    assert [list(one.dims)[-2:] for one in model.graph.initializer if one.name == bias] == [[4, 3]]
    mixed((kept("wall"),), first="Tanh(x)", norm="n = Mul(h, a)", last="y = Tanh(o)")


def test_a_norm_behind_mixed_tokens_goes_to_the_weight_in_front_of_them() -> None:
    last = "n1 = Mul(o, a2)\nn2 = Add(n1, b2)\ny = Tanh(n2)"
    model = mixed((FOLDED,), first="MatMul(x, u)", norm="n = Identity(h)", last=last)
    assert "Mul" not in op_types(model)
    model = mixed((kept("wall"),), first="Tanh(x)", norm="n = Identity(h)", last=last)
    assert "Mul" in op_types(model)


def test_a_residual_stream_around_mixed_tokens() -> None:
    """ResMLP: the scale goes through the mixing into that of the branch; without one it has no place to go."""
    norm = "n0 = Mul(h, a)\nn = Add(n0, b)"
    last = "r = Mul(o, a2)\ns = Add(h, r)\ny = Tanh(s)"
    model = mixed((kept("frame-conflict"), FOLDED), first="MatMul(x, u)", norm=norm, last=last)
    assert op_types(model).count("Mul") == 1  # the norm has taken up the branch's
    mixed((kept("frame-conflict"),), first="MatMul(x, u)", norm=norm, last="s = Add(h, o)\ny = Tanh(s)")


@pytest.mark.parametrize("scale", [[1.5, 0.0, -0.5, 2.0], [0.0, 0.0, 0.0, 0.0]])
def test_a_channel_of_scale_zero_does_not_pass_mixed_tokens(scale: list[float]) -> None:
    """The shift of what is 0 times something could be written nowhere behind it."""
    constants = {**MIXING, "a": np.array(scale)}
    for norm in ("n = Mul(h, a)", "n0 = Mul(h, a)\nn = Add(n0, b)"):
        text = MIXED.format(first="Tanh(x)", norm=norm, last="y = MatMul(o, v)")
        check(text, kept("zero-scale"), **{name: constants[name] for name in "wcabv" if f" {name})" in text})
    text = MIXED.format(first="MatMul(x, u)", norm="n = Identity(h)", last="n1 = Mul(o, a)\ny = Tanh(n1)")
    model = build(text, **{name: constants[name] for name in "wcua"})
    assert outcomes(fold(model)[1])[0][0] == "kept"


def test_a_scale_does_not_pass_what_is_0_along_the_tokens() -> None:
    """Every token is 0 times itself: the scale behind the mixing finds nothing to be on."""
    text = """g (double[B,3,4] x) => (double y) {
        h = MatMul(x, u)
        n0 = Mul(h, zero)
        n = Add(n0, tokens)
        m = MatMul(w, n)
        k = Mul(m, a)
        y = Sigmoid(k)
    }"""
    for zero, outcome in ((np.zeros((3, 1)), kept("wall")), (draw("zero", 3, 1), FOLDED)):
        model = build(text, zero=zero, tokens=(3, 1), w=(3, 3), u=(4, 4), a=(4,))
        after, plan = fold(model)
        assert outcomes(plan)[1] == outcome
        same_function(model, after)


@pytest.mark.parametrize("operands", ["n, w", "w, n"])
def test_a_product_with_a_vector(operands: str) -> None:
    """One number for each row: the vector takes the scale, the bias behind it the shift."""
    x, a = ("B,3,4", (4,)) if operands == "n, w" else ("B,4,3", (4, 1))
    text = f"""g (double[{x}] x) => (double y) {{
        h = Tanh(x)
        n0 = Mul(h, a)
        n = Add(n0, b)
        m = MatMul({operands})
        y = Add(m, c)
    }}"""
    model, _ = check(text, FOLDED, a=a, b=a, w=(4,), c=np.array(0.5))
    assert op_types(model) == ["Tanh", "MatMul", "Add"]
    along = (3, 1) if operands == "n, w" else (3,)
    check(text.replace("y = Add(m, c)", "y = Tanh(m)"), kept("wall"), a=along, b=along, w=(4,))


def test_a_bias_for_every_token_costs_what_a_map_does() -> None:
    model = build("g (double[B,3,4] x) => (double y) { y = MatMul(w, x) }", w=(3, 3))
    graph = graph_of(model)
    (op,) = graph.ops
    shifts = {"x": np.arange(1.0, 5.0).reshape(1, 1, 4), op.output.name: np.zeros((1, 1, 1))}
    found = rule_of("MatMul").added_elements(graph, op, lambda value: shifts[str(value.name)])
    assert found == map_elements(graph, op.output) > graph.size(op.output)
