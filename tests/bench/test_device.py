"""What a GPU needs, as far as it runs without one: the binding, on CPU memory; a stand-in for the driver."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from normfold.bench import memory, nvidia
from normfold.bench.runners.ort import bound
from tests.support.graphs import parse

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


def install_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, *, own: int, whole: str, clock: str = "1980") -> None:
    """An nvidia-smi that knows one process of `own` MiB, this one's number, and what is used in all."""
    script = f"""#!/bin/sh
case "$1" in
--query-compute-apps=*) echo "1, 7000"; echo "{own}, 500" ;;
--query-gpu=memory.used) echo "{whole}" ;;
--query-gpu=name,*) echo "A GPU, 580.1, 81559" ;;
--query-gpu=clocks*) echo "{clock}, 2619, 41, [N/A]" ;;
*) exit 2 ;;
esac
"""
    path = folder / "nvidia-smi"
    path.write_text(script, encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
@pytest.mark.parametrize("known", [True, False])
def test_memory_on_the_device_is_that_of_this_process_where_the_driver_tells(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the driver sees other process numbers: then what is used in all counts."""
    install_driver(tmp_path, monkeypatch, own=os.getpid() if known else os.getpid() + 1, whole="9000")
    assert nvidia.memory_used() == (500 if known else 9000) << 20


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_the_meter_counts_from_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(tmp_path, monkeypatch, own=1, whole="9000")
    meter = memory.Driver()
    assert meter.now() == 0
    install_driver(tmp_path, monkeypatch, own=1, whole="9900")
    assert meter.now() == meter.peak() == 900 << 20
    # What the driver does not know is left out.
    assert meter.state() == {"sm_clock_mhz": 1980.0, "memory_clock_mhz": 2619.0, "temperature_c": 41.0}
    assert nvidia.describe() == {"gpu": "A GPU", "driver": "580.1", "gpu_memory": 81559 << 20}


def test_without_a_driver_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia.memory_used() is None
    assert nvidia.state() == {}
    assert nvidia.describe() == {"gpu": None, "driver": None, "gpu_memory": None}
