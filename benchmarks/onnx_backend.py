"""Fold every model of the ONNX project's own tests and write what became of them into docs/onnx-tests.md.

python benchmarks/onnx_backend.py --write docs/onnx-tests.md
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fill_in import fill_in
from tests.random.onnx_backend import KINDS, Outcome, cases, check

COLUMNS = ("models", "run by onnxruntime", "changed", "norms", "folded", "right", "refused", "wrong", "crashed")


def row(name: str, outcomes: list[Outcome]) -> str:
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    numbers = [
        len(outcomes),
        len(outcomes) - verdicts["not run"],
        sum(outcome.changed for outcome in outcomes),
        sum(outcome.norms for outcome in outcomes),
        sum(outcome.folded for outcome in outcomes),
        *(verdicts[verdict] for verdict in ("right", "refused", "wrong", "crashed")),
    ]
    return "| " + " | ".join([name, *map(str, numbers)]) + " |"


def table(outcomes: list[Outcome], seconds: float) -> str:
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    lines += [row(kind, [outcome for outcome in outcomes if outcome.case.kind == kind]) for kind in KINDS]
    lines += [
        row("all", outcomes),
        "",
        f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, {seconds:.0f} s.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, metavar="PAGE.md")
    page = parser.parse_args().write
    start = time.perf_counter()
    outcomes = [check(case) for case in cases()]
    for outcome in outcomes:
        if outcome.verdict in ("refused", "wrong", "crashed"):
            print(f"{outcome.case.kind}/{outcome.case.name}: {outcome.verdict}: {outcome.why}")
    made = table(outcomes, time.perf_counter() - start)
    print(made)
    if page is not None:
        fill_in(page, "onnx-tests", [made])


if __name__ == "__main__":
    main()
