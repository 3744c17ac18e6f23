"""What the commands share: options that mean the same everywhere, progress, and what becomes of errors."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from normfold.errors import NormfoldError, UsageError
from normfold.plain import parse_json
from normfold.tasks import Task

if TYPE_CHECKING:
    from normfold.report import Report

INTERRUPTED = 130
TERMINATED = 143

T = TypeVar("T")

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
TaskOption = Annotated[
    Task,
    typer.Option(
        help="What to export: the model's forward; a decoder that takes and returns its key-value cache; or "
        "an encoder-decoder as two files, OUT.encoder.onnx and OUT.decoder.onnx (with cache).",
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
DtypeOption = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="float16: convert the folded graph at the end, inputs and outputs too. Default: the types of the source.",
    ),
]
CenterOption = Annotated[
    bool,
    typer.Option(
        "--center", help="Make RMSNorm out of LayerNorm where the mean can be left out upstream; implies --norm-affine."
    ),
]
AffineOption = Annotated[
    bool, typer.Option("--norm-affine", help="Fold the weight and bias of LayerNorm and RMSNorm too.")
]
TiedOption = Annotated[
    bool,
    typer.Option(
        "--keep-tied", help="Fold nothing that would need a second copy of a weight, such as a tied embedding."
    ),
]


def json_object(text: str | None) -> dict[str, Any] | None:
    """The value of --model-args. Raises UsageError."""
    if text is None:
        return None
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UsageError(f"--model-args is not JSON ({error}): write an object such as '{{\"depth\": 12}}'") from error
    if not isinstance(value, dict):
        raise UsageError(f"--model-args has to be a JSON object such as '{{\"depth\": 12}}', not {text[:40]}")
    return value


def print_report(report: Report) -> None:
    """Print the report of a fold or an inspection."""
    from rich.console import Console

    from normfold.render import render

    console = Console(highlight=False)
    console.print(render(report))


def with_progress(run: Callable[[Callable[[str], None]], T]) -> T:
    """Run with a spinner that names the stage, if there is a terminal to show it on."""
    if not sys.stderr.isatty():
        return run(lambda _: None)
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        return run(lambda sentence: status.update(sentence))


def complain(text: str) -> None:
    """Say on stderr what went wrong."""
    print(f"normfold: {text}", file=sys.stderr)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what a run raises into a message on stderr and an exit code; bad input gets no traceback."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except NormfoldError as error:
        found: Report | None = getattr(error, "report", None)
        if found is not None:
            print_report(found)
        complain(str(error))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as interrupt:
        complain("interrupted, nothing written")
        raise typer.Exit(INTERRUPTED) from interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    # An exception, so that drafts are removed on the way out.
    raise SystemExit(TERMINATED)
