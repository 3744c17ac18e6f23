"""A verdict to look at: every sample of every output beside its bound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from normfold.report.html import (
    facts,
    file_name,
    heading,
    outcome,
    page,
    remarks,
    scientific,
    share_bar,
    table_html,
)
from normfold.report.svg import escaped
from normfold.verify.judge import Edge, Judged
from normfold.verify.verdict import Verdict, fault_lines, headline


def verdict_html(verdict: Verdict) -> str:
    """What `verify` found: every sample of every output beside its bound."""
    return page(f"normfold verify: {file_name(verdict.model)}", _verdict_parts(verdict))


def _verdict_parts(verdict: Verdict) -> Iterator[str]:
    yield f"<h1>{escaped(file_name(verdict.model))}</h1>"
    yield f'<p class="{"good" if verdict.passed else "bad"}"><strong>{escaped(headline(verdict))}</strong></p>'
    yield facts(
        [
            ("Model", f"{verdict.model} (SHA-256 {verdict.sha256[:16]}…)"),
            ("Against", verdict.source or "its recorded outputs"),
            ("Judged by", f"{verdict.method}, onnxruntime {verdict.onnxruntime}, {len(verdict.cases)} samples"),
        ]
    )
    if verdict.fault is not None:
        yield heading("Where it begins")
        yield from (f"<p>{escaped(line)}</p>" for line in fault_lines(verdict.fault))
    for edge in verdict.edges:
        yield heading(edge.name)
        yield f"<p>{outcome(edge.passed)} {escaped(edge.detail)}</p>"
        yield from (_samples(edge, output, verdict.cases) for output in edge.outputs)
    if verdict.unexercised:
        yield heading("What no sample reached")
        yield from (f'<p class="mid">{escaped(said)}</p>' for said in verdict.unexercised)
    yield from remarks(verdict.notes, verdict.seconds, verdict.normfold)


def _samples(edge: Edge, output: Judged, cases: Sequence[str]) -> str:
    """Every sample's error beside the bound, on a logarithmic axis; the same figures as a table below."""
    relative = list(output.relative)
    finite = [value for value in (*relative, output.bound) if 0 < value < math.inf]
    low, high = (min(finite), max(finite)) if finite else (1e-9, 1.0)
    low, high = math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-9)
    high = max(high, low + 1)

    def level(value: float) -> float:
        exponent = math.log10(value) if value > 0 else low
        return 170 - 150 * (min(max(exponent, low), high) - low) / (high - low)

    step = 800 / max(1, len(relative))
    said = f"{edge.name}, {output.name}: worst {scientific(max(relative))}, bound {scientific(output.bound)}"
    parts = [f'<svg viewBox="0 0 900 200" role="img" aria-label="{escaped(said)}"><title>{escaped(said)}</title>']
    for exponent in range(low, high + 1):
        y = level(10.0**exponent)
        parts.append(
            f'<line class="axis" x1="70" x2="880" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="8" y="{y + 4:.1f}">1e{exponent}</text>'
        )
    y = level(output.bound)
    parts.append(
        f'<line class="bound" x1="70" x2="880" y1="{y:.1f}" y2="{y:.1f}"/><text x="800" y="{y - 4:.1f}">bound</text>'
    )
    for number, value in enumerate(relative):
        style = "over" if value > output.bound else "dot"
        case = cases[number] if number < len(cases) else str(number)
        parts.append(
            f'<circle class="{style}" cx="{76 + step * number:.1f}" cy="{level(value):.1f}" r="3.5">'
            f"<title>{escaped(case)}: {scientific(value)}</title></circle>"
        )
    parts.append(f'<text x="70" y="194">{escaped(output.name)}: samples in their order, relative error</text></svg>')
    rows = (
        (
            escaped(cases[number] if number < len(cases) else str(number)),
            scientific(value),
            share_bar(value, output.bound),
        )
        for number, value in enumerate(relative)
    )
    table = table_html(("Sample", "Relative error", "Share of the bound"), rows, right={1})
    return "".join(parts) + f"<details><summary>The figures of {escaped(output.name)}</summary>{table}</details>"
