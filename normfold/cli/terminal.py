"""What the commands share: options that mean the same everywhere, progress, and what becomes of errors."""

from __future__ import annotations

import errno
import gc
import logging
import os
import platform
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from normfold._version import __version__
from normfold.cli.logs import LOGGER, logged
from normfold.cli.streams import STDOUT_FULL, StdoutError, for_rich, guarded
from normfold.errors import NormfoldError, UsageError
from normfold.export.targets import TARGETS
from normfold.export.tasks import Task
from normfold.system.plain import parse_json
from normfold.system.text import printable, wrapped

if TYPE_CHECKING:
    from rich.console import RenderableType

    from normfold.report.report import Report

_HERE = Path(__file__).parent.parent

# Columns below which a sentence cannot be read.
_NARROWEST = 30

INTERNAL = 4
INTERRUPTED = 130
# A shell's way to name the signal that ended a process.
_SIGNALS = ("SIGTERM", "SIGHUP")
# What no process can help: no room on a disk, no memory, no descriptors.
_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EFBIG}
# What a report of a fault has to name.
_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")

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
OpsetOption = Annotated[int | None, typer.Option(metavar="N", help="ONNX opset. Default: the fastest for --target.")]
TargetOption = Annotated[
    str | None,
    typer.Option(
        metavar="RUNTIME",
        help=f"What the model is to run on, which decides the opset: {', '.join(TARGETS)}. Default: the installed "
        "onnxruntime.",
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-checkpoint", help="Unpickle the file even if that can run code in it. Recorded in R.json."),
]
CodeOption = Annotated[
    bool,
    typer.Option("--trust-code", help="Import and call the function that the checkpoint says it was built by."),
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
CalibrateOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibrate",
        metavar="FILE.npz",
        help="Real inputs that show what float16 has to hold, or what norms read; repeatable.",
    ),
]
FixedOption = Annotated[
    bool,
    typer.Option(
        "--fixed-statistics",
        help="Fold LayerNorm and RMSNorm too where epsilon dwarfs every variance that they are seen to read.",
    ),
]
EqualizeOption = Annotated[
    bool,
    typer.Option(
        "--equalize", help="Choose the scales that are free between weights so that their ranges balance, for int8."
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
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="P.json", help="Also write everything as JSON; to -, or without a name: print that instead."
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="P.html", help="Also write a page to look at: one file, nothing to fetch or run."),
]
VerboseOption = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="Say on stderr what is decided, and how long each stage takes; -vv: of each norm, what was tried.",
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but what is wrong; the exit code and files say the rest.")
]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Print the traceback of an internal error (exit code 4), for a report of it.")
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
    """Print a report for people."""
    from normfold.report.render import render

    print_rich(render(report))


