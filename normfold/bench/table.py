"""A benchmark for people: rich renderables, readable at 80 columns, in a terminal as in a pipe."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from normfold.bench.decode import GENERATED, PROMPT
from normfold.bench.job import Failure, Memory, Probe
from normfold.bench.result import Bench, Row
from normfold.bench.runners import RUNNERS
from normfold.bench.statistics import CONFIDENCE, Ratio, Summary
from normfold.report.render import add_row, line, size, table_of

_STYLES = {"faster": "green", "slower": "red", "no measurable difference": "dim", "unknown": "yellow"}
_MISSING = "not measured"


def render_bench(bench: Bench) -> RenderableType:
    """Everything a benchmark found."""
    return Group(*_parts(bench))


def _parts(bench: Bench) -> Iterator[RenderableType]:
    machine = bench.machine
    threads, version = machine["threads"], RUNNERS[bench.runtime].version(machine["versions"])
    yield line(
        f"{bench.model}: {bench.runtime} {version}, {bench.device}, {bench.dtype}",
        style="bold",
    )
    yield line(f"{machine.get('gpu') or machine['cpu']}, {threads} {'thread' if threads == 1 else 'threads'}")
    yield from (line(f"{name}: {origin}") for name, origin in bench.origins.items())
    yield from (line(f"{name}: {_MISSING}: {reason}", style="yellow") for name, reason in bench.missing.items())
    for row in bench.rows:
        yield from _row(bench, row)
    launches = "1 launch" if bench.launches == 1 else f"{bench.launches} launches"
    yield Text()
    yield line(
        f"{bench.rounds} rounds in {launches} of fresh processes, in turns; ratios with their "
        f"{CONFIDENCE:.0%} bootstrap intervals over the launches. Spread: between the quartiles, of the median."
    )
    if bench.quick:
        yield line("A quick look, of few rounds in few launches; leave --quick out for more.", style="yellow")
    if machine.get("load", 0) and machine["load"] > 0.5:
        yield line(f"Warning: the machine was busy with other work (load {machine['load']}).", style="yellow")
    if bench.interrupted:
        yield line("Interrupted: what was measured until then.", style="bold yellow")


def _row(bench: Bench, row: Row) -> Iterator[RenderableType]:
    axes = ", ".join(f"{letter}={size}" for letter, size in row.sizes.items())
    yield Text()
    yield line(f"Batch {row.batch}{f' ({axes})' if len(row.sizes) > 1 else ''}, {row.mode}", style="bold")
    yield _times(bench, row)
    for name, recording in row.recordings.items():
        if recording.failure is not None:
            yield line(f"{name}: {recording.failure.code}: {recording.failure.reason}", style="yellow")
    if row.mode == "generate":
        yield _tokens(bench, row)
    yield from (_comparison(*names, ratio) for names, ratio in row.ratios().items())
    unsettled = [name for name, found in row.recordings.items() if any(not stable for _, stable in found.warm_up)]
    if unsettled:
        yield line(f"Not settled when warm-up ended: {', '.join(unsettled)}.", style="yellow")
    probes = {name: probe for name, probe in row.probes.items() if isinstance(probe, Probe)}
    if any(probe.operators for probe in probes.values()):
        yield _operators(probes)


def _times(bench: Bench, row: Row) -> Table:
    headings = ("Variant", "Median", "p90", "p99", "Spread", "Weights", "Load", "Arena", "Peak")
    table = table_of(*headings, right=range(1, len(headings)))
    # Nine columns, within 80 characters.
    table.padding = (0, 1, 0, 0)
    for name in bench.origins:
        failure, summary = row.failure(name), row.summary(name)
        cells = _figures(summary) if summary is not None else (_MISSING, "", "", "")
        if failure is not None:
            cells = (failure.code, "", "", "")
        add_row(table, name, *cells, *_memory(row.probes.get(name)))
    return table


def _tokens(bench: Bench, row: Row) -> Text:
    """Tokens a second of each variant, over the median."""
    found = {name: row.summary(name) for name in bench.origins}
    rates = {name: row.batch * GENERATED / summary.median for name, summary in found.items() if summary is not None}
    listed = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
    return line(f"Tokens a second, {GENERATED} after a prompt of {PROMPT}: {listed}.")


def _figures(summary: Summary) -> tuple[str, ...]:
    return (*(seconds(value) for value in (summary.median, summary.p90, summary.p99)), f"{summary.spread:.1%}")


def seconds(value: float) -> str:
    """Seconds for people: `4.21 ms`."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= 1.0:
            return f"{value * factor:.3g} {unit}" if value * factor < 1000 else f"{value * factor:.0f} {unit}"
    return f"{value * 1e6:.3g} µs"


def _memory(probe: Probe | Failure | None) -> tuple[str, ...]:
    found = probe.memory if isinstance(probe, Probe) else Memory()
    columns = (found.weights, found.load, found.arena, found.peak)
    return tuple("-" if value is None else size(value) for value in columns)


def _comparison(first: str, second: str, ratio: Ratio) -> Text:
    text = line(f"{first} / {second}: {ratio.value:.3f}")
    if ratio.low is not None and ratio.high is not None:
        text.append(f" ({ratio.low:.3f} to {ratio.high:.3f})")
    verdict = "too few launches to tell" if ratio.verdict == "unknown" else ratio.verdict
    return text.append(": ").append(verdict, style=_STYLES[ratio.verdict])


def _operators(probes: dict[str, Probe]) -> Table:
    """The operators that are not equally many in all; the rest in one line."""
    table = table_of("Operators that run", *probes, right=range(1, len(probes) + 1))
    every = dict.fromkeys(op for probe in probes.values() for op in probe.operators)
    counts = {op: [probe.operators.get(op, 0) for probe in probes.values()] for op in every}
    for op, row in counts.items():
        if len(set(row)) > 1:
            add_row(table, op, *map(str, row))
    same = [row[0] for row in counts.values() if len(set(row)) == 1]
    add_row(table, "the same in all", *[str(sum(same))] * len(probes))
    add_row(table, "total", *(str(sum(probe.operators.values())) for probe in probes.values()))
    return table
