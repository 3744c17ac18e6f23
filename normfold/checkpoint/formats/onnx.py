"""ONNX graphs: architecture, weights and inputs in one file, with large weights beside it."""

from __future__ import annotations

from pathlib import Path

from normfold.checkpoint.contents import Contents
from normfold.checkpoint.formats.base import Format


def read(path: Path, *, trust: bool, ema: bool) -> Contents:
    """Read a graph; external data is mapped, not read. Raises GraphError and InputSpecError."""
    # Here, for the name of a file is told from others without what reading it takes.
    from normfold.graph.read import read_graph
    from normfold.inputs.of_graph import graph_inputs

    graph = read_graph(path)
    return Contents(graph=graph, takes=graph_inputs(graph, path))


ONNX = Format("onnx", read, suffixes=(".onnx",), is_graph=True)
