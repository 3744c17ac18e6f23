"""BatchNormalization with stored statistics: a fixed map of each channel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import numpy as np

from normfold.analysis.edits import Edit, NewAttribute, NewConstant
from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules.base import Demands, FixedMap, FrameOf, Rule, Surroundings, name_of, value_at, wall
from normfold.errors import NormStateError
from normfold.graph.affine import Frame
from normfold.graph.types import Op
from normfold.graph.view import Graph
from normfold.norms.closed_form import batchnorm

_ATTRIBUTES = frozenset({"epsilon", "momentum", "spatial", "training_mode"})
# Default of the ONNX specification, for this and the other normalizations.
EPSILON = 1e-5


@final
class BatchNormRule(Rule):
    """`g * (x - m) / sqrt(v + eps) + b`, where it stands as it is, and not for the fixed map that it is.

    One scale s > 0 for all channels in front, one behind: `m / s`, `v / s^2`, `eps / s^2`; `g / s`, `b / s`.
    """

    attributes = _ATTRIBUTES

    def fixed_map(self, graph: Graph, op: Op) -> FixedMap | None:
        channels, source = fixed_batch_norm(graph, op), op.inputs[0]
        if isinstance(channels, Refuse) or source is None:
            return None
        return FixedMap(source, channels.scale, channels.shift, batch_norm=True)

    def scale(self, at: Surroundings) -> Demands:
        if isinstance(found := fixed_batch_norm(at.graph, at.op), Refuse):
            return found
        if any(array.size != 1 or array.flat[0] <= 0.0 for array in at.known.values()):
            return wall(at.op)
        return {}

    def shift(self, at: Surroundings) -> Demands:
        return wall(at.op)

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        before, after = (frame(value).scale.reshape(-1)[:1] for value in (value_at(op, 0), op.output))
        output = name_of(op.output)
        for port, size in ((1, after), (2, after), (3, before), (4, before**2)):
            if size[0] != 1.0:
                yield NewConstant(output, port, name_of(value_at(op, port)), over=size)
        if before[0] != 1.0:
            yield NewAttribute(output, "epsilon", op.number("epsilon", EPSILON) / float(before[0]) ** 2)


def fixed_batch_norm(graph: Graph, op: Op) -> Frame | Refuse:
    """The map that a BatchNormalization is, of the rank of its input, or why it is none.

    Raises NormStateError for a variance that is negative or not finite.
    """
    if not set(op.attributes) <= _ATTRIBUTES:
        return refuse(op, "wall", "it has an attribute that normfold does not know")
    if any(value.name for value in op.outputs[1:]) or op.integer("training_mode", 0):
        return refuse(op, "training-mode", "it computes the statistics of every batch")
    source, *parameters = op.inputs[:5]
    stored = [value for value in parameters if value is not None and graph.is_constant(value)]
    if len(stored) != 4:
        return refuse(op, "not-stored", "a statistic or a weight of it is computed at run time, or can be overridden")
    if not np.all(np.isfinite(graph.constant(stored[3]))) or np.any(graph.constant(stored[3]) < 0):
        raise NormStateError(f"{op.label}: its running variance is negative or not finite; the statistics are damaged.")
    dims = (graph.dims(source) if source is not None else None) or ()
    # Before opset 9, with spatial = 0, it has a statistic for each position of a channel.
    sizes = dims[1:2] if op.integer("spatial", 1) else dims[1:]
    shape = tuple(dim.size for dim in sizes)
    constants = [graph.constant(value) for value in stored]
    if len(dims) < 2 or not all(dim.static for dim in sizes) or any(part.shape != shape for part in constants):
        return refuse(op, "unknown-shape", "the rank of its input, or the size of its channel axis, is not known")
    gamma, beta, mean, var = (part.reshape(1, *shape, *(1,) * (len(dims) - 1 - len(shape))) for part in constants)
    with np.errstate(all="ignore"):
        channels = batchnorm(gamma, beta, mean, var, eps=op.number("epsilon", EPSILON))
    if not (np.all(np.isfinite(channels.scale)) and np.all(np.isfinite(channels.shift))):
        return refuse(op, "infinite-map", "a variance is 0 and so is the epsilon, or a weight or a mean is not finite")
    return channels
