"""What a run leaves on disk: every graph of its task, verified, with what was asked for beside it, or nothing.

Each file is written under its own name into a temporary directory beside the place where it belongs; a graph is
verified there. When all are written and have passed they are moved, so that no file is ever seen half written.
"""

from __future__ import annotations

import filecmp
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from normfold.checkpoint.formats.base import sha256_of_file
from normfold.errors import OutputError
from normfold.graph.write import data_of, save, save_unchanged, stored_beside
from normfold.inputs.cases import Case, draw_cases
from normfold.inputs.float16 import half_specs
from normfold.inputs.spec import InputSpec
from normfold.pipeline.look import Folded, Planned
from normfold.pipeline.options import FoldOptions
from normfold.report.html import fold_html
from normfold.report.report import GraphReport, OutputInfo, Report
from normfold.system.clock import Clock
from normfold.system.files import beside, move, scratch, writing
from normfold.verify.fingerprint import Sketch
from normfold.verify.manifest import KEY, FoldedNorm, Manifest

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)

NOT_VERIFIED = "The output has not been verified (--no-verify)."


def write(
    planned: Planned, places: Sequence[Path], options: FoldOptions, module: nn.Module | None, clock: Clock
) -> Report:
    """Save every graph beside its place, verify it there, and move all of them; one that fails stops the others.

    places: one for each graph of the task. module: the folded torch module, for `options.emit_torch`. It and the report
    are moved with the graphs. What failed is reported, not written.
    """
    report, graphs = planned.report, list(planned.report.graphs)
    data: list[tuple[Path, Path]] = []
    with ExitStack() as stack:
        drafts = [stack.enter_context(beside(place)) for place in places]
        for number, draft in enumerate(drafts):
            graphs[number], apart = _draft(planned.graphs[number], planned, (draft, places[number]), options, clock)
            if graphs[number].failed:
                return replace(report, graphs=tuple(replace(graph, output=None) for graph in graphs))
            data += [(path, places[number].with_name(path.name)) for path in apart]
        others: list[tuple[Path, Path]] = []
        if module is not None and options.emit_torch is not None:
            others.append((stack.enter_context(beside(options.emit_torch)), options.emit_torch))
            from normfold.rewrite.module import save_module

            save_module(module, others[-1][0], name=options.emit_torch)
        warnings = report.warnings if options.verify else (*report.warnings, NOT_VERIFIED)
        also = (*(str(place) for _, place in others), *map(str, options.reports))
        seconds = dict(clock.seconds)
        report = replace(report, graphs=tuple(graphs), warnings=warnings, also_written=also, seconds=seconds)
        for place, text in texts(report, options):
            others.append((stack.enter_context(beside(place)), place))
            with writing(place):
                others[-1][0].write_text(text, encoding="utf-8")
        _move(data, others, list(zip(drafts, places, strict=True)), planned, force=options.force)
    return report


def texts(report: Report, options: FoldOptions) -> Iterator[tuple[Path, str]]:
    """The reports that are asked for, each with its place."""
    if options.report is not None:
        yield options.report, report.dumps()
    if options.html is not None:
        yield options.html, fold_html(report)


