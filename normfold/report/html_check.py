"""What `normfold check` found of several models, to look at: one table, and what failed of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from normfold._version import __version__
from normfold.report.html import heading, outcome, page, remarks, table_html
from normfold.report.render_check import passed_of, result_of, worst_of
from normfold.report.svg import escaped
from normfold.verify.check import Checked


def check_html(results: Sequence[Checked]) -> str:
    """A row for each model; below it the comparisons of each."""
    return page("normfold check", _parts(results))


def _parts(results: Sequence[Checked]) -> Iterator[str]:
    style = "bad" if any(result.code for result in results) else "good"
    yield "<h1>normfold check</h1>"
    yield f'<p class="{style}"><strong>{escaped(passed_of(results))}</strong></p>'
    yield table_html(("Model", "Result", "Worst error / bound", "Time"), map(_row, results), right={2, 3})
    for result in results:
        yield heading(str(result.model.path))
        yield f"<p>{escaped(result.said)}</p>"
        edges = (result.verdict or {}).get("edges") or ()
        if edges:
            rows = ((escaped(edge["name"]), outcome(edge["passed"]), escaped(edge["detail"])) for edge in edges)
            yield table_html(("Comparison", "Result", ""), rows, right=set())
    yield from remarks((), {}, __version__)


def _row(result: Checked) -> tuple[str, str, str, str]:
    word = escaped(result_of(result))
    style = "good" if not result.code else "bad" if result.code == 1 else "mid"
    time = f"{result.seconds:.0f} s" if result.seconds else ""
    return escaped(str(result.model.path)), f'<strong class="{style}">{word}</strong>', worst_of(result), time
