"""The whole run: checkpoint -> export -> analysis -> plan -> rewrite -> verify -> report. Nothing is printed here.

A result is written under its own name into a temporary directory beside the place where it belongs, verified there and
moved only then: whoever finds the output finds a whole, verified file, or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold import __version__
from normfold.analysis import analyse
from normfold.checkpoint import Source, load_checkpoint
from normfold.errors import NormfoldError, OutputError, UsageError, VerificationError
from normfold.export import export
from normfold.graph import op_counts, prepare, save
from normfold.report import OutputInfo, Report, SourceInfo, manifest
from normfold.rewrite import rewrite
from normfold.truth import establish
from normfold.verify import EXPORT_EDGE, RUNTIME_EDGE, Edge, compare_export, compare_folded

if TYPE_CHECKING:
    import onnx_ir as ir

Progress = Callable[[str], None]
AnyPath = str | os.PathLike[str]

MANIFEST_KEY = "normfold"


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
    ema: bool = False,
    opset: int | None = None,
    dry_run: bool = False,
    strict: bool = False,
    verify: bool = True,
    report: AnyPath | None = None,
    trust: bool = False,
    allow_unfinished: bool = False,
    norm_affine: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Fold the norms of the checkpoint `source` into its weights and write the result to `output` as ONNX.

    arch, model, model_args, inputs, ema, trust, allow_unfinished: see `load_checkpoint`. opset: default the newest that
    the installed onnxruntime accepts. dry_run: plan only, write nothing. strict: write nothing, and raise
    NotFoldedError, unless every norm with stored statistics folds. verify: compare the result with the source, and
    raise DifferenceError instead of leaving one that differs. report: where to write R.json (also when `strict` or
    the verification fails). norm_affine: fold the weight and bias of LayerNorm and RMSNorm too. force: replace files
    that exist. progress: called with a sentence at the start of every stage.

    Raises a NormfoldError for every kind of bad input; then nothing has been written.
    """
    place, report_place = Path(output), None if report is None else Path(report)
    check_places(Path(source), place, report_place, force=force)
    clock = _Clock(progress or (lambda _: None))
    load = _Load(arch, model, model_args, tuple(inputs), ema=ema, trust=trust, allow_unfinished=allow_unfinished)
    planned = _plan(Path(source), load, opset=opset, norm_affine=norm_affine, clock=clock)
    result = planned.report
    refused = strict and bool(result.unfolded)
    if not dry_run and not refused:
        result = _write(planned, place, verify=verify, force=force, clock=clock)
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
    ema: bool = False,
    opset: int | None = None,
    trust: bool = False,
    allow_unfinished: bool = False,
    norm_affine: bool = False,
    progress: Progress | None = None,
) -> Report:
    """What `fold` would do with `source`, without writing anything: the same options, plan and counts."""
    clock = _Clock(progress or (lambda _: None))
    load = _Load(arch, model, model_args, tuple(inputs), ema=ema, trust=trust, allow_unfinished=allow_unfinished)
    planned = _plan(Path(source), load, opset=opset, norm_affine=norm_affine, clock=clock)
    return replace(planned.report, seconds=dict(clock.seconds))


def check_places(source: Path, output: Path, report: Path | None, *, force: bool) -> None:
    """Raise OutputError now for what would otherwise fail after minutes of work."""
    places = [output] if report is None else [output, report]
    for place in places:
        folder = place.parent
        if place.is_dir():
            raise OutputError(f"{place} is a directory; name the file to write in it")
        if not folder.is_dir():
            raise OutputError(f"{place}: there is no directory {folder}; make it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{place}: the directory {folder} is not writable")
        if place.exists() and source.exists() and place.samefile(source):
            raise OutputError(f"{place} is the source itself; write to another file")
        if place.exists() and not force:
            raise OutputError(f"{place} exists already; choose another name, or replace it with --force")
    if report is not None and report.absolute() == output.absolute():
        raise OutputError(f"{output} cannot be both the output and the report")


@dataclass(frozen=True, slots=True)
class _Load:
    arch: str | None
    model: str | None
    model_args: Mapping[str, Any] | None
    inputs: tuple[str, ...]
    ema: bool
    trust: bool
    allow_unfinished: bool

    def __call__(self, path: Path) -> Source:
        return load_checkpoint(
            path,
            arch=self.arch,
            model=self.model,
            model_args=self.model_args,
            inputs=self.inputs,
            ema=self.ema,
            trust=self.trust,
            allow_unfinished=self.allow_unfinished,
        )


@dataclass(frozen=True, slots=True)
class _Planned:
    source: Source
    original: ir.Model
    folded: ir.Model
    report: Report


