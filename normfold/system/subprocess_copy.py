"""Native code on untrusted files, run in a copy of this process: what aborts there ends only the copy.

Where a process cannot be copied (Windows, or no memory for it), a fresh one does the work: it reads a pickled call from
this one and writes its answer.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

_RETURNED, _RAISED, _NO_MEMORY = b"+", b"-", b"m"

# Signals of faults of the process itself. Others come from outside: the system (no memory), or the user.
_FAULTS = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")


class AbortedError(RuntimeError):
    """The copy was brought down by the code that it ran."""


def isolated(function: Callable[..., bytes], *args: Any) -> bytes:
    """What `function(*args)` returns, from another process; from this one where there can be no other.

    function, args: such as can be pickled. Raises RuntimeError with the text of what the function raised, AbortedError
    where it ended the process, MemoryError where memory ran out or the system killed the process.
    """
    source, target = os.pipe()
    try:
        child = _fork()
    except OSError:  # no memory for a copy, no process left, or no such system
        os.close(source)
        os.close(target)
        return _fresh(function, args)
    if child == 0:
        _answer_and_end(function, args, target)
    try:
        os.close(target)
        with os.fdopen(source, "rb") as pipe:
            answer = pipe.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return _taken(answer, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _fork() -> int:
    if not hasattr(os, "fork"):
        raise OSError("no copies of processes here")
    with warnings.catch_warnings():
        # Python warns of other threads, whose locks a copy would find taken: the function is to take none of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _fresh(function: Callable[..., bytes], args: tuple[Any, ...]) -> bytes:
    call = pickle.dumps((function, args))
    try:
        # run() kills and reaps the process if this one is interrupted.
        done = subprocess.run(fresh("normfold.system.subprocess_copy"), input=call, capture_output=True, check=False)
    except OSError:
        return function(*args)
    return _taken(done.stdout, done.returncode)


def fresh(module: str) -> list[str]:
    """The command that runs a module of normfold in a fresh process, found as this process finds it.

    `python -m` would look into the current directory first, where untrusted files may lie.
    """
    code = f"import runpy, sys; sys.path[:] = {sys.path!r}; runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-P", "-c", code]


def _taken(answer: bytes, code: int) -> bytes:
    if code < 0 and signal.Signals(-code).name in _FAULTS:
        raise AbortedError(signal.Signals(-code).name)
    if answer[:1] == _RETURNED:
        return answer[1:]
    if answer[:1] == _RAISED:
        raise RuntimeError(answer[1:].decode("utf-8", "replace"))
    if code < 0 or answer[:1] == _NO_MEMORY:
        raise MemoryError("a process that looked at the file was killed, as happens when memory runs out")
    # Windows has no signals: a process that ends without an answer has failed by itself.
    raise AbortedError(f"exit code {code}")


def _answer(function: Callable[..., bytes], args: tuple[Any, ...], pipe: BinaryIO) -> None:
    try:
        answer = _RETURNED + function(*args)
    except MemoryError:
        answer = _NO_MEMORY
    except Exception as error:
        answer = _RAISED + str(error).encode("utf-8", "replace")
    pipe.write(answer)
    pipe.flush()


def _answer_and_end(function: Callable[..., bytes], args: tuple[Any, ...], target: int) -> NoReturn:
    """Write what comes of the function to `target` and end, with none of what a process does at its end."""
    code = 1
    try:
        # Ctrl-C is for the process that goes on, which ends this one; any other signal is to end it as a signal.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # No traceback of an abort: the parent process reports it.
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with os.fdopen(target, "wb") as pipe:
            _answer(function, args, pipe)
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    """Answer one call. It comes from the parent process, so it may be unpickled."""
    function, args = pickle.load(sys.stdin.buffer)
    # Libraries print: what they say is no part of the answer.
    with os.fdopen(os.dup(1), "wb") as pipe:
        os.dup2(2, 1)
        _answer(function, args, pipe)


if __name__ == "__main__":
    main()
