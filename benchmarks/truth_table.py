"""Hold every operator of the evaluator against onnxruntime and write what came of it into docs/truth.md.

python benchmarks/truth_table.py --write docs/truth.md
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import onnx
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fill_in import fill_in
from tests.graph.evaluator import backend, grid, table
from tests.graph.evaluator.agreement import Outcome
from tests.graph.evaluator.apart import judged
from tests.graph.evaluator.departures import DEPARTURES, NOTES, SINGLE

VERDICTS = ("agrees", "recorded", "not run", "not covered", "known", "disagrees", "departs")
DOMAINS = {"": "ai.onnx", "ai.onnx.ml": "ai.onnx.ml", "com.microsoft": "com.microsoft"}


def page(parts: dict[str, list[Outcome]], seconds: float) -> str:
    """The generated part of docs/truth.md."""
    return "\n\n".join(
        [
            totals(parts),
            f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, {seconds / 60:.0f} minutes on two cores.",
            *operators(list(chain.from_iterable(parts.values()))),
            departures(),
            refused(list(chain.from_iterable(parts.values()))),
            left_out(),
        ]
    )


def totals(parts: dict[str, list[Outcome]]) -> str:
    lines = ["| cases | " + " | ".join(VERDICTS) + " |", "|---|" + "---:|" * len(VERDICTS)]
    for name, outcomes in {**parts, "all": list(chain.from_iterable(parts.values()))}.items():
        counts = Counter(outcome.verdict for outcome in outcomes)
        lines.append(f"| {name} | " + " | ".join(f"{counts[verdict]:,}" for verdict in VERDICTS) + " |")
    return "\n".join(lines)


def operators(outcomes: Sequence[Outcome]) -> list[str]:
    """One table a domain."""
    found = table.rows(table.counted(outcomes))
    blocks = []
    for domain, title in DOMAINS.items():
        lines = [f"## {title}", "", "| operator | " + " | ".join(table.COLUMNS) + " |", "|---|---|---|---|---|"]
        lines += [
            f"| {name} | " + " | ".join(", ".join(cells[column]) for column in table.COLUMNS) + " |"
            for there, name, cells in found
            if there == domain
        ]
        blocks.append("\n".join(lines))
    return blocks


def departures() -> str:
    lines = ["## Where the evaluator does not follow onnxruntime", ""]
    lines += [f"- **{entry.operator}**: {entry.why}" for entry in DEPARTURES]
    lines += [
        f"- **{', '.join(sorted(SINGLE))}**: of float64 tensors onnxruntime computes in float32, or with constants of "
        "float32; the evaluator in float64. These cases are held to float32's bound."
    ]
    lines += [f"- **{what}**: {why}" for what, why in NOTES]
    return "\n".join(lines)


def refused(outcomes: Sequence[Outcome]) -> str:
    """What NotCoveredError says of operators that are covered."""
    said = (re.search(r"\((\S+)\): (.+), which normfold cannot", outcome.why) for outcome in outcomes)
    found = sorted({(match[1], match[2]) for match in said if match is not None})
    lines = ["## Forms of its operators that the evaluator refuses", "", "Those that the cases met.", ""]
    return "\n".join([*lines, "| operator | form |", "|---|---|", *(f"| {name} | {why} |" for name, why in found)])


def left_out() -> str:
    lines = ["## What onnxruntime runs and the evaluator does not", "", "| operator | why |", "|---|---|"]
    by_reason: dict[str, list[str]] = {}
    for (domain, name), why in table.LEFT_OUT.items():
        by_reason.setdefault(why, []).append(f"{domain}.{name}" if domain else name)
    lines += [f"| {', '.join(sorted(names))} | {why} |" for why, names in by_reason.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, metavar="PAGE.md")
    where = parser.parse_args().write
    start = time.perf_counter()
    sources = {"the ONNX project's own tests": backend, "the grid": grid}
    workers = os.cpu_count() or 1
    parts = {name: list(judged(of.cases, of.variants, workers=workers)) for name, of in sources.items()}
    for outcome in chain.from_iterable(parts.values()):
        if outcome.verdict in ("disagrees", "departs"):
            print(f"{outcome.name}: {outcome.verdict}: {outcome.why}")
    made = page(parts, time.perf_counter() - start)
    print(totals(parts))
    if where is not None:
        fill_in(where, "truth", [made])


if __name__ == "__main__":
    main()
