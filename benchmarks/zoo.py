"""What normfold and other tools leave of published architectures, by both exporters of torch.

    python -m benchmarks.zoo --rows FILE [--only PATTERN ...] [--again] [-o docs/compatibility.md]

From the repository's root, with the extra `zoo`. Every model is built, exported, folded and judged in a process of its
own, under a limit of time and of memory. FILE gets one line of JSON for each as it is done; what is there already is
not measured again but with --again, and its last line counts. Without `-o` the table is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import importlib
import json
import logging
import multiprocessing
import os
import platform
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from benchmarks.compatibility import RunTool, beside, run_tool
from benchmarks.compatibility_page import Row, Tried
from benchmarks.fill_in import fill_in
from benchmarks.models import randomise
from benchmarks.optimizers import TOOLS, installed
from benchmarks.zoo_models import ARCHITECTURES, OBSERVED, build, draw_constants
from normfold.checkpoint.source import Source
from normfold.errors import NormfoldError
from normfold.export.to_onnx import export
from normfold.inputs.spec import draw, parse_specs
from normfold.norms.detect import find_norms

PART = "zoo"  # of the page
SECONDS, TOOL_SECONDS, BYTES = 420, 60, 12 << 30  # what one model may take, one tool, and either of memory
FORK = multiprocessing.get_context("fork")
PRELOADED = ("onnxsim", "onnxslim", "onnxoptimizer", "onnxruntime", "timm", "torchvision", "transformers")
MOST = 4  # operators that are named where another tool leaves fewer
# They give a tensor another shape and move nothing.
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
NEGATIVE = 0.1  # of the norms' weights
COLUMNS = ("onnxsim", "onnxsim opt-in", "onnxslim", "onnxoptimizer", "onnxruntime extended")
# onnxruntime writes operators of its own, which stand for several of ONNX.
STANDARD = tuple(tool for tool in COLUMNS if not tool.startswith("onnxruntime"))


def _dynamo(source: Source, folder: Path) -> tuple[ir.Model, Source]:
    return export(source), source


def _torchscript(source: Source, folder: Path) -> tuple[ir.Model, Source]:
    """The export of the older exporter, which merges batch norms itself unless it is told to preserve them.

    Its operators do not say which module they come from.
    """
    assert source.module is not None
    (spec,) = source.inputs
    path = folder / "torchscript.onnx"
    torch.onnx.export(
        source.module,
        (torch.from_numpy(draw(source.inputs, {}, seed=0)[spec.name]),),
        path,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        input_names=[spec.name],
    )
    return ir.load(path), replace(source, norms=())


EXPORTERS = {"dynamo": _dynamo, "torchscript": _torchscript}


def source_of(name: str) -> Source:
    """A model of ARCHITECTURES as if it had been loaded, with the statistics of drawn inputs."""
    built = build(name)
    specs = parse_specs([built.inputs])
    many = parse_specs([f"x:float32[{','.join(map(str, (OBSERVED, *built.shape[1:])))}]"])
    draw_constants(built.module)
    module = randomise(built.module, draw(many, {}, seed=0), negative=NEGATIVE)
    return Source(Path(name), "", "torch", module, None, specs, norms=find_norms(module))


def measured(name: str, *, tools: Collection[str] = COLUMNS, run: RunTool = run_tool) -> dict[str, Any]:
    """One model: for each exporter its row, or what stands in the way."""
    found: dict[str, Any] = {"name": name, "exports": {}}
    source = source_of(name)
    found["inputs"] = str(source.inputs[0])
    for exporter, exported in EXPORTERS.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                graph, named = exported(source, Path(folder))
            # Whatever an exporter raises for a model that it cannot translate.
            except Exception as error:
                found["exports"][exporter] = {"note": f"no export: {_line(error, folder)}"}
                continue
            try:
                row = beside(name, exporter, named, graph, Path(folder), tools=tools, run=run)
                found["exports"][exporter] = asdict(row)
            except NormfoldError as error:
                found["exports"][exporter] = {"note": f"{type(error).__name__}: {_line(error, folder)}"}
    return found


def _line(error: BaseException, folder: str = "") -> str:
    text = (str(error) or type(error).__name__).replace(f"{folder}/", "")
    return " ".join(text.split())[:300]


def measured_apart(name: str) -> dict[str, Any]:
    """The same in a process of its own, ended with all that it started when its time is over.

    Both that process and the tools that it asks for are forks of this one, which has imported everything and run
    nothing: the imports alone would take longer than a model.
    """
    start = time.monotonic()
    here, there = FORK.Pipe()
    process = FORK.Process(target=_apart, args=(name, there))
    process.start()
    there.close()
    try:
        while here.poll(max(0.0, start + SECONDS - time.monotonic())):
            asked = here.recv()
            if isinstance(asked, dict):
                return {**asked, "seconds": round(time.monotonic() - start)}
            here.send(_tool_apart(*asked))
    except EOFError:
        process.join()
        return {"name": name, "note": f"ends with exit code {process.exitcode}"}
    finally:
        _end(process)
    return {"name": name, "note": f"no result in {SECONDS} s"}


def _apart(name: str, pipe: Connection) -> None:
    """The process of one model: sends the tools that it wants run, and at the end what it has found."""
    _confined()

    def run(tool: str, source: Path, output: Path) -> str:
        pipe.send((tool, source, output))
        return str(pipe.recv())

    try:
        found = measured(name, run=run)
    # Whatever a library raises when it builds a model.
    except Exception as error:
        found = {"name": name, "note": f"{type(error).__name__}: {_line(error)}"}
    pipe.send(found)


def _tool_apart(tool: str, source: Path, output: Path) -> str:
    here, there = FORK.Pipe()
    process = FORK.Process(target=_tool, args=(tool, source, output, there))
    process.start()
    there.close()
    try:
        return str(here.recv()) if here.poll(TOOL_SECONDS) else f"no result in {TOOL_SECONDS} s"
    except EOFError:
        process.join()
        return f"fails (exit code {process.exitcode})"
    finally:
        _end(process)


def _tool(tool: str, source: Path, output: Path, pipe: Connection) -> None:
    _confined()
    try:
        TOOLS[tool][1](source, output)
        said = ""
    except Exception as error:
        said = f"fails ({_line(error)[:60]})"
    pipe.send(said)


def _confined() -> None:
    """This process in a group of its own, silent, and with as much memory as it may have."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _end(process: BaseProcess) -> None:
    """End a process and all that it started."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def read(path: Path) -> dict[str, dict[str, Any]]:
    """What was measured, by name: the last line counts. A line that was not written to its end does not."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            told = json.loads(line)
            found[told["name"]] = told
    return found


