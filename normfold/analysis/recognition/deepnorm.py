"""DeepNorm: a scalar that multiplies a residual stream in front of a norm, `norm(alpha * x + f(x))`.

A scalar is otherwise never folded for its own sake: attention's 1 / sqrt(d) or the constants of an activation would
only move. This one vanishes: `f`'s last weight is divided by alpha, and the norm takes it up, a LayerNormalization in
its epsilon (eps / alpha^2), a fixed map in its own scale. Source: Wang et al., arXiv:2203.00555.
"""

from __future__ import annotations

from normfold.analysis.rules import rule_of
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph


def residual_scales(graph: Graph) -> dict[Op, Op]:
    """The scalar maps of `graph` that multiply a residual stream, each with the norm behind its sum."""
    found = ((op, _norm_behind(graph, op)) for op in graph.ops if _is_scalar(op))
    return {op: norm for op, norm in found if norm is not None}


def _is_scalar(op: Op) -> bool:
    return op.affine is not None and op.affine.has_scale and not op.affine.has_shift and not op.affine.is_norm


def _norm_behind(graph: Graph, op: Op) -> Op | None:
    """The norm that alone reads the sum of the scaled stream with something made from the stream itself."""
    value, others = op.output, list[Value]()
    while value not in graph.outputs and len(readers := graph.readers(value)) == 1:
        (reader,) = readers
        if reader.inputs[0] is value and _is_norm(reader):
            stream = _stream(graph, op.inputs[0])
            return reader if any(_depends(graph, other, stream) for other in others) else None
        rule = rule_of(reader.type)
        if rule.adds:
            others += [other for other in reader.inputs if other is not None and other is not value]
        elif not rule.carries or reader.inputs[0] is not value:
            return None
        value = reader.output
    return None


def _is_norm(op: Op) -> bool:
    if op.affine is not None:
        return op.affine.is_norm
    return rule_of(op.type).normalizes


def _stream(graph: Graph, value: Value | None) -> Value | None:
    """The tensor that `value` is a layout of."""
    while value is not None and (op := graph.producer.get(value)) is not None:
        if not rule_of(op.type).carries:
            break
        value = op.inputs[0]
    return value


def _depends(graph: Graph, value: Value, on: Value | None) -> bool:
    """Whether `value` is computed from `on`; operators stand in the order in which they run."""
    if on is None:
        return False
    first = graph.producer[on].index if on in graph.producer else -1
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        if current is on:
            return True
        op = graph.producer.get(current)
        for source in op.inputs if op is not None and op.index > first else ():
            if source is not None and source not in seen:
                seen.add(source)
                waiting.append(source)
    return False
