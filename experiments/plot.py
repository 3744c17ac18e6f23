"""Draw docs/experiments/*.svg from the records beside them. python -m experiments.plot"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "experiments"
# The same file for the same record.
mpl.rcParams["svg.hashsalt"] = "normfold"


def draw(record: dict[str, Any], place: Path) -> None:
    """Accuracy of every variant: a dot a seed, a bar for the mean."""
    results = {name: found["accuracy"]["values"] for name, found in record["results"].items() if "accuracy" in found}
    figure = Figure(figsize=(6.0, 0.8 + 0.3 * len(results)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(results.values()):
        axes.plot(values, [row] * len(values), "o", color="#2a6f97", alpha=0.6)
        axes.plot(sum(values) / len(values), row, "|", color="black", markersize=14)
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("right on held-out data, %")
    figure.savefig(place, metadata={"Date": None})


def main() -> None:
    """One plot for each record."""
    for file in sorted(FOLDER.glob("*.json")):
        draw(json.loads(file.read_text(encoding="utf-8")), file.with_suffix(".svg"))


if __name__ == "__main__":
    main()
