"""The command line: reads options, prints, sets the exit code. Everything heavy is imported when a command runs."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normfold import __version__
from normfold.errors import NormfoldError, UsageError

if TYPE_CHECKING:
    from normfold.report import Report

INTERRUPTED = 130
TERMINATED = 143

# Internal errors keep the plain traceback that Python gives them.
app = typer.Typer(
    help="Fold norms with stored statistics (UN, RepBN, PRepBN, BatchNorm, PowerNorm) into the weights around them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    # Rich help costs more time to import than everything else here together.
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="Checkpoint: .pt .pth .pth.tar .bin .ckpt .safetensors .pt2 .onnx, or a Hugging Face folder.",
    ),
]
ArchOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Built-in architecture of these weights (`normfold models`). Default: recognised from them.",
    ),
]
ModelOption = Annotated[
    str | None, typer.Option(metavar="PKG.MOD:FACTORY", help="Your own code that builds the model of these weights.")
]
ModelArgsOption = Annotated[
    str | None, typer.Option(metavar="JSON", help="Arguments of --model or --arch, as a JSON object.")
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SPEC",
        help='One per input, for example "x:float32[B,3,224,224]" or "ids:int64[B,L=16]<256"; '
        "letters are dynamic axes.",
    ),
]
EmaOption = Annotated[bool, typer.Option("--ema", help="Take the averaged weights of the checkpoint.")]
OpsetOption = Annotated[
    int | None, typer.Option(metavar="N", help="ONNX opset. Default: the newest that the installed onnxruntime runs.")
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-checkpoint", help="Unpickle the file even if that can run code in it. Recorded in R.json."),
]
UnfinishedOption = Annotated[
    bool, typer.Option("--allow-unfinished", help="Accept PRepBN whose schedule has not ended: take its RepBN.")
]
AffineOption = Annotated[
    bool, typer.Option("--norm-affine", help="Fold the weight and bias of LayerNorm and RMSNorm too.")
]


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


@app.command()
def fold(
    source: SourceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.onnx", help="Where to write the result.")],
    arch: ArchOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    inputs: InputOption = None,
    ema: EmaOption = False,
    opset: OpsetOption = None,
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
        Path | None, typer.Option(metavar="R.json", help="Also write the report as JSON (docs/report.md).")
    ] = None,
    trust: TrustOption = False,
    allow_unfinished: UnfinishedOption = False,
    norm_affine: AffineOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an output and a report that exist.")] = False,
) -> None:
    """Fold the norms of a trained checkpoint, verify the result and write it as ONNX.

    Exit codes: 0 done; 1 the verification failed, no output left; 2 bad input or usage, nothing written;
    3 with --strict, a norm was not folded, no output left.
    """

    def run(progress: Callable[[str], None]) -> Report:
        from normfold import pipeline

        return pipeline.fold(
            source,
            output,
            arch=arch,
            model=model,
            model_args=_object(model_args),
            inputs=inputs or (),
            ema=ema,
            opset=opset,
            dry_run=dry_run,
            strict=strict,
            verify=not no_verify,
            report=report,
            trust=trust,
            allow_unfinished=allow_unfinished,
            norm_affine=norm_affine,
            force=force,
            progress=progress,
        )

    with _exit_codes():
        _print_report(_with_progress(run))


@app.command()
def inspect(
    source: SourceArgument,
    arch: ArchOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    inputs: InputOption = None,
    ema: EmaOption = False,
    opset: OpsetOption = None,
    trust: TrustOption = False,
    allow_unfinished: UnfinishedOption = False,
    norm_affine: AffineOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON (docs/report.md).")] = False,
) -> None:
    """Say which norms a checkpoint has and what fold would do with each, without writing anything."""

    def run(progress: Callable[[str], None]) -> Report:
        from normfold import pipeline

        return pipeline.inspect(
            source,
            arch=arch,
            model=model,
            model_args=_object(model_args),
            inputs=inputs or (),
            ema=ema,
            opset=opset,
            trust=trust,
            allow_unfinished=allow_unfinished,
            norm_affine=norm_affine,
            progress=progress,
        )

    with _exit_codes():
        report = _with_progress(run)
        if as_json:
            print(report.dumps(), end="")
        else:
            _print_report(report)


@app.command("models")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON, one object per size.")] = False,
) -> None:
    """List the built-in architectures: names, norms, parameters, inputs, papers, published checkpoints.

    A checkpoint of one of them needs no options: it is recognised from the names and shapes of its weights.
    """
    from normfold import catalogue

    if as_json:
        print(json.dumps(catalogue.to_json(), indent=2))
        return
    from rich.console import Console

    from normfold.render import render_models

    Console(highlight=False).print(render_models(catalogue.FAMILIES))


def _object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"--model-args is not JSON ({error}): write an object such as '{{\"depth\": 12}}'") from error
    if not isinstance(value, dict):
        raise UsageError(f"--model-args has to be a JSON object such as '{{\"depth\": 12}}', not {text}")
    return value


def _print_report(report: Report) -> None:
    from rich.console import Console

    from normfold.render import render

    console = Console(highlight=False)
    console.print(render(report))


def _with_progress(run: Callable[[Callable[[str], None]], Report]) -> Report:
    """Run with a spinner that names the stage, if there is a terminal to show it on."""
    if not sys.stderr.isatty():
        return run(lambda _: None)
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        return run(lambda sentence: status.update(sentence))


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn what a run raises into a message on stderr and an exit code; bad input gets no traceback."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except NormfoldError as error:
        found: Report | None = getattr(error, "report", None)
        if found is not None:
            _print_report(found)
        print(f"normfold: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as interrupt:
        print("normfold: interrupted, nothing written", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    # An exception, so that drafts are removed on the way out.
    raise SystemExit(TERMINATED)


def main() -> None:
    """Entry point of the console script."""
    app()
