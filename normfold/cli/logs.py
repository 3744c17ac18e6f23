"""What the package logs, as lines on stderr (`-v`)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from normfold.system.clock import BEGAN
from normfold.system.text import printable

# All that the package logs is under this name.
LOGGER = "normfold"


class Lines(logging.Handler):
    """Log records as lines on stderr: when it was, since the process began, and what."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line; dropped where stderr cannot be written."""
        with suppress(OSError):
            print(f"[{time.perf_counter() - BEGAN:7.3f} s] {printable(record.getMessage())}", file=sys.stderr)


@contextmanager
def logged(verbosity: int) -> Iterator[None]:
    """What the package logs on stderr: nothing, decisions and times, or (2) what was tried as well."""
    if not verbosity:
        yield
        return
    logger, lines = logging.getLogger(LOGGER), Lines()
    before = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO if verbosity == 1 else logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before)
