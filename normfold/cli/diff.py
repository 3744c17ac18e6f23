"""`normfold diff`: what differs between two graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normfold.cli.streams import check_json_place, file_of, keep_and_tell
from normfold.cli.terminal import DebugOption, HtmlOption, JsonOption, QuietOption, exit_codes, print_rich


def diff(
    first: Annotated[Path, typer.Argument(metavar="A.onnx", help="The one.")],
    second: Annotated[Path, typer.Argument(metavar="B.onnx", help="The other.")],
    everything: Annotated[bool, typer.Option("--all", help="Show every line of long lists.")] = False,
    json_file: JsonOption = None,
    html: HtmlOption = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what differs between two ONNX files: opset, inputs and outputs, operators, attributes, weights.

    Exit codes: 0 nothing but metadata; 1 something; 2 a file that cannot be read; 4 normfold itself failed.
    """
    with exit_codes(debug=debug, quiet=quiet):
        from normfold.pipeline.early import check_sources

        check_sources(first, second)
        check_json_place(json_file)
        from normfold.report.verdict_files import VerdictFiles
        from normfold.system.files import write_text

        VerdictFiles(json=file_of(json_file), html=html).check()
        from normfold.graph.compare import compare
        from normfold.graph.read import read_graph
        from normfold.report.render_diff import SHOWN, diff_json, render_diff

        found = compare(read_graph(first), read_graph(second))
        if html is not None:
            from normfold.report.html_diff import diff_html

            write_text(html, diff_html(found, (str(first), str(second))))
        keep_and_tell(
            json_file,
            lambda: diff_json(found, (str(first), str(second))),
            lambda: print_rich(render_diff(found, (str(first), str(second)), shown=None if everything else SHOWN)),
            quiet=quiet,
        )
        if not found.is_empty:
            raise typer.Exit(1)
