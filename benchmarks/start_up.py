"""What a command costs before it does anything: normfold beside onnxslim, onnxsim and Polygraphy.

    python -m benchmarks.start_up --tools VENV [--rounds 9] [--write docs/benchmarks.md]

VENV is a virtual environment of the same Python that holds the three (pip install onnxslim onnxsim polygraphy
onnx-graphsurgeon onnxruntime); normfold is the one in this folder. Processor seconds of the whole process, user and
system, medians of runs in turns: on a machine with other work, seconds on the clock tell little. The file is DeiT-T
with UN, drawn weights and statistics, as torch.onnx exports it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.fill_in import fill_in
from tests.paths import DOCS, ROOT

PART = "start-up"
FILE, MISSING, OUTPUT = "x.onnx", "gone.onnx", "out.onnx"
TASKS = ("`--help`", "a missing file", "look at x.onnx", "a whole run on x.onnx")
# What each tool is called with for these tasks; onnxsim cannot look at a file without simplifying it.
COMMANDS: Mapping[str, Sequence[str | None]] = {
    "normfold": ("--help", f"inspect {MISSING}", f"inspect {FILE}", f"fold {FILE} -o {OUTPUT} --no-verify --force"),
    "onnxslim": ("--help", f"--inspect {MISSING}", f"--inspect {FILE}", f"{FILE} {OUTPUT}"),
    "onnxsim": ("--help", f"{MISSING} {OUTPUT}", None, f"{FILE} {OUTPUT}"),
    "polygraphy": (
        "--help",
        f"inspect model {MISSING}",
        f"inspect model {FILE}",
        f"surgeon sanitize {FILE} --fold-constants -o {OUTPUT}",
    ),
}


def build(path: Path) -> int:
    """Write the file; how many operators it has."""
    import torch

    from benchmarks.models import randomise
    from normfold import models
    from normfold.checkpoint.in_memory import source_of
    from normfold.checkpoint.options import LoadOptions
    from normfold.export.to_onnx import export
    from normfold.graph.write import save

    batch = torch.randn(2, 3, 224, 224)
    module = randomise(models.create("deit_tiny_un"), {"x": batch.numpy()}).eval()
    graph = export(source_of(module, LoadOptions(), examples=(batch,), dynamic={"x": {0: "B"}}))
    save(graph, path)
    return len(graph.graph)


def program(tool: str, tools: Path) -> list[str]:
    return [sys.executable, "-m", "normfold"] if tool == "normfold" else [str(tools / "bin" / tool)]


def seconds(command: Sequence[str], folder: Path) -> float:
    """Of the processors, user and system, of the process and all that it started."""
    # Compiled once, as what pip installed is; and not in this folder.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    environment = {**os.environ, **compiled, "PYTHONPATH": str(ROOT) if command[0] == sys.executable else ""}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    failed = process.returncode != 0
    if failed != any(MISSING in word for word in command):
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return used.ru_utime + used.ru_stime


def measured(tools: Path, folder: Path, rounds: int) -> dict[tuple[str, str], float]:
    """Medians by tool and task."""
    todo = [
        (tool, task, [*program(tool, tools), *words.split()])
        for tool, commands in COMMANDS.items()
        for task, words in zip(TASKS, commands, strict=True)
        if words is not None
    ]
    found: dict[tuple[str, str], list[float]] = {}
    # The first round fills the caches of the system and of Python.
    for number in range(rounds + 1):
        for tool, task, command in todo:
            used = seconds(command, folder)
            if number:
                found.setdefault((tool, task), []).append(used)
    return {key: statistics.median(runs) for key, runs in found.items()}


def versions(tools: Path) -> str:
    asked = "from importlib.metadata import version as v; print(*(f'{n} {v(n)}' for n in %r), sep=', ')"
    names = [name for name in COMMANDS if name != "normfold"]
    said = subprocess.run([tools / "bin" / "python", "-c", asked % names], capture_output=True, text=True, check=True)
    return said.stdout.strip()


def table(found: Mapping[tuple[str, str], float], about: str) -> Iterator[str]:
    yield from ("", about, "", f"| | {' | '.join(TASKS)} |", f"|---|{'---:|' * len(TASKS)}")
    for tool in COMMANDS:
        cells = [f"{found[tool, task]:.2f} s" if (tool, task) in found else "-" for task in TASKS]
        yield f"| {tool} | {' | '.join(cells)} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tools", type=Path, required=True, metavar="VENV", help="where the other tools are installed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", type=Path, nargs="?", const=DOCS / "benchmarks.md", help="the page to put it in")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        operators = build(place / FILE)
        size = (place / FILE).stat().st_size
        found = measured(asked.tools.absolute(), place, asked.rounds)
    about = (
        f"x.onnx: {size / 1e6:.0f} MB, {operators} operators. Python {platform.python_version()}, "
        f"{os.cpu_count()} cores; {versions(asked.tools)}; medians of {asked.rounds} runs."
    )
    fill_in(asked.write, PART, table(found, about))


if __name__ == "__main__":
    main()
