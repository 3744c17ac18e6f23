"""A study within a given time: what it has found is on disk at every moment, and it ends when it has to.

One process watches (`supervise`), another works (`Worker`). The worker writes the record after every cell. A cell that
raises is recorded and the next one begins; a worker that dies, or whose device can be used no more, is started anew for
what is left; one that has not ended when the time is up is killed, with everything it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Exit codes of a worker: nothing to measure with; the device is lost to this process.
NOTHING, LOST = 2, 75
# Kept for writing the record and for ending, and what a start anew costs.
RESERVE, RESTART = 3.0, 20.0
MOST_DEATHS = 5
INTERRUPTED = 130


class Record:
    """The JSON file of a study. cells: what was found, in the order of measuring; running: the cell at work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = path.exists()
        self.data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if known else {"cells": []}

    def write(self, **changes: Any) -> None:
        """Make the changes (None: without that key) and write the file, whole or not at all."""
        for key, value in changes.items():
            if value is None:
                self.data.pop(key, None)
            else:
                self.data[key] = value
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        draft.write_text(json.dumps(self.data, allow_nan=False) + "\n", encoding="utf-8")
        draft.replace(self.path)

    def is_of(self, machine: Mapping[str, Any]) -> bool:
        """Whether what it holds, if anything, was measured on this kind of GPU."""
        return self.data.get("machine", machine).get("gpu") == machine.get("gpu")

    def __contains__(self, key: str) -> bool:
        """Whether this cell need not be measured again."""
        return any(cell["key"] == key for cell in self.data["cells"])

    def add(self, cell: Mapping[str, Any]) -> None:
        """One more cell; nothing is running then."""
        self.data["cells"].append(finite(cell))
        self.write(running=None)


def finite(value: Any) -> Any:
    """The same without numbers that JSON has no word for: None stands for them."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and value - value != 0.0 else value


def supervise(command: Sequence[str], path: Path, *, until: float) -> int:
    """Run workers until all is measured or the time (`until`, a time.monotonic()) is up; returns an exit code."""
    signal.signal(signal.SIGTERM, _stop)
    # A job in the background inherits it as ignored.
    signal.signal(signal.SIGINT, _stop)
    deaths = 0
    while True:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            code = worker.wait(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            _end(worker)
            _close(path, "the time was up")
            return 0
        except KeyboardInterrupt:
            _end(worker)
            _close(path, "interrupted")
            return INTERRUPTED
        _end(worker)
        if code in (0, NOTHING):
            return code
        deaths += 1
        why = "the device was lost" if code == LOST else f"the process ended with status {code}"
        _close(path, why)
        if deaths > MOST_DEATHS or until - time.monotonic() < RESTART:
            return 1
        print(f"{why}; starting anew", file=sys.stderr, flush=True)


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end(worker: subprocess.Popen[bytes]) -> None:
    """The worker and what it started, which is one session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _close(path: Path, why: str) -> None:
    """What was at work when its process ended has failed, unless only the time was up."""
    for draft in path.parent.glob(f".{path.name}.*"):
        draft.unlink()
    if not path.exists():
        return
    record = Record(path)
    running = record.data.get("running")
    if running is not None and why not in ("the time was up", "interrupted"):
        record.add({"key": running, "error": why})
    record.write(stopped=why, cut_off=running, running=None)


class Worker:
    """The working process. estimates are corrected by what cells of the same kind really cost."""

    def __init__(self, path: Path, *, until: float) -> None:
        self.record, self.until = Record(path), until
        self.factors: dict[str, float] = {}
        self.skipped: list[str] = []

    def left(self) -> float:
        """Seconds that may still be spent."""
        return self.until - RESERVE - time.monotonic()

    def run(
        self, key: str, kind: str, seconds: float, measure: Callable[[], Mapping[str, Any]], usable: Callable[[], bool]
    ) -> Mapping[str, Any] | None:
        """Measure one cell if it has not been and fits into the time that is left: what was found, or None.

        seconds: a first guess of its cost, corrected by the cells of its kind. Ends the process where it can no longer
        use the device.
        """
        if key in self.record:
            return None
        factor = self.factors.get(kind, 1.0)
        if seconds * factor > self.left():
            self.skipped.append(key)
            return None
        self.record.write(running=key)
        start = time.monotonic()
        try:
            found: Mapping[str, Any] = measure()
        # Whatever a runtime raises means that this cell has no figure; the study goes on.
        except Exception as error:
            found = {"error": explain(error)}
        spent = time.monotonic() - start
        self.factors[kind] = max(0.1, (factor + spent / seconds) / 2)
        self.record.data["spent_s"] = round(self.record.data.get("spent_s", 0.0) + spent, 1)
        self.record.add({"key": key, **found, "seconds": round(spent, 2)})
        if "error" in found and not usable():
            print(f"{key}: {found['error']}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(LOST)
        return found


def end_with_parent() -> None:
    """Have this process, and what it starts, end when the watching one does, however that ends."""

    def wait() -> None:
        # The other end of the pipe closes then.
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def explain(error: BaseException) -> str:
    """What was raised, and what was raised first: a capture that breaks hides it behind an error of its own."""
    first = error
    while first.__context__ is not None:
        first = first.__context__
    lines = dict.fromkeys(" ".join(f"{type(each).__name__}: {each}".split())[:300] for each in (error, first))
    return "; first: ".join(lines)
