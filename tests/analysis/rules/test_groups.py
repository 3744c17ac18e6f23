"""InstanceNormalization and GroupNormalization: what their outputs take, and what their statistics let in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.support.graphs import (
    FOLDED,
    Outcome,
    build,
    draw,
    fold,
    halves,
    kept,
    op_types,
    outcomes,
    partial,
    same_function,
)

INSTANCE = "InstanceNormalization<epsilon = 0.0078125>(i, g, c)"
GROUP = "GroupNormalization<num_groups = 2, epsilon = 0.0078125>(i, g, c)"
# (operator, opset, how many weights it has)
DOUBLE = GROUP.replace("num_groups", "stash_type = 11, num_groups")
OPERATORS = {"instance": (INSTANCE, 20, 4), "group": (DOUBLE, 21, 4), "group, one weight each": (GROUP, 18, 2)}

IN_GROUPS = {"a": np.array([1.5, 1.5, -0.7, -0.7]), "b": np.array([0.3, 0.3, 0.9, 0.9])}
EACH = {"a": draw("a", 4), "b": draw("b", 4)}


def model(name: str, before: str, after: str) -> tuple[str, dict[str, tuple[int, ...]]]:
    operator, opset, weights = OPERATORS[name]
    header = f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
    # onnx infers no shape for a GroupNormalization; exporters write it.
    body = f"g (double[B,4,3,5] x) => (double y) <double[B,4,3,5] o> {{\n{before}\no = {operator}\n{after}\n}}"
    return header + body, {"g": (weights,), "c": (weights,)}


def check(text: str, expected: Outcome, **constants: np.ndarray | tuple[int, ...]) -> onnx.ModelProto:
    """As `check` of graphs.py, without onnx's checker, to which the GroupNormalization of opset 18 is deprecated."""
    for half in halves(text, constants):
        same_function(half, fold(half)[0])
    model = build(text, **constants)
    after, plan = fold(model)
    assert outcomes(plan) == [expected], plan.sites
    same_function(model, after)
    return after


def columns(constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.reshape(-1, 1, 1) for name, array in constants.items()}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_output_takes_any_frame_that_its_weights_can_hold(name: str) -> None:
    text, weights = model(name, "i = Tanh(x)", "n0 = Mul(o, a)\nn = Add(n0, b)\ny = Tanh(n)")
    after = check(text, FOLDED, **weights, **columns(IN_GROUPS))
    assert op_types(after)[1:] == [OPERATORS[name][0].split("<")[0], "Tanh"]
    alone = OPERATORS[name][2] == 4
    check(text, FOLDED if alone else kept("wall"), **weights, **columns(EACH))
    check(text, kept("wall"), **weights, a=(5,), b=(5,))
    check(text, kept("wall"), **weights, **columns({**IN_GROUPS, "a": np.array([1.0, 1.0, 0.0, 0.0])}))


def test_a_norm_within_groups_is_refused_where_a_group_has_one_weight() -> None:
    after = "k = Relu(x)\nn0 = Mul(k, a)\nz = Add(n0, o)\ny = Conv(z, w)"
    for name, outcome in (("group", FOLDED), ("group, one weight each", kept("statistic"))):
        text, weights = model(name, "i = Tanh(x)", after)
        check(text, outcome, **weights, a=(4, 1, 1), w=(3, 4, 1, 1))


SCALED = "h = Sigmoid(x)\ni0 = Mul(h, a)\ni = Add(i0, b)"
CASES: list[tuple[str, float | None, str, Outcome]] = [
    # one scale; the shift is for each channel, for each group, or 0
    ("instance", 4.0, "each", FOLDED),
    ("instance", 0.25, "groups", FOLDED),
    ("instance", -2.0, "each", kept("negative-scale")),
    ("instance", None, "each", kept("statistic")),
    ("group", 4.0, "groups", FOLDED),
    ("group", 4.0, "each", partial("statistic")),
    ("group", None, "groups", kept("statistic")),
    ("group, one weight each", 4.0, "groups", FOLDED),
    ("group, one weight each", 4.0, "each", partial("statistic")),
]


@pytest.mark.parametrize(("name", "scale", "shift", "outcome"), CASES)
def test_the_input_takes_one_scale_and_what_the_mean_takes_out(
    name: str, scale: float | None, shift: str, outcome: Outcome
) -> None:
    text, weights = model(name, SCALED, "y = Tanh(o)")
    a = EACH["a"] if scale is None else np.full(4, scale)
    b = EACH["b"] if shift == "each" else IN_GROUPS["b"]
    after = check(text, outcome, **weights, **columns({"a": a, "b": b}))
    if outcome == FOLDED:
        assert "Mul" not in op_types(after) and "Add" not in op_types(after)


@pytest.mark.parametrize("parameter", ["g", "c"])
def test_computed_weights_refuse(parameter: str) -> None:
    text, weights = model("instance", "i0 = Sigmoid(x)\ni = Mul(i0, a)", "y = Tanh(o)")
    computed = {name: shape for name, shape in weights.items() if name != parameter}
    _, plan = fold(build(text.replace("x) =>", f"x, double[4] {parameter}) =>"), a=np.full((4, 1, 1), 2.0), **computed))
    assert outcomes(plan) == [kept("two-tensors")]
    check(text, FOLDED, a=np.full((4, 1, 1), 2.0), **weights)


def test_a_norm_along_the_positions_refuses() -> None:
    text, weights = model("instance", "i0 = Sigmoid(x)\ni = Mul(i0, a)", "y = Tanh(o)")
    check(text, kept("not-contracted"), a=(5,), **weights)
