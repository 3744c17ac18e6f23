"""Frames that are free: where any scale may stand, and what it does to the weights around it.

A norm brings its frame with it. Between two linear operators any other may be chosen as well, and real arithmetic does
not see which: `equalize` takes the one that leaves weights to eight bits, `powers` the one that keeps tensors within
float16. Both look for a `Region` (one flood, with a number of its own on every channel), choose, and `take` the choice
as the fold of a norm is taken: flooded, held to what copies and types allow, committed or refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normfold.analysis.edits import NewConstant
from normfold.analysis.placement.float16_range import SMALLEST_STORED
from normfold.analysis.placement.place import leaves_range
from normfold.analysis.placement.propagate import Outcome, State, absorbs_scale, flood
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import name_of, value_at
from normfold.graph.affine import Array, Frame
from normfold.graph.types import Op, Value

# How far a scale that came back from a flood may be from the number that was sent, relative to it.
_SAME = 1e-11
# The entries of a weight that are on no channel of a region.
NOWHERE = -1

Channels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Around:
    """A weight next to a region: input `input` of `op`.

    reads, writes: the channel of the region that each entry is multiplied with, or divided by; they broadcast along the
    weight. None where it does not read, or write, the region. contracts: it is multiplied with channels of an input, of
    this region or another.
    """

    op: Op
    input: int
    reads: Channels | None
    writes: Channels | None
    contracts: bool

    @property
    def key(self) -> tuple[Op, int]:
        """What tells it from other weights."""
        return self.op, self.input

    @property
    def value(self) -> Value:
        """The constant that it is made of."""
        return value_at(self.op, self.input)

    @property
    def name(self) -> str:
        """What that constant is called."""
        return name_of(self.value)

    def is_weight(self, state: State) -> bool:
        """Whether it is multiplied with channels, or has several entries for one: a bias or a norm's gain do not."""
        size = state.graph.size(self.value)
        return self.contracts or (self.writes is not None and self.writes.size < size)


@dataclass(frozen=True, slots=True)
class Region:
    """Tensors that share the `size` channels of `start`, along `axis`: which of them is where.

    weights: those that write and read the channels. biases: constants of one entry for each channel that is written:
    biases, the gain and bias of a norm. maps: products with constants that would have to become one for each channel.
    """

    start: Value
    axis: int
    size: int
    tensors: Mapping[Value, Channels]
    weights: tuple[Around, ...]
    biases: tuple[Around, ...]
    maps: tuple[Op, ...]

    def scaled(self, state: State, scale: Array) -> dict[Value, Array]:
        """The start of a flood that multiplies the frame of every channel by `scale`."""
        before = state.get("scale", self.start)
        shape = [self.size if axis == self.axis else 1 for axis in range(before.ndim)]
        return {self.start: before * scale.reshape(shape)}


def region(state: State, start: Value, axis: int) -> Region | Refuse:
    """The tensors that a scale on `start`, another for each channel along `axis`, is on, or why it cannot be there."""
    dims = state.graph.dims(start)
    if dims is None or not dims[axis].static:
        return Refuse("unknown-shape", f"{start.name}: the size of its channel axis is not known")
    size = dims[axis].size
    found = Region(start, axis, size, {}, (), (), ())
    probe = _probe(size)
    outcome = flood(state, "scale", found.scaled(state, probe))
    if isinstance(outcome, Refuse):
        return outcome
    moved = {value: _ratio(state.get("scale", value), scale) for value, scale in outcome.decided.items()}
    moved = {value: ratio for value, ratio in moved.items() if np.any(np.abs(ratio - 1.0) > _SAME)}
    tensors = {value: _channels(ratio, probe) for value, ratio in moved.items()}
    known = {value: channels for value, channels in tensors.items() if channels is not None}
    if len(known) < len(tensors):
        return Refuse("two-tensors", f"{start.name}: a product behind it multiplies its scale by itself")
    around = [part for op in outcome.reached for part in _around(state, op, moved, probe)]
    weights = tuple(part for part in around if part.is_weight(state))
    biases = tuple(part for part in around if part not in weights)
    maps = tuple(op for op in outcome.reached if op.affine is not None and not state.is_fixed(op, "scale"))
    return Region(start, axis, size, known, weights, biases, maps)


