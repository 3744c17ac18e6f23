"""The command line: reads options, prints, sets the exit code. Everything heavy is imported when a command runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normfold._version import __version__
from normfold.checkpoint.options import LoadOptions
from normfold.cli.bench import bench
from normfold.cli.check import check
from normfold.cli.diff import diff
from normfold.cli.help import Command
from normfold.cli.recalibrate import recalibrate
from normfold.cli.streams import check_json_place, file_of, keep_and_tell, tell
from normfold.cli.terminal import (
    AffineOption,
    ArchOption,
    CalibrateOption,
    CenterOption,
    CodeOption,
    DebugOption,
    DtypeOption,
    EmaOption,
    EqualizeOption,
    FixedOption,
    HtmlOption,
    InputOption,
    JsonOption,
    ModelArgsOption,
    ModelOption,
    OpsetOption,
    QuietOption,
    SourceArgument,
    TargetOption,
    TaskOption,
    TiedOption,
    TrustOption,
    UnfinishedOption,
    VerboseOption,
    exit_codes,
    json_object,
    print_report,
    print_rich,
    with_progress,
)
from normfold.cli.terminal import (
    run as run_app,
)
from normfold.cli.verify import verify
from normfold.errors import UsageError
from normfold.pipeline import early
from normfold.pipeline.options import FoldOptions
from normfold.system.allocator import expect_large_tensors
from normfold.system.clock import BEGAN
from normfold.system.ort import check_one_build, without_telemetry
from normfold.system.text import json_text

if TYPE_CHECKING:
    from normfold.report.report import Report


app = typer.Typer(
    help="Fold norms with stored statistics (UN, RepBN, PRepBN, BatchNorm, PowerNorm) into the weights around them.",
    add_completion=True,
    pretty_exceptions_enable=False,
    # Rich help costs more time to import than everything else here together.
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"normfold {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fold norms with stored statistics into the weights around them."""


