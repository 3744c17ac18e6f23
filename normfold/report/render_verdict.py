"""A verdict for people: rich renderables, readable at 80 columns, in a terminal as in a pipe."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from normfold.report.render import add_row, line, table_of
from normfold.verify.judge import Edge, Judged
from normfold.verify.verdict import Verdict, fault_lines, headline


def render_verdict(verdict: Verdict) -> RenderableType:
    """Everything that a run of `verify` has to say; the verdict itself comes last, where the eye is."""
    return Group(*_parts(verdict))


def _parts(verdict: Verdict) -> Iterator[RenderableType]:
    yield line(f"{verdict.model} against {verdict.source or 'its recorded outputs'}", style="bold")
    yield line(f"{len(verdict.cases)} samples, {verdict.method}, onnxruntime {verdict.onnxruntime}")
    yield _edges(verdict.edges)
    yield from _agreement(verdict)
    for edge in verdict.failed:
        yield line(f"{edge.name}: {edge.detail}.")
    if verdict.fault is not None:
        yield from (line(said) for said in fault_lines(verdict.fault))
    yield from (line(f"Not exercised: {said}.", style="yellow") for said in verdict.unexercised)
    yield from (line(f"Note: {note}", style="yellow") for note in verdict.notes)
    yield line("Time: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in verdict.seconds.items()))
    yield line(headline(verdict), style="bold green" if verdict.passed else "bold red")


def _edges(edges: tuple[Edge, ...]) -> Table:
    table = table_of("Edge", "Output", "Worst", "Median", "Bound", "Result", right=(2, 3, 4))
    for edge in edges:
        for number, output in enumerate(edge.outputs):
            add_row(table, "" if number else edge.name, output.name, *_figures(output), _result(output.passed))
        if not edge.outputs:
            add_row(table, edge.name, "", "", "", "", _result(edge.passed))
    return table


def _figures(output: Judged) -> tuple[str, str, str]:
    return f"{max(output.relative):.1e}", f"{output.median:.1e}", f"{output.bound:.1e}"


def _result(passed: bool) -> Text:
    return line("passed", style="green") if passed else line("FAILED", style="bold red")


def _agreement(verdict: Verdict) -> Iterator[Text]:
    """What a table of errors does not say of the last edge: which sample is worst, and whether answers change."""
    for output in verdict.edges[-1].outputs if verdict.edges else ():
        worst = output.samples[output.worst]
        parts = [f"{output.name}: worst at {verdict.cases[output.worst]}, max abs {worst.max_abs:.1e}"]
        if output.ulp:
            parts.append(f"{worst.max_abs / output.scale / output.ulp:.1f} ULP of its scale")
        cosines = [sample.cosine for sample in output.samples if sample.cosine is not None]
        parts += [f"cosine at least {min(cosines):.9f}"] if cosines else []
        for name, shares in (
            ("top-1", [sample.top1 for sample in output.samples if sample.top1 is not None]),
            ("top-5", [sample.top5 for sample in output.samples if sample.top5 is not None]),
        ):
            parts += [f"{name} agreement {sum(shares) / len(shares):.1%}"] if shares else []
        token = next((sample.first_token for sample in output.samples if sample.first_token is not None), None)
        parts += [f"first differing token at position {token[1]} of row {token[0]}"] if token is not None else []
        yield line("; ".join(parts) + ".")
