"""The whole benchmark, and what its command prints and writes."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from normfold.bench import machine, plot, run
from normfold.bench.harness import Recording
from normfold.bench.job import Failure, Job, Memory, Probe
from normfold.bench.result import Bench, Row
from normfold.bench.run import axis_sizes, bench
from normfold.bench.runners import RUNNERS
from normfold.bench.runners.ort import ORT, providers
from normfold.bench.table import render_bench, seconds
from normfold.checkpoint.options import LoadOptions
from normfold.cli.app import app
from normfold.errors import CannotJudgeError, InputSpecError, OutputError, UsageError
from normfold.inputs.spec import InputSpec
from tests.support.graphs import parse

FAST = {"rounds": 2, "launches": 2, "threads": 1}
# 4 EB: more than there are addresses for, so it is refused before any memory is taken.
TOO_LARGE = 10**15

MODEL = """
    agraph (float[B, 4] x) => (float[B, 4] y) {
        h = MatMul(x, first)
        n = BatchNormalization(h, scale, bias, mean, var)
        y = MatMul(n, second)
    }
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    names = {"first": (4, 4), "second": (4, 4), "scale": 4, "bias": 4, "mean": 4, "var": 4}
    constants = {name: rng.uniform(0.5, 2.0, size).astype(np.float32) for name, size in names.items()}
    onnx.save(parse(MODEL, **constants), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_three_variants_are_measured_at_every_batch_that_fits(model: Path) -> None:
    found = bench(model, batches=(2, TOO_LARGE), **FAST)
    assert list(found.origins) == ["layernorm", "unfolded", "folded"]
    small, large = found.rows
    for name in found.origins:
        assert small.summary(name) is not None and small.failure(name) is None
        probe = small.probes[name]
        assert isinstance(probe, Probe) and probe.memory.weights
        failure = large.failure(name)
        assert failure is not None and failure.code == "out-of-memory"
    assert {"BatchNormalization", "LayerNormalization"} & set(small.probes["folded"].operators) == set()
    assert "LayerNormalization" in small.probes["layernorm"].operators
    assert set(small.ratios()) == {("folded", "layernorm"), ("folded", "unfolded"), ("unfolded", "layernorm")}
    assert large.ratios() == {}
    assert found.machine["threads"] == 1 and found.machine["cpu"]


def test_an_interruption_keeps_what_there_is(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def cut_off(jobs: dict[str, Any], recordings: dict[str, Recording], **_: Any) -> None:
        nonlocal calls
        calls += 1
        recordings.update({name: Recording([[[0.001]]]) for name in jobs})
        if calls == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "record", cut_off)
    monkeypatch.setattr(run, "examine", lambda job: Failure("crashed", "no process"))
    found = bench(model, batches=(1, 2, 3), **FAST)
    assert found.interrupted
    assert [row.batch for row in found.rows] == [1, 2]
    assert found.rows[1].summary("folded") is not None


@pytest.mark.parametrize(
    ("spec", "batch", "reason"),
    [("x:float32[1,4]", 8, "fixed"), ("x:float32[B<=4,4]", 8, "at most"), ("x:float32[B,4]", 8, None)],
)
def test_the_batch_is_the_first_axis(spec: str, batch: int, reason: str | None) -> None:
    inputs = (InputSpec.parse(spec), InputSpec.parse("ids:int64[B,L=16]"))
    if reason is None:
        assert axis_sizes(inputs, batch) == {"B": 8, "L": 16}
        return
    with pytest.raises(InputSpecError, match=reason):
        axis_sizes(inputs, batch)


@pytest.mark.parametrize("options", [{"batches": ()}, {"batches": (0,)}, {"modes": ("graph",)}, {"runtime": "torch"}])
def test_what_cannot_be_measured_is_said_first(model: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        bench(model, **options)


def test_cuda_that_is_absent_is_named_and_nothing_falls_back(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_driver_loads", lambda: False)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(CannotJudgeError) as raised:
        bench(model, device="cuda", **FAST)
    for missing in ("onnxruntime-gpu", "libcuda"):
        assert missing in str(raised.value)
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(CannotJudgeError, match="built without CUDA"):
        machine.check_device("cuda", RUNNERS["torch"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (20, 10, False)),
        ({"launches": 3}, (20, 3, False)),
        ({"quick": True}, (5, 1, True)),
        ({"quick": True, "rounds": 7, "launches": 2}, (7, 2, True)),
    ],
)
def test_rounds_and_launches_are_chosen_and_a_quick_look_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: tuple[int, int, bool]
) -> None:
    asked: list[tuple[int, int]] = []

    def record(jobs: dict[str, Any], recordings: dict[str, Recording], *, rounds: int, launches: int, **_: Any) -> None:
        asked.append((rounds, launches))
        recordings.update({name: Recording([[[0.001]]]) for name in jobs})

    monkeypatch.setattr(run, "record", record)
    monkeypatch.setattr(run, "examine", lambda job: Failure("crashed", "no process"))
    found = bench(model, batches=(1,), **options)
    assert (*asked[0], found.quick) == expected
    assert found.to_json()["quick"] == expected[2]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_bench(found))
    text = console.export_text()
    assert ("A quick look" in text) == expected[2]
    assert "too few launches to tell" in text


