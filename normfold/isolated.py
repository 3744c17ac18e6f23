"""Native code on files from strangers, run in a copy of this process: what aborts there ends only the copy."""

from __future__ import annotations

import faulthandler
import os
import signal
import warnings
from collections.abc import Callable
from typing import NoReturn

_RETURNED, _RAISED = b"+", b"-"


class AbortedError(RuntimeError):
    """The copy was brought down by the code that it ran."""


def isolated(compute: Callable[[], bytes]) -> bytes:
    """What `compute` returns, from a copy of this process; from this process where none can be made.

    Raises RuntimeError with the text of what `compute` raised, AbortedError when it ended the process.
    """
    if not hasattr(os, "fork"):
        return compute()
    source, target = os.pipe()
    with warnings.catch_warnings():
        # Python warns of other threads, whose locks a copy would find taken: `compute` is to take none of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            child = os.fork()
        except OSError:  # no memory for a copy, or no process left
            os.close(source)
            os.close(target)
            return compute()
    if child == 0:
        _answer(compute, target)
    os.close(target)
    with os.fdopen(source, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        raise AbortedError(signal.Signals(-code).name)
    if answer[:1] == _RETURNED:
        return answer[1:]
    raise RuntimeError(answer[1:].decode("utf-8", "replace"))


def _answer(compute: Callable[[], bytes], target: int) -> NoReturn:
    """Write what comes of `compute` to `target` and end, with none of what a process does at its end."""
    try:
        # Its last words, where it aborts: the error message of the process that goes on says what there is to say.
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            answer = _RETURNED + compute()
        except Exception as error:
            answer = _RAISED + str(error).encode()
        with os.fdopen(target, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)
