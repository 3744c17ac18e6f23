"""The stages of a run: said when they start, timed when they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Progress = Callable[[str], None]
# Called after every step of a stage.
Tick = Callable[[], None]


def nothing() -> None:
    """A tick when nobody watches."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Names each stage to `progress` when it starts, and keeps how long it took; a stage may come several times."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, sentence: str) -> Iterator[None]:
        """Time what runs inside as part of the stage `name`."""
        self.progress(sentence)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
