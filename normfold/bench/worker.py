"""One process, one model: `python -m normfold.bench.worker`, spoken to in lines of JSON (see harness.py).

The first line is a job. The answer to every line is one line: `{"error": [code, reason]}` or what was asked for.
`"prepare"` makes the file that the runtime takes, `"start"` opens and warms the model, `"turn"` times it for one round,
`"probe"` finds its memory and operators.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import statistics
import sys
import time
from dataclasses import asdict, replace
from typing import Any

from normfold.bench.job import Failure, Job, Memory, Probe
from normfold.bench.memory import above
from normfold.bench.runners import RUNNERS
from normfold.bench.runners.base import Call, Feeds
from normfold.inputs.spec import draw, parse_specs
from normfold.system.failures import is_out_of_memory, one_line

# A turn lasts about this long, or one call; 200 calls are enough of any model.
TURN_SECONDS = 0.1
TURN_CALLS = 200
# Warm-up ends when two windows agree; onnxruntime's kernels and the processor's clock settle within seconds.
_STABLE = 0.05
_WINDOW_CALLS = 5
_WINDOWS = 40
_WARM_UP_SECONDS = 5.0


def main() -> None:
    """Answer until the other end closes the pipe."""
    # Ctrl-C is for the parent, which keeps what there is and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries print: what they say goes with the errors.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        job = Job.from_json(json.loads(sys.stdin.readline()))
        session = _Session(job)
        for line in sys.stdin:
            answers.write(json.dumps(_answer(session, json.loads(line))) + "\n")
            answers.flush()


class _Session:
    """The model once it is open."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.call: Call = _not_started
        self.seconds = 0.0

    def prepare(self) -> dict[str, Any]:
        """Write the job's scratch file."""
        RUNNERS[self.job.runtime].prepare[self.job.dtype](self.job)
        return {}

    def start(self) -> dict[str, Any]:
        """Open and warm up. `calls`: how many it took; `stable`: whether the last two windows agreed."""
        self.call = _open(self.job, _feeds(self.job))
        calls, stable, self.seconds = warm_up(self.call)
        return {"calls": calls, "stable": stable}

    def turn(self) -> dict[str, Any]:
        """Seconds of every call of one round."""
        if self.seconds < TURN_SECONDS:
            self.call()  # brings back the caches that the other variants used
        count = max(1, min(TURN_CALLS, round(TURN_SECONDS / max(self.seconds, 1e-9))))
        return {"seconds": [_timed(self.call) for _ in range(count)]}

    def probe(self) -> dict[str, Any]:
        """Memory, operators and the state of the device."""
        return asdict(probe(self.job))


def _not_started() -> None:
    raise RuntimeError("a turn before the start")


def _answer(session: _Session, asked: str) -> dict[str, Any]:
    ask = {"prepare": session.prepare, "start": session.start, "turn": session.turn, "probe": session.probe}[asked]
    try:
        return ask()
    except Exception as error:  # the runtimes' exceptions share no base, and each means that there is no figure
        failure = explain(error)
        return {"error": [failure.code, failure.reason]}


def explain(error: BaseException) -> Failure:
    """What kept a model from running."""
    reason = one_line(error)
    if is_out_of_memory(error):
        return Failure("out-of-memory", reason)
    return Failure("rejected", reason)


def _open(job: Job, feeds: Feeds) -> Call:
    opened = RUNNERS[job.runtime].open(job, feeds)
    if not job.delay:
        return opened

    def delayed() -> None:
        opened()
        time.sleep(job.delay)

    return delayed


def _feeds(job: Job) -> Feeds:
    return draw(parse_specs(job.inputs), job.sizes, seed=job.seed)


def _timed(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def warm_up(call: Call) -> tuple[int, bool, float]:
    """Call until two windows of calls have medians within 5 %: (calls, whether they came to agree, seconds a call)."""
    first = _timed(call)
    calls, before, start = 1, first, time.perf_counter()
    for _ in range(_WINDOWS):
        window = [_timed(call)]
        while len(window) < _WINDOW_CALLS and sum(window) < TURN_SECONDS * _WINDOW_CALLS:
            window.append(_timed(call))
        calls, now = calls + len(window), statistics.median(window)
        if abs(now - before) <= _STABLE * now:
            return calls, True, now
        before = now
        if time.perf_counter() - start > _WARM_UP_SECONDS:
            break
    return calls, False, before


def probe(job: Job) -> Probe:
    """Open the model in this process, which has done nothing else, and run it a few times."""
    runner = RUNNERS[job.runtime]
    # Now, so that its memory is not counted as the model's.
    importlib.import_module(runner.library)
    feeds = _feeds(job)
    meter = runner.meter(job.device)
    call = runner.open(job, feeds)
    loaded, load = meter.now(), meter.peak()
    anew = meter.begin_anew()
    for _ in range(3):
        call()
    peak = meter.peak()
    most = None if load is None or peak is None else max(load, peak)
    found = Memory(None, above(meter.now(), loaded), most, meter.reserved(), load, peak if anew else None)
    state = meter.state()
    # Only now: writing the optimised graph takes memory of its own.
    counts, weights = runner.inspect(job)
    return Probe(replace(found, weights=weights), counts, state)


if __name__ == "__main__":
    main()
