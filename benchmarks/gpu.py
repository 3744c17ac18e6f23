"""One command that measures on a GPU what folding buys, within a given time: writes gpu.json.

    bash benchmarks/gpu.sh [--seconds 420] [--device cuda|cpu] [--resume]

The most telling cells come first (gpu_cells.py), the record is on disk after each of them (gpu_budget.py), and every
call to CUDA is in gpu_device.py. `--device cpu` is a rehearsal with tiny networks, whose figures mean nothing.
`python -m benchmarks.gpu_page gpu.json` makes docs/gpu.md of the record.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import gpu_budget

SCHEMA = 1
ROOT = Path(__file__).resolve().parent.parent
SECONDS = 420.0
# What it takes to end a process that holds a GPU.
ENDING = 1.5
# The product's own benchmark, as a smoke: stopped after so long, with what it has by then.
SMOKE_SECONDS, SMOKE_LEAST = 75.0, 25.0
# It comes when the papers' own conditions, and what differs from them in one way, are measured.
SMOKE_AFTER = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch over a worker, which is the same command with --until, or be it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what it may take in all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--runtime", choices=("torch", "ort"), default="torch", help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help="keep the cells of an existing record")
    parser.add_argument("--out", type=Path, help="default: $OUT/gpu.json, or gpu_ort.json")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    name = "gpu.json" if options.runtime == "torch" else "gpu_ort.json"
    out = options.out or Path(os.environ.get("OUT", ".")) / name
    if options.until is not None:
        from benchmarks import gpu_ort

        return (work if options.runtime == "torch" else gpu_ort.work)(out, options.device, until=options.until)
    until = time.monotonic() + options.seconds - ENDING
    if not options.resume:
        out.unlink(missing_ok=True)
    asked = ["--device", options.device, "--runtime", options.runtime, "--out", str(out), "--until", repr(until)]
    code = gpu_budget.supervise([sys.executable, "-m", "benchmarks.gpu", *asked], out, until=until)
    if out.exists():
        record = gpu_budget.Record(out)
        ended = record.data.get("stopped") or "everything was measured or skipped"
        print(f"{out}: {len(record.data['cells'])} cells; {ended}", flush=True)
    return code


def work(path: Path, name: str, *, until: float) -> int:
    """Measure cell after cell."""
    gpu_budget.end_with_parent()
    # What it starts is to be interruptible, also where this process inherited the signal as ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from benchmarks import gpu_cells, gpu_device, gpu_figures, gpu_models

    device = gpu_device.device(name)
    missing = device.missing()
    if missing is not None:
        print(f"--device {name}: {missing}. Nothing was measured; --device cpu rehearses the study", file=sys.stderr)
        return gpu_budget.NOTHING
    models = {model.name: model for model in (gpu_models.PUBLISHED if name == "cuda" else gpu_models.TINY)}
    worker = gpu_budget.Worker(path, until=until)
    plan = gpu_cells.cells(list(models.values()))
    described = device.describe()
    if not worker.record.is_of(described):
        print(f"{path} was measured on another GPU; leave --resume out", file=sys.stderr)
        return gpu_budget.NOTHING
    worker.record.write(
        schema=SCHEMA,
        device=name,
        sizes="published" if name == "cuda" else "tiny",
        machine=described,
        models={model.name: model.title for model in models.values()},
        planned=[cell.key for cell in plan],
        stopped=None,
    )
    smokes = smoke_commands(name)
    for cell in plan:
        if smokes and gpu_cells.distance(cell) > SMOKE_AFTER:
            _smoke(worker, smokes, device)
            smokes = []
        found = worker.run(
            cell.key,
            cell.mode,
            2.0 if name == "cpu" else gpu_cells.seconds(cell, models[cell.model]),
            lambda cell=cell: gpu_cells.measure(
                cell, models[cell.model], device, deadline=until - gpu_budget.RESERVE, rehearsal=name == "cpu"
            ),
            device.usable,
        )
        if found is not None:
            print(gpu_figures.line(cell.key, found), flush=True)
            gpu_cells.forget(device)
    if smokes:
        _smoke(worker, smokes, device)
    worker.record.write(skipped=worker.skipped)
    return 0


def smoke_commands(name: str) -> list[list[str]]:
    """The product's commands. onnxruntime's CUDA provider is tried where there is one."""
    bench = ["bench", "fixtures/vit_un.pt", "--device", name, "--quick"]
    commands = [[*bench, "--runtime", "torch", "--batch", "1,8"]]
    if name == "cpu" or _has_cuda_provider():
        commands.append([*bench, "--runtime", "ort", *([] if name == "cpu" else ["--mode", "plain,graph"])])
    return commands


def _has_cuda_provider() -> bool:
    try:
        import onnxruntime
    except ImportError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _smoke(worker: gpu_budget.Worker, commands: Sequence[list[str]], device: Any) -> None:
    device.release()
    for command in commands:
        key = f"normfold {' '.join(command)}"
        found = worker.run(
            key, "smoke", SMOKE_LEAST, lambda command=command: smoke(command, worker.left()), device.usable
        )
        if found is not None:
            print(f"{key}: exit {found.get('exit')}", flush=True)


def smoke(command: Sequence[str], left: float) -> dict[str, Any]:
    """Run one command of the product: its exit code, its table, its JSON without the samples."""
    with tempfile.TemporaryDirectory(prefix="normfold-") as folder:
        place = Path(folder) / "bench.json"
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "normfold", *command, "--json", str(place)],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=min(SMOKE_SECONDS, left - 10.0))
        except subprocess.TimeoutExpired:
            # It prints and writes what it has.
            process.send_signal(signal.SIGINT)
            try:
                output, _ = process.communicate(timeout=8.0)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
        found = json.loads(place.read_text(encoding="utf-8")) if place.exists() else None
    for row in found["rows"] if found else ():
        for variant in row["variants"].values():
            variant.pop("samples")
    spent = round(time.monotonic() - start, 1)
    return {"exit": process.returncode, "took_s": spent, "output": output[-8000:], "json": found}


if __name__ == "__main__":
    sys.exit(main())
