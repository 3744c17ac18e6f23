"""A report for people: rich renderables, readable at 80 columns, in a terminal as in a pipe."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.containers import Lines
from rich.table import Table
from rich.text import Text

from normfold.models.catalogue import usual_inputs
from normfold.models.families import Family
from normfold.system.text import printable

if TYPE_CHECKING:
    # Only named here: `normfold models` does without what they import.
    from normfold.analysis.plan import Site
    from normfold.report.report import GraphReport, Report
    from normfold.verify.judge import Edge

STATUS_STYLES = {"folded": "green", "partial": "yellow", "kept": "red"}

# Words, and their parts: a name ends with the mark behind it.
_WORD, _PART = re.compile(r"\S+"), re.compile(r"[^./_]*[./_]+|[^./_]+")
# Columns below which there is no room for space between them.
_NARROW = 60
# Columns that a name needs to be read at all, the space behind it included.
_LEAST = 7


def render(report: Report) -> RenderableType:
    """Everything a run has to say: norms, node counts, verification, files, time, warnings."""
    return Group(*_parts(report))


def _parts(report: Report) -> Iterator[RenderableType]:
    yield _headline(report)
    if report.sites:
        yield _norms(report)
        yield from (line(f"{code}: {reason}.") for reason, code in _repeated(report).items())
    yield from _besides(report)
    yield from _spreads(report)
    yield from _room(report)
    for graph in report.graphs:
        yield _nodes(graph)
        yield from _model(graph)
    if report.edges:
        yield _verification(report)
    yield from (line(f"Not exercised: {said}.", style="yellow") for said in report.unexercised or ())
    yield from _files(report)
    yield line("Time: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.seconds.items()))
    for warning in report.warnings:
        yield line(f"Warning: {warning}", style="yellow")


def _headline(report: Report) -> Text:
    if not report.sites:
        return line("No norms found." if report.changed else "No norms found: nothing to fold.")
    text = f"{counted(report.norms, 'norm')}." if report.norms else "No norms found."
    others = [site for site in report.sites if not site.counts]
    products = [site for site in others if site.code != "not-in-graph"]
    if products:
        text += f" Besides, {counted(products, 'constant product')}."
    if len(others) > len(products):
        text += f" Besides, {_number(len(others) - len(products), 'norm module')} that the model never calls."
    if not report.changed:
        # Another type is another graph.
        text += " Nothing to fold." if report.dtype else " Nothing to fold: the graph stays as it is."
    return line(text, style="bold")


def counted(sites: Sequence[Site], of: str) -> str:
    """How many there are and what became of them: `17 norms: 16 folded, 1 kept`."""
    return f"{_number(len(sites), of)}: {_statuses(sites)}"


def _number(count: int, of: str) -> str:
    return f"{count} {of}" if count == 1 else f"{count} {of}s"


def _statuses(sites: Sequence[Site]) -> str:
    counts = {status: sum(site.status == status for site in sites) for status in STATUS_STYLES}
    return ", ".join(f"{number} {status}" for status, number in counts.items() if number)


def _norms(report: Report) -> Table:
    table = table_of("Norm", "Kind", "Channels", "Status", "Into, or why not", right=(2,))
    repeated = _repeated(report)
    for site in report.sites:
        status = line(site.status, style=STATUS_STYLES[site.status])
        channels = str(site.channels) if site.channels else "?"
        reason = site.code if site.reason in repeated else f"{site.code}: {site.reason}" if site.code else site.reason
        text = ", ".join(site.into) if site.status == "folded" else ". ".join(filter(None, [_into(site.into), reason]))
        if site.shift_elements > 0:
            text += f"; its shift costs {site.shift_elements} elements"
        add_row(table, site.name, site.kind, channels, status, text or "removed")
    return table


def _repeated(report: Report) -> dict[str, str]:
    """Reasons that several norms share, with their codes: they are said once, below the table."""
    counts = Counter(site.reason for site in report.sites if site.reason)
    return {site.reason: site.code or "" for site in report.sites if site.reason and counts[site.reason] > 1}


def _besides(report: Report) -> Iterator[Text]:
    """What the fold did to other operators than norms."""
    for graph in report.graphs:
        for merge in graph.merged:
            yield line(f"merged: {', '.join(merge.parts)} are one Conv ({merge.name})")
        if graph.untied:
            names = ", ".join(weight.name for weight in graph.untied)
            yield line(f"untied: +{size(sum(weight.bytes for weight in graph.untied))} ({names})")


def _spreads(report: Report) -> Iterator[Table]:
    """What `--equalize` made of the weights' ranges: of those that it was asked for."""
    found = [one for graph in report.graphs for one in graph.spreads if one.equalized is not None]
    if not found:
        return
    table = table_of("Range of a weight over that of its channels", "Before", "Folded", "Equalized", right=(1, 2, 3))
    for one in found:
        add_row(table, one.name, f"{one.before:.2f}", f"{one.folded:.2f}", f"{one.equalized:.2f}")
    yield table


