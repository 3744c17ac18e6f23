"""int8 in files that onnxruntime and OpenVINO read, and what it is calibrated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from normfold.bench.harness import examine, prepare
from normfold.bench.job import Failure, Job, Probe
from normfold.bench.runners.qdq import DRAWN, calibration, quantise
from normfold.inputs.spec import draw, parse_specs
from tests.support.graphs import parse

MODEL = "agraph (float[B, 4] x) => (float[B, 4] y) { h = MatMul(x, first) r = Relu(h) y = MatMul(r, second) }"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((4, 4)).astype(np.float32) for name in ("first", "second")}
    onnx.save(parse(MODEL, **weights), tmp_path / "model.onnx")
    return Job(
        str(tmp_path / "model.onnx"), ("x:float32[B,4]",), {"B": 5}, dtype="int8", scratch=str(tmp_path / "int8.onnx")
    )


def scale_of_x(file: str) -> float:
    graph = onnx.load(file).graph
    (first,) = (node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    return float(onnx.numpy_helper.to_array(next(each for each in graph.initializer if each.name == first.input[1])))


def test_weights_are_int8_and_outputs_near(job: Job) -> None:
    quantise(job)
    graph = onnx.load(job.scratch).graph
    eight_bits = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims]
    assert {tuple(tensor.dims) for tensor in eight_bits} >= {(4, 4)}
    feeds = draw(parse_specs(job.inputs), job.sizes, seed=0)
    exact, rounded = (ort.InferenceSession(file).run(None, feeds)[0] for file in (job.model, job.scratch))
    assert not np.array_equal(exact, rounded)
    assert np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()


def test_ranges_come_from_the_inputs_that_are_given(job: Job, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", x=np.linspace(-1000, 1000, 12, dtype=np.float32).reshape(3, 4))
    given = Job.from_json({**job.to_json(), "data": [str(tmp_path / "wide.npz")]})
    assert [feeds["x"].shape for feeds in calibration(given)] == [(1, 4)] * 3
    quantise(given)
    assert scale_of_x(job.scratch) == pytest.approx(2000 / 255, rel=1e-3)
    quantise(job)
    assert scale_of_x(job.scratch) < 0.1


def test_drawn_inputs_are_not_those_that_are_timed(job: Job) -> None:
    timed = draw(parse_specs(job.inputs), job.sizes, seed=job.seed)
    drawn = calibration(job)
    assert len(drawn) == DRAWN
    assert not any(np.array_equal(feeds["x"], timed["x"]) for feeds in drawn)


def test_a_process_of_its_own_quantises_and_one_that_cannot_says_why(job: Job) -> None:
    assert prepare(job) is None
    again = prepare(Job.from_json({**job.to_json(), "model": job.scratch, "scratch": f"{job.scratch}.again"}))
    assert isinstance(again, Failure) and again.code == "rejected" and "quantised already" in again.reason
    probe = examine(Job.from_json({**job.to_json(), "model": job.scratch, "scratch": f"{job.scratch}.optimised"}))
    assert isinstance(probe, Probe) and "QuantizeLinear" in probe.operators
    memory = probe.memory
    if memory.load is not None and memory.run is not None:  # Linux
        assert 0 < memory.load <= (memory.peak or 0) and memory.run <= (memory.peak or 0)
