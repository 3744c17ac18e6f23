"""LayerNorm and RMSNorm written out in operators: which fixed maps are their weight and bias.

`x * reciprocal(sqrt(mean(x^2) + eps)) * weight`: the statistic is computed for every token and stays, and so do its
weight and bias unless somebody asks, as those of a LayerNormalization do, however the exporter writes the norm.
"""

from __future__ import annotations

from normfold.graph.affine import varying_axes
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph
from normfold.norms.kinds import token_norm

_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare"})
_OF_A_STATISTIC = frozenset({"Affine", "Sqrt", "Reciprocal", "Pow", "Cast", "Max", "Clip", "Add", "Mul", "Div"})
_SAME = frozenset({"Cast", "Identity"})
# One map's worth of operators: what holds more is more than the weight and bias of the norm.
_SCALES, _SHIFTS = frozenset({"Mul", "Div"}), frozenset({"Add", "Sub"})


def statistic_norm(graph: Graph, op: Op) -> str | None:
    """LayerNorm or RMSNorm when the map `op` is the weight and bias of one that is written out; else None."""
    if op.affine is None or op.inputs[0] is None:
        return None
    kinds = [node.op_type for node in op.affine.nodes]
    axes = varying_axes(op.affine.frame.scale)
    if len(axes) != 1 or len(kinds) != sum(any(kind in group for kind in kinds) for group in (_SCALES, _SHIFTS)):
        return None
    product = _written(graph, op.inputs[0])
    if product is None or product.type not in _SCALES or len(product.inputs) != 2:
        return None
    for one, other in (product.inputs, product.inputs[::-1]):
        if one is None or other is None:
            continue
        reduced = _reduced(graph, one, axes[0])
        if reduced is not None and _made_of(graph, reduced, other):
            return token_norm(centred=_is_centred(graph, other)).name
    return None


def _written(graph: Graph, value: Value) -> Op | None:
    """The operator that computes a tensor, casts apart."""
    op = graph.producer.get(value)
    while op is not None and op.type in _SAME and op.inputs[0] is not None:
        op = graph.producer.get(op.inputs[0])
    return op


def _reduced(graph: Graph, value: Value, axis: int) -> Value | None:
    """What a tensor is a statistic of: it is computed from one reduction over `axis`, and from nothing else."""
    dims = graph.dims(value)
    if dims is None or axis >= len(dims) or not dims[axis].static or dims[axis].size != 1:
        return None
    op = graph.producer.get(value)
    while op is not None and op.type in _OF_A_STATISTIC:
        computed = [item for item in op.inputs if item is not None and not graph.is_constant(item)]
        if len(computed) != 1:
            return None
        op = graph.producer.get(computed[0])
    return op.inputs[0] if op is not None and op.type in _REDUCTIONS else None


def _made_of(graph: Graph, value: Value, source: Value) -> bool:
    """Whether a tensor is `source`, its square or the like, or both are the same tensor in other types."""
    wanted, found = _before(graph, source, _SAME), _before(graph, value, _SAME | _OF_A_STATISTIC)
    return bool(wanted & found)


def _before(graph: Graph, value: Value, through: frozenset[str]) -> set[Value]:
    """A tensor and those that operators of these types make it of."""
    found = {value}
    waiting = [value]
    while waiting:
        op = graph.producer.get(waiting.pop())
        for item in op.inputs if op is not None and op.type in through else ():
            if item is not None and item not in found and not graph.is_constant(item):
                found.add(item)
                waiting.append(item)
    return found


def _is_centred(graph: Graph, value: Value) -> bool:
    """Whether a tensor is `x - mean(x)`."""
    op = _written(graph, value)
    if op is None or op.type != "Sub" or len(op.inputs) != 2 or op.inputs[1] is None:
        return False
    mean = _written(graph, op.inputs[1])
    return mean is not None and mean.type == "ReduceMean"