def rows_of(told: Collection[dict[str, Any]]) -> list[Row]:
    """The rows of all exports that came out."""
    exports = (export for one in told for export in one.get("exports", {}).values())
    return [Row.of(export) for export in exports if "note" not in export]


def notes_of(told: Collection[dict[str, Any]]) -> Iterator[str]:
    """Why an export has no row."""
    for one in told:
        if "note" in one:
            yield f"{one['name']}: {one['note']}"
        for exporter, found in one.get("exports", {}).items():
            if "note" in found:
                yield f"{one['name']}, {exporter}: {found['note']}"


def behind(row: Row) -> list[str]:
    """The tools whose right result holds fewer norms."""
    return [name for name, tried in row.tools.items() if tried.right and tried.left < row.left]


def longer(row: Row) -> tuple[str, dict[str, int]] | None:
    """The tool of whose right result the fewest operators run, if they are fewer than ours: and what ours has more."""
    right = {name: row.tools[name].running for name in STANDARD if name in row.tools and row.tools[name].right}
    least = min(right, key=lambda name: _runs(right[name]), default=None)
    if least is None or _runs(right[least]) >= _runs(row.running):
        return None
    more = Counter({kind: count for kind, count in row.running.items() if kind not in VIEWS})
    more.subtract({kind: count for kind, count in right[least].items() if kind not in VIEWS})
    return least, {kind: count for kind, count in more.most_common() if count}


def _cell(tried: Tried | None) -> str:
    if tried is None:
        return "not measured"
    if tried.note:
        return tried.note.split(" (")[0]
    return _figures(tried.left, tried.nodes, tried.running) + ("" if tried.right else " **wrong**")


def _figures(left: int, nodes: int, running: dict[str, int]) -> str:
    return f"{left} · {nodes} ({_runs(running)})"


def _runs(running: dict[str, int]) -> int:
    return sum(count for kind, count in running.items() if kind not in VIEWS)


