"""Reports to look at: one HTML file each, with nothing to fetch and nothing to run; light, dark, and on paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from normfold.report.render import node_changes, size
from normfold.report.svg import COLOURS, SHAPES, arrow, box, escaped

if TYPE_CHECKING:
    from normfold.analysis.plan import Site
    from normfold.report.report import GraphReport, Report

# Of the norms of a model these many are drawn; the table has them all.
_DRAWN = 40
_NAMES = 3
_REFUSALS = "https://github.com/normfold/normfold/blob/main/docs/refusals.md"

_PAGE = """
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); } .good { color: var(--good); } .mid { color: var(--mid); }
.bad { color: var(--bad); } a { color: var(--accent); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; } th { font-weight: 600; } .right { text-align: right; }
details { margin: .5rem 0; } summary { cursor: pointer; }
@media print { body { margin: 0; max-width: none; } details > * { display: block; } a { color: inherit; } }
"""
STYLE = f"{COLOURS}{SHAPES}{_PAGE}"


def fold_html(report: Report) -> str:
    """What a run of `fold` found, did and measured."""
    return page(f"normfold fold: {file_name(report.source.path)}", _fold_parts(report))


def _fold_parts(report: Report) -> Iterator[str]:
    counts = {status: sum(site.status == status for site in report.norms) for status in ("folded", "partial", "kept")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "none found"
    style = "bad" if report.failed else "good" if report.changed and not report.unfolded else "mid"
    yield f"<h1>{escaped(file_name(report.source.path))}</h1>"
    yield f'<p class="{style}"><strong>{len(report.norms)} norms: {escaped(told)}.</strong></p>'
    if report.failed:
        yield '<p class="bad">The verification failed: nothing was written.</p>'
    yield facts(_fold_facts(report))
    if report.sites:
        yield heading("Norms")
        yield table_html(
            ("Norm", "Kind", "Channels", "Status", "Into, or why not"), map(_norm_row, report.sites), right={2}
        )
        yield heading("Where each norm went")
        yield from (_norm_picture(site) for site in report.sites[:_DRAWN])
        if len(report.sites) > _DRAWN:
            yield f'<p class="soft">and {len(report.sites) - _DRAWN} more, in the table above</p>'
    for graph in report.graphs:
        yield heading(f"Nodes of the {graph.name}" if graph.name else "Nodes")
        yield table_html(("Operator", "Before", "After", "Change"), _node_rows(graph), right={1, 2, 3})
    if report.edges:
        yield heading("Verified against float64")
        yield table_html(
            ("Comparison", "Relative error", "Bound", "Share of the bound", "Result"), _edge_rows(report), right={1, 2}
        )
    yield from remarks(report.warnings, report.seconds, report.normfold)


def _fold_facts(report: Report) -> Iterator[tuple[str, str]]:
    yield "Source", f"{report.source.path} ({report.source.format}, SHA-256 {report.source.sha256[:16]}…)"
    if report.source.arch:
        yield "Architecture", report.source.arch
    for graph in report.graphs:
        of_graph = f" of the {graph.name}" if graph.name else ""
        yield f"Inputs{of_graph}", ", ".join(graph.inputs)
        yield f"Opset{of_graph}", f"{graph.opset}{f', {graph.opset_reason}' if graph.opset_reason else ''}"
        if graph.output is not None:
            unfolded = graph.output.unfolded_bytes
            yield (
                f"Written{of_graph}",
                f"{graph.output.path}, {size(graph.output.bytes)}"
                + (f" (unfolded {size(unfolded)})" if unfolded is not None else ""),
            )
    if report.dtype:
        yield "Type", report.dtype


def _norm_row(site: Site) -> tuple[str, ...]:
    style = {"folded": "good", "partial": "mid", "kept": "bad"}[site.status]
    why = escaped(", ".join(site.into)) if site.into else ""
    if site.code:
        link = f'<a href="{_REFUSALS}#{escaped(site.code)}">{escaped(site.code)}</a>'
        why += f"{'. ' if why else ''}{link}: {escaped(site.reason or '')}"
    channels = str(site.channels) if site.channels else "?"
    status = f'<span class="{style}">{escaped(site.status)}</span>'
    return escaped(site.name), escaped(site.kind), channels, status, why or "removed"


def _norm_picture(site: Site) -> str:
    """The norm as it was, and the operators in front of it and behind it whose weights hold it now, or why it stays."""
    into = list(site.into[:_NAMES]) + ([f"and {len(site.into) - _NAMES} more"] if len(site.into) > _NAMES else [])
    rows = [(f"{name}, folded", "took") for name in into]
    if site.status != "folded":
        rows.append(
            (f"stays: {site.code or 'its shift'}" if site.status == "kept" else "one Add, for its shift", "kept")
        )
    rows = rows or [("nothing: it did nothing", "box")]
    middle = 13 + 15 * len(rows)
    said = f"{site.name}: {site.kind}, {site.status}"
    parts = [f'<svg viewBox="0 0 900 {26 + 30 * len(rows)}" role="img" aria-label="{escaped(said)}">']
    parts.append(box(10, middle - 13, 340, f"{site.kind} {site.name}", "norm" if site.status == "folded" else "kept"))
    for row, (name, style) in enumerate(rows):
        parts += [arrow(350, middle, 480, 26 + 30 * row), box(480, 13 + 30 * row, 400, name, style)]
    return "".join(parts) + "</svg>"


def _node_rows(graph: GraphReport) -> Iterator[tuple[str, ...]]:
    *changed, (name, *total) = node_changes(graph)
    for op, *counts in changed:
        yield escaped(op), *counts
    yield f"<strong>{name}</strong>", *total


def _edge_rows(report: Report) -> Iterator[tuple[str, ...]]:
    for graph in report.graphs:
        for edge in graph.edges:
            name = f"{graph.name}: {edge.name}" if graph.name else edge.name
            yield (
                escaped(name),
                scientific(edge.relative),
                scientific(edge.bound),
                share_bar(edge.relative, edge.bound),
                outcome(edge.passed),
            )


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of these parts."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Names from untrusted files stand in the page: nothing of it may load or run anything.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def remarks(notes: Sequence[str], seconds: object, version: str) -> Iterator[str]:
    """Notes, times and the version."""
    if notes:
        yield heading("Remarks")
        yield from (f'<p class="mid">{escaped(note)}</p>' for note in notes)
    times = ", ".join(f"{stage} {value:.1f} s" for stage, value in dict(seconds).items())  # type: ignore[call-overload]
    yield f'<p class="soft">{escaped(f"Time: {times}. " if times else "")}normfold {escaped(version)}</p>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Facts in two columns, as text."""
    cells = "".join(f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>" for name, value in rows)
    return f'<div class="scroll"><table>{cells}</table></div>'


def table_html(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: set[int]) -> str:
    """A table of cells that are HTML already."""
    style = [' class="right"' if number in right else "" for number in range(len(headings))]
    head = "".join(f'<th scope="col"{style[number]}>{escaped(text)}</th>' for number, text in enumerate(headings))
    body = "".join(
        "<tr>" + "".join(f"<td{style[number]}>{cell}</td>" for number, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def heading(text: str) -> str:
    """A heading of the second level."""
    return f"<h2>{escaped(text)}</h2>"


def outcome(passed: bool) -> str:
    """Passed or failed, in colour and in a word."""
    return '<span class="good">passed</span>' if passed else '<strong class="bad">FAILED</strong>'


def share_bar(value: float, bound: float) -> str:
    """A bar of how much of the bound is used."""
    share = value / bound if bound else math.inf if value else 0.0
    width = 100 * min(share, 1.0) if math.isfinite(share) else 100
    style = "over" if share > 1 else "dot"
    shown = f"{100 * share:.0f} %" if math.isfinite(share) else "∞"
    return (
        f'<svg viewBox="0 0 150 14" width="150" height="14" role="img" aria-label="{shown} of the bound">'
        f'<rect class="box" width="100" height="10" y="2"/>'
        f'<rect class="{style}" width="{width:.0f}" height="10" y="2"/>'
        f'<text x="106" y="12">{shown}</text></svg>'
    )


def scientific(value: float) -> str:
    """A figure with two digits."""
    return f"{value:.1e}"


def file_name(path: str) -> str:
    """The last part of a path, of any system."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]
