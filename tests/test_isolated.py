"""Native code that aborts does so in a copy of the process."""

from __future__ import annotations

import os
import signal

import pytest

from normfold.isolated import AbortedError, isolated

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no copies of processes here")


def test_the_answer_comes_from_a_copy() -> None:
    assert int(isolated(lambda: str(os.getpid()).encode())) != os.getpid()


def test_without_a_copy_the_answer_comes_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError("no process left")

    monkeypatch.setattr(os, "fork", refuse)
    assert int(isolated(lambda: str(os.getpid()).encode())) == os.getpid()


def test_an_answer_larger_than_a_pipe_arrives_whole() -> None:
    assert isolated(lambda: bytes(10**7)) == bytes(10**7)


def test_what_is_raised_is_raised_with_its_text() -> None:
    def refuse() -> bytes:
        raise ValueError("naïve, in two\nlines")

    with pytest.raises(RuntimeError, match="naïve, in two\nlines"):
        isolated(refuse)


@pytest.mark.parametrize("ending", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL])
def test_an_abort_has_a_name(ending: signal.Signals) -> None:
    def end() -> bytes:
        os.kill(os.getpid(), ending)
        return b""

    with pytest.raises(AbortedError, match=ending.name):
        isolated(end)
