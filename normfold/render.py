"""A report for people: rich renderables, readable at 80 columns, in a terminal as in a pipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from normfold.report import Report
from normfold.verify import Edge

STATUS_STYLES = {"folded": "green", "partial": "yellow", "kept": "red"}


def render(report: Report) -> RenderableType:
    """Everything a run has to say: norms, node counts, verification, files, time, warnings."""
    return Group(*_parts(report))


def _parts(report: Report) -> Iterator[RenderableType]:
    yield _headline(report)
    if report.sites:
        yield _norms(report)
        yield from (Text(f"{code}: {reason}.") for reason, code in _repeated(report).items())
    yield _nodes(report)
    if report.edges:
        yield _verification(report)
    yield from _files(report)
    yield Text("Time: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.seconds.items()))
    for warning in report.warnings:
        yield Text(f"Warning: {warning}", style="yellow")


def _headline(report: Report) -> Text:
    if not report.sites:
        return Text("No norms found: nothing to fold.")
    total = len(report.sites)
    counts = {status: sum(site.status == status for site in report.sites) for status in STATUS_STYLES}
    parts = [f"{number} {status}" for status, number in counts.items() if number]
    text = f"{total} {'norm' if total == 1 else 'norms'}: {', '.join(parts)}."
    return Text(text if report.changed else f"{text} Nothing to fold: the graph stays as it is.", style="bold")


def _norms(report: Report) -> Table:
    table = _table("Norm", "Kind", "Channels", "Status", "Into, or why not")
    table.columns[2].justify = "right"
    repeated = _repeated(report)
    for site in report.sites:
        status = Text(site.status, style=STATUS_STYLES[site.status])
        channels = str(site.channels) if site.channels else "?"
        reason = site.code if site.reason in repeated else f"{site.code}: {site.reason}" if site.code else site.reason
        text = ", ".join(site.into) if site.status == "folded" else ". ".join(filter(None, [_into(site.into), reason]))
        table.add_row(Text(site.name), site.kind, channels, status, Text(text or "removed"))
    return table


def _repeated(report: Report) -> dict[str, str]:
    """Reasons that several norms share, with their codes: they are said once, below the table."""
    counts = Counter(site.reason for site in report.sites if site.reason)
    return {site.reason: site.code or "" for site in report.sites if site.reason and counts[site.reason] > 1}


def _into(names: tuple[str, ...]) -> str:
    return f"scale into {', '.join(names)}" if names else ""


def _nodes(report: Report) -> Table:
    """Operators whose number changed, and the total."""
    before, after = report.nodes_before, report.nodes_after
    table = _table("Nodes", "Before", "After", "Change")
    for column in table.columns[1:]:
        column.justify = "right"
    for op in sorted({*before, *after}):
        if before.get(op, 0) != after.get(op, 0):
            table.add_row(op, *_change(before.get(op, 0), after.get(op, 0)))
    table.add_row("all", *_change(sum(before.values()), sum(after.values())), style="bold")
    return table


def _change(before: int, after: int) -> tuple[str, str, str]:
    return str(before), str(after), f"{after - before:+d}" if after != before else "0"


def _verification(report: Report) -> Table:
    table = _table("Verified", "Max abs", "Relative", "Bound", "Result")
    for column in table.columns[1:4]:
        column.justify = "right"
    for edge in report.edges:
        result = Text("passed", style="green") if edge.passed else Text("FAILED", style="bold red")
        table.add_row(edge.name, *_figures(edge), result)
    return table


def _figures(edge: Edge) -> tuple[str, str, str]:
    return f"{edge.max_abs:.1e}", f"{edge.relative:.1e}", f"{edge.bound:.1e}"


def _files(report: Report) -> Iterator[Text]:
    if report.output is None:
        return
    text = f"Written: {report.output.path}, {size(report.output.bytes)}"
    if report.output.unfolded_bytes is not None:
        text += f" (unfolded {size(report.output.unfolded_bytes)})"
    yield Text(text)


def size(count: int) -> str:
    """Bytes for people: `512 B`, `1.5 MB` (powers of ten)."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        # Long names wrap: cut off, they could not be searched for.
        table.add_column(heading, overflow="fold")
    return table
