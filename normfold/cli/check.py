"""`normfold check`: all models of a repository, in parallel, one exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normfold.cli.streams import file_of, tell
from normfold.cli.terminal import (
    DebugOption,
    HtmlOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    complain,
    exit_codes,
    print_rich,
)
from normfold.system.text import printable

if TYPE_CHECKING:
    from normfold.report.verdict_files import VerdictFiles
    from normfold.verify.check import Checked


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
    junit: Annotated[
        Path | None,
        typer.Option("--junit", metavar="P.xml", help="Also write JUnit XML: a suite for each model."),
    ] = None,
    json_file: JsonOption = None,
    html: HtmlOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
    debug: DebugOption = False,
) -> None:
    """Verify every model that [tool.normfold] in pyproject.toml names, each in a process of its own.

    Exit codes: 0 all pass; 1 one is wrong; 2 none is wrong, and one cannot be judged, or the configuration is bad;
    4 normfold itself failed.
    """
    with exit_codes(debug=debug, verbosity=verbose, quiet=quiet):
        from normfold.report.render_check import check_json, render_check
        from normfold.report.verdict_files import VerdictFiles
        from normfold.verify.check import check as verified
        from normfold.verify.check import exit_code, read_config

        models = read_config(config)
        files = VerdictFiles(junit, summary, file_of(json_file), html)
        files.check()
        shown = sys.stderr.isatty() and not quiet and not verbose
        results = sorted(
            verified(
                models,
                jobs=jobs,
                tell=complain if shown else (lambda _: None),
                junit=junit is not None,
                verbosity=verbose,
            ),
            key=lambda result: models.index(result.model),
        )
        _write(results, files)
        tell(json_file, lambda: check_json(results), lambda: print_rich(render_check(results)), quiet=quiet)
        for result in results:
            if result.code:
                complain(f"{printable(result.model.path)}: {result.said}")
        code = exit_code(results)
        if code:
            raise typer.Exit(code)


def _write(results: Sequence[Checked], files: VerdictFiles) -> None:
    """Every file that was asked for."""
    from normfold.report.html_check import check_html
    from normfold.report.render_check import check_json, markdown
    from normfold.report.verdict_files import junit_error, junit_of_several
    from normfold.system.files import write_text

    if files.summary is not None:
        write_text(files.summary, markdown(results))
    if files.junit is not None:
        suites = ((str(one.model.path), one.junit or junit_error(one.said)) for one in results)
        write_text(files.junit, junit_of_several(suites))
    if files.json is not None:
        write_text(files.json, check_json(results))
    if files.html is not None:
        write_text(files.html, check_html(results))
