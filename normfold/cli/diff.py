"""`normfold diff`: what differs between two graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normfold.cli.terminal import DebugOption, HtmlOption, exit_codes, print_rich


def diff(
    first: Annotated[Path, typer.Argument(metavar="A.onnx", help="The one.")],
    second: Annotated[Path, typer.Argument(metavar="B.onnx", help="The other.")],
    everything: Annotated[bool, typer.Option("--all", help="Show every line of long lists.")] = False,
    html: HtmlOption = None,
    debug: DebugOption = False,
) -> None:
    """Say what differs between two ONNX files: opset, inputs and outputs, operators, attributes, weights.

    Exit codes: 0 nothing but metadata; 1 something; 2 a file that cannot be read; 4 normfold itself failed.
    """
    with exit_codes(debug=debug):
        from normfold.pipeline.early import check_sources

        check_sources(first, second)
        from normfold.system.files import check_place, write_text

        if html is not None:
            check_place(html)
        from normfold.graph.compare import compare
        from normfold.graph.read import read_graph
        from normfold.report.render_diff import SHOWN, render_diff

        found = compare(read_graph(first), read_graph(second))
        if html is not None:
            from normfold.report.html_diff import diff_html

            write_text(html, diff_html(found, (str(first), str(second))))
        print_rich(render_diff(found, (str(first), str(second)), shown=None if everything else SHOWN))
        if not found.is_empty:
            raise typer.Exit(1)
