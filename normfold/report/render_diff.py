"""What differs between two graphs, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from normfold._version import __version__
from normfold.graph.compare import Difference
from normfold.report.render import add_row, line, table_of
from normfold.system.numbers import finite
from normfold.system.text import json_text

# Of a long list the first are shown; --all shows them all.
SHOWN = 20
# Of the JSON.
SCHEMA = 1


def render_diff(difference: Difference, names: tuple[str, str], *, shown: int | None = SHOWN) -> RenderableType:
    """Everything that differs, the most important first. shown: rows of each table; None for all."""
    return Group(*_parts(difference, names, shown))


def diff_json(difference: Difference, names: tuple[str, str]) -> str:
    """Everything that differs, no list cut short; JSON as text (docs/report.md)."""
    content = {
        "schema": SCHEMA,
        "normfold": __version__,
        "files": names,
        "same": difference.is_empty,
        "opsets": difference.opsets,
        "values": difference.values,
        "counts": difference.counts,
        "removed": dict(difference.removed),
        "added": dict(difference.added),
        "changed": difference.changed,
        "weights": [
            {"name": one.name, "largest": finite(one.largest), "relative": finite(one.relative), "why": one.why}
            for one in difference.weights
        ],
        "equal": difference.equal,
        "lost": difference.lost,
        "new": difference.new,
    }
    return json_text(content)


def _parts(difference: Difference, names: tuple[str, str], shown: int | None) -> Iterator[RenderableType]:
    yield line(f"{names[0]} -> {names[1]}", style="bold")
    if difference.is_empty:
        yield line("The graphs are the same: operators, attributes, weights, inputs and outputs.")
        return
    if difference.opsets[0] != difference.opsets[1]:
        yield line(f"Opset {difference.opsets[0]} -> {difference.opsets[1]}")
    for name, (before, after) in difference.values.items():
        yield line(f"{name}: {before or 'none'} -> {after or 'none'}")
    if difference.counts:
        table = table_of("Operator", "Before", "After", "Change", right=(1, 2, 3))
        for op, (before_count, after_count) in difference.counts.items():
            add_row(table, op, str(before_count), str(after_count), f"{after_count - before_count:+d}")
        yield table
    yield from _list("Removed", [f"{name} ({op})" for name, op in difference.removed], shown)
    yield from _list("Added", [f"{name} ({op})" for name, op in difference.added], shown)
    yield from _list("Changed", [f"{name}: {why}" for name, why in difference.changed.items()], shown)
    if difference.weights:
        yield from _weights(difference, shown)
    yield from _list("Constants removed", sized(difference.lost), shown)
    yield from _list("Constants added", sized(difference.new), shown)
    same = "1 constant is" if difference.equal == 1 else f"{difference.equal} constants are"
    yield line(f"{same} the same.")


def _weights(difference: Difference, shown: int | None) -> Iterator[RenderableType]:
    table: Table = table_of("Constant", "Largest difference", "Relative", right=(1, 2))
    for weight in difference.weights[:shown]:
        if weight.why:
            add_row(table, weight.name, weight.why, "")
        else:
            add_row(table, weight.name, f"{weight.largest:.1e}", f"{weight.relative:.1e}")
    yield table
    if shown is not None and len(difference.weights) > shown:
        yield line(f"and {len(difference.weights) - shown} constants more (--all)")


def _list(heading: str, items: Sequence[str], shown: int | None) -> Iterator[RenderableType]:
    if items:
        yield line(f"{heading} ({len(items)}):", style="bold")
        yield from (line(f"  {item}") for item in items[:shown])
        if shown is not None and len(items) > shown:
            yield line(f"  and {len(items) - shown} more (--all)")


def sized(constants: Mapping[str, int]) -> list[str]:
    """Constants with how large they are."""
    return [f"{name}, {count} element{'s' if count != 1 else ''}" for name, count in constants.items()]
