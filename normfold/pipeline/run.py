"""The whole run: checkpoint -> export -> analysis -> plan -> rewrite -> verify -> report. Nothing is printed here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from normfold._version import __version__
from normfold.analysis.plan import Plan
from normfold.checkpoint.in_memory import Dynamic, Examples, Model, is_model, source_of
from normfold.checkpoint.load import load
from normfold.checkpoint.options import LoadOptions
from normfold.checkpoint.source import Source
from normfold.errors import NormfoldError, OutputError, UsageError, VerificationError
from normfold.export.opset import opset_for
from normfold.export.parts import split
from normfold.export.tasks import Task, places
from normfold.export.to_onnx import export
from normfold.graph.operators import op_counts
from normfold.graph.operators import opset as opset_of
from normfold.inputs.cases import BY_VALUES
from normfold.pipeline.early import check_places
from normfold.pipeline.fold_graph import fold_graph
from normfold.pipeline.options import FoldOptions
from normfold.pipeline.outputs import Folded, Planned, texts, write
from normfold.report.report import GraphReport, Report, SourceInfo
from normfold.system.clock import Clock, Progress
from normfold.system.files import write_text
from normfold.system.numbers import HALF
from normfold.verify.judge import EXPORT_EDGE, HALF_EDGE, RUNTIME_EDGE

# A weight whose channels are this many times further apart has lost a bit where all share one scale.
WIDENED = 2.0

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
    source: AnyPath | Model,
    output: AnyPath,
    *,
    example_inputs: Examples | None = None,
    dynamic: Dynamic | None = None,
    arch: str | None = None,
    model: str | Callable[..., Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    inputs: str | Sequence[str] = (),
    task: Task = "forward",
    ema: bool = False,
    opset: int | None = None,
    target: str | None = None,
    dtype: str | None = None,
    calibrate: AnyPath | Sequence[AnyPath] = (),
    dry_run: bool = False,
    strict: bool = False,
    verify: bool = True,
    report: AnyPath | None = None,
    html: AnyPath | None = None,
    emit_torch: AnyPath | None = None,
    trust: bool = False,
    allow_unfinished: bool = False,
    trust_code: bool = False,
    norm_affine: bool = False,
    center: bool = False,
    only: str | Collection[str] | None = None,
    keep_tied: bool = False,
    equalize: bool = False,
    fixed_statistics: bool = False,
    external_data: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Fold the norms of `source` into its weights and write the result to `output` as ONNX.

    source: the path of a checkpoint, or a model in memory, which is left as it was: a torch.nn.Module, an
    ExportedProgram, an onnx.ModelProto, an onnx_ir.Model. example_inputs: what a module takes: a tensor, several in the
    order of `forward`, or a mapping by name. dynamic: its axes that may have other sizes, `{"x": {0: "batch"}}`.
    arch, model, model_args, inputs, ema, trust, trust_code, allow_unfinished: see `checkpoint.options.LoadOptions`; the
    other options: see `pipeline.options.FoldOptions`. progress: called with a sentence at the start of every stage.

    Raises NotFoldedError where `strict` is not met, DifferenceError where the verification fails, and a NormfoldError
    for every kind of bad input; then nothing has been written.
    """
    load_options = LoadOptions(arch, model, model_args, _several(inputs), ema, trust, allow_unfinished, trust_code)
    options = FoldOptions(
        task=task,
        opset=opset,
        target=target,
        dtype=dtype,
        calibrate=tuple(map(Path, [calibrate] if isinstance(calibrate, str | os.PathLike) else calibrate)),
        norm_affine=norm_affine,
        center=center,
        only=_several(only or ()),
        keep_tied=keep_tied,
        equalize=equalize,
        fixed_statistics=fixed_statistics,
        dry_run=dry_run,
        strict=strict,
        verify=verify,
        report=None if report is None else Path(report),
        html=None if html is None else Path(html),
        emit_torch=None if emit_torch is None else Path(emit_torch),
        external_data=external_data,
        force=force,
    )
    return run(_source(source, load_options, example_inputs, dynamic), Path(output), load_options, options, progress)


