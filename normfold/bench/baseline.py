"""The LayerNorm baseline of a graph of unknown architecture: one norm per token where each norm stood.

Everything between the norm's input and its output goes, layout operators that only served it included. Where the
channels are not the last axis, the new norm is put between two Transposes, as an exporter would write it; onnxruntime
cancels those that stand back to back.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from normfold.analysis.recognition.affine_maps import collapse
from normfold.errors import GraphError
from normfold.graph.affine import varying_axes
from normfold.graph.operators import operators, opset
from normfold.graph.prepare import prepare
from normfold.graph.types import Model, Op, Value
from normfold.graph.view import Graph
from normfold.norms.base import NormKind
from normfold.norms.kinds import token_norm

_EPSILON = 1e-5


def layer_norm_twin(model: Model, *, kind: NormKind | None = None) -> Model:
    """A copy of `model` with a norm per token over the channels where each norm stood.

    kind: LayerNorm (the default) or RMSNorm. Its weight and bias are the norm's own scale and shift: the figures are
    of its time, not of its accuracy. Raises GraphError where the opset has no such operator or there is no norm.
    """
    kind = kind or token_norm(centred=True)
    (operator,) = kind.operators
    if opset(model) < kind.opset:
        raise GraphError(
            f"opset {opset(model)} has no {operator} (it came with {kind.opset}), so no baseline can be made of it"
        )
    twin = prepare(model)
    graph = collapse(Graph(twin, operators(twin)))
    norms = [op for op in graph.ops if op.affine is not None and op.affine.is_norm]
    if not norms:
        raise GraphError("the graph has no norm that a LayerNormalization could stand for")
    stands_for: dict[Value, Value] = {}
    for number, op in enumerate(norms):
        _replace(graph, op, number, stands_for, kind)
    passes.RemoveUnusedNodesPass()(twin)
    return twin


def _replace(graph: Graph, op: Op, number: int, stands_for: dict[Value, Value], kind: NormKind) -> None:
    source, end = op.inputs[0], op.output
    assert source is not None and op.affine is not None
    while source in stands_for:
        source = stands_for[source]
    producer, dims = end.producer(), graph.dims(end)
    assert producer is not None and dims is not None
    rank, frame = len(dims), op.affine.frame
    axes = varying_axes(frame.scale) or varying_axes(frame.shift)
    axis = axes[0] if axes else rank - 1
    channels = np.broadcast_shapes(frame.scale.shape, frame.shift.shape)[axis]
    order = [other for other in range(rank) if other != axis] + [axis]
    stem, nodes = f"baseline_{number}", []
    if order != list(range(rank)):
        nodes.append(_transpose(source, order, f"{stem}_before"))
        source = nodes[-1].outputs[0]
    parts = (frame.scale, frame.shift) if kind.centred else (frame.scale,)
    dtype = np.float16 if end.dtype == ir.DataType.FLOAT16 else np.float32
    constants = []
    for name, half in zip(("weight", "bias"), parts, strict=False):
        array = np.broadcast_to(half.reshape(-1), (channels,)).astype(dtype)
        constant = ir.val(f"{stem}_{name}", const_value=ir.tensor(array, name=f"{stem}_{name}"))
        graph.model.graph.register_initializer(constant)
        constants.append(constant)
    nodes.append(
        ir.node(
            kind.operators[0],
            [source, *constants],
            attributes={"axis": -1, "epsilon": _EPSILON},
            name=stem,
            num_outputs=1,
        )
    )
    nodes[-1].outputs[0].name = f"{stem}_output"
    if order != list(range(rank)):
        nodes.append(_transpose(nodes[-1].outputs[0], [order.index(place) for place in range(rank)], f"{stem}_after"))
    result = nodes[-1].outputs[0]
    result.shape, result.type = end.shape, end.type
    graph.model.graph.insert_after(producer, nodes)
    for user, index in tuple(end.uses()):
        user.replace_input_with(index, result)
    stands_for[end] = result
    for index, value in enumerate(graph.model.graph.outputs):
        if value is end:
            result.name, end.name = end.name, f"{stem}_before_output"
            graph.model.graph.outputs[index] = result


def _transpose(source: Value, order: list[int], name: str) -> ir.Node:
    node = ir.node("Transpose", [source], attributes={"perm": order}, name=name)
    node.outputs[0].name = f"{name}_output"
    node.outputs[0].type = source.type
    return node