def _why(row: Row) -> str:
    stays = Counter(row.kept) + Counter(row.partial)
    codes = [f"{count} `{code}`" for code, count in stays.items() if code != "not-in-graph"]
    shorter = longer(row)
    if shorter is not None:
        name, more = shorter
        most = sorted(more.items(), key=lambda item: -abs(item[1]))[:MOST]
        codes.append(f"{name}: " + ", ".join(f"{kind} {-count:+d}" for kind, count in most))
    return "; ".join(codes)


def table(told: Collection[dict[str, Any]]) -> list[str]:
    """One line for each export, and the sums."""
    rows = rows_of(told)
    lines = [
        f"| model | exporter | norms | nodes | normfold | {' | '.join(COLUMNS)} | what stays, and why |",
        f"|---|---|---:|---:|---:|{'---:|' * len(COLUMNS)}---|",
    ]
    for row in rows:
        own = _figures(row.left, row.nodes[1], row.running) + ("" if row.right else " **wrong**")
        cells = " | ".join(_cell(row.tools.get(tool)) for tool in COLUMNS)
        lines.append(f"| {row.name} | {row.group} | {row.norms} | {row.nodes[0]} | {own} | {cells} | {_why(row)} |")
    return lines


def _sums(rows: Collection[Row]) -> list[str]:
    lines = [
        "| tool | right results | of norms | left | normfold there | fewer norms than normfold | fewer run | wrong "
        "| fails |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for tool in COLUMNS:
        tried = [(row, row.tools[tool]) for row in rows if tool in row.tools]
        right = [(row, one) for row, one in tried if one.right]
        fewer = sum(one.left < row.left for row, one in right)
        shorter = sum(_runs(one.running) < _runs(row.running) for row, one in right)
        wrong = sum(not one.right and not one.note for _, one in tried)
        lines.append(
            f"| {tool} | {len(right)} | {sum(row.norms for row, _ in right)} | {sum(one.left for _, one in right)} "
            f"| {sum(row.left for row, _ in right)} | {fewer} | {shorter} | {wrong} "
            f"| {sum(bool(one.note) for _, one in tried)} |"
        )
    return lines


def page(told: Collection[dict[str, Any]]) -> list[str]:
    """What the page says."""
    rows = rows_of(told)
    versions = installed()
    listed = ", ".join(f"{TOOLS[tool][0]} {versions[tool]}" for tool in COLUMNS if "opt-in" not in tool)
    libraries = ", ".join(
        f"{name} {version(name)}" for name in dict.fromkeys(row.name.partition(":")[0] for row in rows)
    )
    reached = {row.name for row in rows}
    return [
        f"{len(told)} of the {len(ARCHITECTURES)} architectures of `benchmarks/zoo_models.py` were run; {len(reached)} "
        f"of them gave {len(rows)} exports with a verdict, {sum(row.norms for row in rows)} norms. normfold's result "
        f"is wrong in {sum(not row.right for row in rows)} of them, and leaves {sum(row.left for row in rows)} norms; "
        f"a right result of another tool leaves fewer in {sum(bool(behind(row)) for row in rows)}.",
        "",
        *_sums(rows),
        "",
        *table(told),
        "",
        "Without a row:",
        "",
        *(f"- {note.partition('. ')[0]}" for note in notes_of(told)),
        "",
        f"Measured with {listed}, {libraries}, torch {torch.__version__.partition('+')[0]}, "
        f"Python {platform.python_version()}, {platform.machine()}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="the file for what was measured")
    parser.add_argument(
        "--only",
        nargs="*",
        default=["*"],
        metavar="PATTERN",
        help="names, with * and ?, in the order in which to run them",
    )
    parser.add_argument("--again", action="store_true", help="measure what is in the file once more")
    parser.add_argument("-o", "--output", type=Path, help="the page to fill in; by default the table is printed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()  # or a fork would copy every page whose objects its collector looks at
    done = read(options.rows)
    wanted = [name for pattern in options.only for name in fnmatch.filter(ARCHITECTURES, pattern)]
    for name in dict.fromkeys(wanted):
        if options.again or name not in done:
            told = measured_apart(name)
            with options.rows.open("a", encoding="utf-8") as file:
                print(json.dumps(told), file=file, flush=True)
            print(name, told.get("note", f"{told.get('seconds')} s"), file=sys.stderr, flush=True)
    told = read(options.rows)
    fill_in(options.output, PART, page([told[name] for name in ARCHITECTURES if name in told]))


if __name__ == "__main__":
    main()
