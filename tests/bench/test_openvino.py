"""OpenVINO: what it is asked for, on a stub; and that it runs, where it is installed."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from normfold.bench import run
from normfold.bench.job import Job, Probe
from normfold.bench.runners.openvino import OPENVINO, inspect, lacks, open_model
from normfold.errors import UsageError
from tests.support.graphs import parse

MODEL = """
    agraph (float[B, 4] x) => (float[B, 4] y) {
        h = MatMul(x, first)
        n = BatchNormalization(h, scale, bias, mean, var)
        y = MatMul(n, second)
    }
"""


def layer(kind: str, shape: tuple[int, ...] = (), bits: int = 32) -> Any:
    port = SimpleNamespace(get_shape=lambda: shape, get_element_type=lambda: SimpleNamespace(bitwidth=bits))
    return SimpleNamespace(get_rt_info=lambda: {"layerType": SimpleNamespace(value=kind)}, output=lambda place: port)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a stub of the library was asked for."""
    seen: dict[str, Any] = {"fed": {}, "runs": 0}
    ops = [layer("Input"), layer("Const", (2, 3)), layer("Const", (8,), 4), layer("MVN"), layer("Subgraph")]
    ops += [layer("MVN"), layer("Output")]

    def infer() -> None:
        assert all(tensor() is not None for tensor in seen["fed"].values()), "an input has been freed"
        seen["runs"] += 1

    request = SimpleNamespace(set_tensor=lambda name, tensor: seen["fed"].update({name: tensor}), infer=infer)
    compiled = SimpleNamespace(
        inputs=[SimpleNamespace(get_any_name=lambda: "ids"), SimpleNamespace(get_any_name=lambda: "mask")],
        create_infer_request=lambda: request,
        get_runtime_model=lambda: SimpleNamespace(get_ordered_ops=lambda: ops),
    )

    def compile_model(model: str, device: str, settings: dict[str, Any]) -> Any:
        seen.update(model=model, device=device, settings=settings)
        return compiled

    core = SimpleNamespace(compile_model=compile_model, get_property=lambda device, what: seen["abilities"])
    # A tensor with shared memory does not keep the array alive.
    stub = SimpleNamespace(Core=lambda: core, Tensor=lambda array, shared_memory: weakref.ref(array))
    monkeypatch.setitem(sys.modules, "openvino", stub)
    return seen


def test_it_is_asked_for_one_stream_of_so_many_threads_in_float32(asked: dict[str, Any]) -> None:
    feeds = {"a": np.zeros(2, np.int64), "b": np.ones(2, np.float32)}
    call = open_model(Job("model.onnx", (), {}, runtime="openvino", threads=3), feeds)
    # By order, where the graph has other names than the specifications.
    assert asked["fed"]["ids"]() is feeds["a"] and asked["fed"]["mask"]() is feeds["b"]
    del feeds
    gc.collect()
    call()
    call()
    assert asked["runs"] == 2
    assert (asked["model"], asked["device"]) == ("model.onnx", "CPU")
    wanted = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 3, "NUM_STREAMS": 1}
    assert asked["settings"] == wanted | {"INFERENCE_PRECISION_HINT": "f32"}


def test_layers_that_work_are_counted_and_constants_weighed(asked: dict[str, Any]) -> None:
    counts, weights = inspect(Job("model.onnx", (), {}, runtime="openvino"))
    assert counts == {"MVN": 2, "Subgraph": 1}
    assert weights == 2 * 3 * 4 + 8 * 4 // 8


def test_float16_is_refused_where_it_would_be_float32(asked: dict[str, Any]) -> None:
    asked["abilities"] = ["FP32", "INT8"]
    with pytest.raises(UsageError, match="--dtype float16: on this processor"):
        run._check_dtype("float16", (), OPENVINO, "cpu")
    asked["abilities"] = ["FP32", "FP16"]
    run._check_dtype("float16", (), OPENVINO, "cpu")
    assert "cache" in lacks("cpu", "generate")
    assert run._modes([], OPENVINO, "cpu", "float32", decoder=True) == ("prompt",)


def test_it_runs_and_reads_what_is_quantised(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    rng = np.random.default_rng(0)
    names = {"first": (4, 4), "second": (4, 4), "scale": 4, "bias": 4, "mean": 4, "var": 4}
    constants = {name: rng.uniform(0.5, 2.0, size).astype(np.float32) for name, size in names.items()}
    onnx.save(parse(MODEL, **constants), tmp_path / "model.onnx")
    for dtype in ("float32", "int8"):
        found = run.bench(
            tmp_path / "model.onnx", runtime="openvino", dtype=dtype, batches=(2,), rounds=1, launches=1, threads=1
        )
        (row,) = found.rows
        for name in ("layernorm", "unfolded", "folded"):
            assert row.failure(name) is None and row.summary(name) is not None
            probe = row.probes[name]
            assert isinstance(probe, Probe) and probe.memory.weights
        mvn = [probe.operators.get("MVN", 0) for probe in row.probes.values() if isinstance(probe, Probe)]
        assert mvn == [1, 0, 0]
