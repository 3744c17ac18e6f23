"""What test_isolated.py has other processes do; a fresh one finds it by name, and imports it in no time."""

from __future__ import annotations

import os
import time


def process() -> bytes:
    return str(os.getpid()).encode()


def refuse() -> bytes:
    raise ValueError("naïve, in two\nlines")


def run_out() -> bytes:
    raise MemoryError


def chatter(size: int) -> bytes:
    print("a library says something")
    os.write(1, b"and its native part too")
    return bytes(size)


def end(number: int) -> bytes:
    os.kill(os.getpid(), number)
    time.sleep(10)
    return b""


def end_early() -> bytes:
    os._exit(0)
