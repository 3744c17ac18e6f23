"""Many cases, judged in processes of their own: onnxruntime crashes on some, and that is not the end."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from tests.evaluator.agreement import Case, Outcome, judge, operators_of

Source = Callable[[], Iterable[Case]]
_FORK = multiprocessing.get_context("fork")  # the processes inherit the source, which cannot be pickled


def judged(source: Source, *, workers: int = 2) -> Iterator[Outcome]:
    """The outcomes of all cases of the source, in no order. source: makes the same cases every time it is called.

    A process that dies takes its case with it, which counts as one that onnxruntime does not run; another process goes
    on behind it.
    """
    pipes = {_start(source, lane, workers, 0): (lane, 0) for lane in range(workers)}
    while pipes:
        for ready in wait(list(pipes)):
            assert isinstance(ready, Connection)
            lane, at = pipes[ready]
            try:
                number, outcome = ready.recv()
            except EOFError:
                pipes.pop(ready)
                case = next(islice(source(), at * workers + lane, None), None)
                if case is None:
                    continue
                yield Outcome(case.name, "not run", frozenset(operators_of(case.model)), "the process dies")
                pipes[_start(source, lane, workers, at + 1)] = lane, at + 1
                continue
            if isinstance(outcome, str):
                raise RuntimeError(outcome)
            if outcome is None:
                pipes.pop(ready)
            else:
                pipes[ready] = lane, number + 1
                yield outcome


def _start(source: Source, lane: int, workers: int, first: int) -> Connection:
    here, there = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_work, args=(source, lane, workers, first, there), daemon=True)
    process.start()
    there.close()
    return here


def _work(source: Source, lane: int, workers: int, first: int, pipe: Any) -> None:
    """Judge every case of one lane; says (number in the lane, outcome) of each, then (-1, None), or what broke."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of numpy and torch on values that are meant
    case = None
    try:
        for number, case in enumerate(islice(source(), first * workers + lane, None, workers), start=first):
            pipe.send((number, judge(case)))
        pipe.send((-1, None))
    except Exception:  # of these tests themselves, to be raised in the process that asked
        pipe.send((-1, f"{case.name if case else 'the source'}: {traceback.format_exc()}"))
