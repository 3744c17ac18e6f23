"""What float16 can hold: tensors and constants that would leave its range are refused, their near twins fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from normfold.analysis.analyse import analyse
from normfold.analysis.placement.calibrate import calibrate, range_of
from normfold.analysis.placement.float16_range import LARGEST_STORED, SMALLEST_STORED, Ranges
from normfold.analysis.plan import Plan
from normfold.graph.prepare import prepare
from normfold.inputs.spec import parse_specs
from normfold.pipeline import run as pipeline
from tests.support.graphs import FOLDED, Outcome, build, kept, outcomes

BLOCKS, CHANNELS = 6, 16
SPECS = parse_specs([f"x:float16[B,{CHANNELS}]"])


def post_norm(size: float, *, dtype: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """x' = BN(x + W x), six times, every BN with a scale near `size`; the stream keeps values of order 1 all along.

    W = Q / size - 1 for an orthogonal Q. Scales gathered along the stream: size, size^2, size^3 ...
    """
    rng = np.random.default_rng(5)
    kind = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.FLOAT: "float"}[dtype]
    lines, constants, stream = ["s0 = MatMul(x, w_in)"], {"w_in": _orthogonal(rng)}, "s0"
    for k in range(BLOCKS):
        constants |= {
            f"w{k}": _orthogonal(rng) / size - np.eye(CHANNELS),
            f"g{k}": rng.uniform(0.9, 1.1, CHANNELS) * size * rng.choice([-1.0, 1.0], CHANNELS),
            f"b{k}": rng.uniform(-0.2, 0.2, CHANNELS),
            f"m{k}": rng.uniform(-0.1, 0.1, CHANNELS) / size,
            f"v{k}": rng.uniform(0.9, 1.1, CHANNELS),
        }
        lines += [f"f{k} = MatMul({stream}, w{k})", f"r{k} = Add({stream}, f{k})"]
        lines += [f"s{k + 1} = BatchNormalization<epsilon = 0.0>(r{k}, g{k}, b{k}, m{k}, v{k})"]
        stream = f"s{k + 1}"
    text = f"g ({kind}[B,{CHANNELS}] x) => ({kind}[B,{CHANNELS}] y) {{\n"
    model = build(text + "\n".join([*lines, f"y = MatMul({stream}, w_out)\n}}"]), w_out=_orthogonal(rng), **constants)
    return _as(model, dtype)


def _orthogonal(rng: np.random.Generator) -> NDArray[np.float64]:
    return np.linalg.qr(rng.standard_normal((CHANNELS, CHANNELS)))[0]


def _as(model: onnx.ModelProto, dtype: int) -> onnx.ModelProto:
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(kind)
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, dtype, array.shape, array.tobytes(), raw=True))
    return model


def plan_of(model: onnx.ModelProto, *, looked: bool = True, specs: str | None = None) -> Plan:
    graph = prepare(ir.from_proto(model))
    ranges = calibrate(graph, parse_specs([specs]) if specs else SPECS) if looked else None
    return analyse(graph, ranges=ranges)


@pytest.mark.parametrize(
    ("size", "refused"),
    [(8.0, {}), (1 / 8, {4: "f5"}), (20.0, {3: "r4"}), (1 / 20, {3: "f4"})],
)
def test_a_stream_stops_gathering_scales_where_float16_would_not_hold_it(size: float, refused: dict[int, str]) -> None:
    """Stored tensors are v / s: eight to the third leaves either end of the range where the branches are, until a power
    of two takes all of it back; where none suits all tensors a norm stays. The reason names the tensor."""
    plan = plan_of(post_norm(size))
    assert outcomes(plan) == [kept("scale-range") if k in refused else FOLDED for k in range(BLOCKS)]
    assert {k: (plan.sites[k].reason or "").split(":")[0] for k in refused} == refused


@pytest.mark.parametrize(
    ("size", "dtype"), [(2.0, TensorProto.FLOAT16), (8.0, TensorProto.BFLOAT16), (1 / 8, TensorProto.FLOAT)]
)
def test_milder_scales_and_wider_exponents_fold(size: float, dtype: int) -> None:
    model = post_norm(size, dtype=dtype)
    assert outcomes(plan_of(model, looked=dtype == TensorProto.FLOAT16)) == [FOLDED] * BLOCKS


def test_where_nobody_looked_scales_go_no_further_than_64() -> None:
    """Eight times eight, and a little more, is past 2^6, though the stream could carry it."""
    assert outcomes(plan_of(post_norm(8.0), looked=False))[:3] == [FOLDED, kept("scale-range"), FOLDED]
    assert outcomes(plan_of(post_norm(8.0)))[:2] == [FOLDED, FOLDED]


@pytest.mark.parametrize("size", [8.0, 1 / 8, 2.0])
def test_the_folded_float16_graph_keeps_the_contract(tmp_path: Path, size: float) -> None:
    """From the file on: the source runs on drawn inputs, what folds is verified against its float16 error."""
    onnx.save(post_norm(size), tmp_path / "in.onnx")
    report = pipeline.fold(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert len(report.edges) == 2 and all(edge.passed for edge in report.edges)
    assert sum(site.status == "folded" for site in report.sites) == (5 if size < 1.0 else 6)
    assert {tensor.data_type for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer} == {TensorProto.FLOAT16}


def test_float32_graphs_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needless = "normfold.analysis.placement.calibrate.calibrate"
    monkeypatch.setattr(needless, lambda *_, **__: pytest.fail("a float32 graph needs no calibration"))
    onnx.save(post_norm(8.0, dtype=TensorProto.FLOAT), tmp_path / "in.onnx")
    report = pipeline.fold(tmp_path / "in.onnx", tmp_path / "out.onnx", verify=False)
    assert all(site.status == "folded" for site in report.sites) and len(report.sites) == BLOCKS


def linear(a: NDArray[np.float64], weight: float) -> onnx.ModelProto:
    """y = (a * tanh(x)) W, with entries of W of size `weight`."""
    text = "g (float16[B,4] x) => (float16[B,3] y) {\nh = Tanh(x)\nn = Mul(h, a)\ny = MatMul(n, w)\n}"
    w = np.array([[1.0, -0.7, 0.9], [0.8, 1.1, -1.3], [-0.6, 0.7, 1.2], [1.4, -0.9, 0.6]]) * weight
    return _as(build(text, a=a, w=w), TensorProto.FLOAT16)


@pytest.mark.parametrize(
    ("a", "weight", "outcome"),
    [
        ([1.0, -1.0, 2.0, 32.0], 4000.0, kept("scale-range")),  # 32 * 5600 is no float16
        ([1.0, -1.0, 2.0, 32.0], 40.0, FOLDED),
        ([0.01, -0.02, 0.01, 0.03], 0.0005, kept("scale-range")),  # 1e-5: steps of 6e-8
        ([0.01, -0.02, 0.01, 0.03], 0.2, FOLDED),
        ([1.0, -1.0, 2.0, 1e-7], 1.0, FOLDED),  # no digits, but no weight either among the others
    ],
)
def test_weights_that_float16_cannot_hold(a: list[float], weight: float, outcome: Outcome) -> None:
    assert outcomes(plan_of(linear(np.array(a), weight), specs="x:float16[B,4]")) == [outcome]


def test_casts_between_the_two_precisions_carry_frames(tmp_path: Path) -> None:
    """float16 weights around a norm that runs in float32: both Casts lie inside the folded region."""
    text = "g (float16[B,16] x) => (float16[B,16] y) {\nh = MatMul(x, w0)\nu = Cast<to = 1>(h)\n"
    text += "n = BatchNormalization<epsilon = 0.001>(u, gamma, beta, mean, var)\nv = Cast<to = 10>(n)\n"
    text += "y = Gemm(v, w1, c)\n}"
    rng = np.random.default_rng(2)
    half = {"w0": _orthogonal(rng), "w1": _orthogonal(rng), "c": rng.uniform(-1, 1, 16)}
    single = {name: rng.uniform(0.3, 1.5, 16) for name in ("gamma", "beta", "mean", "var")}
    model = build(
        text,
        **{name: array.astype(np.float16) for name, array in half.items()},
        **{name: array.astype(np.float32) for name, array in single.items()},
    )
    onnx.save(model, tmp_path / "in.onnx")
    report = pipeline.fold(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [site.status for site in report.sites] == ["folded"] and not report.failed
    written = onnx.load(tmp_path / "out.onnx").graph
    assert [node.op_type for node in written.node] == ["MatMul", "Cast", "Cast", "Gemm"]
    assert {tensor.data_type for tensor in written.initializer} == {TensorProto.FLOAT16}


def test_a_channel_without_variation_folds_with_its_shift() -> None:
    """gamma = 1e-7 beside beta = 1: the tensor is its shift, v - t is what the norm's input holds times 1e-7."""
    text = "g (float16[B,4] x) => (float16[B,3] y) {\nh = Tanh(x)\nn = Mul(h, a)\nm = Add(n, b)\ny = Gemm(m, w, c)\n}"
    a, b = np.array([1.0, -1.0, 2.0, 1e-7]), np.array([0.5, -0.5, 0.2, 1.0])
    model = build(text, a=a, b=b, w=np.full((4, 3), 0.5), c=np.full(3, 0.25))
    assert outcomes(plan_of(_as(model, TensorProto.FLOAT16), specs="x:float16[B,4]")) == [FOLDED]


