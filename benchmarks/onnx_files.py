"""ONNX files from PyPI packages under the plain commands: fills in a table of docs/compatibility.md.

    python -m benchmarks.onnx_files [--rows FOLDER] [-o docs/compatibility.md]

From the repository's root, with tests/models-requirements.txt installed. Every file of tests/external/onnx_files.py is
folded (`normfold fold FILE -o OUT`) and judged (`normfold verify OUT --against FILE`), each in a process of its own.
--rows: a folder that keeps one file for each; what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import onnxruntime

from benchmarks.fill_in import fill_in
from tests.external.onnx_files import FILES, OnnxFile

PART = "onnx files"  # of the page


@dataclass(frozen=True)
class Row:
    """One file. own, error, bound: relative. said: of a command that gave no verdict. busy: processor seconds."""

    name: str
    licence: str
    opset: int
    inputs: str
    norms: int = 0
    folded: int = 0
    partial: int = 0
    kept: int = 0
    own: float = 0.0
    error: float = 0.0
    bound: float = 0.0
    verdict: str = ""
    busy: tuple[float, float] = (0.0, 0.0)


def measured(file: OnnxFile) -> Row:
    """Fold and judge one file."""
    imports = onnx.load(file.path, load_external_data=False).opset_import
    opset = next(entry.version for entry in imports if entry.domain in ("", "ai.onnx"))
    with tempfile.TemporaryDirectory() as folder:
        output, report, figures = (Path(folder) / name for name in ("out.onnx", "fold.json", "verify.json"))
        said, folding = _run("fold", file.path, "-o", output, "--report", report)
        if said:
            return Row(file.name, file.licence, opset, "", verdict=f"none: {said}", busy=(folding, 0.0))
        said, judging = _run("verify", output, "--against", file.path, "--json", figures)
        told = json.loads(report.read_text(encoding="utf-8"))
        judged = json.loads(figures.read_text(encoding="utf-8"))
    statuses = [site["status"] for site in told["sites"]]
    # Where an output is pressed against 0, what tells is the edge before it.
    edge = [edge for edge in judged["edges"] if edge["name"].startswith("original -> folded")][-1]
    worst = max(edge["outputs"], key=lambda output: output["worst"]["relative"] / output["bound"])
    return Row(
        file.name,
        file.licence,
        opset,
        ", ".join(told["graphs"][0]["inputs"]),
        len(statuses),
        *(statuses.count(status) for status in ("folded", "partial", "kept")),
        own=float(re.search(r"relative error is ([\d.e+-]+)", edge["detail"])[1]),  # type: ignore[index]
        error=worst["worst"]["relative"],
        bound=worst["bound"],
        verdict="passed" if judged["passed"] else "failed",
        busy=(folding, judging),
    )


def _run(*arguments: object) -> tuple[str, float]:
    """What a command said if it did not end with 0, and the processor seconds that it took."""
    before = os.times()
    run = subprocess.run(
        [sys.executable, "-m", "normfold", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    after = os.times()
    said = " ".join((run.stdout + run.stderr).split()).partition(". ")[0] if run.returncode else ""
    return said, sum(after[2:4]) - sum(before[2:4])


def table(rows: list[Row]) -> list[str]:
    """One line per file."""
    lines = [
        "| file | licence | opset | inputs | norms | folded | partial | kept | own error | error | bound | verdict "
        "| fold | verify |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    return lines + [
        f"| {r.name} | {r.licence} | {r.opset} | | | | | | | | | no verdict | {r.busy[0]:.0f} s | |"
        if r.verdict.startswith("none")
        else f"| {r.name} | {r.licence} | {r.opset} | `{r.inputs}` | {r.norms} | {r.folded} | {r.partial} | {r.kept} "
        f"| {r.own:.1e} | {r.error:.1e} | {r.bound:.1e} | {r.verdict} | {r.busy[0]:.0f} s | {r.busy[1]:.0f} s |"
        for r in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="a folder for what was measured")
    parser.add_argument("-o", "--output", type=Path, help="the page to fill in; by default the table is printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        kept = options.rows or Path(temporary)
        kept.mkdir(exist_ok=True)
        rows = []
        for file in FILES:
            place = kept / f"{file.path.stem}-{file.package}.json"
            if not place.exists():
                print(file.name, file=sys.stderr, flush=True)
                place.write_text(json.dumps(asdict(measured(file))), encoding="utf-8")
            told = json.loads(place.read_text(encoding="utf-8"))
            rows.append(Row(**{**told, "busy": tuple(told["busy"])}))
    lines = [
        *table(rows),
        "",
        *(f"{row.name}: {row.verdict.removeprefix('none: normfold: ')}." for row in rows if row.verdict[:4] == "none"),
        "",
        f"Processor seconds. onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}.",
    ]
    fill_in(options.output, PART, lines)


if __name__ == "__main__":
    main()
