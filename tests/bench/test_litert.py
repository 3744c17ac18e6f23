"""LiteRT: what goes in and what it is calibrated on, on a stub; and that it runs, where it is installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from normfold.bench import run
from normfold.bench.job import Job, Probe
from normfold.bench.runners.litert import FLOAT_NORMS, LITERT, inspect, lacks, open_model, stacked, stored
from normfold.errors import UsageError
from tests.paths import FIXTURES

JOB = Job("model.tflite", ("ids:int64[B,L=3]<9", "s:float32[]"), {"B": 2, "L": 3}, runtime="litert", threads=3)


def test_inputs_go_in_by_place_in_the_types_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {
        "args_1": {"index": 7, "dtype": np.int8, "quantization": (0.5, -1)},
        "args_0": {"index": 4, "dtype": np.float32, "quantization": (0.0, 0)},
    }
    seen: dict[str, Any] = {"in": {}, "runs": 0}

    class Interpreter:
        def __init__(self, model: str, num_threads: int) -> None:
            seen.update(model=model, threads=num_threads)

        def get_signature_runner(self) -> Any:
            return SimpleNamespace(get_input_details=lambda: entries)

        def allocate_tensors(self) -> None:
            seen["in"].clear()

        def set_tensor(self, index: int, array: Any) -> None:
            seen["in"][index] = array

        def invoke(self) -> None:
            assert set(seen["in"]) == {4, 7}
            seen["in"].clear()
            seen["runs"] += 1

    monkeypatch.setitem(sys.modules, "ai_edge_litert", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", SimpleNamespace(Interpreter=Interpreter))
    call = open_model(JOB, {"a": np.float32([1.5]), "b": np.float32([1.5])})
    call()
    call()
    assert (seen["model"], seen["threads"], seen["runs"]) == ("model.tflite", 3, 2)


def test_operators_are_named_and_weights_outside_the_buffers_weighed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    codes = [SimpleNamespace(builtinCode=9), SimpleNamespace(builtinCode=777)]
    inside, outside, empty = (np.zeros(40, np.uint8), 0), (None, 900), (np.zeros(0, np.uint8), 0)
    model = SimpleNamespace(
        operatorCodes=codes,
        subgraphs=[SimpleNamespace(operators=[SimpleNamespace(opcodeIndex=index) for index in (0, 1, 0)])],
        buffers=[SimpleNamespace(data=data, size=size) for data, size in (inside, outside, empty)],
    )
    schema = SimpleNamespace(
        ModelT=SimpleNamespace(InitFromPackedBuf=lambda read: model),
        BuiltinOperator=type("BuiltinOperator", (), {"FULLY_CONNECTED": 9}),
    )
    monkeypatch.setitem(sys.modules, "ai_edge_litert", SimpleNamespace(schema_py_generated=schema))
    (tmp_path / "model.tflite").touch()
    counts, weights = inspect(replace(JOB, model=str(tmp_path / "model.tflite")))
    assert counts == {"FULLY_CONNECTED": 2, "CUSTOM": 1}
    assert weights == 940


def test_an_input_is_quantised_as_the_model_says() -> None:
    entry = {"dtype": np.int8, "quantization": (0.5, -1)}
    found = stored(np.float32([1.5, -0.5, 1000.0, -1000.0]), entry)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, [2, -2, 127, -128])
    ids = np.int64([3, 4])
    assert stored(ids, {"dtype": np.int32, "quantization": (0.0, 0)}).dtype == np.int32


def test_samples_are_stacked_to_the_batch_that_is_measured() -> None:
    rows = [{"ids": np.int64([[n, n, n]]), "s": np.float32(n)} for n in range(3)]
    found = list(stacked(rows, JOB))
    assert [batch["ids"][:, 0].tolist() for batch in found] == [[0, 1], [2, 0]]
    assert all(batch["s"].shape == () for batch in found)
    with pytest.raises(ValueError, match=r"ids has the sizes \(2,\) in the data, and \(3,\) is measured"):
        list(stacked([{"ids": np.int64([[0, 0]]), "s": np.float32(0)}], JOB))


def test_float16_and_tokens_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ai_edge_litert", "litert_torch"):
        monkeypatch.setitem(sys.modules, package, SimpleNamespace())
    assert lacks("cpu") == ""
    assert "cache" in lacks("cpu", "generate")
    assert lacks("cpu", FLOAT_NORMS, "int8") == ""
    assert "--dtype int8" in lacks("cpu", FLOAT_NORMS, "float32")
    with pytest.raises(UsageError, match="--mode float-norms: float-norms is a way to quantise: --dtype int8"):
        run._modes([FLOAT_NORMS], LITERT, "cpu", "float32", decoder=False)
    assert run._modes([], LITERT, "cpu", "int8", decoder=False) == ("plain",)
    with pytest.raises(UsageError, match="--dtype float16: litert takes float32, int8; litert-torch converts"):
        run._check_dtype("float16", (), LITERT, "cpu")


@pytest.mark.slow
def test_it_converts_quantises_and_runs() -> None:
    pytest.importorskip("ai_edge_litert.interpreter")
    pytest.importorskip("litert_torch")
    found = run.bench(
        FIXTURES / "vit_un.pt",
        runtime="litert",
        dtype="int8",
        modes=["plain", FLOAT_NORMS],
        batches=(2,),
        rounds=1,
        launches=1,
        threads=1,
    )
    row, other = found.rows
    operators = [
        {name: probe.operators for name, probe in each.probes.items() if isinstance(probe, Probe)}
        for each in (row, other)
    ]
    # The twin's norms are float there, and the other two have none.
    assert operators[0]["layernorm"] != operators[1]["layernorm"] and operators[0]["folded"] == operators[1]["folded"]
    for name in ("layernorm", "unfolded", "folded"):
        assert row.failure(name) is None and row.summary(name) is not None
    weights = {
        name: probe.memory.weights for name, probe in row.probes.items() if isinstance(probe, Probe) and probe.operators
    }
    assert len(weights) == 3
    # 232 kB of float32.
    assert all(0 < (value or 0) < 100_000 for value in weights.values())