def _several(texts: str | Collection[str]) -> tuple[str, ...]:
    """A list of strings, or one where a list is meant."""
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _source(
    given: AnyPath | Model, load_options: LoadOptions, examples: Examples | None, dynamic: Dynamic | None
) -> Path | Source:
    """The path of a file, or a model in memory as a source. Raises UsageError for what is neither."""
    if is_model(given):
        return source_of(given, load_options, examples=examples, dynamic=dynamic)
    if not isinstance(given, str | os.PathLike):
        raise UsageError(
            f"the source is of type {type(given).__name__}; give the path of a checkpoint, as in "
            'normfold.fold("model.pt", "out.onnx"), or a torch.nn.Module, an ExportedProgram or an ONNX model, as in '
            'normfold.fold(module, "out.onnx", example_inputs=(x,), dynamic={"x": {0: "batch"}})'
        )
    if examples is not None or dynamic is not None:
        raise UsageError(
            f"{os.fspath(given)} is a file: example_inputs and dynamic are for a module; inputs=[...] says the same"
        )
    return Path(given)


def run(
    source: Path | Source,
    output: Path,
    load_options: LoadOptions,
    options: FoldOptions,
    progress: Progress | None = None,
) -> Report:
    """`fold`, its options as two values."""
    outputs = places(output, options.task)
    check_places(
        source if isinstance(source, Path) else None,
        (*outputs, *filter(None, [options.emit_torch])),
        options.reports,
        force=options.force,
    )
    clock = Clock(progress or (lambda _: None))
    planned = plan(source, load_options, options, clock)
    result = planned.report
    refused = options.strict and bool(result.unfolded)
    if not options.dry_run and not refused:
        # Refused now, the module leaves no output without it.
        module = None if options.emit_torch is None else result.to_torch()
        result = write(planned, outputs, options, module, clock)
        if not result.failed:
            return result
    result = replace(result, seconds=dict(clock.seconds))
    unwritten = _write_reports(result, options)
    if refused:
        raise NotFoldedError(_not_folded(result) + unwritten, result)
    if result.failed:
        raise DifferenceError(_difference(result) + unwritten, result)
    if unwritten:
        raise OutputError(unwritten.removeprefix("; "))
    return result


