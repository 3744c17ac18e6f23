"""Everything up to the plan: what `inspect` shows, and what `fold` carries out. Nothing is written here.

Of an ONNX file it is made without torch, which takes longer to import than most graphs to look at.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold._version import __version__
from normfold.analysis.plan import Plan
from normfold.checkpoint.load import load
from normfold.checkpoint.options import LoadOptions
from normfold.checkpoint.source import Source
from normfold.errors import UsageError
from normfold.export.parts import split
from normfold.export.tasks import Task
from normfold.graph.operators import op_counts
from normfold.graph.operators import opset as opset_of
from normfold.graph.powers import Rescaling
from normfold.pipeline.early import check_kept
from normfold.pipeline.fold_graph import fold_graph
from normfold.pipeline.options import FoldOptions
from normfold.report.report import GraphReport, Report, SourceInfo
from normfold.system.clock import Clock, Progress
from normfold.system.numbers import HALF
from normfold.system.text import first_few

if TYPE_CHECKING:
    import onnx_ir as ir

    from normfold.checkpoint.in_memory import Dynamic, Examples, Model

_log = logging.getLogger(__name__)

# A weight whose channels are this many times further apart has lost a bit where all share one scale.
WIDENED = 2.0

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Folded:
    """One graph of the task: what it was exported from, as it was exported, and folded.

    powers: of two, in which float16 can hold the original, where it could not.
    """

    source: Source
    original: ir.Model
    model: ir.Model
    report: GraphReport
    warnings: tuple[str, ...] = ()
    powers: Rescaling | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """All graphs of a run, none of them written. report: without outputs and comparisons."""

    load: LoadOptions
    graphs: tuple[Folded, ...]
    report: Report


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
    options = FoldOptions(task=task, opset=opset, target=target, norm_affine=norm_affine, keep_tied=keep_tied)
    return look(source_given(source, load_options, example_inputs, dynamic), load_options, options, progress)


def look(
    source: Path | Source,
    load_options: LoadOptions,
    options: FoldOptions,
    progress: Progress | None = None,
    *,
    began: float | None = None,
) -> Report:
    """`inspect`, its options as two values. began: see `Clock`."""
    clock = Clock(progress or (lambda _: None), began=began)
    planned = plan(source, load_options, options, clock)
    return replace(planned.report, seconds=dict(clock.seconds))


def several(texts: str | Collection[str]) -> tuple[str, ...]:
    """A list of strings, or one where a list is meant."""
    return (texts,) if isinstance(texts, str) else tuple(texts)


def source_given(
    given: AnyPath | Model, load_options: LoadOptions, examples: Examples | None, dynamic: Dynamic | None
) -> Path | Source:
    """The path of a file, or a model in memory as a source. Raises UsageError for what is neither."""
    if not isinstance(given, str | os.PathLike):
        # Here, for it imports torch; a model in memory has done so already, or is of onnx.
        from normfold.checkpoint.in_memory import is_model, source_of

        if is_model(given):
            return source_of(given, load_options, examples=examples, dynamic=dynamic)
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


def plan(source: Path | Source, load_options: LoadOptions, options: FoldOptions, clock: Clock) -> Planned:
    """Every graph of the task, folded and not yet written."""
    path = source if isinstance(source, Path) else source.path
    with clock.stage("load", f"reading {path.name}"):
        source = load(source, load_options) if isinstance(source, Path) else source
        parts = split(source, options.task)
    if source.graph is not None:
        check_kept(path, options.opset, options.target)
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
    names = {site.name for site in report.sites}
    unknown = sorted(set(options.only) - names)
    if unknown:
        close = sorted({one for name in unknown for one in difflib.get_close_matches(name, sorted(names), n=1)})
        likely = f"did you mean {', '.join(close)}? " if close else ""
        raise UsageError(
            f"--only: {path} has no norm {', '.join(unknown)}; {likely}`normfold inspect` lists those it has"
        )
    return Planned(load_options, graphs, report)


def _fold(name: str, source: Source, options: FoldOptions, clock: Clock) -> Folded:
    """One graph of the task, folded and not yet written."""
    of_graph = f" of the {name}" if name else ""
    original, why = source.graph, "as its source has it"
    if original is None:
        with clock.stage("export", f"exporting {f'the {name} ' if name else ''}to ONNX"):
            # Here, for these import torch, onnxscript and onnxruntime, and a graph needs none of them.
            from normfold.export.opset import opset_for
            from normfold.export.to_onnx import export

            wanted, why = opset_for(options.target, options.opset)
            original = export(source, opset=wanted, exactly=options.opset is not None)
    _log.info("opset %d, %s; %d operators", opset_of(original), why, sum(op_counts(original).values()))
    done = fold_graph(original, source, options, clock, of_graph=of_graph)
    for site in done.plan.sites:
        into = f" into {', '.join(site.into)}" if site.into else ""
        refused = f"; {site.code}: {site.reason}" if site.code else ""
        _log.info("%s (%s, %d channels): %s%s%s", site.name, site.kind, site.channels, site.status, into, refused)
    before = op_counts(done.prepared)
    after = before if done.model is original else op_counts(done.model)
    report = GraphReport(
        name,
        tuple(str(spec) for spec in source.inputs),
        done.plan.sites,
        before,
        after,
        opset=opset_of(original),
        opset_reason=why,
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
    return Folded(source, original, done.model, report, warnings, done.powers)


def _widened(plan: Plan) -> tuple[str, ...]:
    """A warning where one 8-bit step for a whole weight has become too wide for its channels."""
    found = sorted((one for one in plan.spreads if one.growth >= WIDENED), key=lambda one: -one.growth)
    if not found:
        return ()
    most = first_few([f"{one.name} ({one.growth:.1f} times)" for one in found])
    advice = "quantise with a scale for each channel" + ("" if found[0].equalized else ", or fold with --equalize")
    return (f"Folding widened the spread between the output channels of {most}. For int8, {advice}.",)


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
