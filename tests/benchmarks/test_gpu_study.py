"""The GPU study, on the CPU: its records against real folds, the whole script, its budget, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import gpu_cells, gpu_device, gpu_page, gpu_record
from benchmarks.gpu_budget import Record, Worker, explain, finite
from benchmarks.gpu_cells import cells, distance, seconds
from benchmarks.gpu_figures import ratio, shares
from benchmarks.gpu_models import FOLDED, PUBLISHED, TINY, Model, apply_fold, build, read_fold
from normfold.models import create
from tests.paths import ROOT

# Starting Python and importing torch, on a busy machine.
STARTING = 30.0


def structure(module: nn.Module) -> dict[str, Any]:
    """Every module with the names and shapes of its own tensors."""
    return {
        name: (type(part).__name__, {key: list(value.shape) for key, value in own(part)})
        for name, part in module.named_modules()
    }


def own(part: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in (*part._parameters.items(), *part._buffers.items()):
        if value is not None:
            yield key, value


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, id=model.name, marks=() if model.name == "tiny_llama" else pytest.mark.slow)
        for model in (*TINY, *PUBLISHED)
    ],
)
def test_a_record_is_what_the_real_fold_changes(model: Model) -> None:
    original = gpu_record.trained(model)
    result = gpu_record.folded(model, original)
    assert read_fold(model.name) == {"arch": model.arch, **gpu_record.changes(original, result)}
    fresh = create(model.arch, **model.arguments())
    apply_fold(fresh, read_fold(model.name))
    assert structure(fresh) == structure(result)
    assert structure(fresh) != structure(original)


@pytest.mark.parametrize("model", TINY, ids=lambda model: model.name)
def test_every_variant_runs_and_only_the_folded_one_has_no_norm_to_compute(model: Model) -> None:
    x = torch.zeros(2, 8, dtype=torch.int64) if model.generates else torch.randn(2, *map(int, shape(model)))
    for variant in model.variants:
        with torch.no_grad():
            assert torch.isfinite(build(model, variant)(x)).all(), variant
    kinds = {type(part).__name__ for part in build(model, FOLDED).modules()}
    assert not kinds & {"LayerNorm", "RMSNorm", "LlamaRMSNorm", "UN1d", "RepBN", "PRepBN", "BatchNorm1d"}


def shape(model: Model) -> list[str]:
    return model.inputs.split("[")[1].split("]")[0].split(",")[1:]


class Elsewhere(gpu_device.Cpu):
    """A device on which nothing is computed, and which no tensor of the CPU may meet."""

    place = "meta"


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, id=model.name, marks=() if model.name == "encoder" else pytest.mark.slow)
        for model in PUBLISHED
    ],
)
def test_published_sizes_are_built_and_run_on_their_device(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cells, "FEWEST_ROUNDS", 2)
    short = replace(model, tokens=2)
    for workload in ("generate", "generate, cached", "forward") if model.generates else ("forward",):
        cell = gpu_cells.Cell(model.name, workload, "graph", "float16", 2)
        found = gpu_cells.measure(cell, short, Elsewhere(), deadline=time.monotonic() + 60.0, rehearsal=True)
        assert [name for name, variant in found["variants"].items() if "median_ms" in variant] == list(model.variants)
    with torch.device("meta"):
        for variant in model.variants:
            for part in build(model, variant).modules():
                # A single number may lie on the CPU: it may meet tensors of any device.
                held = [each for each in vars(part).values() if isinstance(each, torch.Tensor) and each.dim()]
                assert all(tensor.is_meta for tensor in (*held, *(value for _, value in own(part)))), variant


def test_both_spellings_of_rmsnorm_compute_the_same() -> None:
    model = next(model for model in TINY if model.generates)
    ids = torch.randint(0, 128, (2, 8))
    outputs = []
    for variant in model.variants[:2]:
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(build(model, variant)(ids))
    torch.testing.assert_close(*outputs)


def test_the_papers_conditions_come_first() -> None:
    plan = cells(PUBLISHED)
    assert len({cell.key for cell in plan}) == len(plan)
    first = [cell.key for cell in plan if distance(cell) == 0]
    assert plan[0].key == "swin_t, forward, eager, float32, batch 1"
    assert "swin_t, forward, eager, float32, batch 128" in first
    assert "llama_350m, generate, eager, float32, batch 1" in first
    assert all("eager, float32" in key for key in first)
    models = {model.name: model for model in PUBLISHED}
    # They and what differs from them in one way fit into the seven minutes.
    assert sum(seconds(cell, models[cell.model]) for cell in plan if distance(cell) <= 1) < 400
    asked = {
        (model, mode, column, batch)
        for model in ("deit_t", "deit_s", "swin_t", "t2t_vit_14", "encoder")
        for mode in ("eager", "graph", "compile")
        for column in ("float32", "tf32", "float16", "bfloat16")
        for batch in (1, 64)
    }
    assert asked <= {(cell.model, cell.mode, cell.column, cell.batch) for cell in plan}


def run(out: Path, seconds: float, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--device", "cpu", "--seconds", str(seconds), *options],
        env={**os.environ, "OUT": str(out), "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checked(record: dict[str, Any]) -> None:
    """What every record holds, however it ended."""
    assert record["device"] == "cpu" and record["machine"]["cpu"] and record["planned"]
    for cell in record["cells"]:
        if "variants" not in cell:
            assert cell["error"] or cell["key"].startswith("normfold ")
            continue
        assert {"unfolded", "folded", "limit"} <= set(cell["variants"]), cell["key"]
        for variant in cell["variants"].values():
            assert variant["q25_ms"] <= variant["median_ms"] <= variant["q75_ms"]
            assert len(variant["samples_ms"]) == cell["rounds"]
        assert cell["cut"] == (cell["rounds"] < 50)
        assert all(each["low"] <= each["value"] <= each["high"] for each in cell["ratios"]) and cell["ratios"]


def page_of(record: Path) -> str:
    gpu_page.main([str(record)])
    return record.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize("budget", [6.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_the_whole_script_keeps_its_time(tmp_path: Path, budget: float) -> None:
    start = time.monotonic()
    output, errors = run(tmp_path, budget).communicate(timeout=budget + STARTING)
    assert time.monotonic() - start < budget + 2.0, errors
    place = tmp_path / "gpu.json"
    assert [path.name for path in tmp_path.iterdir()] in ([], ["gpu.json"])
    if budget < STARTING / 2 and not place.exists():
        return  # torch was not even imported
    record = json.loads(place.read_text(encoding="utf-8"))
    checked(record)
    assert record["cells"] or budget < STARTING / 2, errors
    for cell in record["cells"]:
        assert cell["key"] in output
    assert "rehearsal on a CPU" in page_of(place)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_a_killed_run_leaves_what_it_had_and_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    process = run(tmp_path, 120.0)
    place = tmp_path / "gpu.json"
    assert process.stdout is not None
    with process:
        assert "tiny_swin" in process.stdout.readline()
        # bash became Python, which watches over the worker; the worker holds the other end of the pipe.
        process.send_signal(number)
        process.stdout.read()
    assert process.returncode == (130 if number == signal.SIGTERM else -number)
    record = json.loads(place.read_text(encoding="utf-8"))
    checked(record)
    first = record["cells"][0]
    assert first["key"] == "tiny_swin, forward, eager, float32, batch 1"
    assert 0.0 < first["variants"]["layernorm"]["profile"]["share"] < 1.0
    page = page_of(place)
    assert "| tiny Swin | 1 | float32 | layernorm |" in page and page.count("not measured") >= 5
    before = place.read_bytes()
    time.sleep(1.0)
    assert place.read_bytes() == before


def worker_with(path: Path, left: float) -> Worker:
    return Worker(path, until=time.monotonic() + left)


def test_a_cell_that_raises_is_recorded_and_the_next_begins(tmp_path: Path) -> None:
    worker = worker_with(tmp_path / "a.json", 100.0)

    def fails() -> dict[str, Any]:
        raise ValueError("no such kernel")

    worker.run("a", "eager", 1.0, fails, lambda: True)
    worker.run("b", "eager", 1.0, lambda: {"value": float("nan")}, lambda: True)
    assert worker.run("a", "eager", 1.0, fails, lambda: True) is None
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [(cell["key"], cell.get("error")) for cell in found["cells"]] == [
        ("a", "ValueError: no such kernel"),
        ("b", None),
    ]
    assert found["cells"][1]["value"] is None and "running" not in found


def test_two_kinds_of_gpu_do_not_mix(tmp_path: Path) -> None:
    record = Record(tmp_path / "a.json")
    assert record.is_of({"gpu": "H100"})
    record.write(machine={"gpu": "H100"})
    again = Record(tmp_path / "a.json")
    assert again.is_of({"gpu": "H100"}) and not again.is_of({"gpu": "H200"})


def test_what_does_not_fit_is_left_for_what_does(tmp_path: Path) -> None:
    worker = worker_with(tmp_path / "a.json", 13.0)
    done = [key for key, cost in (("long", 90.0), ("short", 1.0)) if worker.run(key, key, cost, dict, lambda: True)]
    assert [cell["key"] for cell in worker.record.data["cells"]] == ["short"] and done == []
    assert worker.skipped == ["long"]


def test_guesses_are_corrected_by_what_cells_cost(tmp_path: Path) -> None:
    worker = worker_with(tmp_path / "a.json", 13.0)
    worker.run("a", "eager", 0.01, lambda: time.sleep(0.2) or {}, lambda: True)
    assert worker.run("b", "eager", 5.0, dict, lambda: True) is None and worker.skipped == ["b"]
    assert worker.run("c", "graph", 5.0, dict, lambda: True) == {}


def test_what_was_raised_first_is_told() -> None:
    error = RuntimeError("capture ended")
    error.__context__ = ValueError("the cause")
    assert explain(error) == "RuntimeError: capture ended; first: ValueError: the cause"


def test_json_has_no_word_for_infinity() -> None:
    assert finite({"a": [float("inf"), 1.0, "x"], "b": None}) == {"a": [None, 1.0, "x"], "b": None}


def test_a_ratio_is_of_rounds_side_by_side() -> None:
    drift = [1.0 + 0.01 * number for number in range(60)]
    value, low, high = ratio([0.9 * each for each in drift], drift)
    assert value == pytest.approx(0.9) and low == pytest.approx(0.9) and high == pytest.approx(0.9)


def test_kernels_belong_to_the_norm_that_launched_them() -> None:
    def event(cat: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}

    found = shares(
        [
            event("user_annotation", "normfold.call", 0.0, 100.0),
            event("user_annotation", "normfold.norm", 10.0, 20.0),
            # On the device's own track: no second norm.
            event("gpu_user_annotation", "normfold.norm", 200.0, 50.0),
            event("cuda_runtime", "cudaLaunchKernel", 5.0, 1.0, correlation=1),
            event("cuda_runtime", "cudaLaunchKernel", 12.0, 1.0, correlation=2),
            event("cuda_driver", "cuLaunchKernel", 29.0, 1.0, correlation=3),
            event("cuda_runtime", "cudaLaunchKernel", 31.0, 1.0, correlation=4),
            # Kernels run long after their launches, and not in a norm's time.
            event("kernel", "gemm", 200.0, 60.0, correlation=1),
            event("kernel", "layer_norm", 260.0, 10.0, correlation=2),
            event("kernel", "layer_norm", 270.0, 20.0, correlation=3),
            event("gpu_memcpy", "copy", 290.0, 10.0, correlation=4),
        ],
        calls=2,
    )
    assert (found["busy_us"], found["norm_us"], found["kernels"], found["norm_kernels"]) == (50.0, 15.0, 2.0, 1.0)
    assert found["share"] == pytest.approx(0.3) and found["norm_kernel_names"] == {"layer_norm": 15.0}
