"""LayerNorm and RMSNorm written out in operators: which fixed maps are their weight and bias.

`x * reciprocal(sqrt(mean(x^2) + eps)) * weight`: the statistic is computed for every token and stays, and so do its
weight and bias by default, as those of a LayerNormalization do, however the exporter writes the norm.
"""

from __future__ import annotations

from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import InStatistic
from normfold.graph.affine import varying_axes
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph
from normfold.norms.kinds import token_norm


def statistic_norm(graph: Graph, op: Op) -> str | None:
    """LayerNorm or RMSNorm when the map `op` is the weight and bias of one that is written out; else None."""
    if op.affine is None or op.inputs[0] is None:
        return None
    rules = [rule_of(node.op_type) for node in op.affine.nodes]
    axes = varying_axes(op.affine.frame.scale)
    # One product and one sum at most: what holds more is more than the weight and bias of the norm.
    most = any(rule.multiplies for rule in rules) + any(rule.adds for rule in rules)
    if len(axes) != 1 or len(rules) != most:
        return None
    product = _written(graph, op.inputs[0])
    if product is None or not rule_of(product.type).multiplies or len(product.inputs) != 2:
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
    while op is not None and _role(op) == "same" and op.inputs[0] is not None:
        op = graph.producer.get(op.inputs[0])
    return op


def _reduced(graph: Graph, value: Value, axis: int) -> Value | None:
    """What a tensor is a statistic of: it is computed from one reduction over `axis`, and from nothing else."""
    dims = graph.dims(value)
    if dims is None or axis >= len(dims) or not dims[axis].static or dims[axis].size != 1:
        return None
    op = graph.producer.get(value)
    while op is not None and _role(op) in ("same", "step"):
        computed = [item for item in op.inputs if item is not None and not graph.is_constant(item)]
        if len(computed) != 1:
            return None
        op = graph.producer.get(computed[0])
    return op.inputs[0] if op is not None and _role(op) in ("mean", "reduction") else None


def _made_of(graph: Graph, value: Value, source: Value) -> bool:
    """Whether a tensor is `source`, its square or the like, or both are the same tensor in other types."""
    wanted, found = _before(graph, source, ("same",)), _before(graph, value, ("same", "step"))
    return bool(wanted & found)


def _before(graph: Graph, value: Value, through: tuple[InStatistic, ...]) -> set[Value]:
    """A tensor and those that operators of these kinds make it of."""
    found = {value}
    waiting = [value]
    while waiting:
        op = graph.producer.get(waiting.pop())
        for item in op.inputs if op is not None and _role(op) in through else ():
            if item is not None and item not in found and not graph.is_constant(item):
                found.add(item)
                waiting.append(item)
    return found


def _is_centred(graph: Graph, value: Value) -> bool:
    """Whether a tensor is `x - mean(x)`."""
    op = _written(graph, value)
    if op is None or rule_of(op.type).sign_of_second != -1.0 or len(op.inputs) != 2 or op.inputs[1] is None:
        return False
    mean = _written(graph, op.inputs[1])
    return mean is not None and _role(mean) == "mean"


def _role(op: Op) -> InStatistic | None:
    return rule_of(op.type).in_statistic
