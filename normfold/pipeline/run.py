"""The whole run: checkpoint -> export -> analysis -> plan -> rewrite -> verify -> report. Nothing is printed here."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.checkpoint.options import LoadOptions
from normfold.checkpoint.source import Source
from normfold.errors import DifferenceError, NotFoldedError, OutputError
from normfold.export.tasks import Task, places
from normfold.inputs.cases import BY_VALUES
from normfold.pipeline.early import check_output, check_places
from normfold.pipeline.look import AnyPath, plan, several, source_given
from normfold.pipeline.options import FoldOptions
from normfold.pipeline.outputs import texts, write
from normfold.report.report import Report
from normfold.system.clock import Clock, Progress
from normfold.system.files import write_text
from normfold.system.text import first_few
from normfold.verify.judge import EXPORT_EDGE, HALF_EDGE, RUNTIME_EDGE

if TYPE_CHECKING:
    from normfold.checkpoint.in_memory import Dynamic, Examples, Model


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
    load_options = LoadOptions(
        arch,
        model,
        model_args,
        several(inputs),
        ema=ema,
        trust=trust,
        allow_unfinished=allow_unfinished,
        trust_code=trust_code,
    )
    options = FoldOptions(
        task=task,
        opset=opset,
        target=target,
        dtype=dtype,
        calibrate=tuple(map(Path, [calibrate] if isinstance(calibrate, str | os.PathLike) else calibrate)),
        norm_affine=norm_affine,
        center=center,
        only=several(only or ()),
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
    return run(
        source_given(source, load_options, example_inputs, dynamic), Path(output), load_options, options, progress
    )


def run(
    source: Path | Source,
    output: Path,
    load_options: LoadOptions,
    options: FoldOptions,
    progress: Progress | None = None,
    *,
    began: float | None = None,
) -> Report:
    """`fold`, its options as two values. began: see `Clock`."""
    check_output(output)
    outputs = places(output, options.task)
    check_places(
        source if isinstance(source, Path) else None,
        (*outputs, *filter(None, [options.emit_torch])),
        options.reports,
        force=options.force,
    )
    clock = Clock(progress or (lambda _: None), began=began)
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


def _write_reports(report: Report, options: FoldOptions) -> str:
    """Write the reports of a run without output; a clause for the error message where that fails, else nothing."""
    try:
        for place, text in texts(report, options):
            write_text(place, text)
    except OutputError as error:
        return f"; {error}"
    return ""


def _not_folded(report: Report) -> str:
    kept = [f"{site.name} ({site.kind}): {site.reason or site.code or site.status}" for site in report.unfolded]
    listed = first_few(kept, between="; ")
    return f"--strict: {len(kept)} of {len(report.norms)} norms not folded, nothing written. {listed}"


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