def test_a_range_is_taken_along_every_axis() -> None:
    array = np.random.default_rng(0).normal(size=(3, 4, 5)) * np.arange(1, 5).reshape(1, 4, 1)
    found = range_of(array)
    assert [part.shape for part in found.lowest] == [(1, 1, 1), (3, 1, 1), (1, 4, 1), (1, 1, 5)]
    np.testing.assert_array_equal(found.highest[2].ravel(), array.max(axis=(0, 2)))
    np.testing.assert_array_equal(found.lowest[0].ravel(), [array.min()])
    shift = np.linspace(-1, 1, 4).reshape(1, 4, 1)
    exact = np.abs(array - shift).max(axis=(0, 2)), np.sqrt(np.square(array - shift).mean(axis=(0, 2)))
    np.testing.assert_allclose(found.reach(shift, (1,)).ravel(), exact[0])
    np.testing.assert_allclose(found.typical(shift, (1,)).ravel(), exact[1])
    # Of entries told apart by two axes no less than what they hold.
    assert np.all(found.reach(np.zeros((1, 1, 1)), (1, 2)) >= np.abs(array).max(axis=0, keepdims=True))


def test_masks_are_not_in_the_way() -> None:
    found = range_of(np.array([[1.0, -np.inf], [-2.0, -3.4e38]]))
    assert found.lowest[0].item() == -2.0 and found.square[2].ravel().tolist() == [2.5, 0.0]


def test_inputs_of_several_sizes_are_seen_as_one() -> None:
    """The batch differs from input to input: its axis is no axis of the range; channels are told apart."""
    text = "g (float16[B,4] x) => (float16[B,4] y) {\nh = Mul(x, a)\ny = Tanh(h)\n}"
    model = _as(build(text, a=np.array([1.0, 2.0, 4.0, 8.0])), TensorProto.FLOAT16)
    ranges = calibrate(prepare(ir.from_proto(model)), parse_specs(["x:float16[B,4]"]))
    assert isinstance(ranges, Ranges) and set(ranges.of) == {"x", "h", "y"}
    found = ranges.of["h"]
    assert [part.shape for part in found.mean] == [(1, 1), (1, 1), (1, 4)]
    sizes = np.sqrt(found.square[2]).ravel()
    assert np.all(sizes[1:] / sizes[:-1] > 1.2) and np.isclose(found.square[0].item(), found.square[2].mean())


def test_the_bounds_leave_room_on_either_side() -> None:
    assert np.finfo(np.float16).max == LARGEST_STORED * 16 and 16 * np.finfo(np.float16).tiny == SMALLEST_STORED
