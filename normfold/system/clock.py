"""The stages of a run: said when they start, timed when they end, and logged both times.

What is decided in a stage is logged by the module that decides it; the loggers have the names of the modules.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Progress = Callable[[str], None]
# Called after every step of a stage.
Tick = Callable[[], None]

_log = logging.getLogger(__name__)

# When this process began to be normfold's: the command line imports this before all that is heavy.
BEGAN = time.perf_counter()


def nothing() -> None:
    """The tick that does nothing."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Names each stage to `progress` when it starts, and keeps how long it took; a stage may come several times.

    began: when the process started; the time from then to the first stage, imports included, is a stage of its own.
    None: not counted, because the process is not the command line's.
    """

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    began: float | None = None

    @contextmanager
    def stage(self, name: str, sentence: str) -> Iterator[None]:
        """Time what runs inside as part of the stage `name`."""
        self.progress(sentence)
        start = time.perf_counter()
        if self.began is not None and not self.seconds:
            self.seconds["start"] = start - self.began
        _log.info("%s: %s", name, sentence)
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            _log.info("%s: took %.3f s", name, took)
