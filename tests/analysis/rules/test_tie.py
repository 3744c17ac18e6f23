"""Where, Min, Max and Clip: one frame for all that an element may come from."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from normfold.analysis.rules.tie import in_range
from tests.analysis.rules.sandwich import Sandwich
from tests.support.graphs import FOLDED, Outcome, build, check, draw, fold, graph_of, kept, outcomes, partial

# i (B, 3, 4) is normed along its last axis; p is a condition, k another tensor that a weight writes.
HEAD = (
    "s = Sigmoid(x)\nhalf = Constant<value_float = 0.5>()\n"
    "d = Cast<to = 11>(half)\np = Greater(s, d)\nk = MatMul(x, v)\n"
)
CONSTANTS = {
    "one": np.array(0.7),
    "channels": draw("channels", 4),
    "column": draw("column", 3, 1),
    "v": draw("v", 4, 4),
}
CONSTANTS |= {"mask": np.array([[True, False, True, False]] * 3), "infinite": np.array(-np.inf), "u": draw("u", 4, 1)}

WHERE: dict[str, tuple[str, Outcome]] = {
    "two tensors": ("o = Where(p, i, k)", FOLDED),
    "swapped": ("o = Where(p, k, i)", FOLDED),
    "with itself": ("o = Where(p, i, i)", FOLDED),
    "a scalar": ("o = Where(p, i, one)", FOLDED),
    "a scalar first": ("o = Where(p, one, i)", FOLDED),
    "channels": ("o = Where(p, i, channels)", FOLDED),
    "a column": ("o = Where(p, column, i)", FOLDED),
    "infinity": ("f = Where(p, i, infinite)\no = Where(p, f, channels)", FOLDED),
    "a constant mask": ("o = Where(mask, i, one)", FOLDED),
    "a wall": ("q = Sigmoid(x)\no = Where(p, i, q)", kept("wall")),
    "an input": ("o = Where(p, i, x)", kept("graph-input")),
    "one for all channels": ("q = MatMul(x, u)\no = Where(p, i, q)", kept("broadcast")),
    "its own condition": ("q = Greater(i, d)\no = Where(q, i, one)", kept("wall")),
}


@pytest.mark.parametrize("name", WHERE)
def test_where_ties_its_tensors_and_rewrites_its_constants(name: str) -> None:
    text, outcome = WHERE[name]
    case = Sandwich(f"{HEAD}{text}", constants=CONSTANTS)
    case.fold(outcome, "forward")
    case.fold(outcome, "forward", "scale")


EXTREMES: dict[str, tuple[str, Outcome]] = {
    "two tensors": ("o = {0}(i, k)", FOLDED),
    "three tensors": ("m = Identity(i)\no = {0}(k, i, m)", FOLDED),
    "one": ("o = {0}(i)", FOLDED),
    "a scalar": ("o = {0}(i, one)", FOLDED),
    "channels and a column": ("o = {0}(channels, i, column)", FOLDED),
    "a wall": ("q = Sigmoid(x)\no = {0}(i, q)", kept("wall")),
}


@pytest.mark.parametrize("operator", ["Max", "Min"])
@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_tie_positive_scales_and_all_shifts(operator: str, name: str) -> None:
    text, outcome = EXTREMES[name]
    case = Sandwich(HEAD + text.replace("{0}", operator), constants=CONSTANTS)
    case.fold(outcome, "forward", "positive")
    case.fold(outcome, "forward", "positive scale")
    case.fold(kept("negative-scale"), "forward", "affine")


@pytest.mark.parametrize("text", ["o = Where(p, i, one)", "o = Max(i, one)", "o = Where(p, one, channels)"])
def test_backwards(text: str) -> None:
    """The last has no tensor at all: the constants take the norm behind it."""
    if "i," in text or ", i" in text:
        Sandwich(HEAD + text, constants=CONSTANTS).fold(FOLDED, "backward", "positive")
        return
    model = f"g (double[B,3,4] x) => (double y) {{\n{HEAD}{text}\nn0 = Mul(o, a)\nn = Add(n0, b)\ny = Tanh(n)\n}}"
    check(model, FOLDED, a=(4,), b=(4,), **CONSTANTS)


def test_a_zero_scale_cannot_hold_a_constant() -> None:
    text = (
        f"g (double[B,3,4] x) => (double y) {{\n{HEAD}h = Tanh(x)\n"
        f"i = Mul(h, a)\no = Where(p, i, one)\ny = MatMul(o, w)\n}}"
    )
    check(text, kept("zero-scale"), a=np.array([1.0, 0.0, 2.0, -1.0]), w=(4, 3), **CONSTANTS)
    check(text, FOLDED, a=(4,), w=(4, 3), **CONSTANTS)


def test_a_mask_must_stay_within_its_type() -> None:
    """-3.4e38 divided by a small scale would become infinite."""
    text = (
        "g (float[B,4] x, bool[B,4] p) => (float y) {\nh = Tanh(x)\n"
        "i = Mul(h, a)\no = Where(p, i, low)\ny = MatMul(o, w)\n}"
    )
    low = np.array(np.finfo(np.float32).min)
    for size, outcome in ((0.25, kept("scale-range")), (4.0, FOLDED)):
        given = {"a": np.full(4, size) * [1, -1, 1, 1.5], "low": low, "w": draw("w", 4, 3)}
        _, plan = fold(build(text, **{name: array.astype(np.float32) for name, array in given.items()}))
        assert outcomes(plan) == [outcome]


CLIPS: dict[str, tuple[str, Outcome, Outcome, Outcome]] = {
    # With a scale for each channel; with one scale; with one scale and one shift.
    "six": ("Clip(i, zero, six)", kept("one-bound"), FOLDED, FOLDED),
    "from below": ("Clip(i, six)", kept("one-bound"), FOLDED, FOLDED),
    "from above": ("Clip(i, , six)", kept("one-bound"), FOLDED, FOLDED),
    "at zero": ("Clip(i, zero)", FOLDED, FOLDED, partial("shift-meets-activation")),
    "at zero and infinity": ("Clip(i, zero, infinity)", FOLDED, FOLDED, partial("shift-meets-activation")),
    "nowhere": ("Clip(i)", FOLDED, FOLDED, FOLDED),
    "at run time": ("Clip(i, bound)", kept("two-tensors"), kept("two-tensors"), kept("two-tensors")),
}


@pytest.mark.parametrize("name", CLIPS)
def test_clip_has_one_bound_for_all_channels(name: str) -> None:
    text, each, one, shifted = CLIPS[name]
    model = f"""g (double[B,4] x) => (double y) {{{{
        t = ReduceSum<keepdims = 0>(x)
        bound = Tanh(t)
        h = Tanh(x)
        i0 = Mul(h, a)
        i = {{norm}}
        o = {text}
        y = Gemm(o, w)
    }}}}"""
    constants = {"zero": np.array(0.0), "six": np.array(0.3), "infinity": np.array(np.inf), "w": draw("w", 4, 3)}
    plain = model.format(norm="Identity(i0)")
    uniform, b = np.full(4, 1.7), np.full(4, 0.2)
    check(plain, each, a=draw("a", 4, positive=True), **constants)
    check(plain, one, a=uniform, **constants)
    check(model.format(norm="Add(i0, b)"), shifted, a=uniform, b=b, **constants)
    if shifted == FOLDED and name != "nowhere":
        check(model.format(norm="Add(i0, b)"), partial("one-bound"), a=uniform, b=draw("b", 4), **constants)
    if name != "at run time":
        check(plain, kept("negative-scale"), a=-uniform, **constants)


@pytest.mark.parametrize(
    ("kind", "largest"),
    [("float16", 65504.0), ("float", 3.4028235e38), ("bfloat16", 3.3895314e38), ("double", 1.7e308)],
)
def test_what_is_within_the_range_of_each_type(kind: str, largest: float) -> None:
    """Half of it at most, once it is divided by the scale."""
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 22]> g ({kind}[B] x) => ({kind}[B] y) {{ y = Max(x, low) }}'
    )
    number = getattr(onnx.TensorProto, kind.upper())
    model.graph.initializer.append(onnx.helper.make_tensor("low", number, [1], [-0.9 * largest]))
    graph = graph_of(model)
    low = graph.model.graph.initializers["low"]
    assert in_range(graph, low, np.array([1.0])) and in_range(graph, low, np.array([2.0, -4.0]))
    assert not in_range(graph, low, np.array([1.5])) and not in_range(graph, low, np.array([4.0, 0.25]))