@app.command(
    cls=Command,
    epilog="Example: normfold fold checkpoint.pt -o model.onnx --report report.json",
    short_help="Checkpoint in, folded and verified ONNX out.",
)
def fold(
    source: SourceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.onnx", help="Where to write the result.")],
    arch: ArchOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    inputs: InputOption = None,
    task: TaskOption = "forward",
    ema: EmaOption = False,
    opset: OpsetOption = None,
    target: TargetOption = None,
    dtype: DtypeOption = None,
    calibrate: CalibrateOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write no output.")] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit 3 and leave no output if a norm with stored statistics was not folded, or only in part "
            "(a LayerNorm or RMSNorm is no such norm).",
        ),
    ] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Write the result without comparing it.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", "--json", metavar="R.json", help="Also write the report as JSON (docs/report.md)."),
    ] = None,
    html: HtmlOption = None,
    trust: TrustOption = False,
    trust_code: CodeOption = False,
    allow_unfinished: UnfinishedOption = False,
    norm_affine: AffineOption = False,
    keep_tied: TiedOption = False,
    center: CenterOption = False,
    equalize: EqualizeOption = False,
    fixed_statistics: FixedOption = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NORM", help="Fold this norm and no other; repeatable.")
    ] = None,
    emit_torch: Annotated[
        Path | None,
        typer.Option("--emit-torch", metavar="FOLDED.pt", help="Also write the folded torch module (torch.save)."),
    ] = None,
    external_data: Annotated[
        bool,
        typer.Option(
            "--external-data", help="Write the weights to a file of their own even where they fit inside (1.5 GB)."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an output and a report that exist.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
    debug: DebugOption = False,
) -> None:
    """Fold the norms of a trained checkpoint, verify the result and write it as ONNX.

    Exit codes: 0 done; 1 the verification failed, no output left; 2 bad input or usage, nothing written;
    3 with --strict, a norm was not folded, no output left; 4 normfold itself failed, nothing written.
    """

    def work(progress: Callable[[str], None]) -> Report:
        progress("starting")
        from normfold.pipeline.run import run

        return run(source, output, load, options, progress, began=BEGAN)

    with exit_codes(debug=debug, verbosity=verbose, quiet=quiet):
        load = LoadOptions(
            arch,
            model,
            json_object(model_args),
            tuple(inputs or ()),
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
            calibrate=tuple(calibrate or ()),
            norm_affine=norm_affine,
            center=center,
            equalize=equalize,
            fixed_statistics=fixed_statistics,
            only=tuple(only or ()),
            keep_tied=keep_tied,
            dry_run=dry_run,
            strict=strict,
            verify=not no_verify,
            report=file_of(report),
            html=html,
            emit_torch=emit_torch,
            external_data=external_data,
            force=force,
        )
        check_one_build()
        expect_large_tensors()
        early.check_sources(source, *options.calibrate)
        early.check_output(output)
        early.check_factory(model)
        early.check_names(arch, load.inputs)
        early.check_only(source, options.only)
        early.check_places(source, options.written(output), options.reports, force=force)
        early.check_formats(source)
        early.check_opset(source, opset, target)
        done = with_progress(work, quiet=quiet)
        tell(report, done.dumps, lambda: print_report(done), quiet=quiet)


@app.command(
    cls=Command,
    epilog="Example: normfold inspect checkpoint.pt",
    short_help="Which norms there are, and what fold would do.",
)
def inspect(
    source: SourceArgument,
    arch: ArchOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    inputs: InputOption = None,
    task: TaskOption = "forward",
    ema: EmaOption = False,
    opset: OpsetOption = None,
    target: TargetOption = None,
    trust: TrustOption = False,
    trust_code: CodeOption = False,
    allow_unfinished: UnfinishedOption = False,
    norm_affine: AffineOption = False,
    keep_tied: TiedOption = False,
    json_file: JsonOption = None,
    verbose: VerboseOption = 0,
    debug: DebugOption = False,
) -> None:
    """Say which norms a checkpoint has and what fold would do with each, without writing anything."""

    def work(progress: Callable[[str], None]) -> Report:
        from normfold.pipeline.look import look

        return look(source, load, options, progress, began=BEGAN)

    with exit_codes(debug=debug, verbosity=verbose):
        load = LoadOptions(
            arch,
            model,
            json_object(model_args),
            tuple(inputs or ()),
            ema=ema,
            trust=trust,
            allow_unfinished=allow_unfinished,
            trust_code=trust_code,
        )
        options = FoldOptions(task=task, opset=opset, target=target, norm_affine=norm_affine, keep_tied=keep_tied)
        early.check_sources(source)
        early.check_factory(model)
        early.check_names(arch, load.inputs)
        check_json_place(json_file)
        early.check_formats(source)
        early.check_opset(source, opset, target)
        report = with_progress(work)

        def show() -> None:
            print_report(report)
            if report.changed:
                print("Nothing is written; `normfold fold` with the same options does it.")

        keep_and_tell(json_file, report.dumps, show)


app.command(
    cls=Command,
    epilog="Example: normfold verify model.onnx --against checkpoint.pt --data samples.npz",
    short_help="Whether an ONNX file computes what its source does.",
)(verify)
app.command(
    cls=Command,
    epilog="Example: normfold bench model.onnx --batch 1,8 --plot latency.png",
    short_help="Latency and memory beside the LayerNorm baseline.",
)(bench)
app.command(
    cls=Command,
    epilog="Example: normfold check --jobs 4 --summary summary.md",
    short_help="Verify all models of a repository.",
)(check)
app.command(
    cls=Command,
    epilog="Example: normfold diff before.onnx after.onnx",
    short_help="What differs between two ONNX files.",
)(diff)
app.command(
    cls=Command,
    epilog="Example: normfold recalibrate ckpt.pt --data batches.npz -o ckpt2.pt",
    short_help="Exact statistics for the norms of a checkpoint.",
)(recalibrate)


@app.command("models", cls=Command, epilog="Example: normfold models", short_help="The built-in architectures.")
def list_models(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="A part of a name, or one with * in it. Default: all, a line a size."),
    ] = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """List the built-in architectures: names, norms, parameters, inputs, papers, published checkpoints.

    A checkpoint of one of them is recognised from the names and shapes of its weights and from what it says of itself;
    what neither tells is asked for.
    """
    with exit_codes(debug=debug):
        check_json_place(json_file)
        from normfold.models import catalogue

        families = catalogue.FAMILIES if pattern is None else catalogue.matching(pattern)
        if not families and pattern is not None:
            close = catalogue.closest(pattern)
            likely = f" (close: {', '.join(close)})" if close else ""
            raise UsageError(
                f"no built-in architecture is called like {pattern!r}{likely}; `normfold models` lists all"
            )

        def show() -> None:
            from normfold.report.render import render_models

            print_rich(render_models(families, names=pattern is not None))

        keep_and_tell(json_file, lambda: json_text(catalogue.to_json(families)), show)


def main() -> None:
    """Entry point of the console script."""
    without_telemetry()
    run_app(app)
