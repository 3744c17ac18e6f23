"""`normfold check`: all models of a repository, in parallel, one exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from normfold.cli.terminal import DebugOption, QuietOption, complain, exit_codes, print_rich
from normfold.system.text import printable


def check(
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE.toml", help="The file with [tool.normfold] (docs/ci.md).")
    ] = Path("pyproject.toml"),
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="How many models at a time.")] = max(
        1, (os.cpu_count() or 1) // 2
    ),
    summary: Annotated[
        Path | None, typer.Option("--summary", metavar="P.md", help="Also write a GitHub step summary (Markdown).")
    ] = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Verify every model that [tool.normfold] in pyproject.toml names, each in a process of its own.

    Exit codes: 0 all pass; 1 one is wrong; 2 none is wrong, and one cannot be judged, or the configuration is bad;
    4 normfold itself failed.
    """
    with exit_codes(debug=debug, quiet=quiet):
        from normfold.report.render_check import markdown, render_check
        from normfold.system.files import check_place, write_text
        from normfold.verify.check import check as verified
        from normfold.verify.check import exit_code, read_config

        models = read_config(config)
        if summary is not None:
            check_place(summary)
        tell = complain if sys.stderr.isatty() and not quiet else (lambda _: None)
        results = sorted(verified(models, jobs=jobs, tell=tell), key=lambda result: models.index(result.model))
        if summary is not None:
            write_text(summary, markdown(results))
        if not quiet:
            print_rich(render_check(results))
        for result in results:
            if result.code:
                complain(f"{printable(result.model.path)}: {result.said}")
        code = exit_code(results)
        if code:
            raise typer.Exit(code)
