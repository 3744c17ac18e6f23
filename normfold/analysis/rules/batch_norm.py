"""BatchNormalization with stored statistics: a fixed map of each channel."""

from __future__ import annotations

import numpy as np

from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules.base import FixedMap
from normfold.errors import NormStateError
from normfold.graph.affine import Frame
from normfold.graph.types import Op
from normfold.graph.view import Graph
from normfold.norms.closed_form import batchnorm

_ATTRIBUTES = frozenset({"epsilon", "momentum", "spatial", "training_mode"})


def batch_norm(graph: Graph, op: Op) -> FixedMap | None:
    """A BatchNormalization whose statistics are stored. Raises NormStateError."""
    channels, source = fixed_batch_norm(graph, op), op.inputs[0]
    if isinstance(channels, Refuse) or source is None:
        return None
    return FixedMap(source, channels.scale, channels.shift, batch_norm=True)


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
        channels = batchnorm(gamma, beta, mean, var, eps=op.number("epsilon", 1e-5))
    if not (np.all(np.isfinite(channels.scale)) and np.all(np.isfinite(channels.shift))):
        return refuse(op, "infinite-map", "a variance is 0 and so is the epsilon, or a weight or a mean is not finite")
    return channels
