"""The GPU study's calls to CUDA, in their order, on a recorder in CUDA's place."""

from __future__ import annotations

import ast
import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from benchmarks import gpu_cells, gpu_device
from benchmarks.gpu_cells import EAGER, FORWARD, GENERATE_CACHED, GRAPH, Cell, measure
from benchmarks.gpu_models import TINY
from tests.paths import ROOT

STUDY = sorted((ROOT / "benchmarks").glob("gpu*.py"))


class Recorder:
    """torch.cuda, as far as the study uses it: every call is written down, and has to fit the real one's signature."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.pools: list[Any] = []
        self.broken = False

    def note(self, name: str, real: Any = None, *args: Any, **kwargs: Any) -> None:
        if real is not None:
            inspect.signature(real).bind(*args, **kwargs)
        self.log.append(name)

    def Event(self, **kwargs: Any) -> Any:
        self.note("Event", torch.cuda.Event.__new__, torch.cuda.Event, **kwargs)
        assert kwargs == {"enable_timing": True}
        return Event(self, f"event {self.log.count('Event')}")

    def Stream(self) -> Any:
        self.note("Stream", torch.cuda.Stream.__new__, torch.cuda.Stream)
        return Stream(self, "side")

    def current_stream(self) -> Any:
        return Stream(self, "current")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.note(f"on {stream.name}")
        yield
        self.note(f"off {stream.name}")

    def CUDAGraph(self) -> Any:
        self.note("CUDAGraph", torch.cuda.CUDAGraph.__new__, torch.cuda.CUDAGraph)
        return Graph(self)

    @contextmanager
    def graph(self, graph: Any, **kwargs: Any) -> Iterator[None]:
        self.note("capture", torch.cuda.graph.__init__, None, graph, **kwargs)
        assert kwargs["stream"].name == "side" and kwargs["capture_error_mode"] == "thread_local"
        self.pools.append(kwargs["pool"])
        yield
        self.note("captured")

    def synchronize(self) -> None:
        self.note("synchronize", torch.cuda.synchronize)
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def __getattr__(self, name: str) -> Any:
        assert name.startswith(("memory_", "max_memory_", "reset_peak_", "empty_cache")), name

        def function() -> int:
            self.note(name, getattr(torch.cuda, name))
            return 1000 * len(self.log)

        return function


class Event:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def record(self) -> None:
        self.recorder.note(f"{self.name}: record")

    def elapsed_time(self, end: Any) -> float:
        self.recorder.note(f"{self.name} to {end.name}")
        return 1.5


class Stream:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def wait_stream(self, other: Any) -> None:
        self.recorder.note(f"{self.name} waits for {other.name}")


class Graph:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def pool(self) -> Any:
        return ("pool", 1)

    def replay(self) -> None:
        self.recorder.note("replay")


class Here(gpu_device.Cuda):
    """CUDA's calls, tensors on the CPU."""

    place = "cpu"

    def state(self) -> dict[str, float]:
        return {"sm_clock_mhz": 1980.0}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    found = Recorder()
    monkeypatch.setattr(gpu_device, "cuda", found)
    monkeypatch.setattr(gpu_cells, "FEWEST_ROUNDS", 6)
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    threads = torch.get_num_threads()
    # Threads that wait for each other crawl on a busy machine.
    torch.set_num_threads(1)
    yield found
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = cudnn


def test_a_call_is_timed_between_events_on_an_idle_device(recorder: Recorder) -> None:
    device = Here()
    for _ in range(2):
        assert device.milliseconds(lambda: recorder.note("call")) == 1.5
    once = ["event 1: record", "call", "event 2: record", "synchronize", "event 1 to event 2"]
    assert recorder.log == ["Event", "Event", *once, *once]


def test_a_capture_follows_warm_ups_on_its_own_stream(recorder: Recorder) -> None:
    replays = Here().capture([lambda: recorder.note("call")])
    assert recorder.log == [
        "Stream",
        "side waits for current",
        "on side",
        *["call"] * gpu_device.WARM_UPS,
        "off side",
        "current waits for side",
        "synchronize",
        "CUDAGraph",
        "capture",
        "call",
        "captured",
        "synchronize",
    ]
    assert recorder.pools == [None]
    replays[0]()
    assert recorder.log[-1] == "replay"


def test_several_captures_share_a_pool_in_their_order(recorder: Recorder) -> None:
    device = Here()
    device.capture([lambda: recorder.note("first"), lambda: recorder.note("second")])
    assert [word for word in recorder.log if word in ("first", "second", "capture")] == [
        "first",
        "second",
        "capture",
        "first",
        "capture",
        "second",
    ]
    assert recorder.pools == [None, ("pool", 1)]
    device.capture([lambda: None])
    # A stream of its own for every capture would take a workspace of cuBLAS each.
    assert recorder.log.count("Stream") == 1


