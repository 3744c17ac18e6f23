"""The table of runtimes: what its records say, and that they cost nothing until one of them runs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from normfold.bench import run
from normfold.bench.runners import DEVICES, DTYPES, RUNNERS
from normfold.bench.runners.base import Runner
from normfold.errors import UsageError
from tests.paths import FIXTURES


def test_a_worker_holds_no_runtime_before_it_has_a_job() -> None:
    code = "import sys, normfold.bench.worker; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"numpy", "normfold"} <= loaded
    assert not {runner.library for runner in RUNNERS.values()} & loaded
    assert not {"onnx", "onnx_ir", "rich"} & loaded


def test_the_records_say_what_the_options_take() -> None:
    assert DEVICES == ("cpu", "cuda")
    assert DTYPES == ("float32", "float16")
    assert {name: runner.name for name, runner in RUNNERS.items()} == {"ort": "ort", "torch": "torch"}
    ort = RUNNERS["ort"]
    assert ort.version({"onnxruntime": "1", "onnxruntime-gpu": "2", "torch": "3"}) == "2"
    assert ort.version({"onnxruntime": "1"}) == "1"
    assert ort.version({}) == ""


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=lambda runner: runner.name)
def test_the_cpu_lacks_nothing(runner: Runner) -> None:
    assert runner.lacks("cpu") == ""
    assert not any(runner.lacks("cpu", mode) for mode in runner.modes["cpu"])


def test_a_device_or_dtype_that_a_runtime_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(RUNNERS["ort"], modes={"cpu": ("plain",)}, dtypes=("float32",))
    monkeypatch.setattr(run, "RUNNERS", {"ort": small})
    with pytest.raises(UsageError, match="--device cuda: ort runs on cpu"):
        run.bench(FIXTURES / "vit_bn.pt", device="cuda")
    with pytest.raises(UsageError, match="--dtype float16: ort takes float32"):
        run.bench(FIXTURES / "vit_bn.pt", dtype="float16")