def _room(report: Report) -> Iterator[Text]:
    """How near a float16 model comes to the end of its range."""
    for graph in report.graphs:
        if not graph.room:
            continue
        scaled = sum(tensor.power != 0 for tensor in graph.room)
        nearest = min(graph.room, key=lambda tensor: tensor.left)
        text = f"float16: {_number(scaled, 'tensor')} stored as multiples of powers of two. " if scaled else "float16: "
        room = f"room for {nearest.left:.3g} times that"
        yield line(f"{text}The largest number is {nearest.largest:.3g} ({nearest.tensor}): {room}.")


def _into(names: tuple[str, ...]) -> str:
    return f"scale into {', '.join(names)}" if names else ""


def _nodes(graph: GraphReport) -> Table:
    """Operators whose number changed, and the total."""
    heading = f"Nodes of the {graph.name}" if graph.name else "Nodes"
    table = table_of(heading, "Before", "After", "Change", right=(1, 2, 3))
    *changed, total = node_changes(graph)
    for row in changed:
        add_row(table, *row)
    add_row(table, *total, style="bold")
    return table


def node_changes(graph: GraphReport) -> Iterator[tuple[str, str, str, str]]:
    """Operator, before, after, change: of operators whose number changed, then of "all"."""
    before, after = graph.nodes_before, graph.nodes_after
    for op in sorted({*before, *after}):
        if before.get(op, 0) != after.get(op, 0):
            yield op, *_change(before.get(op, 0), after.get(op, 0))
    yield "all", *_change(sum(before.values()), sum(after.values()))


def _model(graph: GraphReport) -> Iterator[Text]:
    """What the graph takes, and the opset that it is written in."""
    yield line(f"Inputs{f' of the {graph.name}' if graph.name else ''}: {', '.join(graph.inputs)}")
    if graph.opset:
        yield line(f"Opset {graph.opset}{f', {graph.opset_reason}' if graph.opset_reason else ''}")


def _change(before: int, after: int) -> tuple[str, str, str]:
    return str(before), str(after), f"{after - before:+d}" if after != before else "0"


def _verification(report: Report) -> Table:
    table = table_of("Verified", "Max abs", "Relative", "Bound", "Result", right=(1, 2, 3))
    for graph in report.graphs:
        for edge in graph.edges:
            result = line("passed", style="green") if edge.passed else line("FAILED", style="bold red")
            add_row(table, f"{graph.name}: {edge.name}" if graph.name else edge.name, *_figures(edge), result)
    return table


def _figures(edge: Edge) -> tuple[str, str, str]:
    return f"{edge.max_abs:.1e}", f"{edge.relative:.1e}", f"{edge.bound:.1e}"


def _files(report: Report) -> Iterator[Text]:
    for output in (graph.output for graph in report.graphs if graph.output is not None):
        text = f"Written: {output.path}, {size(output.bytes)}"
        if output.unfolded_bytes is not None:
            text += f" (unfolded {size(output.unfolded_bytes)})"
        yield line(text)
        yield from (line(f"Written: {path}, weights of {Path(output.path).name}") for path in output.data)
    yield from (line(f"Written: {path}") for path in report.also_written)


