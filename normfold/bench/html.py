"""A benchmark to look at: latency with its spread, ratios with their intervals, the machine."""

from __future__ import annotations

from collections.abc import Iterator

from normfold.bench.result import Bench, Row
from normfold.report.html import facts, file_name, heading, page, table_html
from normfold.report.svg import escaped


def bench_html(bench: Bench) -> str:
    """What a benchmark measured, with its intervals, and on what machine."""
    return page(f"normfold bench: {file_name(bench.model)}", _bench_parts(bench))


def _bench_parts(bench: Bench) -> Iterator[str]:
    yield f"<h1>{escaped(file_name(bench.model))}</h1>"
    how = f"{bench.runtime}, {bench.device}, {bench.dtype}; {bench.launches} launches, {bench.rounds} rounds"
    yield f'<p class="soft">{escaped(how)}</p>'
    if bench.interrupted:
        yield '<p class="mid">Interrupted: the last row is not complete.</p>'
    elif bench.quick:
        yield '<p class="mid">A quick look: few launches.</p>'
    yield facts([*bench.origins.items(), *((f"no {name}", why) for name, why in bench.missing.items())])
    for row in bench.rows:
        yield heading(f"Batch {row.batch}, {row.mode}")
        yield _bars(bench, row)
        yield table_html(("Comparison", "Ratio", "Interval", "Verdict"), _ratio_rows(row), right={1, 2})
    yield heading("Machine")
    yield facts((str(key), str(value)) for key, value in bench.machine.items() if value not in (None, ""))


def _bars(bench: Bench, row: Row) -> str:
    found = [(name, row.summary(name)) for name in bench.origins]
    longest = max((summary.p90 for _, summary in found if summary is not None), default=1.0)
    said = escaped(f"Latency at batch {row.batch}: medians, with a line to the 90th percentile")
    parts = [f'<svg viewBox="0 0 900 {20 + 34 * len(found)}" role="img" aria-label="{said}"><title>{said}</title>']
    for number, (name, summary) in enumerate(found):
        y = 10 + 34 * number
        parts.append(f'<text x="8" y="{y + 17}">{escaped(name)}</text>')
        if summary is None:
            failure = row.failure(name)
            parts.append(
                f'<text x="130" y="{y + 17}" class="bad">{escaped(failure.code if failure else "not measured")}</text>'
            )
            continue
        width = 600 * summary.median / longest
        parts.append(f'<rect class="box" x="130" y="{y}" width="{width:.1f}" height="24"/>')
        ends = [130 + 600 * value / longest for value in (summary.median, summary.p90)]
        parts.append(f'<line class="arrow" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y + 12}" y2="{y + 12}"/>')
        parts.append(f'<text x="{140 + width:.1f}" y="{y + 17}">{summary.median * 1e3:.3g} ms</text>')
    return "".join(parts) + "</svg>"


def _ratio_rows(row: Row) -> Iterator[tuple[str, ...]]:
    for (first, second), ratio in row.ratios().items():
        interval = "" if ratio.low is None or ratio.high is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
        yield escaped(f"{first} / {second}"), f"{ratio.value:.3f}", interval, escaped(ratio.verdict)
