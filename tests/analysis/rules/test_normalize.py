"""LayerNormalization, RMSNormalization and BatchNormalization."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
import pytest

from normfold.errors import GraphError, NormStateError
from normfold.graph.prepare import prepare
from tests.analysis.rules.sandwich import statistics
from tests.support.graphs import (
    EXACT,
    FOLDED,
    Outcome,
    as_float32,
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
    run_float32,
    same_function,
)

HEADER = '<ir_version: 11, opset_import: ["" : {}]>\n'
LAYER = "LayerNormalization<axis = {axis}, epsilon = 0.0078125>(i, g{bias})"
RMS = "RMSNormalization<axis = {axis}, epsilon = 0.0078125>(i, g)"
# The file holds epsilon in float32: powers of 2 there, where nothing else is said.
EPSILON_TOLERANCE = 1e-6
STATISTIC = kept("statistic")


def model(operator: str, *, before: str = "i = Identity(x)", after: str = "y = Tanh(o)", x: str = "B,3,4") -> str:
    opset = 23 if "RMS" in operator else 20
    return HEADER.format(opset) + f"g (double[{x}] x) => (double y) {{\n{before}\no = {operator}\n{after}\n}}"


NORM = "n0 = Mul(o, a)\nn = Add(n0, b)\ny = Tanh(n)"


@pytest.mark.parametrize("bias", ["", ", c"])
@pytest.mark.parametrize("axis", [-1, 2, 1, -2])
def test_a_layer_norm_takes_a_norm_behind_it(bias: str, axis: int) -> None:
    shape = (4,) if axis in (-1, 2) else (3, 4)
    text = model(LAYER.format(axis=axis, bias=bias), after=NORM)
    after, _ = check(text, STATISTIC, FOLDED, g=shape, c=shape, a=(4,), b=(4,))
    assert op_types(after)[-2:] == ["LayerNormalization", "Tanh"]
    outcome = FOLDED if len(shape) == 2 else kept("wall")
    check(text, STATISTIC, outcome, g=shape, c=shape, a=(3, 1), b=(3, 1))


@pytest.mark.parametrize("axis", [-1, 1])
def test_an_rms_norm_takes_a_scale_behind_it(axis: int) -> None:
    shape = (4,) if axis == -1 else (3, 4)
    check(model(RMS.format(axis=axis), after="n = Mul(o, a)\ny = Tanh(n)"), STATISTIC, FOLDED, g=shape, a=(4,))
    check(model(RMS.format(axis=axis), after=NORM), STATISTIC, partial("wall"), g=shape, a=(4,), b=(4,))


SCALED = "i0 = Sigmoid(x)\ni1 = Mul(i0, s)\ni = Add(i1, t)"


@pytest.mark.parametrize(
    "operator", [LAYER.format(axis=-1, bias=", c"), LAYER.format(axis=1, bias=""), RMS.format(axis=-1)]
)
@pytest.mark.parametrize("s", [0.25, 4.0])
def test_one_scale_for_all_channels_goes_into_epsilon(operator: str, s: float) -> None:
    g = (3, 4) if "axis = 1" in operator else (4,)
    one = np.full(4, s)
    shift = np.zeros(4) if "RMS" in operator else np.full(4, 0.7)
    after, _ = check(model(operator, before=SCALED), FOLDED, STATISTIC, g=g, c=(4,), s=one, t=shift)
    (norm,) = (node for node in after.graph.node if "Normalization" in node.op_type)
    (epsilon,) = (attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
    assert epsilon == pytest.approx(0.0078125 / s**2)
    check(model(operator, before=SCALED), kept("negative-scale"), STATISTIC, g=g, c=(4,), s=-one, t=shift)
    check(model(operator, before=SCALED), kept("statistic"), STATISTIC, g=g, c=(4,), s=(4,), t=shift)
    if "RMS" in operator:
        check(model(operator, before=SCALED), partial("statistic"), STATISTIC, g=g, c=(4,), s=one, t=one)
    else:
        check(model(operator, before=SCALED), partial("statistic"), STATISTIC, g=g, c=(4,), s=one, t=(4,))


def test_the_default_epsilon_is_read_too() -> None:
    text = model("LayerNormalization(i, g)", before="i0 = Sigmoid(x)\ni1 = Mul(i0, small)\ni = Mul(i1, s)")
    small = {"s": np.full(4, 0.5), "small": np.array(1e-3)}
    after, _ = check(text, FOLDED, STATISTIC, g=(4,), **small, tolerance=EPSILON_TOLERANCE)
    (norm,) = (node for node in after.graph.node if node.op_type == "LayerNormalization")
    assert [attribute.f for attribute in norm.attribute] == [pytest.approx(1e-5 / 0.25e-6)]


def test_deep_norm() -> None:
    """LN(alpha * x + f(x)): alpha is folded into f and into epsilon, where f's last weight and x's first can follow."""
    text = (
        HEADER.format(20)
        + """g (double[B,4] x) => (double y) {
        e = MatMul(x, u)
        e1 = Mul(e, alphas)
        f = Tanh(e)
        k = MatMul(f, w)
        s = Add(e1, k)
        o = LayerNormalization<epsilon = 0.0078125>(s, g, c)
        y = MatMul(o, v)
    }"""
    )
    after, _ = check(text, FOLDED, STATISTIC, alphas=np.full(4, 4.0), u=(4, 4), w=(4, 4), g=(4,), c=(4,), v=(4, 2))
    assert "Mul" not in op_types(after)


def test_outputs_that_show_the_statistic_refuse() -> None:
    text = (
        HEADER.format(20)
        + """g (double[B,4] x) => (double[B,4] y{outputs}) {{
        h = Tanh(x)
        i = Mul(h, s)
        o, mean, deviation = LayerNormalization(i, g)
        {y}
    }}"""
    )
    one = np.full(4, 2.0)
    read = "d = Cast<to = 11>(deviation)\ny = Add(o, d)"
    for outputs, y in ((", float[B,1] mean", "y = Tanh(o)"), ("", read)):
        assert outcomes(fold(build(text.format(outputs=outputs, y=y), g=(4,), s=one))[1]) == [
            kept("statistic-read"),
            STATISTIC,
        ]
    assert outcomes(fold(build(text.format(outputs="", y="y = Tanh(o)"), g=(4,), s=one))[1]) == [FOLDED, STATISTIC]


def test_computed_parameters_refuse() -> None:
    text = (
        HEADER.format(20)
        + """g (double[B,4] x, double[4] {0}) => (double y) {{
        h = Tanh(x)
        i = Mul(h, s)
        o = LayerNormalization(i, g, c)
        y = Tanh(o)
    }}"""
    )
    constants = {"g": (4,), "c": (4,)}
    for name in "gc":
        given = {k: v for k, v in constants.items() if k != name}
        check(text.format(name), kept("two-tensors"), STATISTIC, s=np.full(4, 2.0), **given)
    check(text.format("z"), FOLDED, STATISTIC, s=np.full(4, 2.0), **constants)


def test_unknown_attributes_of_a_layer_norm_refuse() -> None:
    text = model("LayerNormalization<novel = 1>(i, g)", before="i0 = Sigmoid(x)\ni = Mul(i0, s)").replace(
        "double y", "double[B,3,4] y"
    )
    assert outcomes(fold(build(text, g=(4,), s=np.full(4, 2.0)))[1]) == [kept("wall"), STATISTIC]


@pytest.mark.parametrize(
    "operator", [LAYER.format(axis=-1, bias=", c"), LAYER.format(axis=-1, bias=""), RMS.format(axis=-1)]
)
def test_its_own_weight_and_bias_fold_on_request(operator: str) -> None:
    text = model(operator, after="p = MatMul(o, w)\nq = Add(p, d)\ny = Tanh(q)")
    constants = {"g": (4,), "c": (4,), "w": (4, 5), "d": (5,)}
    check(text, STATISTIC, **constants)
    after, _ = check(text, partial("statistic"), options={"norm_affine": True}, **constants)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    (norm,) = (node for node in after.graph.node if "Normalization" in node.op_type)
    np.testing.assert_allclose(tensors[norm.input[1]], np.ones(4), rtol=1e-15)


# BatchNormalization.


BATCH = """g (double[{x}] x) => (double y{more}) {{
    h = {first}
    n{outputs} = BatchNormalization{attributes}(h, gamma, beta, mean, var)
    y = {last}
}}"""


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        ("B,4", (4, 4)),
        ("B,4,4", (3, 4, 1)),
        ("4,4,4", (3, 4, 1)),
        ("B,4,3,2", (3, 4, 1, 1)),
        ("B,4,2,3,2", (3, 4, 1, 1, 1)),
    ],
)
@pytest.mark.parametrize("attributes", ["", "<epsilon = 0.1, momentum = 0.5>", "<training_mode = 0>"])
def test_batch_norm_of_every_rank(x: str, weight: tuple[int, ...], attributes: str) -> None:
    """Its channels lie on axis 1 also where the batch, or the length, is as large."""
    operator = "Gemm({}, w)" if len(weight) == 2 else "Conv({}, w)"
    forward = BATCH.format(x=x, more="", first="Tanh(x)", outputs="", attributes=attributes, last=operator.format("n"))
    check(forward, FOLDED, **statistics(4), w=weight, sizes=(4, 2))
    square = (4, *weight[1:])
    backward = BATCH.format(x=x, more="", first=operator.format("x"), outputs="", attributes=attributes, last="Tanh(n)")
    check(backward, FOLDED, **statistics(4), w=square, sizes=(4, 2))


def test_a_batch_norm_in_training_is_no_map() -> None:
    for attributes, outputs, opset in (
        ("<training_mode = 1>", ", m, v", 20),
        ("", ", m, v, sm, sv", 9),
        ("", ", m", 9),
        ("", ", m, v, sm, sv", 7),
    ):
        text = HEADER.format(opset) + BATCH.format(
            x="B,4,3", more="", first="Tanh(x)", outputs=outputs, attributes=attributes, last="Conv(n, w)"
        )
        after, plan = fold(build(text, **statistics(4), w=(3, 4, 1)))
        assert plan.is_empty and outcomes(plan) == [kept("training-mode")]
        assert "BatchNormalization" in op_types(after)
    text = BATCH.format(x="B,4,3", more="", first="Tanh(x)", outputs="", attributes="", last="Conv(n, w)")
    check(text, FOLDED, **statistics(4), w=(3, 4, 1))


def test_a_batch_norm_per_element_is_no_map() -> None:
    text = HEADER.format(8) + BATCH.format(
        x="B,4,3", more="", first="Tanh(x)", outputs="", attributes="<spatial = {}>", last="Conv(n, w)"
    )
    each = {name: draw(name, 4, 3, positive=name == "var") for name in statistics(4)}
    for spatial, given, outcome in (
        (0, statistics(4), kept("unknown-shape")),
        (0, each, kept("not-contracted")),
        (1, statistics(4), FOLDED),
    ):
        _, plan = fold(build(text.replace("{}", str(spatial)), **given, w=(3, 4, 1)))
        assert outcomes(plan) == [outcome]
    _, plan = fold(build(text.replace("spatial = {}", "novel = 1"), **statistics(4), w=(3, 4, 1)))
    assert outcomes(plan) == [kept("wall")]


def test_models_from_before_broadcasting_are_raised() -> None:
    """Opset 6: a BatchNormalization says whether it trains, and of IR 3 every initializer is an input."""
    text = HEADER.format(6).replace("11", "3") + BATCH.format(
        x="B,4,3", more="", first="Tanh(x)", outputs="", attributes="<is_test = 1>", last="Conv(n, w)"
    )
    model = build(text.replace("double y", "double[B,3,3] y"), **statistics(4), w=(3, 4, 1))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims) for name, tensor in tensors.items()
    )
    folded, plan = fold(model)
    assert [site.status for site in plan.sites] == ["folded"]
    assert [value.name for value in folded.graph.input] == ["x"]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 3))}
    modern = onnx.version_converter.convert_version(model, 15)
    (before,), (after,) = run(modern, feeds), run(folded, feeds)
    assert np.abs(after - before).max() < EXACT

    trains = build(
        text.replace("double y", "double[B,3,3] y").replace("is_test = 1", "is_test = 0"), **statistics(4), w=(3, 4, 1)
    )
    with pytest.raises(GraphError, match="opset 6; normfold reads 7 and later"):
        prepare(ir.from_proto(trains))


@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf])
def test_damaged_statistics_are_an_error_that_names_the_layer(value: float) -> None:
    text = BATCH.format(x="B,4,3", more="", first="Tanh(x)", outputs="", attributes="", last="Conv(n, w)")
    damaged = statistics(4)
    damaged["var"][2] = value
    model = build(text, **damaged, w=(3, 4, 1))
    model.graph.node[1].name = "blocks.3.norm1"
    with pytest.raises(NormStateError, match=r"blocks\.3\.norm1 .*running variance is negative or not finite"):
        fold(model)


def test_computed_statistics_are_no_map() -> None:
    text = BATCH.format(x="B,4,3", more="", first="Tanh(x)", outputs="", attributes="", last="Conv(n, w)").replace(
        "x)", "x, double[4] mean)", 1
    )
    given = {k: v for k, v in statistics(4).items() if k != "mean"}
    model = build(text, **given, w=(3, 4, 1))
    after, plan = fold(model)
    assert outcomes(plan) == [kept("not-stored")]
    same_function(model, after)


def test_narrow_weights_of_a_wide_norm() -> None:
    """A weight of one element, broadcast over the channels, grows when it takes a frame."""
    text = model(LAYER.format(axis=-1, bias=""), after="n = Mul(o, a)\ny = Tanh(n)")
    outcome: Outcome = FOLDED
    check(text, STATISTIC, outcome, g=(1,), a=(4,))


MEAN_VARIANCE = """g (double[B,5,4] x) => (double y, double z) {{
    h0 = MatMul(x, u)
    h = Add(h0, c)
    n0 = Mul(h, a)
    n = Add(n0, b)
    y = MatMul(n, w)
    z = {}(h)
}}"""


def test_a_mean_that_is_subtracted_takes_a_shift() -> None:
    """Its epsilon cannot follow a scale; a shift of the stream is gone behind it, off the axes that it averages."""
    constants = {"u": (4, 4), "c": (4,), "a": (4,), "b": (4,), "w": (4, 8)}
    norm = "MeanVarianceNormalization<axes = [{}]>"
    cases = ((norm.format(1), True), (norm.format(2), False), ("Sigmoid", False))
    for reader, taken in cases:
        before = build(MEAN_VARIANCE.format(reader), **constants)
        model, plan = fold(before)
        feeds = feeds_for(before, 2)  # the reference implementation has no double of it
        for truth, result in zip(*(run_float32(as_float32(one), feeds) for one in (before, model)), strict=True):
            np.testing.assert_allclose(result, truth, atol=1e-5)
        assert (plan.sites[0].shift == "writer") == taken and op_types(model).count("Add") == 2 - taken
    text = "g (double[B,5,4] x) => (double y) {\nh = Tanh(x)\nn = Mul(h, a)\ny = {}(n)\n}"
    _, plan = fold(build(text.replace("{}", cases[0][0]), a=(4,)))
    assert outcomes(plan) == [kept("statistic")]


def test_a_batch_norm_that_stays_on_a_stream_that_moved_is_one_operator() -> None:
    """Not a product and a sum, which would touch its tensor twice."""
    text = (
        HEADER.format(20)
        + """g (double[B,4] x) => (double y, double z) {
        s = Gemm(x, w, c)
        z = BatchNormalization(s, gamma, beta, mean, var)
        n0 = Mul(s, a)
        n = Add(n0, b)
        y = Tanh(n)
    }"""
    )
    after, _ = check(text, kept("graph-output"), FOLDED, w=(4, 4), c=(4,), a=(4,), b=(4,), **statistics(4))
    assert sorted(op_types(after)) == ["BatchNormalization", "Gemm", "Tanh"]


def test_a_batch_norm_of_one_channel_is_a_norm() -> None:
    """A product with one number would be none."""
    text = (
        HEADER.format(20)
        + """g (double[B,1,4] x) => (double y) {
        h = Tanh(x)
        n = BatchNormalization(h, gamma, beta, mean, var)
        y = Conv(n, w)
    }"""
    )
    after, _ = check(text, FOLDED, w=(3, 1, 2), **statistics(1))
    assert op_types(after) == ["Tanh", "Conv"]