def render_models(families: Sequence[Family], *, names: bool = False) -> RenderableType:
    """The built-in architectures, a line a size. names: a line a name, with papers, inputs and files of each family."""
    parts = [part for family in families for part in _family(family, names=names)]
    heading = _models_table()
    add_row(heading, "  Name", "Parameters", *(["Norm", "File"] if names else ["Norms"]), style="bold")
    return Group(heading, *parts, *([] if names else [Text(), _legend()]))


def _family(family: Family, *, names: bool) -> Iterator[RenderableType]:
    papers = f" (arXiv {', '.join(family.papers)})" if family.papers and names else ""
    yield line(f"{family.title}{papers}", style="bold")
    table = _models_table()
    for size in family.sizes:
        held = {name: file for file, name in size.published.items()}
        for kind, name in size.names.items() if names else ():
            add_row(table, f"  {name}", _count(size.parameters), kind, held.get(name, ""))
        if not names:
            add_row(table, f"  {size.stem}", _count(size.parameters), " ".join(size.names))
    yield table
    if names:
        specs = dict.fromkeys(spec for size in family.sizes for spec in usual_inputs(family, size))
        yield line(f"  input {', '.join(specs)}", style="dim")
        if family.release:
            yield line(f"  files from {family.release}", style="dim")


def _models_table() -> Table:
    """Of columns that are as wide in every family."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(width=28, overflow="fold")
    table.add_column(width=10, justify="right")
    table.add_column(overflow="fold", min_width=7)
    table.add_column(overflow="fold")
    return table


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k"


def _legend() -> Text:
    return line(
        "A size comes with each of its norms, under a name of its own: `normfold models deit_tiny` lists the names of "
        "one, with its inputs and files. Parameters are those with the first norm."
    )


def size(count: int) -> str:
    """Bytes for people: `512 B`, `1.5 MB` (powers of ten)."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


class _Names(Text):
    """Text whose words, where one is longer than a line, are broken behind `.`, `/` or `_` if it has one there."""

    def wrap(self, console: Console, width: int, **options: Any) -> Lines:
        """As rich does, once those words are broken."""
        offsets = [found.start() + place for found in _WORD.finditer(self.plain) for place in _breaks(found[0], width)]
        broken = Text("\n").join(self.divide(offsets)) if offsets else self
        return Text.wrap(broken, console, width, **options)


def _breaks(word: str, width: int) -> Iterator[int]:
    """Where to break a word so that its parts fit into `width` cells, as far as its marks allow."""
    place = held = 0
    for part in _PART.findall(word):
        cells = cell_len(part)
        if held and held + cells > width:
            yield place
            held = 0
        # A part that is too long by itself is folded; the next one begins a line.
        held += cells
        place += len(part)


def line(text: str, style: str = "") -> Text:
    """A line of text: whatever a file calls its parts, it becomes neither markup nor a command."""
    return _Names(printable(text), style=style)


def add_row(table: Table, *cells: str | Text, style: str | None = None) -> None:
    """Add a row of text; rich would read a string as markup."""
    table.add_row(*(cell if isinstance(cell, Text) else line(cell) for cell in cells), style=style)


class _Fitted(Table):
    """A table that stands closer where there is little room, its figures in one line where they fit."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < _NARROW:
            self.padding = (0, 1, 0, 0)
        room = options.max_width - _LEAST * len(self.columns)
        for column in self.columns:
            if column.justify == "right":
                # A figure in two lines would be two figures; one that is cut off would be another.
                room -= max(cell_len(str(text)) for text in (column.header, *column.cells)) + self.padding[1] - _LEAST
                column.no_wrap = room >= 0
        yield from super().__rich_console__(console, options)


def table_of(*headings: str, right: Container[int] = ()) -> Table:
    """An empty table. right: the columns that are figures."""
    table = _Fitted(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        # Long names wrap: cut off, they could not be searched for.
        table.add_column(line(heading), overflow="fold", justify="right" if number in right else "left")
    return table
