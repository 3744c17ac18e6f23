"""What a GPU needs, as far as it runs without one: the binding, on CPU memory; a stand-in for the driver."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from normfold.bench import memory
from normfold.bench.engines import bound
from tests.graphs import parse

TWO = """g (float[B,4] x, float[4] w) => (float[B,4] y, float[B] z) {
    y = Mul(x, w)
    z = ReduceSum<keepdims = 0>(y, axis)
}"""


class Watched:
    """A session that keeps its binding, for a look at the outputs."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session
        self.binding: Any = None

    def io_binding(self) -> Any:
        self.binding = self.session.io_binding()
        return self.binding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def test_bound_inputs_and_outputs_stay_where_they_are() -> None:
    model = parse(TWO, axis=np.array([1]))
    session = Watched(ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]))
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4), "w": np.float32([1, 2, 3, 4])}
    call = bound(session, feeds, "cpu")
    places = [value.data_ptr() for value in session.binding.get_outputs()]
    for _ in range(3):
        for value in session.binding.get_outputs():
            value.update_inplace(np.zeros(value.shape(), np.float32))
        call()
    found = session.binding.get_outputs()
    assert [value.data_ptr() for value in found] == places
    for value, truth in zip(found, session.run(None, feeds), strict=True):
        np.testing.assert_array_equal(value.numpy(), truth)


def driver(processes: dict[int, int | None], used: int) -> Any:
    """NVML as far as the meter asks it: bytes by process, bytes in all."""
    entries = [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in processes.items()]
    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: entries,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=used),
        nvmlDeviceGetClockInfo=lambda handle, clock: {1: 1980, 2: 2619}[clock],
        nvmlDeviceGetTemperature=lambda handle, sensor: 41,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
    )


@pytest.mark.parametrize("known", [True, False])
def test_memory_on_the_device_is_that_of_this_process_where_the_driver_tells(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the driver sees other process numbers: then what is used in all counts."""
    monkeypatch.setattr(memory, "_make_context", lambda: None)

    def set_driver(own: int, all_in_all: int) -> None:
        own_number = os.getpid() if known else os.getpid() + 1
        monkeypatch.setitem(sys.modules, "pynvml", driver({1: 7 << 30, own_number: own}, all_in_all))

    set_driver(own=500, all_in_all=9000)
    meter = memory._Driver()
    assert meter.now() == 0
    set_driver(own=700, all_in_all=9900)
    meter.nvml = sys.modules["pynvml"]
    assert meter.now() == meter.peak() == (200 if known else 900)
    assert meter.state() == {"sm_clock_mhz": 1980.0, "memory_clock_mhz": 2619.0, "temperature_c": 41.0}
