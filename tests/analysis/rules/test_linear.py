"""MatMul, Gemm and Conv: the product of their attributes against float64."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest

from normfold.analysis.rules.windows import MAP_COST
from tests.analysis.rules.sandwich import statistics
from tests.support.graphs import (
    FOLDED,
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
    same_function,
)

# Conv.

SPATIAL = {1: (7,), 2: (5, 4), 3: (3, 4, 3)}
PADS = {"none": None, "symmetric": 1, "asymmetric": (0, 1)}

CONV = """g (double[B,4{size}] x) => (double y) {{
    h = {first}
    n = BatchNormalization(h, gamma, beta, mean, var)
    y0 = Conv<{attributes}>(n, w{bias})
    y1 = {last}
    y = Tanh(y1)
}}"""


def convolution(rank: int, group: int, pads: str, stride: int, dilation: int, bias: bool) -> dict[str, object]:
    size = SPATIAL[rank]
    attributes = [f"group = {group}", f"strides = {[stride] * rank}", f"dilations = {[dilation] * rank}"]
    if pads == "symmetric":
        attributes.append(f"pads = {[1] * (2 * rank)}")
    elif pads == "asymmetric":
        attributes.append(f"pads = {[0] * rank + [2] * rank}")
    elif pads in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        attributes.append(f'auto_pad = "{pads}"')
    kernel = (2,) * rank if dilation > 1 else (3,) * rank
    attributes.append(f"kernel_shape = {list(kernel)}")
    outputs = 8 if group == 4 else 6
    text = CONV.format(
        size="".join(f",{n}" for n in size),
        first="Tanh(x)",
        attributes=", ".join(attributes),
        bias=", c" if bias else "",
        last="Identity(y0)",
    )
    constants: dict[str, object] = {**statistics(4), "w": (outputs, 4 // group, *kernel)}
    return {"text": text, **constants, **({"c": (outputs,)} if bias else {})}


@pytest.mark.parametrize("rank", SPATIAL)
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("pads", ["none", "symmetric", "asymmetric", "SAME_UPPER", "VALID"])
def test_conv_takes_a_norm_before_it(rank: int, group: int, pads: str) -> None:
    checked = 0
    for stride, dilation, bias in product((1, 2), (1, 2), (True, False)):
        if pads == "SAME_UPPER" and dilation > 1:
            continue  # onnx's reference implementation pads these otherwise
        case = convolution(rank, group, pads, stride, dilation, bias)
        text = str(case.pop("text"))
        output = build(text, **case).graph.output[0].type.tensor_type.shape.dim  # type: ignore[arg-type]
        # Behind the padding a map of biases, where that is less than the Add in front.
        less = MAP_COST * np.prod([dim.dim_value for dim in output[1:]]) <= 4 * np.prod(SPATIAL[rank])
        whole = pads in ("none", "VALID") or less
        _, plan = check(text, FOLDED if whole else partial("shift-meets-padding"), **case)
        assert plan.sites[0].shift == ("reader" if pads in ("none", "VALID") else "map" if less else "add")
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("rank", SPATIAL)
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("pads", ["none", "symmetric", "asymmetric", "SAME_UPPER", "VALID"])
def test_conv_takes_a_norm_behind_it(rank: int, group: int, pads: str) -> None:
    """Whatever it pads with, its own bias is added after."""
    for stride, bias in product((1, 2), (True, False)):
        case = convolution(rank, group, pads, stride, 1, bias)
        outputs = 8 if group == 4 else 6
        text = str(case.pop("text")).replace("BatchNormalization(h, gamma, beta, mean, var)", "Identity(h)")
        text = text.replace("Identity(y0)", "BatchNormalization(y0, gamma, beta, mean, var)")
        model, _ = check(text, FOLDED, **{**case, **statistics(outputs)})
        assert op_types(model).count("BatchNormalization") == 0


def test_a_shift_would_be_wrong_at_the_border_only() -> None:
    """What is refused is wrong indeed: with the shift in the bias, the inside agrees and the border does not."""
    case = convolution(1, 1, "symmetric", 1, 1, True)
    model = build(str(case.pop("text")), **case)  # type: ignore[arg-type]
    folded, _ = fold(model)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    a = constants["gamma"] / np.sqrt(constants["var"] + 1e-5)
    shift = constants["beta"] - a * constants["mean"]
    naive = onnx.ModelProto()
    naive.CopyFrom(model)
    for tensor in naive.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(onnx.numpy_helper.from_array(constants["w"] * a[:, None], "w"))
        elif tensor.name == "c":
            tensor.CopyFrom(onnx.numpy_helper.from_array(constants["c"] + (constants["w"].sum(2) * shift).sum(1), "c"))
    (norm,) = (node for node in naive.graph.node if node.op_type == "BatchNormalization")
    norm.CopyFrom(onnx.helper.make_node("Identity", [norm.input[0]], list(norm.output)))
    feeds = feeds_for(model, 2)
    truth, wrong = run(model, feeds)[0], run(naive, feeds)[0]
    assert np.abs(truth - wrong)[..., 1:-1].max() < 1e-12
    assert np.abs(truth - wrong)[..., [0, -1]].max() > 1e-2
    same_function(model, folded)


def test_a_conv_with_a_computed_weight_refuses() -> None:
    text = "g (double[B,4,5] x, double[3,4,1] w) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\ny = Conv(n, w)\n}"
    check(text, kept("two-tensors"), a=(4, 1))
    text = "g (double[B,4,5] x, double[3] c) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\ny = Conv(n, w, c)\n}"
    check(text, kept("two-tensors"), a=(4, 1), w=(3, 4, 1))
    check(text.replace(", double[3] c", ""), FOLDED, a=(4, 1), w=(3, 4, 1), c=(3,))


def test_conv_refuses_a_norm_along_another_axis() -> None:
    text = "g (double[B,4,4] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\ny = Conv(n, w)\n}"
    check(text, kept("not-contracted"), a=(4,), w=(4, 4, 1))
    check(text, FOLDED, a=(4, 1), w=(4, 4, 1))


# Gemm.

GEMM = """g (double[{x}] x) => (double y) {{
    h = {first}
    n0 = Mul(h, a)
    n = Add(n0, b)
    y = Gemm<alpha = {alpha}, beta = {beta}, transA = {trans_a}, transB = {trans_b}>(n, w{c})
}}"""
BIASES = {"absent": None, "vector": (5,), "row": (1, 5), "one": (1,), "scalar": (), "column": (3, 1), "full": (3, 5)}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("before", [True, False])
def test_gemm(bias: str, trans_a: int, trans_b: int, before: bool) -> None:
    shape = BIASES[bias]
    fixed = bias in ("column", "full")  # as many rows as C has
    for alpha, beta in product((1.0, 0.5), (1.0, 0.0, -2.0)):
        rows = "3" if fixed else "B"
        text = GEMM.format(
            x=f"4,{rows}" if trans_a else f"{rows},4",
            first="Tanh(x)",
            alpha=alpha,
            beta=beta,
            trans_a=trans_a,
            trans_b=trans_b,
            c="" if shape is None else ", c",
        )
        constants: dict[str, object] = {"w": (5, 4) if trans_b else (4, 5)}
        if shape is not None:
            constants["c"] = draw("c", *shape)
        channels: tuple[int, ...] = (4, 1) if trans_a else (4,)
        if not before:
            text = (
                text.replace("y = Gemm", "z = Gemm")
                .replace("Mul(h, a)", "Identity(h)")
                .replace("Add(n0, b)", "Identity(n0)")
            )
            text = text.replace("\n}", "\nz1 = Mul(z, a)\nz2 = Add(z1, b)\ny = Tanh(z2)\n}")
            channels = (5,)
        model, _ = check(text, FOLDED, a=channels, b=channels, **constants)
        assert "Mul" not in op_types(model) and "Add" not in op_types(model)


def test_gemm_refuses_a_norm_of_the_axis_that_it_does_not_contract() -> None:
    text = GEMM.format(x="4,4", first="Tanh(x)", alpha=1.0, beta=1.0, trans_a=1, trans_b=0, c="")
    check(text, kept("not-contracted"), a=(4,), b=(4,), w=(4, 5))
    check(text, FOLDED, a=(4, 1), b=(4, 1), w=(4, 5))
    text = text.replace("transA = 1", "transA = 0")
    check(text, FOLDED, a=(4,), b=(4,), w=(4, 5))
    check(text, kept("not-contracted"), a=(4, 1), b=(4, 1), w=(4, 5))


@pytest.mark.parametrize(("inputs", "given"), [("(n, w)", "w"), ("(w, n)", "w"), ("(n, v, w)", "w"), ("(n, n)", "")])
def test_gemm_with_more_than_one_tensor_refuses(inputs: str, given: str) -> None:
    extra = ", double[4,4] w" if given else ""
    text = f"g (double[4,4] x{extra}) => (double y) {{\nh = Tanh(x)\nn = Mul(h, a)\ny = Gemm{inputs}\n}}"
    code = "two-tensors" if inputs in ("(n, w)", "(n, v, w)") else "wall"
    check(text, kept(code), a=(4,), v=(4, 4))


# MatMul.

MATMUL = """g (double[{x}] x) => (double y) {{
    h = Tanh(x)
    {norm}
    y = MatMul({operands}){after}
}}"""


@pytest.mark.parametrize(
    ("x", "w", "outcome"),
    [
        ("B,4", (4, 5), FOLDED),
        ("B,3,4", (4, 5), FOLDED),
        ("B,2,3,4", (4, 5), FOLDED),
        ("B,2,3,4", (2, 4, 5), FOLDED),
        ("B,2,3,4", (1, 1, 4, 5), FOLDED),
        ("3,4", (2, 4, 5), FOLDED),
        ("B,3,4", (4,), FOLDED),
        ("4", (4, 5), FOLDED),
        ("4", (4, 4, 5), partial("narrow-add")),
    ],
)
def test_matmul_with_the_weight_on_the_right(x: str, w: tuple[int, ...], outcome: tuple[str, str | None]) -> None:
    text = MATMUL.format(x=x, norm="n0 = Mul(h, a)\nn = Add(n0, b)", operands="n, w", after="").replace("y =", "y0 =")
    text = text.replace("y0 = MatMul(n, w)\n", "y0 = MatMul(n, w)\ny = Add(y0, c)\n")
    model, _ = check(text, outcome, a=(4,), b=(4,), w=w, c=(w[-1] if len(w) > 1 else 1,))
    assert ("Mul" in op_types(model)) == (outcome[0] == "kept")


@pytest.mark.parametrize(
    ("x", "w", "a", "outcome"),
    [
        ("B,4,3", (5, 4), (4, 1), FOLDED),
        ("B,2,4,3", (2, 5, 4), (4, 1), FOLDED),
        ("B,4,4", (4, 4), (4, 1), FOLDED),
        ("B,4,4", (4, 4), (4,), kept("graph-output")),
        ("B,2,4,3", (2, 5, 4), (2, 1, 1), FOLDED),
        ("B,2,4,3", (5, 4), (2, 1, 1), kept("graph-output")),
        ("4,3", (2, 5, 4), (4, 1), FOLDED),
    ],
)
def test_matmul_with_the_weight_on_the_left(
    x: str, w: tuple[int, ...], a: tuple[int, ...], outcome: tuple[str, str | None]
) -> None:
    check(MATMUL.format(x=x, norm="n = Mul(h, a)", operands="w, n", after=""), outcome, a=a, w=w)
    if outcome is FOLDED:
        norm = "n0 = Mul(h, a)\nn = Add(n0, b)"
        text = (
            MATMUL.format(x=x, norm=norm, operands="w, n", after="")
            .replace("y =", "y0 =")
            .replace("\n}", "\ny = Add(y0, c)\n}")
        )
        check(text, FOLDED, a=a, b=a, w=w, c=(5, 1) if w[-2] == 5 else (4, 1))


BEHIND = """g (double[{x}] x) => (double y) {{
    h = MatMul({operands})
    n0 = Mul(h, a)
    n = Add(n0, b)
    y = Tanh(n)
}}"""


@pytest.mark.parametrize(
    ("x", "operands", "w", "a", "outcome"),
    [
        ("B,3,4", "x, w", (4, 5), (5,), FOLDED),
        ("B,2,3,4", "x, w", (2, 4, 5), (5,), FOLDED),
        ("B,2,3,4", "x, w", (2, 4, 5), (2, 1, 1), FOLDED),
        ("B,2,3,4", "x, w", (4, 5), (2, 1, 1), kept("wall")),
        ("B,2,3,4", "x, w", (4, 3), (3, 1), kept("wall")),
        ("B,4,3", "w, x", (5, 4), (5, 1), FOLDED),
        ("B,4,5", "w, x", (5, 4), (5,), kept("wall")),
        ("B,3,4", "x, w", (4,), (3,), kept("wall")),
        ("4", "x, w", (4, 5), (5,), FOLDED),
        ("4", "x, w", (3, 4, 5), (5,), FOLDED),
        ("4", "w, x", (3, 3, 4), (3, 1), FOLDED),
    ],
)
def test_matmul_takes_a_norm_behind_it(
    x: str, operands: str, w: tuple[int, ...], a: tuple[int, ...], outcome: tuple[str, str | None]
) -> None:
    """The shift costs an Add where there was one already."""
    model, _ = check(BEHIND.format(x=x, operands=operands), outcome, a=a, b=a, w=w)
    assert ("Mul" in op_types(model)) == (outcome is not FOLDED)
    check(BEHIND.format(x=x, operands=operands).replace("Add(n0, b)", "Identity(n0)"), outcome, a=a, w=w)


def test_the_same_weight_on_both_sides() -> None:
    """One product is kept for every operand and side: they must not be confused."""
    text = """g (double[4,4] x) => (double y, double z) {
        h = Tanh(x)
        n0 = Mul(h, a)
        n = Add(n0, b)
        y0 = MatMul(n, w)
        y = Add(y0, c)
        k = Sigmoid(x)
        m0 = Mul(k, d)
        m = Add(m0, e)
        z0 = MatMul(w, m)
        z = Add(z0, f)
    }"""
    a, b = draw("a", 4), draw("b", 4)
    check(text, FOLDED, FOLDED, a=a, b=b, d=a[:, None], e=b[:, None], w=(4, 4), c=(4,), f=(4, 1))


def test_a_weight_that_is_computed_from_constants() -> None:
    text = (
        "g (double[B,4] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\n"
        "v = Transpose(w)\nu = Mul(v, k)\ny = MatMul(n, u)\n}"
    )
    model, _ = check(text, FOLDED, a=(4,), w=(5, 4), k=np.array(0.5))
    assert op_types(model) == ["Tanh", "MatMul"]


def test_overridable_weights_refuse() -> None:
    """An initializer that is an input as well is only a default."""
    for inputs, operator in (("w", "MatMul(n, w)"), ("w", "Gemm(n, w)"), ("c", "Gemm(n, v, c)")):
        text = (
            f"g (double[B,4] x, double[4,4] {inputs}) => (double y) {{\nh = Tanh(x)\nn = Mul(h, a)\ny = {operator}\n}}"
        )
        model = build(text, a=(4,), v=(4, 4), **{inputs: (4, 4)})
        after, plan = fold(model)
        assert outcomes(plan) == [kept("two-tensors")]
        same_function(model, after, sizes=(4,))
