"""A benchmark as bars: one group a batch size, one bar a variant, with its bootstrap interval."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from normfold.bench.result import Bench, Row
from normfold.errors import OutputError
from normfold.system.files import replacing
from normfold.system.text import printable

# Fixed, so that a variant has one colour in every plot. Told apart in grey too.
_COLOURS = {"layernorm": "#b0b7bf", "unfolded": "#e0a458", "folded": "#2a6f97"}
_FORMATS = (".png", ".svg", ".pdf")


def check(place: Path) -> None:
    """Raise OutputError now where `draw` could not write to `place`: matplotlib absent, or a format it has not."""
    if find_spec("matplotlib") is None:
        raise OutputError("--plot needs matplotlib, which is not installed: pip install 'normfold[report]'")
    if place.suffix.lower() not in _FORMATS:
        raise OutputError(f"{place}: a plot is written as {', '.join(_FORMATS)}")


def draw(bench: Bench, place: Path) -> None:
    """Draw ratios to the first variant at hand and write them to `place`, whole or not at all.

    A bar is the ratio of times, its whisker the bootstrap interval; the reference is the line at 1.
    """
    check(place)
    from matplotlib.figure import Figure

    timed = [row for row in bench.rows if any(row.summary(name) for name in bench.origins)]
    figure = Figure(figsize=(max(5.0, 1.6 * len(timed) + 2.5), 4.0), layout="constrained", dpi=150)
    axes = figure.subplots()
    for position, row in enumerate(timed):
        _group(axes, bench, row, position)
    axes.set_xticks(range(len(timed)), [_label(bench, row) for row in timed])
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel(f"time relative to {next(iter(bench.origins))}")
    where = bench.machine.get("gpu") or bench.machine["cpu"]
    threads = f", {bench.machine['threads']} threads" if bench.device == "cpu" else ""
    title = printable(f"{Path(bench.model).name}: {bench.runtime}, {bench.dtype}, {where}{threads}")
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    _save(figure, place)


def _group(axes: Any, bench: Bench, row: Row, position: int) -> None:
    reference, *others = bench.origins
    ratios = row.ratios()
    width = 0.8 / len(bench.origins)
    for index, name in enumerate((reference, *others)):
        summary, ratio = row.summary(name), ratios.get((name, reference))
        x = position + (index - (len(bench.origins) - 1) / 2) * width
        if summary is None or (ratio is None and name != reference):
            failure = row.failure(name)
            _write(axes, x, "not measured" if failure is None else failure.code, "black")
            continue
        height = 1.0 if ratio is None else ratio.value
        axes.bar(x, height, width * 0.92, color=_COLOURS.get(name), label=name)
        if ratio is not None and ratio.low is not None and ratio.high is not None:
            ends = [[height - ratio.low], [ratio.high - height]]
            axes.errorbar(x, height, yerr=ends, color="black", linewidth=1, capsize=3)
        _write(axes, x, _text(summary.median), "white" if name == "folded" else "black")


def _write(axes: Any, x: float, text: str, colour: str) -> None:
    """At the foot of a bar, where no whisker is."""
    axes.annotate(
        text, (x, 0), (0, 5), textcoords="offset points", ha="center", fontsize=7, color=colour, rotation="vertical"
    )


def _label(bench: Bench, row: Row) -> str:
    several = len({each.mode for each in bench.rows}) > 1
    return f"batch {row.batch}" + (f"\n{row.mode}" if several else "")


def _text(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _save(figure: Any, place: Path) -> None:
    with replacing(place) as draft:
        figure.savefig(draft, format=place.suffix.lower()[1:])
