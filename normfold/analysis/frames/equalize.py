"""Cross-layer equalization: free scales between weights, chosen so that their ranges balance.

Eight bits for a whole weight are spread over its range: a channel of a hundredth of it is left with one or two. Between
a weight that writes a channel and one that reads it any positive scale may stand; `s = sqrt(writes / reads)`, the
ranges of the channel on both sides, balances them (Nagel et al., ICCV 2019, arXiv:1906.04721, eq. 11). Where a region
has several writers and readers, the ranges of each count as shares of its own, the largest on either side. What the
tensors hold, as far as weights and biases tell, counts as a writer: they are quantised too, and a channel of small
weights may have a large bias.

What falls is the sum of log2 of all those ranges, less the mean of log2 of what their channels are multiplied with: the
bits that one step for a whole array wastes. A step that saves nothing is not taken, so it ends. Exact in real
arithmetic, and no operator is added: `regions.take` floods every scale as that of a norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from normfold.analysis.edits import NewAdd, NewConstant
from normfold.analysis.frames.regions import Around, Channels, Region, content, region, take, written_by
from normfold.analysis.merge.stored_maps import stored_map
from normfold.analysis.placement.propagate import State
from normfold.analysis.plan import Spread
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import name_of
from normfold.graph.affine import Array
from normfold.graph.types import Op, Value

# Bits, of all that lies around a region together: a step that saves less is not taken.
LEAST_SAVED = 0.01
ROUNDING = 1e-9
# Steps that are tried, one after the other, as shares of the whole one.
SHARES = (1.0, 0.5, 0.25)
# Sweeps over all regions: a chain of n weights settles in about n.
SWEEPS = 100
# A channel so small beside the whole is dead: it is left as it is.
DEAD = 2.0**-20

Weights = dict[tuple[Op, int], Array]
Spreads = dict[tuple[Op, int], tuple[str, float]]


def weights_of(state: State, ops: Iterable[Op]) -> list[tuple[Around, Channels]]:
    """The weights that write the channels of what `ops` write, along any axis; and which channel is where in each."""
    axes = ((op, axis) for op in ops for axis in range(len(state.graph.dims(op.output) or ())))
    weights = (weight for op, axis in axes for weight in written_by(state, op, axis))
    return [(weight, weight.writes) for weight in weights if weight.writes is not None]


def spreads(weights: Iterable[tuple[Around, Channels]], of: Callable[[Around], Array]) -> Spreads:
    """The name and spread of weights: range over geometric mean of channels' ranges.

    weights: see `weights_of`. of: what a weight holds, read in full. What is 0 in all its entries does not count.
    """
    found: Spreads = {}
    for weight, channels in weights:
        ranges = _largest(np.abs(of(weight)), channels)
        alive = np.log2(ranges[ranges > 0.0])
        found[weight.key] = weight.name, float(2.0 ** (alive.max() - alive.mean())) if alive.size else 1.0
    return found


def compared(before: Spreads, folded: Spreads, equalized: Spreads | None) -> tuple[Spread, ...]:
    """The weights whose spread changes."""
    found = []
    for key, (name, first) in before.items():
        second, third = folded[key][1], None if equalized is None else equalized[key][1]
        if not np.allclose([second, second if third is None else third], first, rtol=1e-9):
            found.append(Spread(name, first, second, third))
    return tuple(found)


def balance(state: State) -> int:
    """Choose the scales of all regions between weights, and commit them; how many regions changed."""
    weights: Weights = {}
    balances = [_Balance(state, one, weights) for one in _regions(state)]
    changed: set[Value] = set()
    for _ in range(SWEEPS):
        moved = {one.region.start for one in balances if one.step()}
        changed |= moved
        if not moved:
            break
    return len(changed)


def _regions(state: State) -> Iterator[Region]:
    """Every region that weights write and weights read, each once."""
    seen: set[Value] = set()
    for op in state.graph.ops:
        for axis in range(len(state.graph.dims(op.output) or ())):
            if op.output in seen or not written_by(state, op, axis):
                continue
            found = region(state, op.output, axis)
            if isinstance(found, Refuse):
                continue
            seen |= set(found.tensors)
            if not found.maps and any(one.reads is not None for one in found.weights):
                yield found


@dataclass(frozen=True, slots=True)
class _Shared:
    """An array around a region: its sizes, and which channel each is multiplied with (reads) or divided by."""

    sizes: Array
    reads: Channels | None
    writes: Channels | None

    def scaled(self, scale: Array) -> _Shared:
        """The same once the channels are scaled."""
        factor = self.factor(scale)
        return _Shared(self.sizes * factor, self.reads, self.writes)

    def factor(self, scale: Array) -> Array:
        """What its entries are multiplied with; what is on no channel by 1."""
        each = np.append(scale, 1.0)
        times = np.ones(()) if self.reads is None else each[self.reads]
        return times if self.writes is None else times / each[self.writes]

    def shares(self, channels: Channels, count: int) -> Array:
        """The range of each channel, as a share of the whole."""
        largest, found = _largest(self.sizes, channels), np.zeros(count + 1)
        np.maximum.at(found, np.broadcast_to(channels, largest.shape), largest)
        shares: Array = found[:count] / max(float(self.sizes.max(initial=0.0)), np.finfo(float).tiny)
        return shares

    def wasted(self, scale: Array) -> float:
        """Bits that one step for all its entries wastes more than before, once the channels are scaled."""
        alive = self.sizes > 0.0
        if not np.any(alive):
            return 0.0
        factor = np.broadcast_to(self.factor(scale), self.sizes.shape)
        grown = np.log2((self.sizes * factor).max() / self.sizes.max())
        return float(grown - np.log2(factor[alive]).mean())


class _Balance:
    """One region while it is balanced. weights: the sizes of all weights as they are to be stored, for all regions."""

    def __init__(self, state: State, found: Region, weights: Weights) -> None:
        self.state, self.region, self.weights = state, found, weights
        for weight in found.weights:
            if weight.key not in weights:
                weights[weight.key] = np.abs(content(state, weight))
        self.biases = _biases(state, found)

    def step(self) -> bool:
        """One step towards balance, if it saves anything and nothing refuses it."""
        arrays = [_Shared(self.weights[w.key], w.reads, w.writes) for w in self.region.weights]
        held = _Shared(self._held(), None, np.arange(self.region.size))
        reads, writes = np.zeros(self.region.size), np.zeros(self.region.size)
        for one in (*arrays, held):
            for channels, side in ((one.reads, reads), (one.writes, writes)):
                if channels is not None:
                    np.maximum(side, one.shares(channels, self.region.size), out=side)
        alive = (reads > DEAD) & (writes > DEAD)
        whole = np.where(alive, np.sqrt(np.where(alive, writes, 1.0) / np.where(alive, reads, 1.0)), 1.0)
        for scale in (whole**share for share in SHARES):
            wasted = sum(one.wasted(scale) for one in arrays)
            if wasted <= ROUNDING and wasted + held.wasted(scale) <= -LEAST_SAVED:
                return self._taken(scale, arrays)
        return False

    def _taken(self, scale: Array, arrays: list[_Shared]) -> bool:
        if isinstance(take(self.state, self.region.scaled(self.state, scale)), Refuse):
            return False
        for weight, array in zip(self.region.weights, arrays, strict=True):
            self.weights[weight.key] = array.scaled(scale).sizes
        self.biases = self.biases / scale
        return True

    def _held(self) -> Array:
        """How large the stored channels are: of weights that read what is of order 1, with the biases."""
        found = np.zeros(self.region.size + 1)
        for weight in self.region.weights:
            if weight.writes is not None:
                sizes, looked_up = self.weights[weight.key], rule_of(weight.op.type).carries
                size = _largest(sizes, weight.writes) if looked_up else _norm(sizes, weight.writes)
                np.maximum.at(found, np.broadcast_to(weight.writes, size.shape), size)
        return np.hypot(found[:-1], self.biases)


def _biases(state: State, found: Region) -> Array:
    """The largest constant that is added to each channel, as it is going to be stored."""
    largest = np.zeros(found.size + 1)

    def add(array: Array, channels: Channels) -> None:
        shape = np.broadcast_shapes(array.shape, channels.shape)
        np.maximum.at(largest, np.broadcast_to(channels, shape), np.broadcast_to(np.abs(array), shape))

    for bias in found.biases:
        if bias.writes is not None:
            add(content(state, bias), bias.writes)
    for op in state.graph.ops:
        channels = found.tensors.get(op.output)
        if channels is None:
            continue
        if op.affine is not None:
            add(stored_map(state, op)[1], channels)
            continue
        for edit in rule_of(op.type).edits(state.graph, op, state.frame):
            if isinstance(edit, NewAdd) and edit.output == name_of(op.output):
                add(edit.add, channels)
            elif isinstance(edit, NewConstant) and edit.source is None and edit.add is not None:
                add(edit.add, channels.reshape(-1))
    return largest[:-1]


def _largest(sizes: Array, channels: Channels) -> Array:
    """The largest entry at each place of `channels`."""
    found: Array = sizes.max(axis=_alike(channels), keepdims=True)
    return found


def _norm(sizes: Array, channels: Channels) -> Array:
    """The root of the sum of squares at each place of `channels`."""
    found: Array = np.sqrt(np.square(sizes).sum(axis=_alike(channels), keepdims=True))
    return found


def _alike(channels: Channels) -> tuple[int, ...]:
    return tuple(axis for axis, size in enumerate(channels.shape) if size == 1)
