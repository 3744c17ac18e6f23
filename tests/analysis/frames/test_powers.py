"""Powers of two for float16: chosen where a tensor would leave its range, exact in float32, or refused by name."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from normfold import errors
from normfold.analysis.frames.powers import Powers, choose_powers, rooms
from normfold.analysis.frames.regions import take
from normfold.analysis.placement.calibrate import calibrate
from normfold.analysis.placement.propagate import State
from normfold.analysis.plan import Plan
from normfold.analysis.refusal import Refuse
from normfold.graph.float16 import to_half
from normfold.graph.powers import rescale
from normfold.graph.prepare import prepare
from normfold.inputs.cases import Case
from normfold.inputs.spec import InputSpec
from normfold.pipeline import run as pipeline
from normfold.system.numbers import LARGEST_HALF
from tests.support.graphs import graph_of, op_types, parse, run_float32

RNG = np.random.default_rng(3)
# The stream `h` reaches some 1e5, and the squares of a norm 1e10.
HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'
STREAM = "a = MatMul(x, w)\nb = MatMul(x, v)\nh = Add(a, b)\n"
CENTRED = "u = ReduceMean(h, last)\nd = Sub(h, u)\n"
MEAN = "m = ReduceMean(s, last)\ne = Add(m, eps)\nr = Sqrt(e)\n"
GAIN = "k = Mul(c, g)\nn = Add(k, shift)\n"
NORMS = {
    "layer norm": f"{CENTRED}s = Pow(d, two)\n{MEAN}c = Div(d, r)\n{GAIN}",
    "layer norm by a product": f"{CENTRED}s = Mul(d, d)\n{MEAN}q = Reciprocal(r)\nc = Mul(d, q)\n{GAIN}",
    "subtracted twice": f"{CENTRED}f = Sub(h, u)\ns = Pow(f, two)\n{MEAN}c = Div(d, r)\n{GAIN}",
    "mean of squares": f"{CENTRED}i = Mul(h, h)\nj = ReduceMean(i, last)\nt = Mul(u, u)\ns = Sub(j, t)\n{MEAN}"
    f"c = Div(d, r)\n{GAIN}",
    "sum of squares": "s = ReduceSumSquare(h, last)\ni = Mul(s, eighth)\ne = Add(i, eps)\nr = Sqrt(e)\nn = Div(h, r)\n",
    "sum and division": "p = Mul(h, h)\ns = ReduceSum(p, last)\ni = Div(s, eight)\ne = Add(i, eps)\nr = Sqrt(e)\n"
    "n = Div(h, r)\n",
    "half a power": "s = Mul(h, h)\nm = ReduceMean(s, last)\ne = Add(m, eps)\nr = Pow(e, half)\nn = Div(h, r)\n",
    "written out": "s = Pow(h, two)\nm = ReduceMean(s, last)\ne = Add(m, eps)\nr = Sqrt(e)\nq = Reciprocal(r)\n"
    "n = Mul(h, q)\n",
    "divided": "s = Mul(h, h)\nm = ReduceMean(s, last)\ne = Add(m, eps)\nr = Sqrt(e)\nn = Div(h, r)\n",
    "operator": "n = LayerNormalization<epsilon = 0.00001>(h, g)\n",
    "root mean square": "n = RMSNormalization<epsilon = 0.00001>(h, g)\n",
}
CONSTANTS: dict[str, NDArray[np.generic]] = {
    "w": RNG.normal(size=(8, 8)).astype(np.float32) * np.float32(3e3),
    "v": RNG.normal(size=(8, 8)).astype(np.float32) * np.float32(2e3),
    "thousand": np.array(1e3, np.float32),
    "o": RNG.normal(size=(8, 4)).astype(np.float32),
    "o8": RNG.normal(size=(8, 8)).astype(np.float32),
    "g": RNG.uniform(0.5, 2.0, 8).astype(np.float32),
    "shift": RNG.normal(size=8).astype(np.float32),
    "two": np.array(2.0, np.float32),
    "half": np.array(0.5, np.float32),
    "eighth": np.array(0.125, np.float32),
    "eight": np.array(8.0, np.float32),
    "eps": np.array(1e-6, np.float32),
    "last": np.array([-1]),
}
X = 20.0 * RNG.normal(size=(3, 8)).astype(np.float32)
CONSTANTS |= {
    name: RNG.normal(size=(8, 8)).astype(np.float32) * np.float32(size)
    for name, size in {"tiny": 1e-4, "huge": 1e5, "huger": 1e6}.items()
}


def model(norm: str, *, stream: str = STREAM, last: str = "n") -> onnx.ModelProto:
    text = f"{HEADER}g (float[3,8] x) => (float[3,4] y) {{\n{stream}{norm}y = MatMul({last}, o)\n}}"
    graph = parse(text)
    read = {name for node in graph.graph.node for name in node.input}
    return parse(text, **{name: array for name, array in CONSTANTS.items() if name in read})


def chosen(graph: onnx.ModelProto, x: NDArray[np.float32] = X) -> tuple[ir.Model, Powers]:
    prepared = prepare(ir.from_proto(graph))
    specs = [InputSpec.parse("x:float32[3,8]")]
    ranges = calibrate(prepared, specs, half=True, cases=[Case({}, 0, 1.0, {"x": x})])
    powers = choose_powers(prepared, ranges)
    rescaled = rescale(prepared, powers.rescaling)
    left = rooms(powers.ranges(ranges), Plan(()), powers.of)
    assert powers.beyond is not None or all(one.left >= 1.0 for one in left if one.tensor != "y")
    return rescaled, powers


WRITTEN_OUT = [name for name in NORMS if name not in ("operator", "root mean square")]
# Of the stream, and of its squares alone: 512 times less fits into float16, and its squares do not.
SIZES = {"stream": np.float32(1.0), "squares": np.float32(2.0**-9)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", NORMS)
def test_float32_is_the_same_bit_by_bit(norm: str, size: str) -> None:
    graph, x = model(NORMS[norm]), X * SIZES[size]
    rescaled, powers = chosen(graph, x)
    if size == "squares" and norm not in WRITTEN_OUT:
        assert powers.rescaling.is_empty
        return
    assert powers.beyond is None and {"a", "b", "h"} <= set(powers.of) and min(powers.of["h"], powers.of["a"]) > 1
    after = ir.to_proto(rescaled)
    assert op_types(after) == op_types(graph)
    assert np.array_equal(run_float32(graph, {"x": x})[0], run_float32(after, {"x": x})[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", WRITTEN_OUT)
def test_in_float16_it_is_finite(norm: str, size: str) -> None:
    graph, x = model(NORMS[norm], stream=STREAM.replace("Add(a, b)", "Sub(a, b)")), X * SIZES[size]
    rescaled, _ = chosen(graph, x)
    truth = run_float32(graph, {"x": x})[0]
    feeds = {"x": x.astype(np.float16)}
    with np.errstate(all="ignore"):
        plain = ReferenceEvaluator(ir.to_proto(to_half(ir.from_proto(graph)))).run(None, feeds)[0]
    found = ReferenceEvaluator(ir.to_proto(to_half(rescaled))).run(None, feeds)[0]
    assert np.abs(plain.astype(np.float32) - truth).max() > 0.5 * np.abs(truth).max() or not np.isfinite(plain).all()
    assert np.abs(found.astype(np.float32) - truth).max() <= 0.01 * np.abs(truth).max()


MAPS = {
    "neg": "h = Neg(a)\n",
    "division": "h = Div(a, eighth)\n",
    "from a constant": "h = Sub(shift, a)\n",
    "mean with a constant": "h = Mean(a, shift, a)\n",
    "batch norm": "h = BatchNormalization<epsilon = 0.01>(a, g, shift, shift, g)\n",
    "batch norm between": "i = BatchNormalization<epsilon = 0.01>(a, g, shift, shift, g)\n"
    "j = Mul(i, thousand)\nh = Add(a, j)\n",
    "two branches": "i = Mul(a, g)\nj = Mul(a, eight)\nl = Add(i, j)\nh = Add(l, shift)\n",
    "bias of a Gemm": "h = Gemm<alpha = 0.5, beta = 0.3>(x, w, shift)\n",
}


@pytest.mark.parametrize("maps", MAPS)
def test_a_fixed_map_keeps_its_operators(maps: str) -> None:
    """Composed into one product and one sum it would round elsewhere."""
    text = f"a = MatMul(x, w)\n{MAPS[maps]}" if "Gemm" not in maps else MAPS[maps]
    graph = model(NORMS["operator"], stream=text)
    rescaled, powers = chosen(graph)
    after = ir.to_proto(rescaled)
    assert powers.beyond is None and powers.of["h"] > 1 and op_types(after) == op_types(graph)
    assert np.array_equal(run_float32(graph, {"x": X})[0], run_float32(after, {"x": X})[0])


def test_a_stream_that_begins_in_a_gelu_is_multiplied_there() -> None:
    """What the GELU writes fits; what is added to it does not. Its twin fits as a whole, and nothing is added."""
    graph = model(NORMS["operator"], stream="i = MatMul(x, o8)\ng0 = Gelu(i)\na = MatMul(x, w)\nh = Add(g0, a)\n")
    rescaled, powers = chosen(graph)
    after = ir.to_proto(rescaled)
    assert powers.beyond is None and [(row[0], -row[2]) for row in powers.rescaling.products] == [
        ("g0", powers.of["h"])
    ]
    assert "g0" not in powers.of and powers.of["g0.scaled"] == powers.of["a"] and "Gelu" in powers.starts["g0"]
    assert sorted(op_types(after)) == sorted([*op_types(graph), "Mul"])
    assert np.array_equal(run_float32(graph, {"x": X})[0], run_float32(after, {"x": X})[0])
    small = X / np.float32(64.0)
    twin, powers = chosen(graph, small)
    assert not powers.rescaling.products and op_types(ir.to_proto(twin)) == op_types(graph)


@pytest.mark.parametrize(("factor", "fits"), [("eight", True), ("thousand", False)])
def test_a_product_has_a_factor_with_all_its_digits(factor: str, fits: bool) -> None:
    """Below 2^-14 float16 has fewer."""
    stream = f"i = MatMul(x, o8)\ng0 = Gelu(i)\na = MatMul(x, w)\nb = Mul(a, {factor})\nh = Add(g0, b)\n"
    _, powers = chosen(model(NORMS["operator"], stream=stream))
    assert (powers.beyond is None) == fits and all(-14 <= row[2] < 0 for row in powers.rescaling.products)
    assert bool(powers.rescaling.products) == fits


def test_an_input_whose_squares_do_not_fit_is_multiplied_behind() -> None:
    graph = model(NORMS["layer norm"].replace("(h", "(x"), stream="")
    large = X * np.float32(30.0)
    rescaled, powers = chosen(graph, large)
    assert [row[:2] for row in powers.rescaling.products] == [("x", "x.scaled")] and powers.starts["x"] == "the input"
    after = ir.to_proto(rescaled)
    assert np.array_equal(run_float32(graph, {"x": large})[0], run_float32(after, {"x": large})[0])


def layer(norm: str, source: str, suffix: str) -> str:
    """A norm of NORMS that reads `source`, every tensor of it with a suffix."""
    names = {"h": source, "g": "g"}
    return re.sub(r"\b[a-z]\b", lambda found: names.get(found[0], f"{found[0]}{suffix}"), NORMS[norm])


@pytest.mark.parametrize("norm", WRITTEN_OUT)
def test_squares_of_a_stream_whose_layers_differ_too_much_are_multiplied_before(norm: str) -> None:
    """Squares of 1 and of 1e11: no power of two suits both. The twin with operators needs no product."""
    graphs = {
        name: model(layer(name, "h", "2"), stream=f"h0 = MatMul(x, o8)\n{layer(name, 'h0', '1')}a = MatMul(n1, w)\nh = "
                    "Add(h0, a)\n", last="n2")
        for name in (norm, "operator")
    }  # fmt: skip
    x = X / np.float32(64.0)
    rescaled, powers = chosen(graphs[norm], x)
    after = ir.to_proto(rescaled)
    rows = powers.rescaling.products
    assert powers.beyond is None and rows and all(readers for *_, readers in rows)
    assert Counter(op_types(after)) == Counter(op_types(graphs[norm])) + Counter({"Mul": len(rows)})
    truth = run_float32(graphs[norm], {"x": x})[0]
    assert np.array_equal(truth, run_float32(after, {"x": x})[0])
    found = ReferenceEvaluator(ir.to_proto(to_half(rescaled))).run(None, {"x": x.astype(np.float16)})[0]
    assert np.abs(found.astype(np.float32) - truth).max() <= 0.02 * np.abs(truth).max()
    _, twin = chosen(graphs["operator"], x)
    assert twin.beyond is None and not twin.rescaling.products


@pytest.mark.parametrize(("also", "fits"), [("", True), ("l = MatMul(i, o8)\n", False)])
def test_a_part_of_a_sum_needs_no_digits_that_the_sum_has_not(also: str, fits: bool) -> None:
    """2e-3 beside 1e6. Read by itself, too, it needs them."""
    text = f"a = MatMul(x, w)\nb = Mul(a, eight)\ni = MatMul(x, tiny)\n{also}h = Add(b, i)\n"
    graph = model(NORMS["operator"] + ("z = Add(n, l)\n" if also else ""), stream=text, last="z" if also else "n")
    rescaled, powers = chosen(graph, X)
    assert (powers.beyond is None) == fits
    if fits:
        assert powers.of["i"] == powers.of["h"] > 5
        assert np.array_equal(run_float32(graph, {"x": X})[0], run_float32(ir.to_proto(rescaled), {"x": X})[0])


@pytest.mark.parametrize(("norm", "fits"), [("operator", True), ("gelu", False)])
def test_a_constant_beyond_the_range_is_divided_where_something_takes_it(norm: str, fits: bool) -> None:
    """Of two weights on one stream, which itself fits."""
    text = "a = MatMul(x, huge)\nb = MatMul(x, huger)\nh = Add(a, b)\n"
    graph = model(NORMS.get(norm, "n = Gelu(h)\n"), stream=text)
    x = X / np.float32(2.0**15)
    rescaled, powers = chosen(graph, x)
    assert powers.beyond is None and bool(powers.of) == fits
    if not fits:
        with pytest.raises(errors.GraphError, match="huge"):
            to_half(rescaled)
        return
    truth = run_float32(graph, {"x": x})[0]
    assert np.array_equal(truth, run_float32(ir.to_proto(rescaled), {"x": x})[0])
    half = to_half(rescaled).graph.initializers.values()
    assert all(np.isfinite(value.const_value.numpy()).all() for value in half if value.const_value is not None)


def test_what_is_too_large_where_it_begins_is_refused() -> None:
    graph = model(NORMS["operator"], stream="a = MatMul(x, w)\nb = Exp(x)\nh = Add(a, b)\n")
    _, powers = chosen(graph)
    assert powers.beyond is not None and not powers.rescaling.products
    assert powers.beyond.reason.startswith("a: it holds numbers up to") and "Exp" in powers.beyond.reason


def test_what_no_power_saves_is_refused_by_name() -> None:
    graph = model("n = Gelu(h)\n")
    _, powers = chosen(graph)
    assert powers.beyond is not None and powers.beyond.code == "scale-range"
    assert powers.beyond.reason.startswith("a: it holds numbers up to") and "Gelu" in powers.beyond.reason


def test_what_fits_stays() -> None:
    text = f"{HEADER}g (float[3,8] x) => (float[3,4] y) {{\n{STREAM}{NORMS['operator']}y = MatMul(n, o)\n}}"
    read = {"w", "v", "o", "g"}
    graph = parse(text, **{n: (a / np.float32(1e4) if n in "wv" else a) for n, a in CONSTANTS.items() if n in read})
    _, powers = chosen(graph)
    assert powers.rescaling.is_empty and powers.beyond is None and not powers.of


def test_an_epsilon_does_not_become_0() -> None:
    graph = model(NORMS["written out"])
    half = to_half(chosen(graph)[0])
    numbers = [value.const_value.numpy() for value in half.graph.initializers.values() if value.const_value is not None]
    assert all(np.all(array != 0.0) for array in numbers if array.dtype == np.float16 and array.size == 1)
    zeros = ReferenceEvaluator(ir.to_proto(half)).run(None, {"x": np.zeros((3, 8), np.float16)})[0]
    assert np.array_equal(zeros, np.zeros((3, 4))) and LARGEST_HALF == 65504.0


def test_the_users_inputs_decide(tmp_path: Path) -> None:
    """Drawn inputs leave the stream in range; those of the file do not."""
    onnx.save(model(NORMS["operator"]), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", x=X * np.float32(10.0))
    drawn = pipeline.fold(tmp_path / "in.onnx", tmp_path / "a.onnx", dtype="float16")
    given = pipeline.fold(tmp_path / "in.onnx", tmp_path / "b.onnx", dtype="float16", calibrate=tmp_path / "x.npz")
    powers = [{room["tensor"]: room["power"] for room in report.to_json()["room"]} for report in (drawn, given)]
    assert powers[0]["h"] < powers[1]["h"] and not given.failed
    with pytest.raises(errors.UsageError, match="--calibrate"):
        pipeline.fold(tmp_path / "in.onnx", tmp_path / "c.onnx", calibrate=tmp_path / "x.npz")


@pytest.mark.parametrize(("scale", "passes"), [(4.0, True), (0.25, True), (-2.0, False)])
def test_a_batch_norm_that_keeps_its_operator_takes_any_positive_power(scale: float, passes: bool) -> None:
    graph = model(NORMS["operator"], stream=f"a = MatMul(x, w)\n{MAPS['batch norm']}")
    state = State(graph_of(graph))
    value = next(op.output for op in state.graph.ops if op.output.name == "a")
    assert isinstance(take(state, {value: np.full((1, 1), scale)}), Refuse) is not passes
