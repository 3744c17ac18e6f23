"""The whole run: checkpoint -> export -> analysis -> plan -> rewrite -> verify -> report. Nothing is printed here."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from normfold import __version__
from normfold.analysis import analyse
from normfold.checkpoint import Source
from normfold.clock import Clock, Progress
from normfold.errors import NormfoldError, UsageError, VerificationError
from normfold.export import export
from normfold.files import write_text
from normfold.graph import op_counts, prepare
from normfold.modules import folded_module, save_module
from normfold.origin import Load
from normfold.outputs import Folded, Planned, check_places, write
from normfold.parts import split
from normfold.report import GraphReport, Report, SourceInfo
from normfold.rewrite import rewrite
from normfold.tasks import Task, check_task, places
from normfold.verify import EXPORT_EDGE, RUNTIME_EDGE

AnyPath = str | os.PathLike[str]


class NotFoldedError(NormfoldError):
    """`strict` was asked for and a norm with stored statistics is still there. `report` says which and why."""

    exit_code = 3

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class DifferenceError(VerificationError):
    """The result does not compute what the source computes; nothing was written. `report` has the figures."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def fold(
    source: AnyPath,
    output: AnyPath,
    *,
    arch: str | None = None,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
    task: Task = "forward",
    ema: bool = False,
    opset: int | None = None,
    dry_run: bool = False,
    strict: bool = False,
    verify: bool = True,
    report: AnyPath | None = None,
    emit_torch: AnyPath | None = None,
    trust: bool = False,
    allow_unfinished: bool = False,
    norm_affine: bool = False,
    only: Collection[str] | None = None,
    keep_tied: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Fold the norms of the checkpoint `source` into its weights and write the result to `output` as ONNX.

    arch, model, model_args, inputs, ema, trust, allow_unfinished: see `load_checkpoint`. task: what to export: the
    model's forward, a decoder with its key-value cache, or an encoder-decoder as two files named after `output`
    (OUT.onnx: OUT.encoder.onnx, OUT.decoder.onnx); see `parts.py`. opset: default the newest that the installed
    onnxruntime accepts. dry_run: plan only, write nothing. strict: write nothing, and raise
    NotFoldedError, unless every norm with stored statistics folds. verify: compare the result with the source, and
    raise DifferenceError instead of leaving one that differs. report: where to write R.json (also when `strict` or
    the verification fails). emit_torch: where to write the folded torch module (`Report.to_torch`), pickled, beside the
    output. norm_affine: fold the weight and bias of LayerNorm and RMSNorm too. only: names of the
    norms to fold (Report.sites), by default all. keep_tied: fold nothing that would need a second copy of a weight that
    several operators read, such as a tied embedding. force: replace files that exist. progress: called with a sentence
    at the start of every stage.

    Raises a NormfoldError for every kind of bad input; then nothing has been written.
    """
    check_task(task)
    outputs, report_place = places(Path(output), task), None if report is None else Path(report)
    torch_place = None if emit_torch is None else Path(emit_torch)
    check_places(Path(source), (*outputs, *filter(None, [torch_place])), report_place, force=force)
    clock = Clock(progress or (lambda _: None))
    load = Load(arch, model, model_args, tuple(inputs), ema, trust, allow_unfinished)
    planned = _plan(
        Path(source), load, task, opset=opset, norm_affine=norm_affine, only=only, keep_tied=keep_tied, clock=clock
    )
    result = planned.report
    refused = strict and bool(result.unfolded)
    if not dry_run and not refused:
        # Refused now, the module leaves no output without it.
        module = None if torch_place is None else result.to_torch()
        result = write(planned, outputs, verify=verify, force=force, clock=clock)
        if torch_place is not None and module is not None and not result.failed:
            save_module(module, torch_place)
    result = replace(result, seconds=dict(clock.seconds))
    _write_report(result, report_place)
    if refused:
        raise NotFoldedError(_not_folded(result), result)
    if result.failed:
        raise DifferenceError(_difference(result), result)
    return result


def inspect(
    source: AnyPath,
    *,
    arch: str | None = None,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
    task: Task = "forward",
    ema: bool = False,
    opset: int | None = None,
    trust: bool = False,
    allow_unfinished: bool = False,
    norm_affine: bool = False,
    keep_tied: bool = False,
    progress: Progress | None = None,
) -> Report:
    """What `fold` would do with `source`, without writing anything: the same options, plan and counts."""
    check_task(task)
    clock = Clock(progress or (lambda _: None))
    load = Load(arch, model, model_args, tuple(inputs), ema, trust, allow_unfinished)
    planned = _plan(Path(source), load, task, opset=opset, norm_affine=norm_affine, keep_tied=keep_tied, clock=clock)
    return replace(planned.report, seconds=dict(clock.seconds))


def _plan(
    path: Path,
    load: Load,
    task: Task,
    *,
    opset: int | None,
    norm_affine: bool,
    only: Collection[str] | None = None,
    keep_tied: bool = False,
    clock: Clock,
) -> Planned:
    with clock.stage("load", f"reading {path.name}"):
        source = load(path)
        parts = split(source, task)
    if opset is not None and source.format == "onnx":
        raise UsageError(f"{path} is an ONNX file and keeps its opset; --opset is for checkpoints that are exported")
    graphs = tuple(
        _fold(name, part, opset=opset, norm_affine=norm_affine, only=only, keep_tied=keep_tied, clock=clock)
        for name, part in parts.items()
    )
    report = Report(
        normfold=__version__,
        source=_source_info(source, path),
        graphs=tuple(graph.report for graph in graphs),
        task=task,
        warnings=source.warnings,
    )
    unknown = set(only or ()) - {site.name for site in report.sites}
    if unknown:
        raise UsageError(
            f"--only: {path} has no norm {', '.join(sorted(unknown))}; `normfold inspect` lists those it has"
        )
    return Planned(load, graphs, report)


def _fold(
    name: str,
    source: Source,
    *,
    opset: int | None,
    norm_affine: bool,
    only: Collection[str] | None,
    keep_tied: bool,
    clock: Clock,
) -> Folded:
    """One graph of the task, folded and not yet written."""
    of_graph = f" of the {name}" if name else ""
    with clock.stage("export", f"exporting {f'the {name} ' if name else ''}to ONNX"):
        original = export(source, opset=opset)
    with clock.stage("analyse", f"looking for norms{of_graph} and where they can go"):
        graph = prepare(original)
        plan = analyse(graph, norms=source.norms, norm_affine=norm_affine, only=only, keep_tied=keep_tied)
    with clock.stage("rewrite", "folding"):
        # With nothing to fold the graph is left exactly as it is.
        folded = original if plan.is_empty else rewrite(graph, plan)
        before = op_counts(graph)
        after = before if plan.is_empty else op_counts(folded)
    inputs = tuple(str(spec) for spec in source.inputs)
    module = partial(folded_module, source, graph, plan, folded)
    report = GraphReport(name, inputs, plan.sites, before, after, untied=plan.untied, merged=plan.merges, module=module)
    return Folded(source, original, folded, report)


def _write_report(report: Report, place: Path | None) -> None:
    if place is not None:
        write_text(place, report.dumps())


def _source_info(source: Source, path: Path) -> SourceInfo:
    return SourceInfo(
        path=str(path),
        sha256=source.sha256,
        format=source.format,
        arch=source.arch,
        arch_args=json.loads(json.dumps(dict(source.arch_args), default=str)),
        inputs=tuple(str(spec) for spec in source.inputs),
        trusted=source.trusted,
    )


def _not_folded(report: Report) -> str:
    kept = [f"{site.name} ({site.kind}): {site.reason or site.code or site.status}" for site in report.unfolded]
    more = f"; and {len(kept) - 3} more" if len(kept) > 3 else ""
    return (
        f"--strict: {len(kept)} of {len(report.sites)} norms not folded, nothing written. {'; '.join(kept[:3])}{more}"
    )


def _difference(report: Report) -> str:
    graph = next(graph for graph in report.graphs if graph.failed)
    edge = graph.failed[0]
    figures = f"relative error {edge.relative:.2e}, allowed {edge.bound:.2e} (absolute {edge.max_abs:.2e})"
    name = f"{graph.name}: {edge.name}" if graph.name else edge.name
    text = f"verification failed, nothing written: {name}: {figures}; {edge.detail}"
    if edge.name == EXPORT_EDGE:
        return (
            f"{text}. Where only some sizes disagree, the exporter baked a size into the graph: look for "
            "int(x.shape[...]) or a division of a shape in the model, or give that axis a fixed size, for example "
            '--input "x:float32[1,3,224,224]"'
        )
    if edge.name == RUNTIME_EDGE:
        return f"{text}. The graph is right and the runtime's optimiser is not: try another onnxruntime, or --opset"
    return f"{text}. The fold is wrong, which is a fault of normfold: please report it"