def _draft(
    graph: Folded, planned: Planned, paths: tuple[Path, Path], options: FoldOptions, clock: Clock
) -> tuple[GraphReport, tuple[Path, ...]]:
    """Save one graph as a draft, verified, and the files of its weights; its report has no output if that failed.

    paths: where to write it now, and where it is to be moved.
    """
    draft, place = paths
    report, record = graph.report, None
    with scratch() as elsewhere:
        unfolded = (graph.source.path, *stored_beside(graph.original))
        if options.verify:
            # Here, for these import torch, which nobody needs who has a graph and does not verify.
            from normfold.graph.float64 import parameter_count
            from normfold.verify.sizes import fitting
            from normfold.verify.truth import establish
            from normfold.verify.yardstick_float16 import lay

            if graph.source.graph is None or graph.source.in_memory:
                with clock.stage("save", "writing the unfolded graph"):
                    unfolded = save(graph.original, elsewhere / "unfolded.onnx")
            with clock.stage("verify", "running the source in float64"):
                inputs, parameters = graph.source.inputs, parameter_count(graph.original)
                if graph.source.module is None:
                    inputs = fitting(inputs, unfolded[0], parameters=parameters)
                    report = replace(report, inputs=tuple(map(str, inputs)))
                half = elsewhere / "unfolded.float16.onnx" if options.half else None
                cases = _cases(inputs, half=half is not None, parameters=parameters)
                truth = establish(graph.source.module, unfolded[0], inputs, cases=cases)
                yardstick, edges = lay(truth, unfolded[0], inputs, half=half, powers=graph.powers)
                # The float64 run of a module does not tell what its graph would meet.
                report = replace(report, edges=edges, unexercised=None if truth.from_module else truth.unexercised)
                if report.failed:
                    return report, ()
                record = Sketch.record(yardstick)
        with clock.stage("save", f"writing {place.name}"):
            graph.model.metadata_props[KEY] = _manifest(planned, graph, report, place, record).dumps()
            if graph.model is graph.source.graph and not (options.external_data or graph.source.in_memory):
                files = save_unchanged(graph.source.path, graph.model, draft, name=place)
            else:
                files = save(graph.model, draft, external=options.external_data, name=place)
        if options.verify:
            with clock.stage("verify", "verifying against float64"):
                report = replace(report, edges=(*report.edges, *yardstick.compare(draft)))
            if yardstick.path != unfolded[0]:
                # The yardstick's own graph: of the type that the output has.
                unfolded = (yardstick.path, *data_of(yardstick.path))
        is_file = graph.source.graph is not None and not graph.source.in_memory
        measured = options.verify or (is_file and not options.half)
        output = OutputInfo(
            str(place),
            _size(files),
            sha256_of_file(draft),
            _size(unfolded) if measured else None,
            data=tuple(str(place.with_name(path.name)) for path in files[1:]),
        )
        return replace(report, output=output), files[1:]


def _cases(specs: Sequence[InputSpec], *, half: bool, parameters: int) -> tuple[Case, ...]:
    """Drawn inputs of the source; numbers that float16 has, where the model is going to take float16."""
    if not half:
        return draw_cases(specs, parameters=parameters)
    return tuple(case.typed(specs) for case in draw_cases(half_specs(specs), parameters=parameters))


def _manifest(planned: Planned, graph: Folded, report: GraphReport, place: Path, sketch: Sketch | None) -> Manifest:
    info, relative = planned.report.source, None
    if not graph.source.in_memory:
        # None on another drive.
        with suppress(ValueError):
            relative = Path(os.path.relpath(graph.source.path.resolve(), place.parent.resolve())).as_posix()
    return Manifest(
        version=planned.report.normfold,
        name=info.path.replace("\\", "/").rsplit("/", 1)[-1],
        path=relative,
        sha256=info.sha256,
        arch=info.arch,
        arch_args=info.arch_args,
        inputs=report.inputs,
        ema=planned.load.ema,
        allow_unfinished=planned.load.allow_unfinished,
        task=planned.report.task,
        graph=report.name,
        dtype=planned.report.dtype,
        center=planned.report.center,
        powers=graph.powers,
        norms=tuple(FoldedNorm(site.name, site.kind, site.status, site.into) for site in report.sites),
        sketch=sketch,
    )


def _move(
    data: Sequence[tuple[Path, Path]],
    others: Sequence[tuple[Path, Path]],
    graphs: Sequence[tuple[Path, Path]],
    planned: Planned,
    *,
    force: bool,
) -> None:
    """Move everything to its place: weights first, graphs last, so that no graph refers to what is not there."""
    missing = []
    for draft, place in data:
        if place.exists() and filecmp.cmp(draft, place, shallow=False):
            continue
        if place.exists() and not force:
            raise OutputError(f"{place} exists already, and the weights belong there; replace it with --force")
        missing.append((draft, place))
    kept = {place.resolve() for _, place in data}
    for graph in planned.graphs:
        kept |= {path.resolve() for path in stored_beside(graph.original)}
    replaced = [path for _, place in graphs for path in _own_data(place) if path.resolve() not in kept]
    for draft, place in (*missing, *others, *graphs):
        _log.info("%s: %d bytes", place, draft.stat().st_size)
    move([*missing, *others, *graphs], replaced=replaced)


def _own_data(place: Path) -> tuple[Path, ...]:
    """The files that hold the weights of the graph that is at `place` now, and are named after it: no other graph's."""
    names = re.compile(rf"{re.escape(place.name)}(\.[0-9a-f]+)?\.data")
    if not any(names.fullmatch(path.name) for path in place.parent.iterdir()):
        return ()
    return tuple(path for path in data_of(place) if names.fullmatch(path.name) and path.is_file())


def _size(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)
