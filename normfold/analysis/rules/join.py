"""Concat and Split: one joined tensor, several parts of it along an axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import final

import numpy as np

from normfold.analysis.edits import Edit
from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules.base import (
    OUT,
    Demands,
    FrameOf,
    Rule,
    SizeOf,
    Surroundings,
    keeps_mean,
    rank_of,
    rescaled_constant,
    value_at,
)
from normfold.analysis.rules.weights import pooled, size_of_table
from normfold.graph.affine import Array, Frame
from normfold.graph.types import Op
from normfold.graph.view import Graph

# A frame is written out channel by channel when parts are joined; a file can claim any number of them.
MOST_CHANNELS = 1 << 24


@final
class JoinRule(Rule):
    """Along the axis on which they are joined the frame of the joined tensor is its parts' frames side by side.

    A part that no flood reaches keeps its own. Off that axis all parts share one frame. Constant parts (a class token)
    are rewritten into the frame.
    """

    late = True
    attributes = frozenset({"axis", "num_outputs", "split"})

    def __init__(self, *, joined: int) -> None:
        self.joined = joined  # the port of the joined tensor: the output of a Concat, the input of a Split

    def _parts(self, op: Op) -> tuple[int, ...]:
        return tuple(range(len(op.inputs))) if self.joined == OUT else tuple(-1 - k for k in range(len(op.outputs)))

    def ports(self, graph: Graph, op: Op) -> tuple[int, ...]:
        parts = self._parts(op)
        return (self.joined, *(port for port in parts if port < 0 or not graph.is_constant(value_at(op, port))))

    def scale(self, at: Surroundings) -> Demands:
        found = self._relate(at, constant=1.0)
        if isinstance(found, Refuse):
            return found
        for port in self._constants(at.graph, at.op):
            if np.any(self._part(at.graph, at.op, at.get(self.joined), port) == 0.0):
                return at.refuse("zero-scale", "a constant cannot be stored with scale 0")
        return found

    def shift(self, at: Surroundings) -> Demands:
        return self._relate(at, constant=0.0)

    def _relate(self, at: Surroundings, *, constant: float) -> Demands:
        axis = self._axis(at.graph, at.op)
        if isinstance(axis, Refuse):
            return axis
        if self.joined in at.known:
            return self._split(at, axis)
        if any(array.shape[axis] != 1 for array in at.known.values()):
            return self._join(at, axis, constant)
        # All share one: asked of every port, so that two that are known already are compared.
        return dict.fromkeys(self.ports(at.graph, at.op), next(iter(at.known.values())))

    def _split(self, at: Surroundings, axis: int) -> Demands:
        array = at.known[self.joined]
        carried = [port for port in self.ports(at.graph, at.op) if port != self.joined]
        cuts = self._cuts(at.graph, at.op, axis)
        if array.shape[axis] == 1:
            return dict.fromkeys(carried, array)
        if isinstance(cuts, Refuse):
            return cuts
        return {port: _cut(array, axis, cuts[port]) for port in carried}

    def _join(self, at: Surroundings, axis: int, constant: float) -> Demands:
        cuts = self._cuts(at.graph, at.op, axis)
        if isinstance(cuts, Refuse):
            return cuts
        carried = self.ports(at.graph, at.op)
        rank = next(iter(at.known.values())).ndim
        arrays = [at.get(port) if port in carried else np.full((1,) * rank, constant) for port in cuts]
        return {self.joined: _side_by_side(arrays, [cut.stop - cut.start for cut in cuts.values()], axis)}

    def _axis(self, graph: Graph, op: Op) -> int | Refuse:
        dims = graph.dims(value_at(op, self.joined))
        if dims is None:
            return refuse(op, "unknown-shape", "the rank of a tensor is not known")
        return op.integer("axis", 0) % len(dims)

    def _cuts(self, graph: Graph, op: Op, axis: int) -> dict[int, slice] | Refuse:
        """Where along the axis each part lies."""
        sizes = []
        for port in self._parts(op):
            dims = graph.dims(value_at(op, port))
            if dims is None or not dims[axis].static:
                return refuse(op, "unknown-shape", "the size of a part is not known")
            sizes.append(dims[axis].size)
        ends = list(accumulate(sizes))
        if ends and ends[-1] > MOST_CHANNELS:
            return refuse(op, "unknown-shape", f"it claims {ends[-1]} channels, more than a frame can hold")
        return {port: slice(end - size, end) for port, size, end in zip(self._parts(op), sizes, ends, strict=True)}

    def _part(self, graph: Graph, op: Op, joined: Array, port: int) -> Array:
        """What of `joined`, scale or shift of the joined tensor, lies on one part."""
        axis = self._axis(graph, op)
        cuts = axis if isinstance(axis, Refuse) else self._cuts(graph, op, axis)
        return joined if isinstance(cuts, Refuse) or isinstance(axis, Refuse) else _cut(joined, axis, cuts[port])

    def _constants(self, graph: Graph, op: Op) -> list[int]:
        return [port for port in self._parts(op) if port >= 0 and graph.is_constant(value_at(op, port))]

    def magnitude(self, graph: Graph, op: Op, size: SizeOf) -> Array | None:
        """Of a Concat: the parts' sizes side by side; where a part's length is not known, all count alike."""
        if self.joined != OUT:
            return None
        dims = graph.dims(op.output)
        parts = {port: value for port, value in enumerate(op.inputs) if value is not None}
        found = [
            size_of_table(graph, value) if graph.is_constant(value) else size(port) for port, value in parts.items()
        ]
        sizes = [one for one in found if one is not None]
        if dims is None or len(sizes) < len(parts) or not sizes:
            return None
        axis = op.integer("axis", 0) % len(dims)
        lengths = [graph.dims(value) for value in parts.values()]
        if all(length is not None and length[axis].static for length in lengths):
            spread = [1 if length is None else length[axis].size for length in lengths]
        elif all(one.shape[axis] == 1 for one in sizes):
            spread = [1] * len(sizes)
        else:
            return None
        joined = _side_by_side(sizes, spread, axis)
        return joined if dims[axis].static else pooled(joined, (axis,))

    def without_mean(self, graph: Graph, op: Op, port: int, axis: int) -> Mapping[int, int] | Refuse:
        rank = rank_of(graph, op.output)
        if rank is None:
            return keeps_mean(op, "the rank of a tensor is not known")
        if op.integer("axis", 0) % rank == axis:
            return keeps_mean(op, "it cuts or joins channels")
        parts = [part for part in self._parts(op) if part < 0 or op.inputs[part] is not None]
        return dict.fromkeys((*parts, OUT) if self.joined == OUT else (self.joined, *parts), axis)

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        joined = frame(value_at(op, self.joined))
        for port in self._constants(graph, op):
            part = Frame(self._part(graph, op, joined.scale, port), self._part(graph, op, joined.shift, port))
            if not part.is_identity:
                yield rescaled_constant(op, port, part)


def _side_by_side(arrays: Sequence[Array], lengths: Sequence[int], axis: int) -> Array:
    """Arrays of one rank, each spread over its length along `axis`, joined along it."""
    common = np.broadcast_shapes(*((*array.shape[:axis], 1, *array.shape[axis + 1 :]) for array in arrays))
    full = [
        np.broadcast_to(array, (*common[:axis], length, *common[axis + 1 :]))
        for array, length in zip(arrays, lengths, strict=True)
    ]
    joined: Array = np.concatenate(full, axis=axis)
    return joined


def _cut(array: Array, axis: int, cut: slice) -> Array:
    if array.shape[axis] == 1:
        return array
    return array[(slice(None),) * axis + (cut,)]
