"""Native code that aborts does so in another process: a copy of this one, or a fresh one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from normfold.cli.app import app
from normfold.graph import inference
from normfold.system import subprocess_copy as module
from normfold.system.subprocess_copy import AbortedError, fresh, isolated
from tests.support.hostile import seeds
from tests.support.isolated_calls import chatter, end, end_early, process, refuse, run_out

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no copies of processes here")

WAYS = ("copy", "fresh")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fresh":
        monkeypatch.setattr(os, "fork", no_process)
    return str(request.param)


def no_process() -> int:
    raise BlockingIOError("no process left")


def test_the_answer_comes_from_another_process(way: str) -> None:
    assert int(isolated(process)) != os.getpid()


def test_without_another_process_the_answer_comes_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: object, **options: object) -> None:
        raise BlockingIOError("no process left")

    monkeypatch.setattr(os, "fork", no_process)
    monkeypatch.setattr(subprocess, "run", run)
    assert int(isolated(process)) == os.getpid()


def test_an_answer_larger_than_a_pipe_arrives_whole(way: str) -> None:
    assert isolated(chatter, 10**7) == bytes(10**7)


def test_what_is_raised_is_raised_with_its_text(way: str) -> None:
    with pytest.raises(RuntimeError, match="naïve, in two\nlines"):
        isolated(refuse)


@pytest.mark.parametrize("ending", [signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS])
def test_an_abort_has_a_name(way: str, ending: signal.Signals) -> None:
    with pytest.raises(AbortedError, match=ending.name):
        isolated(end, ending)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_is_not_the_fault_of_the_file(way: str, ending: signal.Signals) -> None:
    with pytest.raises(MemoryError, match="killed"):
        isolated(end, ending)


def test_memory_that_runs_out_is_not_either(way: str) -> None:
    with pytest.raises(MemoryError):
        isolated(run_out)


def test_no_answer_is_no_answer(way: str) -> None:
    with pytest.raises(AbortedError, match="exit code 0"):
        isolated(end_early)


@pytest.mark.hostile
def test_a_killed_inference_blames_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a.onnx"
    onnx.save(seeds()["stream"], place)

    def killed(proto: bytes, strict: bool, data_prop: bool) -> bytes:
        return end(signal.SIGKILL)

    monkeypatch.setattr(inference, "_infer", killed)
    result = CliRunner().invoke(app, ["inspect", str(place)])
    assert result.exit_code == 2
    assert "memory ran out" in result.stderr and "contradict" not in result.stderr
    with pytest.raises(MemoryError):
        inference.infer_shapes(ir.load(place))


def test_inference_is_the_same_in_either(way: str) -> None:
    model = ir.from_proto(seeds()["stream"])
    inference.infer_shapes(model)
    assert all(value.shape is not None for node in model.graph for value in node.outputs)


def test_an_interrupted_run_leaves_no_process() -> None:
    started: list[int] = []
    fork = os.fork

    def counted() -> int:
        child = fork()
        if child:
            started.append(child)
        return child

    def interrupt() -> None:
        while not started:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell's background job, and what it runs, starts with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.os, "fork", counted)
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            isolated(time.sleep, 60)  # type: ignore[arg-type]
        thread.join()
    signal.signal(signal.SIGINT, before)
    with pytest.raises(ChildProcessError):
        os.waitpid(started[0], os.WNOHANG)


def test_a_fresh_process_takes_nothing_from_the_current_directory(tmp_path: Path) -> None:
    """`python -m` would: a stranger's folder could then hold the code that runs."""
    for name in ("normfold", "pickle", "onnx"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(99)\n")
    done = subprocess.run(
        fresh("normfold.system.subprocess_copy"), cwd=tmp_path, input=b"", capture_output=True, check=False
    )
    assert done.returncode != 99 and b"EOFError" in done.stderr
    assert subprocess.run([sys.executable, "-m", "normfold"], cwd=tmp_path, check=False).returncode == 99
