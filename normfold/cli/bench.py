"""`normfold bench`: options in, table out. Everything heavy is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normfold.bench.runners import DEVICES, DTYPES, RUNNERS
from normfold.bench.runners.base import Runner
from normfold.cli.streams import file_of, tell
from normfold.cli.terminal import (
    INTERRUPTED,
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
    TaskOption,
    TrustOption,
    UnfinishedOption,
    VerboseOption,
    complain,
    exit_codes,
    json_object,
    print_rich,
    with_progress,
)
from normfold.errors import OutputError, UsageError
from normfold.pipeline import early

if TYPE_CHECKING:
    from normfold.bench.result import Bench


def _modes(runner: Runner) -> str:
    """What the help says of a runtime's modes, those of all devices."""
    every = dict.fromkeys(mode for modes in runner.modes.values() for mode in modes)
    listed = (f"{mode} ({runner.glosses[mode]})" if mode in runner.glosses else mode for mode in every)
    return f"{runner.name}: {', '.join(listed)}"


_TITLES = [runner.title for runner in RUNNERS.values()]
_MODES = [_modes(runner) for runner in RUNNERS.values()]


def bench(
    model_file: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A folded or unfolded .onnx file, or a checkpoint that fold reads.")
    ],
    device: Annotated[str, typer.Option("--device", metavar="|".join(DEVICES))] = "cpu",
    batch: Annotated[str, typer.Option("--batch", metavar="LIST", help="Batch sizes.")] = "1,8,32",
    dtype: Annotated[str, typer.Option("--dtype", metavar="|".join(DTYPES))] = "float32",
    runtime: Annotated[
        str, typer.Option("--runtime", metavar="|".join(RUNNERS), help=f"{', or '.join(_TITLES)}.")
    ] = "ort",
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            metavar="LIST",
            help=f"{'; '.join(_MODES)}. Default: all on cuda, the first on cpu.",
        ),
    ] = "",
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="SOURCE", help="What MODEL was folded from. Default: what its manifest names."
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="LN.onnx",
            help="The LayerNorm model. Default: the twin of a known architecture, or made from the unfolded graph.",
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", metavar="N", min=1, help="Rounds of turns, in all. Default: 20.")
    ] = None,
    launches: Annotated[
        int | None,
        typer.Option("--launches", metavar="N", min=1, help="How often all processes are started anew. Default: 10."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look: one launch, five rounds; no difference is called real.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Threads on the CPU. Default: every processor.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="FILE.npz",
            help="Real inputs to calibrate int8 and float16 on; repeatable. Default: drawn.",
        ),
    ] = None,
    json_file: JsonOption = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="P.png", help="Also draw the medians with their intervals.")
    ] = None,
    html: HtmlOption = None,
    arch: ArchOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    task: TaskOption = "forward",
    inputs: InputOption = None,
    ema: EmaOption = False,
    trust: TrustOption = False,
    trust_code: CodeOption = False,
    allow_unfinished: UnfinishedOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
    debug: DebugOption = False,
) -> None:
    """Measure what folding bought: the LayerNorm baseline, the unfolded and the folded model, side by side.

    Each runs in fresh processes of its own, in turns. Exit codes: 0 measured; 2 bad input, or nothing to measure it
    with; 4 normfold itself failed; 130 interrupted: what there is has been printed and written, marked.
    """

    def run(progress: Callable[[str], None]) -> Bench:
        from normfold.bench.run import bench
        from normfold.checkpoint.options import LoadOptions

        return bench(
            model_file,
            device=_chosen("--device", device, DEVICES),
            batches=_numbers(batch),
            dtype=_chosen("--dtype", dtype, DTYPES),
            runtime=_chosen("--runtime", runtime, tuple(RUNNERS)),
            modes=[word.strip() for word in mode.split(",") if word.strip()],
            against=against,
            baseline=baseline,
            load=LoadOptions(
                arch,
                model,
                json_object(model_args),
                tuple(inputs or ()),
                ema=ema,
                trust=trust,
                allow_unfinished=allow_unfinished,
                trust_code=trust_code,
            ),
            task=task,
            rounds=rounds,
            launches=launches,
            quick=quick,
            threads=threads,
            data=tuple(data or ()),
            progress=progress,
        )

    with exit_codes(debug=debug, verbosity=verbose, quiet=quiet):
        early.check_sources(model_file, against)
        early.check_factory(model)
        _check_places(file_of(json_file), plot, html, force=force)
        early.check_formats(model_file, against)
        result = with_progress(run, quiet=quiet)
        from normfold.bench.table import render_bench

        try:
            _write(result, file_of(json_file), plot, html)
        finally:
            tell(json_file, result.dumps, lambda: print_rich(render_bench(result)), quiet=quiet)
    if result.interrupted:
        complain(f"interrupted; what was measured until then is {'in the files' if quiet else 'above'}, marked")
        raise typer.Exit(INTERRUPTED)


def _chosen(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UsageError(f"{option} {value}: choose from {', '.join(known)}")
    return value


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError as error:
        raise UsageError(f"--batch {text}: give sizes, separated by commas, for example --batch 1,8,32") from error


def _check_places(json_file: Path | None, plot: Path | None, html: Path | None, *, force: bool) -> None:
    """Now, and not after minutes of measuring."""
    from normfold.system.files import check_place

    for place in filter(None, (json_file, plot, html)):
        check_place(place)
        if place.exists() and not force:
            raise OutputError(f"{place} exists already; choose another name, or replace it with --force")
    if plot is not None:
        from normfold.bench.plot import check

        check(plot)


def _write(result: Bench, json_file: Path | None, plot: Path | None, html: Path | None) -> None:
    from normfold.system.files import write_text

    if json_file is not None:
        write_text(json_file, result.dumps())
    if html is not None:
        from normfold.bench.html import bench_html

        write_text(html, bench_html(result))
    if plot is not None:
        from normfold.bench.plot import draw

        draw(result, plot)
