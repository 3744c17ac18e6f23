"""What a rule lets through at its edges: changed there, no other test noticed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.graphs import FOLDED, Outcome, build, check, draw, fold, kept, op_types, outcomes, partial

A = {"a": (4,), "b": (4,), "w": (4, 3), "c": (3,)}
ZERO = np.array([1.5, 0.0, -0.7, 2.0])
HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>\n'


def outcome_of(text: str, **constants: object) -> list[Outcome]:
    """For graphs with an operator of another domain, which only onnxruntime runs."""
    return outcomes(fold(build(HEADER + text, **constants))[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("operator", ["LayerNormalization", "InstanceNormalization"])
def test_a_computed_bias_is_left_alone(operator: str) -> None:
    """Asked for the weight and bias of such a norm, there is no map to fold."""
    source = "x" if operator.startswith("Layer") else "x3"
    text = f"""g (double[3,4] x) => (double y) {{
        x3 = Unsqueeze(x, last)
        r = ReduceMean<keepdims = 0>(x, first)
        n = {operator}({source}, g, r)
        y = Tanh(n)
    }}"""
    model = build(text, g=(4,), first=np.array([0]), last=np.array([-1]))
    _, plan = fold(model, norm_affine=True)
    assert plan.is_empty
    if operator.startswith("Layer"):
        _, plan = fold(
            build(
                text.replace("g, r", "g, s").replace("y = Tanh(n)", "y = MatMul(n, w)"),
                g=(4,),
                s=(4,),
                w=(4, 3),
                first=np.array([0]),
                last=np.array([-1]),
            ),
            norm_affine=True,
        )
        assert not plan.is_empty


@pytest.mark.parametrize(
    "norm",
    [
        "InstanceNormalization<epsilon = 0.0078125>(x, g, d)",
        "LayerNormalization<epsilon = 0.0078125>(x, g2, d2)",
        "Conv(x, v)",
        "ConvTranspose(x, v)",
    ],
)
def test_nobody_divides_by_a_channel_with_scale_zero(norm: str) -> None:
    """Behind a sum the other operand would have to be stored over 0."""
    text = f"""g (double[B,4,5] x) => (double y) {{
        h = Tanh(x)
        n = Mul(h, a)
        k = {norm}
        o = Add(n, k)
        y = Conv(o, w)
    }}"""
    axis = (5,) if norm.startswith("Layer") else (4, 1)
    scale = draw("a", *axis)
    scale.reshape(-1)[1] = 0.0
    constants = {"g": (4,), "d": (4,), "g2": (5,), "d2": (5,), "v": (4, 4, 1), "w": (3, 4, 1)}
    if norm.startswith("Layer"):
        text = text.replace("y = Conv(o, w)", "y = MatMul(o, m)")
        constants["m"] = (5, 3)
    check(
        text,
        *([kept("zero-scale"), kept("statistic")] if norm.startswith("Layer") else [kept("zero-scale")]),
        a=scale,
        **constants,
    )
    check(text, *([FOLDED, kept("statistic")] if norm.startswith("Layer") else [FOLDED]), a=axis, **constants)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("u = com.microsoft.Gelu(x)\no = MatMul(n, u)\ny = MatMul(o, w)", "unknown-shape"),
        ("u = com.microsoft.Gelu(i)\no = Gather(n, u)\ny = MatMul(o, w)", "unknown-shape"),
    ],
)
def test_operands_of_unknown_rank(body: str, code: str) -> None:
    text = f"g (double[4,4] x, int64[1] i) => (double[?,?] y) {{\nh = Tanh(x)\nn = Mul(h, a)\n{body}\n}}"
    assert outcome_of(text, a=(4,), w=(4, 3)) == [kept(code)]


@pytest.mark.parametrize(("width", "scale", "expected"), [
    (6, ZERO, FOLDED),  # 6 elements for 4, but the Mul would have to stay as well: 8
    (9, ZERO, kept("narrow-add")),
    (6, draw("a", 4), partial("narrow-add")),
    (4, draw("a", 4), FOLDED),
])  # fmt: skip
def test_a_channel_with_scale_zero_pays_for_two_operators(width: int, scale: np.ndarray, expected: Outcome) -> None:
    text = """g (double[B,4] x) => (double y) {
        h = Tanh(x)
        n = Mul(h, a)
        m = Add(n, b)
        y = MatMul(m, w)
    }"""
    check(text, expected, a=scale, b=(4,), w=(4, width))


def test_what_is_left_of_a_batch_norm() -> None:
    """A shift alone is an Add; a scale and a shift are a BatchNormalization again."""
    statistics = {name: draw(name, 4, positive=name in ("var", "gamma")) for name in ("gamma", "beta", "mean", "var")}
    text = """g (double[B,4,3] x) => (double y) {
        h = Tanh(x)
        n = BatchNormalization(h, gamma, beta, mean, var)
        o = Relu(n)
        y = Conv(o, w)
    }"""
    after, _ = check(text, partial("shift-meets-activation"), w=(3, 4, 1), **statistics)
    assert op_types(after) == ["Tanh", "Add", "Relu", "Conv"]
    stuck = text.replace("h = Tanh(x)", "h0 = Tanh(x)\nh1 = Mul(h0, a)\nh = Relu(h1)").replace(
        "o = Relu(n)", "o = Tanh(n)"
    )
    after, _ = check(stuck, FOLDED, kept("wall"), w=(3, 4, 1), a=draw("a", 4, 1, positive=True), **statistics)
    assert op_types(after) == ["Tanh", "Relu", "BatchNormalization", "Tanh", "Conv"]


@pytest.mark.parametrize("operator", ["Gemm", "Conv", "ConvTranspose"])
@pytest.mark.parametrize("shifted", [True, False])
def test_an_operator_without_a_bias_gets_one_for_a_shift_alone(operator: str, shifted: bool) -> None:
    """And then it has one operand more, not two."""
    text = f"""g (double[{"B,4" if operator == "Gemm" else "B,4,5"}] x) => (double y) {{
        h = Tanh(x)
        n = Mul(h, a)
        m = {"Add(n, b)" if shifted else "Identity(n)"}
        k = {operator}(m, w)
        y = Tanh(k)
    }}"""
    tail = () if operator == "Gemm" else (1,)
    shape = {"Gemm": (4, 3), "Conv": (3, 4, 1), "ConvTranspose": (4, 3, 1)}[operator]
    after, _ = check(text, FOLDED, a=(4, *tail), b=(4, *tail), w=shape)
    (node,) = [node for node in after.graph.node if node.op_type == operator]
    assert len(node.input) == (3 if shifted else 2) and all(node.input)
