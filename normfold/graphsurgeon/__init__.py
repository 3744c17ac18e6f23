"""Folding for users of onnx-graphsurgeon: a `gs.Graph` goes in and stays the same object.

    import onnx_graphsurgeon as gs
    from normfold.graphsurgeon import fold_norms

    graph = gs.import_onnx(onnx.load("model.onnx"))
    report = fold_norms(graph)  # or, after register(): graph.fold_norms()

onnx-graphsurgeon is imported when something here is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from normfold.errors import GraphError, UsageError
from normfold.system.failures import one_line
from normfold.system.files import scratch

if TYPE_CHECKING:
    from normfold.report.report import Report

__all__ = ["fold_norms", "register"]


def fold_norms(
    graph: Any,
    *,
    norm_affine: bool = False,
    center: bool = False,
    only: str | tuple[str, ...] = (),
    keep_tied: bool = False,
    strict: bool = False,
    verify: bool = True,
) -> Report:
    """Fold the norms of an onnx_graphsurgeon.Graph in place, and say what became of each.

    The graph keeps its opset, its inputs and outputs, the names of its operators and of the tensors that are still
    there, and its domains of custom operators. norm_affine, center, only, keep_tied, strict: see
    `pipeline.options.FoldOptions`. verify: hold the result to float64 truth; a graph with operators that only its own
    runtime knows (TensorRT plugins) has none, and is folded with verify=False.
    The graph is unchanged where this raises: NotFoldedError, DifferenceError, or another NormfoldError.
    """
    import onnx
    import onnx_graphsurgeon as gs

    from normfold.pipeline.run import fold

    if not isinstance(graph, gs.Graph):
        raise UsageError(
            f"fold_norms takes an onnx_graphsurgeon.Graph, not a {type(graph).__name__}: "
            'fold_norms(gs.import_onnx(onnx.load("model.onnx")))'
        )
    try:
        model = gs.export_onnx(graph, do_type_check=False)
    # graphsurgeon raises what it likes for a graph that is half edited.
    except Exception as error:
        raise GraphError(
            f"the graph cannot be exported to ONNX ({one_line(error)}); try graph.cleanup().toposort() first"
        ) from error
    with scratch() as folder:
        place = folder / "folded.onnx"
        report = fold(
            model,
            place,
            norm_affine=norm_affine,
            center=center,
            only=only,
            keep_tied=keep_tied,
            strict=strict,
            verify=verify,
        )
        folded = gs.import_onnx(onnx.load(place))
    if report.changed or report.center:
        _take_over(graph, folded)
    return report


def _take_over(graph: Any, folded: Any) -> None:
    """Let `graph` be `folded`, with inputs and outputs of its own: others may hold them."""
    for name in ("inputs", "outputs"):
        own, new = getattr(graph, name), {tensor.name: tensor for tensor in getattr(folded, name)}
        for tensor in own:
            tensor.inputs.clear()
            tensor.outputs.clear()
            other = new[tensor.name]
            # Each is the tensor of its name from now on, for the nodes that read or write it.
            for node in list(other.inputs):
                node.outputs[[id(each) for each in node.outputs].index(id(other))] = tensor
            for node in list(other.outputs):
                for index, each in enumerate(node.inputs):
                    if each is other:
                        node.inputs[index] = tensor
            tensor.dtype, tensor.shape = other.dtype, other.shape
    graph.nodes = folded.nodes


def register() -> None:
    """Make `graph.fold_norms()` a method of every onnx_graphsurgeon.Graph of this process."""
    import onnx_graphsurgeon as gs

    gs.Graph.register()(fold_norms)
