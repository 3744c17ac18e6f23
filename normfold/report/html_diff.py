"""Two graphs side by side: what differs, to look at."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from normfold._version import __version__
from normfold.graph.compare import Difference
from normfold.report.html import facts, file_name, heading, page, remarks, scientific, table_html
from normfold.report.render_diff import sized
from normfold.report.svg import escaped


def diff_html(difference: Difference, names: tuple[str, str]) -> str:
    """Everything that `diff` found from one file to the other, no list cut short. names: their paths."""
    first, second = map(file_name, names)
    return page(f"normfold diff: {first}, {second}", _parts(difference, names))


def _parts(difference: Difference, names: tuple[str, str]) -> Iterator[str]:
    first, second = map(file_name, names)
    yield f"<h1>{escaped(first)} → {escaped(second)}</h1>"
    same = difference.is_empty
    said = (
        "The graphs are the same: operators, attributes, weights, inputs and outputs." if same else _summary(difference)
    )
    yield f'<p class="{"good" if same else "mid"}"><strong>{said}</strong></p>'
    before, after = difference.opsets
    yield facts(
        [
            ("Before", names[0]),
            ("After", names[1]),
            ("Opset", str(before) if before == after else f"{before} → {after}"),
            ("Constants that are the same", f"{difference.equal:,}"),
        ]
    )
    yield from _table(
        "Inputs and outputs",
        ("", "Before", "After"),
        ((name, old or "none", new or "none") for name, (old, new) in difference.values.items()),
    )
    yield from _table(
        "Operators",
        ("Operator", "Before", "After", "Change"),
        ((op, f"{old:,}", f"{new:,}", f"{new - old:+,}") for op, (old, new) in difference.counts.items()),
        right={1, 2, 3},
    )
    yield from _table("Removed", ("Operator", "Type"), difference.removed)
    yield from _table("Added", ("Operator", "Type"), difference.added)
    yield from _table("Changed", ("Operator", "What"), difference.changed.items())
    yield from _table(
        "Constants with other contents",
        ("Constant", "Largest difference", "Relative"),
        (
            (one.name, one.why, "") if one.why else (one.name, scientific(one.largest), scientific(one.relative))
            for one in difference.weights
        ),
        right={1, 2},
    )
    for title, constants in (("Constants removed", difference.lost), ("Constants added", difference.new)):
        yield from _table(title, ("Constant",), ((line,) for line in sized(constants)))
    yield from remarks((), {}, __version__)


def _summary(difference: Difference) -> str:
    """How many things are different, in a sentence."""
    return (
        f"They differ. Operators: {len(difference.removed):,} removed, {len(difference.added):,} added, "
        f"{len(difference.changed):,} changed. Constants: {len(difference.lost):,} removed, {len(difference.new):,} "
        f"added, {len(difference.weights):,} with other contents."
    )


def _table(
    title: str, headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, right: Collection[int] = ()
) -> Iterator[str]:
    """A heading with the number of rows, and a table of them; nothing where there are none."""
    cells = [tuple(map(escaped, row)) for row in rows]
    if cells:
        yield heading(f"{title} ({len(cells):,})")
        yield table_html(headings, cells, right=set(right))
