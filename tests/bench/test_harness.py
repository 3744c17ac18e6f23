"""The harness on models whose differences are known. Real processes and real time: kept to small models."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from normfold.bench import harness, worker
from normfold.bench.harness import Recording, examine, record
from normfold.bench.job import Failure, Job, Memory, Probe
from normfold.bench.statistics import Ratio, Summary
from tests.support.graphs import parse

DELAY = 0.002
# What sleeping and waking add to a sleep on a machine that is busy with other work.
WAKING = 0.002
LAUNCHES = 6

MODEL = """
    agraph (float[B, 256] x) => (float[B, 256] y) {
        h = MatMul(x, weight)
        a = Relu(h)
        z = MatMul(a, weight)
        y = Relu(z)
    }
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32) / 16
    onnx.save(parse(MODEL, weight=weight), path)
    return Job(str(path), ("x:float32[B,256]",), {"B": 256})


def compare(jobs: dict[str, Job], **options: int) -> tuple[dict[str, Recording], Ratio]:
    found: dict[str, Recording] = {}
    record(jobs, found, **options)
    assert not any(recording.failure for recording in found.values())
    ratio = Ratio.between(*(recording.samples for recording in found.values()))
    assert ratio is not None
    return found, ratio


def test_a_slower_variant_is_ranked_and_sized(job: Job) -> None:
    found, ratio = compare({"slow": replace(job, delay=DELAY), "fast": job}, rounds=LAUNCHES, launches=LAUNCHES)
    slow, fast = (Summary.of(found[name].samples).median for name in ("slow", "fast"))
    assert ratio.verdict == "slower"
    assert DELAY * 0.9 < slow - fast < DELAY + WAKING
    assert ratio.value == pytest.approx(slow / fast, rel=0.3)


def test_identical_variants_do_not_differ(job: Job) -> None:
    # An interval at 99 % misses in one of a hundred runs, and twice running in one of ten thousand.
    jobs = {"a": job, "b": job}
    verdicts = (compare(jobs, rounds=LAUNCHES, launches=LAUNCHES)[1].verdict for _ in range(2))
    assert "no measurable difference" in verdicts


@pytest.mark.slow
def test_identical_variants_differ_in_one_of_twenty_runs_at_most(job: Job) -> None:
    verdicts = [compare({"a": job, "b": job})[1].verdict for _ in range(20)]
    assert verdicts.count("no measurable difference") >= 19, verdicts


def test_rounds_are_spread_over_fresh_processes_in_turns(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    class Scripted(harness.Worker):
        def __init__(self, job: Job) -> None:
            self.name = job.model

        def __exit__(self, *_: object) -> None:
            asked.append((self.name, "end"))

        def ask(self, what: str) -> dict[str, object]:
            asked.append((self.name, what))
            return {"calls": 1, "stable": True, "seconds": [1.0]}

    monkeypatch.setattr(harness, "Worker", Scripted)
    found: dict[str, Recording] = {}
    record({name: replace(job, model=name) for name in "ABC"}, found, rounds=4, launches=2)
    turns = "".join(name for name, what in asked if what == "turn")
    assert turns == "ABCABC" + "BCABCA"
    assert sum(what == "start" for _, what in asked) == 6
    assert all(recording.samples == [[[1.0], [1.0]], [[1.0], [1.0]]] for recording in found.values())


def test_out_of_memory_marks_one_variant_and_the_others_go_on(job: Job) -> None:
    found: dict[str, Recording] = {}
    # More bytes than addresses: numpy says so before any are taken.
    record({"huge": replace(job, sizes={"B": 10**15}), "small": job}, found, rounds=2, launches=2)
    assert found["huge"].failure is not None and found["huge"].failure.code == "out-of-memory"
    assert found["huge"].samples == []
    assert found["small"].failure is None and len(found["small"].samples) == 2


def test_a_model_that_the_runtime_rejects_says_why(job: Job, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    onnx.save(parse("agraph (float[B, 4] x) => (float[B, 4] y) { y = NoSuchOperator(x) }"), broken)
    found: dict[str, Recording] = {}
    record({"broken": replace(job, model=str(broken))}, found, rounds=1, launches=1)
    failure = found["broken"].failure
    assert failure is not None and failure.code == "rejected"
    assert "NoSuchOperator" in failure.reason


def test_a_worker_that_dies_is_no_hang(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with harness.Worker(job) as alive:
        alive.process.kill()
        with pytest.raises(harness.WorkerError) as raised:
            alive.ask("start")
    assert raised.value.failure.code == "out-of-memory"  # what a kill from outside nearly always means
    with harness.Worker(replace(job, inputs=("nonsense",))) as confused, pytest.raises(harness.WorkerError) as raised:
        confused.ask("start")
    assert raised.value.failure.code == "rejected"


def test_memory_and_operators_of_what_really_runs(job: Job, tmp_path: Path) -> None:
    found = examine(replace(job, scratch=str(tmp_path / "optimised.onnx")))
    assert isinstance(found, Probe)
    # Both Relu are fused into what stands before them, or both are not: onnxruntime decides, and the table tells.
    assert sum(count for name, count in found.operators.items() if "MatMul" in name or "Gemm" in name) == 2
    assert found.memory.weights is not None and 256 * 256 * 4 <= found.memory.weights < 2 * 256 * 256 * 4 + 1024
    assert found.memory.peak is None or found.memory.peak > 256 * 256 * 4
    assert list(tmp_path.iterdir()) == []


def test_a_probe_that_fails_is_a_failure(job: Job) -> None:
    assert isinstance(examine(replace(job, model="no such file.onnx")), Failure)


def test_warm_up_goes_on_until_calls_take_the_same() -> None:
    pauses = iter([0.02, 0.016, 0.012, 0.008] + [0.004] * 500)
    calls, stable, seconds = worker.warm_up(lambda: time.sleep(next(pauses)))
    assert stable
    assert calls > 6
    assert seconds < 0.008


def test_a_job_survives_the_pipe(job: Job) -> None:
    assert Job.from_json(job.to_json()) == job
    assert Memory() == Memory(None, None, None, None)
