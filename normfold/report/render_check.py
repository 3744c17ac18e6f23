"""What `normfold check` found of several models: a table for people, the same in Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from normfold._version import __version__
from normfold.report.render import add_row, line, table_of
from normfold.report.verdict_files import markdown_text
from normfold.system.text import json_text
from normfold.verify.check import Checked

_RESULTS = {0: ("passed", "green"), 1: ("FAILED", "bold red"), 2: ("no verdict", "yellow")}
_BROKEN = ("internal error", "bold red")
# Of the JSON of several models.
SCHEMA = 1


def render_check(results: Sequence[Checked]) -> RenderableType:
    """A row for each model, and how many passed."""
    table = table_of("Model", "Result", "Worst error / bound", "Time", right=(2, 3))
    for result in results:
        word, style = _RESULTS.get(result.code, _BROKEN)
        time = f"{result.seconds:.0f} s" if result.seconds else ""
        add_row(table, str(result.model.path), line(word, style=style), worst_of(result), time)
    style = "bold red" if any(result.code for result in results) else "bold green"
    return Group(table, line(passed_of(results), style=style))


def passed_of(results: Sequence[Checked]) -> str:
    """How many passed, in a sentence."""
    return f"{sum(not result.code for result in results)} of {len(results)} models passed."


def result_of(result: Checked) -> str:
    """What became of a model, in a word or two."""
    return _RESULTS.get(result.code, _BROKEN)[0]


def check_json(results: Sequence[Checked]) -> str:
    """Every model with its exit code, what is said of it, and the whole verdict; JSON as text."""
    models = [
        {
            "model": str(result.model.path),
            "exit_code": result.code,
            "result": result_of(result),
            "said": result.said,
            "seconds": result.seconds,
            "verdict": result.verdict,
        }
        for result in results
    ]
    passed = not any(result.code for result in results)
    return json_text({"schema": SCHEMA, "normfold": __version__, "passed": passed, "models": models})


def worst_of(result: Checked) -> str:
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
        f"| {worst_of(result)} |"
        for result in results
    ]
    head = (
        f"### normfold: {passed_of(results).removesuffix('.')}",
        "",
        "| model | result | worst error / bound |",
        "|---|---|---:|",
    )
    return "\n".join((*head, *rows)) + "\n"