def test_peaks_start_anew_before_the_call_and_are_read_when_the_device_is_done(recorder: Recorder) -> None:
    Here().peaks(lambda: recorder.note("call"))
    assert recorder.log == [
        "reset_peak_memory_stats",
        "call",
        "synchronize",
        "max_memory_allocated",
        "max_memory_reserved",
    ]


def test_a_device_that_answers_no_more_is_noticed(recorder: Recorder) -> None:
    assert Here().usable()
    recorder.broken = True
    assert not Here().usable()


@pytest.mark.parametrize(("tf32", "precision"), [(True, "high"), (False, "highest")])
def test_tf32_is_chosen_for_products_and_convolutions(recorder: Recorder, tf32: bool, precision: str) -> None:
    Here().settle(tf32=tf32, dtype=torch.float32)
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 == tf32
    assert recorder.log == ["synchronize"]


def measured(recorder: Recorder, mode: str, workload: str = FORWARD, column: str = "float32") -> dict[str, Any]:
    model = next(model for model in TINY if model.generates == (workload != FORWARD))
    cell = Cell(model.name, workload, mode, column, 1)
    return measure(cell, model, Here(), deadline=time.monotonic() + 60.0, rehearsal=True)


@pytest.mark.parametrize("mode", [EAGER, GRAPH])
def test_a_cell_asks_for_memory_of_one_variant_at_a_time_and_times_in_turns(recorder: Recorder, mode: str) -> None:
    found = measured(recorder, mode)
    log = recorder.log
    before = [
        "empty_cache",
        "memory_allocated",
        "memory_reserved",
        "memory_allocated",
        "memory_reserved",
        "reset_peak_memory_stats",
        "synchronize",
        "max_memory_allocated",
        "max_memory_reserved",
    ]
    first = log.index("empty_cache")
    assert log[first : first + len(before)] == before
    # The order of what is timed: warm-up and rounds, a step of each variant in turn, nothing else in between.
    timed = log[log.index("event 1: record") :]
    body = ["replay"] if mode == GRAPH else []
    once = ["event 1: record", *body, "event 2: record", "synchronize", "event 1 to event 2"]
    turns = (gpu_cells.FEWEST_ROUNDS + gpu_cells.WARM_UP_ROUNDS) * len(found["variants"])
    assert timed[: len(once) * turns] == once * turns
    assert found["rounds"] == gpu_cells.FEWEST_ROUNDS and not found["cut"]
    assert log.count("CUDAGraph") == (len(found["variants"]) if mode == GRAPH else 0)
    for variant in found["variants"].values():
        assert variant["median_ms"] == 1.5 and variant["memory"]["weights"] > 0
    assert {(each["of"], each["to"]) for each in found["ratios"]} >= {("folded", "layernorm"), ("limit", "layernorm")}


def test_a_generation_is_a_graph_a_token(recorder: Recorder) -> None:
    found = measured(recorder, GRAPH, GENERATE_CACHED, "bfloat16")
    model = next(model for model in TINY if model.generates)
    assert recorder.log.count("CUDAGraph") == model.tokens * len(model.variants)
    assert found["rounds"] % model.tokens == 0
    assert found["variants"]["folded"]["tokens_per_second"] == pytest.approx(1e3 / 1.5)


def test_a_variant_that_fails_is_marked_and_the_others_go_on(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = gpu_cells.build

    def failing(model: Any, variant: str) -> Any:
        if variant == "folded":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build(model, variant)

    monkeypatch.setattr(gpu_cells, "build", failing)
    found = measured(recorder, GRAPH)
    assert "out of memory" in found["variants"]["folded"]["error"]
    assert "median_ms" in found["variants"]["limit"]
    assert not [each for each in found["ratios"] if "folded" in (each["of"], each["to"])]


def test_a_device_that_is_lost_ends_the_cell(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> Any:
        recorder.broken = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu_cells, "build", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measured(recorder, EAGER)


def test_every_call_to_cuda_is_in_one_module() -> None:
    checked = 0
    for path in STUDY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            checked += 1
            if isinstance(node, ast.Attribute) and path.name != "gpu_device.py":
                said = ast.unparse(node)
                assert not said.startswith(("torch.cuda", "torch.backends", "torch.profiler.profile")), (
                    path.name,
                    said,
                )
                assert node.attr != "cuda", (path.name, said)
    assert checked > 1000 and len(STUDY) > 5