def written_by(state: State, op: Op, axis: int) -> tuple[Around, ...]:
    """The weights that write the channels along `axis` of what `op` writes, as if nothing else were there."""
    dims = state.graph.dims(op.output)
    if dims is None or not dims[axis].static or dims[axis].size < 2:
        return ()
    constants = [value for value in op.inputs if value is not None and state.graph.is_constant(value)]
    # A weight has an entry for each channel; the size of a channel axis may be anything that a file claims.
    if max(map(state.graph.size, constants), default=0) < dims[axis].size:
        return ()
    probe = _probe(dims[axis].size)
    ratio = probe.reshape([-1 if k == axis else 1 for k in range(len(dims))])
    if not absorbs_scale(state, op, ratio):
        return ()
    return tuple(part for part in _around(state, op, {op.output: ratio}, probe) if part.is_weight(state))


def take(
    state: State,
    start: Mapping[Value, Array],
    *,
    starts: set[Value] | None = None,
    rigid: bool = False,
    smallest: float = SMALLEST_STORED,
) -> Outcome | Refuse:
    """Give tensors these scales, with all that follows; where something refuses, everything is as it was.

    starts, rigid: see `flood`. smallest: see `first_beyond`.
    """
    found = flood(state, "scale", start, starts=starts, rigid=rigid)
    if isinstance(found, Refuse):
        return found
    if refused := leaves_range(state, found, None, smallest=smallest):
        return refused
    state.commit("scale", None, found)
    return found


def content(state: State, weight: Around) -> Array:
    """A weight as it is going to be stored, in float64."""
    array: Array = state.graph.constant(weight.value)
    for edit in rule_of(weight.op.type).edits(state.graph, weight.op, state.frame):
        if isinstance(edit, NewConstant) and edit.input == weight.input and edit.source is not None:
            array = edit.content(array)
    return array


def _ratio(before: Array, after: Array) -> Array:
    """What a scale is multiplied with; a channel with scale 0 keeps it."""
    found: Array = np.divide(
        after, before, out=np.ones(np.broadcast_shapes(after.shape, before.shape)), where=before != 0.0
    )
    return found


def _probe(size: int) -> Array:
    """A number of its own for every channel, not far from 1: what comes back tells which channel is where."""
    return 1.0 + np.arange(1, size + 1) / (2.0 * size + 1.0)


def _channels(ratio: Array, probe: Array) -> Channels | None:
    """The channel whose number stands at each place; None where one is no number of a channel."""
    place = np.clip(np.searchsorted(probe, ratio * (1.0 - _SAME)), 0, len(probe) - 1)
    found = np.where(np.abs(ratio - 1.0) <= _SAME, NOWHERE, place)
    fits = (found == NOWHERE) | (np.abs(probe[place] - ratio) <= 2.0 * _SAME)
    return found if bool(np.all(fits)) else None


def _around(state: State, op: Op, moved: Mapping[Value, Array], probe: Array) -> Iterator[Around]:
    """The weights of an operator that change when the tensors around it are scaled by `moved`."""
    graph = state.graph

    def frame(value: Value) -> Frame:
        identity = Frame.identity(len(graph.dims(value) or ()))
        return Frame(moved[value], identity.shift) if value in moved else identity

    if op.affine is not None:
        return
    for edit in rule_of(op.type).edits(graph, op, frame):
        if not isinstance(edit, NewConstant) or edit.source is None:
            continue
        reads, writes = (_some(part, probe) for part in (edit.times, edit.over))
        if reads is not None or writes is not None:
            contracts = edit.times is not None and edit.times.size > 1
            yield Around(op, edit.input, reads, writes, contracts or reads is not None)


def _some(part: Array | None, probe: Array) -> Channels | None:
    """The channels along one half of an edit; None where there are none."""
    found = None if part is None else _channels(part, probe)
    return None if found is None or bool(np.all(found == NOWHERE)) else found
