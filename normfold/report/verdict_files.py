"""A verdict for machines: JUnit XML, the Markdown of a GitHub step summary, JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from normfold.errors import OutputError
from normfold.system.files import check_place, write_text
from normfold.system.text import printable
from normfold.verify.judge import Edge, Judged
from normfold.verify.verdict import Verdict, blamed, error_json, fault_lines, headline

# GitHub refuses summaries beyond 1 MiB; the JSON has every figure of every output.
SUMMARY_BYTES = 1_000_000
_ROWS = 500
_TEXT = 2_000

# Two characters that show, as far as `printable` goes, and that XML has no way at all to write.
_UNWRITABLE = re.compile("[\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class VerdictFiles:
    """Where to write a verdict, None for nowhere. Files that exist are replaced: a CI job writes them every time."""

    junit: Path | None = None
    summary: Path | None = None
    json: Path | None = None
    html: Path | None = None

    def check(self) -> None:
        """Raise OutputError now for what would otherwise fail after minutes of work."""
        places = [place for place in (self.junit, self.summary, self.json, self.html) if place is not None]
        if len({place.absolute() for place in places}) != len(places):
            raise OutputError("--junit, --summary, --json and --html have to name different files")
        for place in places:
            check_place(place)

    def write(self, verdict: Verdict) -> None:
        """Write every file that was asked for."""
        self._write(junit(verdict), summary(verdict), verdict.dumps())
        if self.html is not None:
            # Here, for few ask for it, and it takes a while to import.
            from normfold.report.html_verdict import verdict_html

            write_text(self.html, verdict_html(verdict))

    def write_error(self, message: str) -> None:
        """Write that there is no verdict, and why."""
        self._write(junit_error(message), summary_error(message), error_json(message))

    def _write(self, junit: str, summary: str, json: str) -> None:
        for place, text in ((self.junit, junit), (self.summary, summary), (self.json, json)):
            if place is not None:
                write_text(place, text)


def junit(verdict: Verdict) -> str:
    """JUnit XML: one test suite, a test case per edge and output, a failure with its figures where one did not hold."""
    suite = ElementTree.Element("testsuite", name="normfold verify")
    for edge in verdict.edges:
        for name, passed, figures in _cases(edge, verdict.cases):
            case = ElementTree.SubElement(suite, "testcase", classname=_clean(edge.name), name=_clean(name))
            if not passed:
                lines = [figures, edge.detail, *(fault_lines(verdict.fault) if verdict.fault is not None else ())]
                failure = ElementTree.SubElement(case, "failure", type=blamed(edge), message=_clean(figures))
                failure.text = "\n".join(_clean(line) for line in lines if line)
    return _suite(suite, failures=len(suite.findall("testcase/failure")), seconds=sum(verdict.seconds.values()))


def junit_error(message: str) -> str:
    """JUnit XML of a run that came to no verdict."""
    suite = ElementTree.Element("testsuite", name="normfold verify")
    case = ElementTree.SubElement(suite, "testcase", classname="normfold verify", name="verdict")
    ElementTree.SubElement(case, "error", type="no verdict", message=_clean(message)).text = _clean(message)
    return _suite(suite, errors=1)


def junit_of_several(models: Iterable[tuple[str, str]]) -> str:
    """JUnit XML of several models: one test suite for each, under its name. models: (name, XML as above)."""
    suites = ElementTree.Element("testsuites")
    for name, text in models:
        for suite in ElementTree.fromstring(text).iter("testsuite"):
            suite.set("name", _clean(name))
            suites.append(suite)
    return _document(suites)


def summary(verdict: Verdict) -> str:
    """Markdown, at most `SUMMARY_BYTES` long in UTF-8."""
    lines = [
        f"### {'✅' if verdict.passed else '❌'} normfold verify: {markdown_text(headline(verdict))}",
        "",
        f"{_code(verdict.model)} against {_code(verdict.source) if verdict.source else 'its recorded outputs'}, "
        f"{len(verdict.cases)} samples, {markdown_text(verdict.method)}, onnxruntime {verdict.onnxruntime}.",
        "",
        "| edge | output | worst | median | bound | |",
        "|---|---|---:|---:|---:|---|",
    ]
    rows = list(_rows(verdict))
    lines += rows[:_ROWS]
    if len(rows) > _ROWS:
        lines += ["", f"{len(rows) - _ROWS} more rows in the JSON (`--json`)."]
    for edge in verdict.failed[:_ROWS]:
        lines += ["", f"**{markdown_text(edge.name)}**: {markdown_text(edge.detail)}"]
    if verdict.fault is not None:
        lines += ["", *(f"- {markdown_text(line)}" for line in fault_lines(verdict.fault))]
    notes = [*(f"Not exercised: {line}." for line in verdict.unexercised), *verdict.notes]
    lines += [part for note in notes[:_ROWS] for part in ("", f"> {markdown_text(note)}")]
    return _cut("\n".join(lines) + "\n")


def summary_error(message: str) -> str:
    """Markdown of a run that came to no verdict."""
    return _cut(f"### ⚠️ normfold verify: no verdict\n\n{markdown_text(message)}\n")


def _cases(edge: Edge, cases: tuple[str, ...]) -> Iterator[tuple[str, bool, str]]:
    """(name, passed, figures) of every output; of the graph as a whole where it did not come to outputs."""
    if not edge.outputs:
        yield "graph", edge.passed, edge.detail
    for output in edge.outputs:
        figures = f"relative error {max(output.relative):.2e} at {cases[output.worst]}, allowed {output.bound:.2e}"
        if output.atol is not None:
            figures += f"; beyond rtol {output.beyond:.2e}, allowed {output.atol:.2e}"
        yield output.name, output.passed, figures


def _rows(verdict: Verdict) -> Iterator[str]:
    for edge in verdict.edges:
        if not edge.outputs:
            yield f"| {markdown_text(edge.name)} | | | | | {_mark(edge.passed)} |"
        for output in edge.outputs:
            yield f"| {markdown_text(edge.name)} | {_code(output.name)} | {_figures(output)} | {_mark(output.passed)} |"


def _figures(output: Judged) -> str:
    return f"{max(output.relative):.1e} | {output.median:.1e} | {output.bound:.1e}"


def _mark(passed: bool) -> str:
    return "passed" if passed else "**FAILED**"


def _suite(suite: ElementTree.Element, *, failures: int = 0, errors: int = 0, seconds: float = 0.0) -> str:
    counts = {"tests": len(suite), "failures": failures, "errors": errors, "skipped": 0}
    suite.attrib.update({name: str(count) for name, count in counts.items()} | {"time": f"{seconds:.3f}"})
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    return _document(suites)


def _document(suites: ElementTree.Element) -> str:
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    return _UNWRITABLE.sub("?", printable(text))[:_TEXT]


def markdown_text(text: str) -> str:
    """Text that stays text in a table cell, whatever a model calls its tensors."""
    return re.sub(r"([\\`*_\[\]<>|#&~@])", r"\\\1", _clean(text))


def _code(text: str) -> str:
    return f"`{_clean(text).replace('`', chr(39)).replace('|', '/')}`"


def _cut(text: str) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= SUMMARY_BYTES:
        return text
    # Whole lines: what is left open in half of one would go on in the next summary.
    return data[: SUMMARY_BYTES - 5].rpartition(b"\n")[0].decode() + "\n...\n"