def inspect(
    source: AnyPath | Model,
    *,
    example_inputs: Examples | None = None,
    dynamic: Dynamic | None = None,
    arch: str | None = None,
    model: str | Callable[..., Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    inputs: str | Sequence[str] = (),
    task: Task = "forward",
    ema: bool = False,
    opset: int | None = None,
    target: str | None = None,
    trust: bool = False,
    allow_unfinished: bool = False,
    trust_code: bool = False,
    norm_affine: bool = False,
    keep_tied: bool = False,
    progress: Progress | None = None,
) -> Report:
    """What `fold` would do with `source`, without writing anything: the same options, plan and counts."""
    load_options = LoadOptions(arch, model, model_args, _several(inputs), ema, trust, allow_unfinished, trust_code)
    options = FoldOptions(task=task, opset=opset, target=target, norm_affine=norm_affine, keep_tied=keep_tied)
    return look(_source(source, load_options, example_inputs, dynamic), load_options, options, progress)


def look(
    source: Path | Source, load_options: LoadOptions, options: FoldOptions, progress: Progress | None = None
) -> Report:
    """`inspect`, its options as two values."""
    clock = Clock(progress or (lambda _: None))
    planned = plan(source, load_options, options, clock)
    return replace(planned.report, seconds=dict(clock.seconds))


def plan(source: Path | Source, load_options: LoadOptions, options: FoldOptions, clock: Clock) -> Planned:
    """Every graph of the task, folded and not yet written."""
    path = source if isinstance(source, Path) else source.path
    with clock.stage("load", f"reading {path.name}"):
        source = load(source, load_options) if isinstance(source, Path) else source
        parts = split(source, options.task)
    if (options.opset is not None or options.target is not None) and source.graph is not None:
        asked = "--target" if options.opset is None else "--opset"
        raise UsageError(f"{path} is an ONNX file and keeps its opset; {asked} is for checkpoints that are exported")
    graphs = tuple(_fold(name, part, options, clock) for name, part in parts.items())
    report = Report(
        normfold=__version__,
        source=_source_info(source, path),
        graphs=tuple(graph.report for graph in graphs),
        task=options.task,
        dtype=HALF if options.half else None,
        center=options.center,
        warnings=(*source.warnings, *(warning for graph in graphs for warning in graph.warnings)),
    )
    unknown = set(options.only) - {site.name for site in report.sites}
    if unknown:
        raise UsageError(
            f"--only: {path} has no norm {', '.join(sorted(unknown))}; `normfold inspect` lists those it has"
        )
    return Planned(load_options, graphs, report)


def _fold(name: str, source: Source, options: FoldOptions, clock: Clock) -> Folded:
    """One graph of the task, folded and not yet written."""
    of_graph = f" of the {name}" if name else ""
    with clock.stage("export", f"exporting {f'the {name} ' if name else ''}to ONNX"):
        wanted, why = opset_for(options.target, options.opset)
        original = export(source, opset=wanted, exactly=options.opset is not None)
    done = fold_graph(original, source, options, clock, of_graph=of_graph)
    before = op_counts(done.prepared)
    after = before if done.model is original else op_counts(done.model)
    report = GraphReport(
        name,
        tuple(str(spec) for spec in source.inputs),
        done.plan.sites,
        before,
        after,
        opset=opset_of(original),
        opset_reason="as its source has it" if source.graph is not None else why,
        untied=done.plan.untied,
        merged=done.plan.merges,
        spreads=done.plan.spreads,
        room=done.room,
        centred=tuple(norm for _, norm in done.centring.norms),
        fixed=done.fixed.norms,
        module=done.module,
    )
    stay = tuple(f"--center: {norm} stays a LayerNorm: {why.reason}" for norm, why in done.centring.kept)
    matter = tuple(f"--fixed-statistics: {norm} stays as it is: {why.reason}" for norm, why in done.fixed.kept)
    warnings = (*done.warnings, *stay, *matter, *_widened(done.plan))
    return Folded(source, original, done.model, report, warnings, done.rescaled)


def _widened(plan: Plan) -> tuple[str, ...]:
    """What there is to say where one step of eight bits for a whole weight has become too wide for its channels."""
    found = sorted((one for one in plan.spreads if one.growth >= WIDENED), key=lambda one: -one.growth)
    if not found:
        return ()
    most = ", ".join(f"{one.name} ({one.growth:.1f} times)" for one in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    advice = "quantise with a scale for each channel" + ("" if found[0].equalized else ", or fold with --equalize")
    return (f"Folding widened the spread between the output channels of {most}{more}. For int8, {advice}.",)


def _write_reports(report: Report, options: FoldOptions) -> str:
    """Write reports that come alone; what there is to say where that fails, which changes nothing of the rest."""
    try:
        for place, text in texts(report, options):
            write_text(place, text)
    except OutputError as error:
        return f"; {error}"
    return ""


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
        f"--strict: {len(kept)} of {len(report.norms)} norms not folded, nothing written. {'; '.join(kept[:3])}{more}"
    )


def _difference(report: Report) -> str:
    graph = next(graph for graph in report.graphs if graph.failed)
    edge = graph.failed[0]
    figures = f"relative error {edge.relative:.2e}, allowed {edge.bound:.2e} (absolute {edge.max_abs:.2e})"
    name = f"{graph.name}: {edge.name}" if graph.name else edge.name
    text = f"verification failed, nothing written: {name}: {figures}; {edge.detail}"
    if edge.name == EXPORT_EDGE and BY_VALUES in edge.detail:
        return (
            f"{text}. The exported graph computes something else for numbers of that size, as where an operator "
            "overflows and the module's does not: try another --opset, and please report it"
        )
    if edge.name == EXPORT_EDGE:
        return (
            f"{text}. Where only some sizes disagree, the exporter baked a size into the graph: look for "
            "int(x.shape[...]) or a division of a shape in the model, or give that axis a fixed size, for example "
            '--input "x:float32[1,3,224,224]"'
        )
    if edge.name == HALF_EDGE:
        return f"{text}. float16 cannot hold this model, folded or not: leave --dtype out"
    if edge.name == RUNTIME_EDGE:
        return f"{text}. The graph is right and the runtime's optimiser is not: try another onnxruntime, or --opset"
    return f"{text}. The fold is wrong, which is a fault of normfold: please report it"