def canned() -> Bench:
    """Two batches; at the second one variant ran out of memory and the run was interrupted."""

    def recording(scale: float) -> Recording:
        rng = np.random.default_rng(round(scale * 100))
        samples = [[list(scale * rng.normal(1e-3, 1e-5, 5))] for _ in range(8)]
        return Recording(samples, warm_up=[(10, True)] * 8)

    first = Row(1, "plain", {"B": 1})
    for name, scale in (("layernorm", 1.0), ("unfolded", 1.1), ("folded", 0.9)):
        first.recordings[name] = recording(scale)
        first.probes[name] = Probe(Memory(1_000_000, 2_000_000, 3_000_000), {"MatMul": 4, name.title(): 7})
    second = Row(8, "plain", {"B": 8}, {"layernorm": recording(8.0), "unfolded": Recording([])})
    second.recordings["folded"] = Recording([], Failure("out-of-memory", "std::bad_alloc"))
    origins = {"layernorm": "the architecture x_ln", "unfolded": "exported from x.pt", "folded": "folded here"}
    known = {"cpu": "A Processor", "processors": 2, "threads": 2, "versions": {"onnxruntime": "1.30"}, "load": 0.0}
    return Bench("x.pt", "ort", "cpu", "float32", 8, 8, known, origins, {}, [first, second], interrupted=True)


def test_no_name_is_broken_at_80_columns() -> None:
    bench = canned()
    bench.rows[0].probes["layernorm"] = Probe(Memory(222_200_000, 426_000_000, 113_500_000, load=113_100_000))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_bench(bench))
    row = next(line for line in console.export_text().splitlines() if line.startswith("layernorm  ") and "MB" in line)
    assert row.split()[-8:] == ["222.2", "MB", "113.1", "MB", "426.0", "MB", "113.5", "MB"]


def test_the_table_says_what_was_and_was_not_measured() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_bench(canned()))
    text = console.export_text()
    for part in (
        r"folded / layernorm: 0\.9\d\d \(0\.\d+ to 0\.\d+\): faster",
        r"unfolded / layernorm: 1\.1\d\d .*: slower",
        r"folded +out-of-memory",
        r"folded: out-of-memory: std::bad_alloc",
        r"unfolded +not measured",
        r"Interrupted",
        r"MatMul|the same in all +4 +4 +4",
        r"3\.0 MB",
    ):
        assert re.search(part, text), (part, text)


