"""Many cases, judged in processes of their own: onnxruntime crashes on some, and that is not the end."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from tests.graph.evaluator.agreement import Case, Outcome, judge, operators_of

Source = Callable[[], Iterable[Case]]
_FORK = multiprocessing.get_context("fork")  # the processes inherit the source, which cannot be pickled


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a process is: every `workers`-th case of the source from `lane` on is its own; which one, which variant."""

    lane: int
    case: int = 0
    variant: int = 0


def judged(source: Source, expand: Callable[[Case], Iterable[Case]], *, workers: int = 2) -> Iterator[Outcome]:
    """The outcomes of all variants of all cases, in no order. Both functions give the same cases every time.

    A process that dies takes its case with it, which counts as one that onnxruntime does not run; another process goes
    on behind it.
    """
    pipes = {}
    for lane in range(workers):
        place = _Place(lane)
        pipes[_start(source, expand, workers, place)] = place
    while pipes:
        for ready in wait(list(pipes)):
            assert isinstance(ready, Connection)
            place = pipes[ready]
            try:
                told = ready.recv()
            except EOFError:
                del pipes[ready]
                case = next(islice(source(), place.case * workers + place.lane, None))
                lost = next(islice(expand(case), place.variant, None))
                yield Outcome(lost.name, "not run", frozenset(operators_of(lost.model)), "the process dies")
                behind = replace(place, variant=place.variant + 1)
                pipes[_start(source, expand, workers, behind)] = behind
                continue
            if isinstance(told, str):
                raise RuntimeError(told)
            if told is None:
                del pipes[ready]
            elif isinstance(told, _Place):
                pipes[ready] = told
            else:
                yield told


def _start(source: Source, expand: Callable[[Case], Iterable[Case]], workers: int, place: _Place) -> Connection:
    here, there = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_work, args=(source, expand, workers, place, there), daemon=True)
    process.start()
    there.close()
    return here


def _work(source: Source, expand: Callable[[Case], Iterable[Case]], workers: int, start: _Place, pipe: Any) -> None:
    """Judge from `start` on: says where it is, then the outcome; None at the end, or what broke."""
    torch.set_num_threads(1)
    place = start
    try:
        first = start.case * workers + start.lane
        for number, case in enumerate(islice(source(), first, None, workers), start=start.case):
            skipped = start.variant if number == start.case else 0
            for variant, found in enumerate(islice(expand(case), skipped, None), start=skipped):
                place = _Place(start.lane, number, variant)
                pipe.send(place)
                pipe.send(judge(found))
        pipe.send(None)
    except Exception:  # of these tests themselves, to be raised in the process that asked
        pipe.send(f"{place}: {traceback.format_exc()}")
