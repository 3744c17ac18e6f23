"""Concat and Split: one whole, several parts along an axis."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import numpy as np

from normfold.analysis.edits import Edit
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.base import OUT, Demands, FrameOf, Ports, Rule, rescaled_constant
from normfold.graph.affine import Array, Frame
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph

# A frame is written out channel by channel when parts are joined; a file can claim any number of them.
MOST_CHANNELS = 1 << 24


class JoinRule(Rule):
    """Along the joined axis the whole's frame is its parts' frames side by side.

    A part that no flood reaches keeps its own. Off the joined axis all parts share one frame. Constant parts (a
    class token) are rewritten into the frame.
    """

    late = True
    attributes = frozenset({"axis", "num_outputs"})

    def __init__(self, *, whole: int) -> None:
        self.whole = whole  # the port of the whole: the output of a Concat, the input of a Split

    def _parts(self, op: Op) -> tuple[int, ...]:
        return tuple(range(len(op.inputs))) if self.whole == OUT else tuple(-1 - k for k in range(len(op.outputs)))

    def _value(self, op: Op, port: int) -> Value:
        value = op.outputs[-1 - port] if port < 0 else op.inputs[port]
        assert value is not None
        return value

    def ports(self, graph: Graph, op: Op) -> tuple[int, ...]:
        parts = self._parts(op)
        return (self.whole, *(port for port in parts if port < 0 or not graph.is_constant(self._value(op, port))))

    def scale(self, at: Ports) -> Demands:
        found = self._relate(at, constant=1.0)
        if isinstance(found, Refuse):
            return found
        for port in self._constants(at.graph, at.op):
            if np.any(self._part(at.graph, at.op, at.get(self.whole), port) == 0.0):
                return at.refuse("zero-scale", "a constant cannot be stored with scale 0")
        return found

    def shift(self, at: Ports) -> Demands:
        return self._relate(at, constant=0.0)

    def _relate(self, at: Ports, *, constant: float) -> Demands:
        axis = self._axis(at.graph, at.op)
        if isinstance(axis, Refuse):
            return axis
        if self.whole in at.known:
            return self._split(at, axis)
        if any(array.shape[axis] != 1 for array in at.known.values()):
            return self._join(at, axis, constant)
        # All share one: asked of every port, so that two that are known already are compared.
        return dict.fromkeys(self.ports(at.graph, at.op), next(iter(at.known.values())))

    def _split(self, at: Ports, axis: int) -> Demands:
        array = at.known[self.whole]
        carried = [port for port in self.ports(at.graph, at.op) if port != self.whole]
        cuts = self._cuts(at.graph, at.op, axis)
        if array.shape[axis] == 1:
            return dict.fromkeys(carried, array)
        if isinstance(cuts, Refuse):
            return cuts
        return {port: _cut(array, axis, cuts[port]) for port in carried}

    def _join(self, at: Ports, axis: int, constant: float) -> Demands:
        cuts = self._cuts(at.graph, at.op, axis)
        if isinstance(cuts, Refuse):
            return cuts
        carried = self.ports(at.graph, at.op)
        rank = next(iter(at.known.values())).ndim
        arrays = [at.get(port) if port in carried else np.full((1,) * rank, constant) for port in cuts]
        common = np.broadcast_shapes(*((*array.shape[:axis], 1, *array.shape[axis + 1 :]) for array in arrays))
        full = [
            np.broadcast_to(array, (*common[:axis], cut.stop - cut.start, *common[axis + 1 :]))
            for array, cut in zip(arrays, cuts.values(), strict=True)
        ]
        return {self.whole: np.concatenate(full, axis=axis)}

    def _axis(self, graph: Graph, op: Op) -> int | Refuse:
        dims = graph.dims(self._value(op, self.whole))
        if dims is None:
            return Refuse("unknown-shape", f"{op.label}: the rank of a tensor is not known")
        return op.integer("axis", 0) % len(dims)

    def _cuts(self, graph: Graph, op: Op, axis: int) -> dict[int, slice] | Refuse:
        """Where along the axis each part lies."""
        sizes = []
        for port in self._parts(op):
            dims = graph.dims(self._value(op, port))
            if dims is None or not dims[axis].static:
                return Refuse("unknown-shape", f"{op.label}: the size of a part is not known")
            sizes.append(dims[axis].size)
        ends = list(accumulate(sizes))
        if ends and ends[-1] > MOST_CHANNELS:
            return Refuse("unknown-shape", f"{op.label}: it claims {ends[-1]} channels, more than a frame can hold")
        return {port: slice(end - size, end) for port, size, end in zip(self._parts(op), sizes, ends, strict=True)}

    def _part(self, graph: Graph, op: Op, whole: Array, port: int) -> Array:
        """What of `whole`, half of the whole's frame, lies on one part."""
        axis = self._axis(graph, op)
        cuts = axis if isinstance(axis, Refuse) else self._cuts(graph, op, axis)
        return whole if isinstance(cuts, Refuse) or isinstance(axis, Refuse) else _cut(whole, axis, cuts[port])

    def _constants(self, graph: Graph, op: Op) -> list[int]:
        return [port for port in self._parts(op) if port >= 0 and graph.is_constant(self._value(op, port))]

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        whole = frame(self._value(op, self.whole))
        for port in self._constants(graph, op):
            part = Frame(self._part(graph, op, whole.scale, port), self._part(graph, op, whole.shift, port))
            if not part.is_identity:
                yield rescaled_constant(op, port, part)


def _cut(array: Array, axis: int, cut: slice) -> Array:
    if array.shape[axis] == 1:
        return array
    return array[(slice(None),) * axis + (cut,)]
