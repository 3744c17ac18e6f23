"""Variants side by side: each in fresh processes of its own, taking turns A B C A B C.

One process a variant is alive at a time and only the one whose turn it is runs. All of them are started anew several
times (a *launch*), since a process keeps one memory layout, good or bad, as long as it runs; see statistics.py.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from normfold.bench.job import Failure, Job, Memory, Probe
from normfold.system.failures import is_out_of_memory, last_line
from normfold.system.subprocess_copy import fresh

LAUNCHES = 10
ROUNDS = 20
# A first look: whether it runs, and figures without an interval.
QUICK_LAUNCHES = 1
QUICK_ROUNDS = 5

Tick = Callable[[str], None]


class WorkerError(Exception):
    """A worker could not do what it was asked; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


@dataclass(slots=True)
class Recording:
    """What one variant took: launches of rounds of calls, in seconds; filled while it runs.

    failure: why it stopped, None while it goes well. warm_up: per launch, how many calls it was and whether they came
    to agree.
    """

    samples: list[list[list[float]]] = field(default_factory=list)
    failure: Failure | None = None
    warm_up: list[tuple[int, bool]] = field(default_factory=list)


class Worker:
    """A fresh process for one job. Raises WorkerError where it fails; closed on the way out, whatever happened."""

    def __init__(self, job: Job) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(
            fresh("normfold.bench.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
        )
        self._write(job.to_json())

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def ask(self, what: str) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        self._write(what)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(self._death())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(Failure(*answer["error"]))
        return answer

    def _write(self, content: object) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(content) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(self._death()) from error

    def _death(self) -> Failure:
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return Failure("out-of-memory", "the system killed the process, as it does when memory runs out")
        self.errors.seek(0)
        said = last_line(self.errors.read().decode("utf-8", "replace"))
        why = f": {said}" if said else ""
        if is_out_of_memory(said):
            return Failure("out-of-memory", f"the process ended{why}")
        return Failure("crashed", f"the process ended with status {code}{why}")


def record(
    jobs: Mapping[str, Job],
    recordings: dict[str, Recording],
    *,
    rounds: int = ROUNDS,
    launches: int = LAUNCHES,
    tick: Tick = lambda _: None,
) -> None:
    """Time `jobs` in turns, into `recordings` (one entry each, made here), which keep what there is if this is cut off.

    rounds: in all, over the launches, and not fewer than one in each. A job that fails is left out from then on.
    """
    recordings.update({name: Recording() for name in jobs})
    names = list(jobs)
    if not names:
        return
    for launch in range(launches):
        tick(f"launch {launch + 1} of {launches}")
        # The order of the turns stays; who comes first changes, for the first is read from a colder disk.
        start = launch % len(names)
        order = [name for name in names[start:] + names[:start] if recordings[name].failure is None]
        _launch({name: jobs[name] for name in order}, recordings, math.ceil(rounds / launches))


def _launch(jobs: Mapping[str, Job], recordings: dict[str, Recording], rounds: int) -> None:
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, job in jobs.items():
            try:
                # One after the other: a start beside another's would take its time.
                workers[name] = stack.enter_context(Worker(job))
                started = workers[name].ask("start")
            except WorkerError as error:
                recordings[name].failure = error.failure
                workers.pop(name, None)
                continue
            recordings[name].samples.append([])
            recordings[name].warm_up.append((started["calls"], started["stable"]))
        for _ in range(rounds):
            for name, worker in list(workers.items()):
                try:
                    recordings[name].samples[-1].append(worker.ask("turn")["seconds"])
                except WorkerError as error:
                    recordings[name].failure = error.failure
                    del workers[name]


def prepare(job: Job) -> Failure | None:
    """Make what the runtime runs of the job's model, in its scratch file, in a process of its own; why it could not."""
    try:
        with Worker(job) as worker:
            worker.ask("prepare")
    except WorkerError as error:
        return error.failure
    return None


def examine(job: Job) -> Probe | Failure:
    """Memory and operators of one job, in a process of its own that is not timed."""
    try:
        with Worker(job) as worker:
            found = worker.ask("probe")
    except WorkerError as error:
        return error.failure
    return Probe(Memory(**found["memory"]), found["operators"], found["state"])
