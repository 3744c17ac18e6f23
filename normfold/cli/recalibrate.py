"""`normfold recalibrate`: options in, a sentence out. Everything heavy is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normfold.cli.terminal import (
    ArchOption,
    CodeOption,
    DebugOption,
    EmaOption,
    InputOption,
    ModelArgsOption,
    ModelOption,
    QuietOption,
    SourceArgument,
    TrustOption,
    VerboseOption,
    complain,
    exit_codes,
    json_object,
    with_progress,
)
from normfold.system.text import printable

if TYPE_CHECKING:
    from normfold.pipeline.recalibrate import Result


def recalibrate(
    source: SourceArgument,
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="FILE.npz", help="Real inputs, one array per input of the model; repeatable."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.pt", help="Where to write the checkpoint.")],
    layerwise: Annotated[
        bool | None,
        typer.Option(
            help="One norm after the other, each behind those that are done: a run for each. Default: where any norm "
            "has fresh statistics.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Rows that are run at once.")] = 64,
    arch: ArchOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    inputs: InputOption = None,
    ema: EmaOption = False,
    trust: TrustOption = False,
    trust_code: CodeOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
    debug: DebugOption = False,
) -> None:
    """Give the norms of a checkpoint exact statistics, those of real inputs in evaluation mode.

    Running means forget; these are the mean and variance over all inputs. Weights stay as they are. A PRepBN whose
    schedule has not ended gets the statistics of its RepBN. Exit codes: 0 done; 2 bad input or usage, nothing written;
    4 normfold itself failed, nothing written.
    """

    def work(progress: Callable[[str], None]) -> Result:
        from normfold.checkpoint.options import LoadOptions
        from normfold.pipeline.recalibrate import recalibrate_file

        options = LoadOptions(
            arch,
            model,
            json_object(model_args),
            tuple(inputs or ()),
            ema=ema,
            trust=trust,
            allow_unfinished=True,
            trust_code=trust_code,
        )
        return recalibrate_file(
            source, data, output, options=options, batch=batch, layerwise=layerwise, force=force, progress=progress
        )

    with exit_codes(debug=debug, verbosity=verbose, quiet=quiet):
        result = with_progress(work, quiet=quiet)
        for warning in result.warnings:
            complain(warning)
        for name in result.norms.unseen:
            complain(f"{name.removeprefix('module.')} was never called; its statistics are as they were")
        done = len(result.norms.tokens)
        if quiet:
            return
        how = ", one after the other" * (result.norms.layerwise and done > 1)
        print(printable(f"{result.output}: {done} norm{'s' * (done != 1)} recalibrated from {result.rows} rows{how}"))
