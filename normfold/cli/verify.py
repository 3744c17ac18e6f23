"""`normfold verify`: a model, what it is to compute, and the verdict, with a bar while it is made."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normfold.checkpoint.options import LoadOptions
from normfold.cli.streams import STDOUT, StdoutError, file_of, tell
from normfold.cli.terminal import (
    ArchOption,
    CodeOption,
    DebugOption,
    EmaOption,
    HtmlOption,
    InputOption,
    JsonOption,
    ModelArgsOption,
    ModelOption,
    QuietOption,
    TrustOption,
    UnfinishedOption,
    VerboseOption,
    complain,
    exit_codes,
    fault,
    json_object,
    print_rich,
    with_bars,
)
from normfold.errors import NormfoldError, OutputError
from normfold.pipeline import early
from normfold.system.allocator import expect_large_tensors
from normfold.system.clock import BEGAN
from normfold.system.ort import check_one_build

if TYPE_CHECKING:
    from normfold.report.verdict_files import VerdictFiles
    from normfold.verify.run import StepProgress
    from normfold.verify.verdict import Verdict


def verify(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The ONNX file to judge.")],
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="SOURCE",
            help="Checkpoint, exported program or ONNX file. Default: the one that the manifest in MODEL.onnx names.",
        ),
    ] = None,
    npz: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", "--inputs", metavar="FILE.npz", help="Real inputs, one array per input of the model; repeatable."
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="Samples in all, real and drawn.")] = 32,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of the inputs that are drawn.")] = 0,
    providers: Annotated[str, typer.Option("--providers", metavar="LIST", help="Of onnxruntime: cpu, cuda.")] = "cpu",
    rtol: Annotated[
        float | None,
        typer.Option("--rtol", metavar="R", help="A bound of your own, on top: |error| <= atol + rtol |value|."),
    ] = None,
    atol: Annotated[float | None, typer.Option("--atol", metavar="A", help="See --rtol.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="P.xml", help="Also write JUnit XML.")] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", metavar="P.md", help="Also write a GitHub step summary (Markdown).")
    ] = None,
    json_file: JsonOption = None,
    html: HtmlOption = None,
    arch: ArchOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    inputs: InputOption = None,
    ema: EmaOption = False,
    trust: TrustOption = False,
    trust_code: CodeOption = False,
    allow_unfinished: UnfinishedOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
    debug: DebugOption = False,
) -> None:
    """Judge whether an ONNX file computes what its source computes, against the source in float64.

    Exit codes: 0 it does; 1 it does not, or only without onnxruntime's optimisations; 2 there can be no verdict (bad
    input, no source, no provider); 4 normfold itself failed.
    """

    def work(progress: StepProgress) -> Verdict:
        progress("starting", 0, 0)
        from normfold.verify.run import judge
        from normfold.verify.runtime import parse_providers

        return judge(
            model_file,
            against=against,
            load=load,
            inputs=npz or (),
            samples=samples,
            seed=seed,
            providers=parse_providers(providers),
            tolerance=bound,
            progress=progress,
            began=BEGAN,
        )

    with exit_codes(debug=debug, verbosity=verbose, quiet=quiet):
        check_one_build()
        expect_large_tensors()
        refused: NormfoldError | None = None
        try:
            early.check_sources(model_file, against, *(npz or ()))
            early.check_factory(model)
            early.check_names(arch, inputs or ())
        except NormfoldError as error:
            if (junit, summary, json_file, html) == (None, None, None, None):
                raise
            refused = error
        from normfold.report.verdict_files import VerdictFiles
        from normfold.verify.judge import Tolerance
        from normfold.verify.runtime import check_model, provider_names
        from normfold.verify.verdict import error_json

        files = VerdictFiles(junit, summary, file_of(json_file), html)
        files.check()
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
        try:
            # Before anything heavy is imported, and within what the files tell of.
            if refused is not None:
                raise refused
            check_model(model_file)
            early.check_formats(against)
            provider_names(providers)
            bound = None if rtol is None and atol is None else Tolerance(rtol or 0.0, atol or 0.0)
            verdict = with_bars(work, quiet=quiet)
        except Exception as error:
            # A judge that breaks down has not found the model wrong.
            said = str(error) if isinstance(error, NormfoldError) else fault(error)[1]
            # Where stdout takes nothing, what went wrong still decides how the run ends.
            with suppress(StdoutError):
                tell(json_file, lambda: error_json(said), lambda: None)
            try:
                files.write_error(said)
            except OutputError as unwritten:
                complain(str(unwritten))
            raise
        _tell(verdict, files, json_file, quiet=quiet)


def _tell(verdict: Verdict, files: VerdictFiles, place: Path | None, *, quiet: bool) -> None:
    """Write and print a verdict; one that fails says so whatever cannot be written or printed."""
    from normfold.report.render_verdict import render_verdict
    from normfold.verify.verdict import headline

    try:
        try:
            files.write(verdict)
        finally:
            tell(place, verdict.dumps, lambda: print_rich(render_verdict(verdict)), quiet=quiet)
            if quiet and place != STDOUT and not verdict.passed:
                complain(f"{verdict.model}: {headline(verdict)}")
    except (OutputError, StdoutError) as error:
        if verdict.passed:
            raise
        complain(str(error))
    if not verdict.passed:
        raise typer.Exit(1)
