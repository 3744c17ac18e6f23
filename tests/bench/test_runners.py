"""The table of runtimes: what its records say, and that they cost nothing until one of them runs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from normfold.bench import run
from normfold.bench.runners import DEVICES, DTYPES, RUNNERS, base
from normfold.bench.runners.base import Runner
from normfold.errors import CannotJudgeError, UsageError
from normfold.export.targets import TARGETS
from normfold.inputs.spec import InputSpec
from tests.paths import FIXTURES


def test_a_worker_holds_no_runtime_before_it_has_a_job() -> None:
    code = "import sys, normfold.bench.worker; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"numpy", "normfold"} <= loaded
    assert not {runner.library.partition(".")[0] for runner in RUNNERS.values()} & loaded
    assert not {"onnx", "onnx_ir", "rich"} & loaded


def test_the_records_say_what_the_options_take() -> None:
    assert DEVICES == ("cpu", "cuda")
    assert DTYPES == ("float32", "float16", "int8")
    assert [runner.name for runner in RUNNERS.values()] == list(RUNNERS) == ["ort", "torch", "openvino", "litert"]
    assert all(set(runner.prepare) <= set(runner.dtypes) for runner in RUNNERS.values())
    assert all(runner.target in TARGETS for runner in RUNNERS.values())
    ort = RUNNERS["ort"]
    assert ort.version({"onnxruntime": "1", "onnxruntime-gpu": "2", "torch": "3"}) == "2"
    assert ort.version({"onnxruntime": "1"}) == "1"
    assert ort.version({}) == ""


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=lambda runner: runner.name)
def test_the_cpu_lacks_nothing(runner: Runner) -> None:
    pytest.importorskip(runner.library)
    assert runner.lacks("cpu") == ""
    assert not any(runner.lacks("cpu", mode) for mode in runner.modes["cpu"])


def test_a_device_or_dtype_that_a_runtime_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(RUNNERS["ort"], modes={"cpu": ("plain",)}, dtypes=("float32",))
    monkeypatch.setattr(run, "RUNNERS", {"ort": small})
    with pytest.raises(UsageError, match="--device cuda: ort runs on cpu"):
        run.bench(FIXTURES / "vit_bn.pt", device="cuda")
    with pytest.raises(UsageError, match="--dtype float16: ort takes float32"):
        run.bench(FIXTURES / "vit_bn.pt", dtype="float16")
    with pytest.raises(UsageError, match="--dtype int8: torch takes float32, float16; a module has no int8 form"):
        run._check_dtype("int8", (), RUNNERS["torch"], "cpu")
    with pytest.raises(UsageError, match="--dtype int8: int8 is measured on the CPU"):
        run._check_dtype("int8", (), RUNNERS["ort"], "cuda")
    with pytest.raises(UsageError, match="--data is what int8 and float16 are calibrated on"):
        run._check_dtype("float32", (Path("x.npz"),), RUNNERS["ort"], "cpu")
    with pytest.raises(UsageError, match="the model is in float16"):
        run._check_inputs("int8", (), [InputSpec.parse("x:float16[B,4]")])


@pytest.mark.parametrize("name", ["openvino", "litert"])
def test_a_runtime_that_is_not_installed_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = RUNNERS[name]
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    monkeypatch.delitem(sys.modules, runner.library.partition(".")[0], raising=False)
    with pytest.raises(CannotJudgeError, match=rf"--runtime {name}: .* pip install 'normfold\[{name}\]'"):
        run.bench(FIXTURES / "vit_bn.pt", runtime=name)
