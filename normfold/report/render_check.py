"""What `normfold check` found of several models: a table for people, and the same in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from normfold.report.render import add_row, line, table_of
from normfold.report.verdict_files import markdown_text
from normfold.verify.check import Checked

_RESULTS = {0: ("passed", "green"), 1: ("FAILED", "bold red"), 2: ("no verdict", "yellow")}


def render_check(results: Sequence[Checked]) -> RenderableType:
    """A row for each model, and how many passed."""
    table = table_of("Model", "Result", "Worst error / bound", "Time", right=(2, 3))
    for result in results:
        word, style = _RESULTS.get(result.code, ("internal error", "bold red"))
        time = f"{result.seconds:.0f} s" if result.seconds else ""
        add_row(table, str(result.model.path), line(word, style=style), _worst(result), time)
    passed = sum(not result.code for result in results)
    style = "bold green" if passed == len(results) else "bold red"
    return Group(table, line(f"{passed} of {len(results)} models passed.", style=style))


def _worst(result: Checked) -> str:
    """The largest share of its bound that any output took, over all comparisons."""
    edges = (result.verdict or {}).get("edges") or []
    shares = [
        output["worst"]["relative"] / output["bound"]
        for edge in edges
        for output in edge.get("outputs", ())
        if output.get("bound") and (output.get("worst") or {}).get("relative") is not None
    ]
    return f"{max(shares):.2f}" if shares else ""


def markdown(results: Sequence[Checked]) -> str:
    """The table for the summary of a CI run."""
    rows = [
        f"| {markdown_text(str(result.model.path))} | {'✅' if not result.code else '❌'} {markdown_text(result.said)} "
        f"| {_worst(result)} |"
        for result in results
    ]
    passed = sum(not result.code for result in results)
    head = (
        f"### normfold: {passed} of {len(results)} models passed",
        "",
        "| model | result | worst error / bound |",
        "|---|---|---:|",
    )
    return "\n".join((*head, *rows)) + "\n"
