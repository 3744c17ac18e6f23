"""The parts of a page that a command writes: what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def _marks(part: str) -> tuple[str, str]:
    return f"<!-- {part}: begin -->", f"<!-- {part}: end -->"


def fill_in(page: Path | None, part: str, lines: Iterable[str]) -> None:
    """Replace one part of a page; without a page print it."""
    if page is None:
        print("\n".join(lines))
        return
    begin, end = _marks(part)
    text = page.read_text(encoding="utf-8")
    head, tail = text.split(begin)[0], text.split(end)[1]
    page.write_text("\n".join([head + begin, *lines, end + tail]), encoding="utf-8")


def filled_in(page: Path, part: str) -> str:
    """One part of a page."""
    begin, end = _marks(part)
    return page.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