def print_rich(content: RenderableType) -> None:
    """Print what the modules that know rich have made."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as laid_out:
        console.print(content)
    # A table fills its last column with spaces, which are nothing to find in a file.
    lines = [line.rstrip(" ") for line in laid_out.get().split("\n")]
    print(wrapped("\n".join(lines)), end="")


def with_progress(run: Callable[[Callable[[str], None]], T], *, quiet: bool = False) -> T:
    """Run with the stages on the terminal, if there is one: see `with_bars`."""
    return with_bars(lambda show: run(lambda sentence: show(sentence, 0, 0)), quiet=quiet)


def with_bars(run: Callable[[Callable[[str, int, int], None]], T], *, quiet: bool = False) -> T:
    """Run with a line for each stage: what is done, how long it took, and a bar where its steps are counted.

    run: takes what to call with a sentence, the steps that are done and those there are (0: not known). Nothing is
    shown where stderr is no terminal or is told all of it (-v), and nothing is left of it at the end. quiet: nothing.
    """
    if quiet or not sys.stderr.isatty() or logging.getLogger(LOGGER).isEnabledFor(logging.INFO):
        return run(lambda *_: None)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    class Bar(BarColumn):
        """Only where there is something to count."""

        def render(self, task: Any) -> Any:
            return super().render(task) if task.total and task.total > 1 else ""

    # A name in a description is text, whatever rich would make of it.
    columns = (
        SpinnerColumn(finished_text="✓"),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        Bar(),
    )
    console = Console(file=for_rich())
    # Without redirection: what libraries print goes the way of all that is printed, not past it.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bars:
        tasks: dict[str, Any] = {}

        def show(sentence: str, done: int, total: int) -> None:
            if sentence not in tasks:
                for task in tasks.values():
                    bars.update(task, total=1, completed=1)
                tasks[sentence] = bars.add_task(printable(sentence), total=total or None)
            bars.update(tasks[sentence], completed=done, total=total or None)

        return run(show)


def complain(text: str) -> None:
    """Say on stderr what went wrong; dropped where stderr cannot be written.

    In lines of its width where it has one (a terminal, COLUMNS), in one line for a log, whose reader looks for it.
    """
    said = f"normfold: {printable(text)}"
    if sys.stderr.isatty() or "COLUMNS" in os.environ:
        width = max(shutil.get_terminal_size().columns, _NARROWEST)
        said = wrapped("\n".join(textwrap.wrap(said, width, break_long_words=False, break_on_hyphens=False)))
    with suppress(OSError):
        print(said, file=sys.stderr)


@contextmanager
def exit_codes(*, debug: bool = False, verbosity: int = 0, quiet: bool = False) -> Iterator[None]:
    """Turn what a run raises into one paragraph on stderr and an exit code.

    debug: with the traceback of an internal error. verbosity: see `logs.logged`. quiet: without the report of a run
    that failed.
    """
    handlers = _end_on_signals()
    try:
        if quiet and verbosity:
            raise UsageError("--quiet and --verbose exclude each other: give one of them")
        with logged(verbosity):
            yield
    except (typer.Exit, StdoutError, _Ended):
        raise
    except NormfoldError as error:
        found: Report | None = getattr(error, "report", None)
        # Without stdout the code still says how it ended, and the complaint why.
        with suppress(StdoutError):
            if found is not None and not quiet:
                print_report(found)
        complain(str(error))
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except SystemExit:
        complain("code of yours that was called (--model, --trust-checkpoint) ended the process; it must not")
        raise typer.Exit(NormfoldError.exit_code) from None
    # From None: a StopIteration that is the cause of another exception is raised again by contextlib.
    except Exception as error:
        raise typer.Exit(explain_fault(error, debug=debug)) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def explain_fault(error: Exception, *, debug: bool) -> int:
    """Say that the system or normfold itself failed; the exit code. debug: with the traceback of an internal error."""
    code, text = fault(error)
    complain(text)
    if debug and code == INTERNAL:
        lines = "".join(traceback.format_exception(error)).split("\n")
        with suppress(OSError):
            print("\n".join(printable(line) for line in lines), file=sys.stderr)
    return code


def fault(error: Exception) -> tuple[int, str]:
    """An exit code and a paragraph for what is no fault of the input: never in the words of a library."""
    if isinstance(error, MemoryError):
        return NormfoldError.exit_code, "memory ran out; try smaller inputs (--input), or a machine with more of it"
    if isinstance(error, OSError) and error.errno in _SYSTEM:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return (
            NormfoldError.exit_code,
            f"{where}{os.strerror(error.errno)}; the system says so, and no file is to blame",
        )
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_HERE)]
    where = f" in {Path(own[-1].filename).relative_to(_HERE).as_posix()}, line {own[-1].lineno}" if own else ""
    return INTERNAL, (
        f"internal error{where}: a fault of normfold, not of your files. Please report it with what the same command "
        f"prints with --debug, and with this: normfold {__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {', '.join(_versions())}"
    )


def _versions() -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError, version

    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"


def run(app: Callable[[], Any]) -> NoReturn:
    """Run the command line and exit: with the command's code, or with one for what kept it from printing."""
    code = 0
    with guarded():
        try:
            code = _code(app)
            sys.stdout.flush()
        except StdoutError as error:
            # A closed pipe is no error to report.
            if error.exit_code == STDOUT_FULL and not code:
                complain(f"stdout cannot be written ({error}); files that were asked for are in their places")
            code = code or error.exit_code
    # All objects of torch and sympy go with the process; to look through them for garbage first takes half a second.
    gc.freeze()
    sys.exit(code)


def _code(app: Callable[[], Any]) -> int:
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except StdoutError:
        raise
    except KeyboardInterrupt:
        return INTERRUPTED
    # Before a command runs and after it: it handles its own.
    except Exception as error:
        return explain_fault(error, debug="--debug" in sys.argv)
    return 0


class _Ended(SystemExit):
    """A signal asked for the end. An exception, so that drafts are removed on the way out."""


def _end_on_signals() -> dict[int, Any]:
    """Let SIGTERM and SIGHUP end the run in order, unless they are ignored (nohup); the handlers they had before."""
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    found = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    with suppress(ValueError):  # not the main thread
        for number in before:
            signal.signal(number, _end)
        return before
    return {}


def _end(number: int, frame: FrameType | None) -> None:
    # Once is enough: a second one would end the tidying up.
    signal.signal(number, signal.SIG_IGN)
    raise _Ended(128 + number)
