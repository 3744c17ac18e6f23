"""What a run leaves on disk: every graph of its task, verified, or nothing.

A graph is written under its own name into a temporary directory beside the place where it belongs and verified there.
When all of them have passed they are moved: whoever finds an output finds a whole, verified file.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from normfold.cases import Case, draw_cases
from normfold.checkpoint import Source
from normfold.clock import Clock
from normfold.errors import OutputError
from normfold.files import check_place, remove, save, save_unchanged
from normfold.half import HALF, half_specs
from normfold.half_yardstick import lay
from normfold.inputs import InputSpec
from normfold.origin import MANIFEST_KEY, Load
from normfold.report import GraphReport, OutputInfo, Report, manifest
from normfold.sizes import fitting
from normfold.sketch import Sketch
from normfold.truth import establish
from normfold.truth_of_graph import parameter_count

if TYPE_CHECKING:
    import onnx_ir as ir

NOT_VERIFIED = "The output has not been verified (--no-verify)."


@dataclass(frozen=True, slots=True)
class Folded:
    """One graph of the task: what it was exported from, as it was exported, and folded."""

    source: Source
    original: ir.Model
    model: ir.Model
    report: GraphReport
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Planned:
    """All graphs of a run, none of them written. report: without outputs and comparisons."""

    load: Load
    graphs: tuple[Folded, ...]
    report: Report


def check_places(source: Path, outputs: Sequence[Path], report: Path | None, *, force: bool) -> None:
    """Raise OutputError now for what would otherwise fail after minutes of work."""
    for place in outputs if report is None else (*outputs, report):
        check_place(place)
        if place.exists() and source.exists() and place.samefile(source):
            raise OutputError(f"{place} is the source itself; write to another file")
        if place.exists() and not force:
            raise OutputError(f"{place} exists already; choose another name, or replace it with --force")
    if report is not None and report.absolute() in [place.absolute() for place in outputs]:
        raise OutputError(f"{report} cannot be both an output and the report")


def write(planned: Planned, outputs: Sequence[Path], *, verify: bool, force: bool, clock: Clock) -> Report:
    """Save every graph beside its place, verify it there, and move all of them; one that fails stops the others."""
    report, graphs = planned.report, list(planned.report.graphs)
    with tempfile.TemporaryDirectory(prefix=".normfold-", dir=outputs[0].parent) as beside:
        for number, place in enumerate(outputs):
            graphs[number] = _draft(planned, number, place, Path(beside), verify=verify, clock=clock)
            if graphs[number].failed:
                return replace(report, graphs=tuple(replace(graph, output=None) for graph in graphs))
        _move(Path(beside), outputs, force=force)
    warnings = report.warnings if verify else (*report.warnings, NOT_VERIFIED)
    return replace(report, graphs=tuple(graphs), warnings=warnings)


def _draft(planned: Planned, number: int, place: Path, beside: Path, *, verify: bool, clock: Clock) -> GraphReport:
    """Save one graph into `beside`, verified; its report has no output if that failed."""
    graph = planned.graphs[number]
    report, record = graph.report, None
    with tempfile.TemporaryDirectory(prefix="normfold-") as elsewhere:
        draft, unfolded = beside / place.name, graph.source.path
        if verify:
            if graph.source.format != "onnx":
                unfolded = Path(elsewhere) / "unfolded.onnx"
                with clock.stage("save", "writing the unfolded graph"):
                    save(graph.original, unfolded)
            with clock.stage("verify", "running the source in float64"):
                inputs = graph.source.inputs
                if graph.source.module is None:
                    inputs = fitting(inputs, unfolded)
                    report = replace(report, inputs=tuple(map(str, inputs)))
                half = Path(elsewhere) / "unfolded.float16.onnx" if planned.report.dtype == HALF else None
                cases = _cases(inputs, half=half is not None, parameters=parameter_count(graph.original))
                truth = establish(graph.source.module, unfolded, inputs, cases=cases)
                yardstick, edges = lay(truth, unfolded, inputs, half=half)
                report = replace(report, edges=edges)
                if report.failed:
                    return report
                record = Sketch.record(yardstick)
        with clock.stage("save", f"writing {place.name}"):
            graph.model.metadata_props[MANIFEST_KEY] = _manifest(planned, graph, report, place, record)
            if graph.model is graph.source.graph:
                save_unchanged(graph.source.path, graph.model, draft)
            else:
                save(graph.model, draft)
        if verify:
            with clock.stage("verify", "verifying against float64"):
                report = replace(report, edges=(*report.edges, *yardstick.compare(draft)))
        # The yardstick's own graph: of the type that the output has.
        unfolded = yardstick.path if verify else unfolded
        measured = verify or (graph.source.format == "onnx" and planned.report.dtype is None)
        unfolded_bytes = _size(unfolded) if measured else None
        return replace(report, output=OutputInfo(str(place), _size(draft), _sha256(draft), unfolded_bytes))


def _cases(specs: Sequence[InputSpec], *, half: bool, parameters: int) -> tuple[Case, ...]:
    """Drawn inputs of the source; numbers that float16 has, where the model is going to take float16."""
    if not half:
        return draw_cases(specs, parameters=parameters)
    return tuple(case.typed(specs) for case in draw_cases(half_specs(specs), parameters=parameters))


def _manifest(planned: Planned, graph: Folded, report: GraphReport, place: Path, record: Sketch | None) -> str:
    path, load = graph.source.path.resolve(), planned.load
    try:
        relative = Path(os.path.relpath(path, place.parent.resolve())).as_posix()
    except ValueError:  # on another drive
        relative = None
    return manifest(
        planned.report,
        report,
        path=relative,
        dtype=planned.report.dtype,
        load={"ema": load.ema, "allow_unfinished": load.allow_unfinished},
        outputs=None if record is None else record.to_json(),
    )


def _move(folder: Path, outputs: Sequence[Path], *, force: bool) -> None:
    """Move the saved graphs to their places, external data first: no graph ever refers to what is not there."""
    graphs = [folder / place.name for place in outputs]
    data = sorted(path for path in folder.iterdir() if path not in graphs)
    for path in data:
        target = outputs[0].parent / path.name
        if target.exists() and not force:
            raise OutputError(
                f"{target} exists already, and the weights belong there; move it, or replace it with --force"
            )
    moved: list[Path] = []
    try:
        for path in (*data, *graphs):
            os.replace(path, outputs[0].parent / path.name)
            moved.append(outputs[0].parent / path.name)
    except OSError as error:
        remove(*moved)
        raise OutputError(f"{outputs[0]} cannot be written: {error.strerror or error}") from error
    except BaseException:
        remove(*moved)
        raise


def _size(path: Path) -> int:
    """Bytes of a graph and of the external data that lies beside it under its name."""
    return sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.exists())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