@dataclass(frozen=True, slots=True)
class _Clock:
    """Names each stage to `progress` when it starts, and keeps how long it took."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, sentence: str) -> Iterator[None]:
        self.progress(sentence)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _plan(path: Path, load: _Load, *, opset: int | None, norm_affine: bool, clock: _Clock) -> _Planned:
    with clock.stage("load", f"reading {path.name}"):
        source = load(path)
    if opset is not None and source.format == "onnx":
        raise UsageError(f"{path} is an ONNX file and keeps its opset; --opset is for checkpoints that are exported")
    with clock.stage("export", "exporting to ONNX"):
        original = export(source, opset=opset)
    with clock.stage("analyse", "looking for norms and where they can go"):
        graph = prepare(original)
        plan = analyse(graph, norms=source.norms, norm_affine=norm_affine)
    with clock.stage("rewrite", "folding"):
        # With nothing to fold the graph is left exactly as it is.
        folded = original if plan.is_empty else rewrite(graph, plan)
        before = op_counts(graph)
        after = before if plan.is_empty else op_counts(folded)
    report = Report(
        normfold=__version__,
        source=_source_info(source, path),
        sites=plan.sites,
        nodes_before=before,
        nodes_after=after,
        warnings=source.warnings,
    )
    return _Planned(source, original, folded, report)


def _write(planned: _Planned, place: Path, *, verify: bool, force: bool, clock: _Clock) -> Report:
    """Save the folded graph beside its place, verify it there, and move it; a failed verification moves nothing."""
    report = planned.report
    with (
        tempfile.TemporaryDirectory(prefix=".normfold-", dir=place.parent) as beside,
        tempfile.TemporaryDirectory(prefix="normfold-") as elsewhere,
    ):
        draft, unfolded = Path(beside) / place.name, planned.source.path
        with clock.stage("save", f"writing {place.name}"):
            if planned.source.format != "onnx" and verify:
                unfolded = Path(elsewhere) / "unfolded.onnx"
                save(planned.original, unfolded)
            planned.folded.metadata_props[MANIFEST_KEY] = manifest(report.normfold, report.source, report.sites)
            save(planned.folded, draft)
        if verify:
            with clock.stage("verify", "verifying against float64"):
                report = replace(report, edges=_verify(planned.source, unfolded, draft))
            if report.failed:
                return report
        else:
            report = replace(report, warnings=(*report.warnings, "The output has not been verified (--no-verify)."))
        unfolded_bytes = _size(unfolded) if verify or planned.source.format == "onnx" else None
        info = OutputInfo(str(place), _size(draft), _sha256(draft), unfolded_bytes)
        _move(draft, place, force=force)
        return replace(report, output=info)


def _verify(source: Source, unfolded: Path, folded: Path) -> tuple[Edge, ...]:
    truth = establish(source.module, unfolded, source.inputs)
    if source.module is None:
        return compare_folded(truth, unfolded, folded)
    exported = compare_export(unfolded, truth)
    # A fold of a wrong export has nothing to be compared with.
    return (exported, *compare_folded(truth, unfolded, folded)) if exported.passed else (exported,)


def _move(draft: Path, place: Path, *, force: bool) -> None:
    """Move a saved graph to its place, external data first: the graph never refers to what is not there."""
    data = sorted(path for path in draft.parent.iterdir() if path != draft)
    for path in data:
        target = place.parent / path.name
        if target.exists() and not force:
            raise OutputError(
                f"{target} exists already, and the weights belong there; move it, or replace it with --force"
            )
    for path in (*data, draft):
        os.replace(path, place.parent / path.name)


def _write_report(report: Report, place: Path | None) -> None:
    if place is None:
        return
    handle, draft = tempfile.mkstemp(prefix=".normfold-", dir=place.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(report.dumps())
        # mkstemp makes files that only their owner may read; a report is a file like any other.
        os.chmod(draft, 0o666 & ~_umask())
        os.replace(draft, place)
    except BaseException:
        os.unlink(draft)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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


def _size(path: Path) -> int:
    """Bytes of a graph and of the external data that lies beside it under its name."""
    return sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.exists())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _not_folded(report: Report) -> str:
    kept = [f"{site.name} ({site.kind}): {site.reason or site.code or site.status}" for site in report.unfolded]
    more = f"; and {len(kept) - 3} more" if len(kept) > 3 else ""
    return (
        f"--strict: {len(kept)} of {len(report.sites)} norms not folded, nothing written. {'; '.join(kept[:3])}{more}"
    )


def _difference(report: Report) -> str:
    edge = report.failed[0]
    figures = f"relative error {edge.relative:.2e}, allowed {edge.bound:.2e} (absolute {edge.max_abs:.2e})"
    text = f"verification failed, nothing written: {edge.name}: {figures}; {edge.detail}"
    if edge.name == EXPORT_EDGE:
        return (
            f"{text}. Where only some sizes disagree, the exporter baked a size into the graph: look for "
            "int(x.shape[...]) or a division of a shape in the model, or give that axis a fixed size, for example "
            '--input "x:float32[1,3,224,224]"'
        )
    if edge.name == RUNTIME_EDGE:
        return f"{text}. The graph is right and the runtime's optimiser is not: try another onnxruntime, or --opset"
    return f"{text}. The fold is wrong, which is a fault of normfold: please report it"