@pytest.mark.parametrize(("value", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 µs")])
def test_seconds_for_people(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> CliRunner:
    folder = tmp_path_factory.mktemp("here")
    (folder / "x.pt").write_bytes(b"\x80 not looked at")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(run, "bench", lambda *_, **__: canned())
    return CliRunner()


def test_the_command_prints_writes_and_exits(command: CliRunner, tmp_path: Path) -> None:
    result = command.invoke(
        app, ["bench", "x.pt", "--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png")]
    )
    assert result.exit_code == 130, result.output
    assert "folded / layernorm" in result.output
    written = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert written["interrupted"] and written["machine"]["threads"] == 2
    sample = written["rows"][0]["variants"]["folded"]["samples"]
    assert len(sample) == 8 and len(sample[0][0]) == 5
    assert written["rows"][1]["variants"]["folded"]["failure"]["code"] == "out-of-memory"
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "b.png"]
    again = command.invoke(app, ["bench", "x.pt", "--json", str(tmp_path / "b.json")])
    assert again.exit_code == 2 and "exists already" in again.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--batch", "1,x"], "--batch 1,x"),
        (["--device", "tpu"], "choose from cpu, cuda"),
        (["--dtype", "int4"], "float32, float16, int8"),
        (["--rounds", "0"], "--rounds"),
        (["--launches", "0"], "--launches"),
        (["--plot", "plot.jpeg"], ".png"),
        (["--json", "no/such/folder/b.json"], "no directory"),
    ],
)
def test_bad_options_end_the_command_before_it_measures(command: CliRunner, options: list[str], reason: str) -> None:
    result = command.invoke(app, ["bench", "x.pt", *options])
    assert result.exit_code == 2
    assert reason in result.output


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    with pytest.raises(OutputError, match=r"normfold\[report\]"):
        plot.check(tmp_path / "b.png")


def test_a_graph_has_no_architecture_to_choose(model: Path) -> None:
    with pytest.raises(UsageError):
        bench(model, load=LoadOptions(arch="vit"), **FAST)


def test_tensorrt_is_measured_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no TensorrtExecutionProvider"):
        run._modes(["tensorrt"], ORT, "cuda", "float32", decoder=False)
    assert run._modes([], ORT, "cuda", "float32", decoder=False) == ("plain", "graph")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["TensorrtExecutionProvider"])
    assert run._modes([], ORT, "cuda", "float32", decoder=False) == ("plain", "graph", "tensorrt")
    job = Job("model.onnx", (), {}, runtime="ort", device="cuda", mode="tensorrt", threads=1)
    assert [name for name, _ in providers(job)] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert [name for name, _ in providers(replace(job, mode="plain"))] == ["CUDAExecutionProvider"]


def test_a_file_for_the_runtime_is_made_once_and_one_that_fails_stops_its_variant(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Job] = []
    timed: list[dict[str, Job]] = []

    def prepare(job: Job) -> Failure | None:
        made.append(job)
        return Failure("rejected", "no such operator") if "unfolded" in job.model else None

    def record(jobs: dict[str, Job], recordings: dict[str, Recording], **_: Any) -> None:
        timed.append(jobs)
        recordings.update({name: Recording([[[0.001]]]) for name in jobs})

    monkeypatch.setattr(run, "prepare", prepare)
    monkeypatch.setattr(run, "record", record)
    monkeypatch.setattr(run, "examine", lambda job: Failure("crashed", "no process"))
    found = bench(model, batches=(1, 2), dtype="int8", **FAST)
    assert [Path(job.model).stem for job in made] == ["layernorm", "unfolded", "folded"]
    assert all(job.dtype == "int8" for job in made)
    for row, jobs in zip(found.rows, timed, strict=True):
        failure = row.failure("unfolded")
        assert failure is not None and failure.reason == "no such operator"
        assert {name: jobs[name].model for name in jobs} == {
            name: job.scratch
            for name, job in zip(("layernorm", "unfolded", "folded"), made, strict=True)
            if name in jobs
        }
        assert set(jobs) == {"layernorm", "folded"} and jobs["folded"].sizes == row.sizes
        assert ("folded", "layernorm") in row.ratios()
    made.clear()
    monkeypatch.setattr(run, "RUNNERS", {"ort": replace(ORT, fixed_sizes=True)})
    bench(model, batches=(1, 2), dtype="int8", **FAST)
    assert len(made) == 6 and len({job.scratch for job in made}) == 6
    made.clear()
    bench(model, batches=(1,), **FAST)
    assert not made


def test_nothing_is_launched_where_nothing_could_be_made_ready(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "prepare", lambda job: Failure("rejected", "no such operator"))
    found = bench(model, batches=(1,), dtype="int8", **FAST)
    assert [recording.failure for recording in found.rows[0].recordings.values()] == [
        Failure("rejected", "no such operator")
    ] * 3
    assert found.rows[0].ratios() == {}
