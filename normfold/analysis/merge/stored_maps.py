"""The fixed maps of a graph as they are between stored tensors, once all frames are decided."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from normfold.analysis.edits import Edit, NewMap
from normfold.analysis.placement.propagate import State
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import name_of, value_at
from normfold.graph.affine import Array, varying_axes
from normfold.graph.types import Affine, Op


def written_map(state: State, op: Op) -> NewMap | None:
    """The affine map of `op` between stored tensors; None when it is what stands in the graph already."""
    affine, source = op.affine, value_at(op, 0)
    assert affine is not None
    stored = affine.frame.between(state.frame(source), state.frame(op.output))
    scale = None if state.is_fixed(op, "scale") else stored.scale
    shift = None if state.is_fixed(op, "shift") else stored.shift
    touched = state.is_folded(op, "scale") or state.is_folded(op, "shift")
    same_scale = scale is None or _equal(scale, affine.frame.scale)
    same_shift = shift is None or _equal(shift, affine.frame.shift)
    if not touched and same_scale and same_shift and not _leans_on_moved(state, op):
        return None
    return NewMap(name_of(source), name_of(op.output), scale, shift, _is_batch_norm(affine, scale, shift))


def moved_around(state: State) -> Iterator[Op]:
    """The operators that read or write a tensor that is going to be stored differently."""
    moved = set(state.moved)
    for op in state.graph.ops:
        if any(value in moved for value in (*op.inputs, *op.outputs)):
            yield op


def constants_of(state: State) -> Iterator[Edit]:
    """The constants, attributes and additions that change, once all frames are decided."""
    for op in moved_around(state):
        if op.affine is None:
            yield from rule_of(op.type).edits(state.graph, op, state.frame)


def maps_of(state: State) -> Iterator[NewMap]:
    """The affine maps that are to be written anew."""
    for op in state.graph.ops:
        written = None if op.affine is None else written_map(state, op)
        if written is not None:
            yield written


def _leans_on_moved(state: State, op: Op) -> bool:
    """Whether operators inside the map read a tensor that others read too, and that is stored differently from now on.

    Its operators as they stand would read that; written anew, the map starts from its own input.
    """
    assert op.affine is not None
    shared = [value for value in op.affine.inside if value in state.graph.producer]
    around = [*shared, value_at(op, 0), op.output] if shared else []
    return any(not state.frame(value).is_identity for value in around)


def _equal(first: Array, second: Array) -> bool:
    return bool(np.all(first == second))


def _is_batch_norm(affine: Affine, scale: Array | None, shift: Array | None) -> bool:
    """Whether a BatchNormalization wrote the map and can write what has become of it."""
    axes = {axis for part in (scale, shift) if part is not None for axis in varying_axes(part)}
    return len(affine.nodes) == 1 and affine.nodes[0].op_type == "BatchNormalization" and axes <= {1}


def stored_map(state: State, op: Op) -> tuple[Array, Array]:
    """Scale and shift of a fixed map, as it is or as it is to be written."""
    assert op.affine is not None
    written = written_map(state, op)
    if written is None:
        return op.affine.frame.scale, op.affine.frame.shift
    rank = (1,) * op.affine.frame.scale.ndim
    scale = np.ones(rank) if written.scale is None else written.scale
    return scale, np.zeros(rank) if written.shift is None else written.shift


def is_unchanged(state: State, op: Op) -> bool:
    """Whether nothing is left of a fixed map: it was folded away."""
    written = written_map(state, op)
    return written is not None and written.scale is None and written.shift is None
