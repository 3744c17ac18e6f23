"""float16 that does not overflow: one power of two for every region whose tensors would leave its range.

A residual stream of some 1e5 does not fit into float16, and the squares of an RMSNorm that is written out end at 256.
Stored as multiples of 2^k they fit, and in float32 nothing changes, not a bit: weights are multiplied by powers of two,
and the norms that read the stream take `eps / 4^k`. What tensors hold is seen on inputs (placement/calibrate.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from normfold.analysis.frames.regions import take
from normfold.analysis.merge.stored_maps import constants_of, maps_of
from normfold.analysis.placement.float16_range import LARGEST_HALF, Range, Ranges
from normfold.analysis.placement.propagate import State, flood
from normfold.analysis.plan import Plan
from normfold.analysis.recognition.affine_maps import collapse
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.base import name_of
from normfold.graph.affine import Array, varying_axes
from normfold.graph.operators import operators
from normfold.graph.types import Model, Value
from normfold.graph.view import Graph

# From here on a tensor is stored smaller: other inputs than those that were seen may be four times larger.
NEAR_END = LARGEST_HALF / 4.0
# Below this RMS three steps of 2^-24 are all that is left of a tensor.
VANISHING = 2.0**-21
# A probe whose square root, too, is a power of two.
_PROBE = 4.0


@dataclass(frozen=True, slots=True)
class Powers:
    """plan: the edits, of a graph that computes the same, bit by bit. of: the powers of two, by tensor. beyond: the
    first tensor that float16 cannot hold all the same, and why; None where all fit.
    """

    plan: Plan
    of: Mapping[str, int]
    beyond: Refuse | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """How near a tensor of a float16 model came to 65504. power: it is stored as a multiple of this power of two.

    largest: the largest number that was to be stored of it.
    """

    tensor: str
    power: int
    largest: float

    @property
    def left(self) -> float:
        """How many times larger it may become."""
        return LARGEST_HALF / self.largest if self.largest else math.inf


def rooms(ranges: Ranges, plan: Plan, powers: Mapping[str, int]) -> tuple[Room, ...]:
    """Of every tensor, as `plan` stores it. ranges: with the powers of two in place."""
    found = []
    for name, known in ranges.of.items():
        frame = plan.frames.get(name)
        largest = known.largest
        if frame is not None:
            axes = tuple(sorted({*varying_axes(frame.scale), *varying_axes(frame.shift)}))
            scale = np.where(frame.scale == 0.0, np.inf, np.abs(frame.scale))
            largest = float((known.reach(frame.shift, axes) / scale).max())
        found.append(Room(name, powers.get(name, 0), largest))
    return tuple(found)


def choose_powers(model: Model, ranges: Ranges) -> Powers:
    """The powers of two for the tensors of `model` (see `graph.prepare`) that float16 would not hold."""
    graph = collapse(Graph(model, operators(model)))
    state = State(graph, ranges)
    beyond: Refuse | None = None
    for op in graph.ops:
        for value in op.outputs:
            known = ranges.get(value)
            if known is None or _stored(state, value, known) <= NEAR_END:
                continue
            refused = _scale_down(state, ranges, value)
            if refused is not None and _stored(state, value, known) > LARGEST_HALF:
                size = f"{value.name}: it holds numbers up to {known.largest:.3g}"
                why = f"{size}, and float16 ends at {LARGEST_HALF:.0f}; no power of two helps: {refused.reason}"
                beyond = beyond or Refuse("scale-range", why)
    plan = Plan(
        sites=(),
        frames={name_of(value): state.frame(value) for value in state.moved},
        maps=tuple(maps_of(state)),
        edits=tuple(constants_of(state)),
    )
    found = {name: round(math.log2(float(frame.scale.flat[0]))) for name, frame in plan.frames.items()}
    return Powers(plan, found, beyond)


def _stored(state: State, value: Value, known: Range) -> float:
    """The largest number that is stored of a tensor, by its size."""
    return float(known.largest / state.get("scale", value).min())


def _scale_down(state: State, ranges: Ranges, value: Value) -> Refuse | None:
    """Store `value`, and all that has to follow, smaller by a power of two that keeps each of them in range."""
    before = state.get("scale", value)
    probed = flood(state, "scale", {value: before * _PROBE})
    if isinstance(probed, Refuse):
        return probed
    exponents = {other: _exponent(state, other, scale) for other, scale in probed.decided.items()}
    least, most = -math.inf, math.inf
    for other, exponent in exponents.items():
        known = ranges.get(other)
        if exponent is None:
            return Refuse("scale-range", f"{other.name}: it would be stored as no power of two of itself")
        if known is None or exponent == 0.0:
            continue
        stored = _stored(state, other, known)
        typical = float(known.typical(np.zeros(()), ()).max() / state.get("scale", other).max())
        ends = (
            math.log2(max(stored, np.finfo(float).tiny) / NEAR_END) / exponent,
            math.log2(max(typical, np.finfo(float).tiny) / VANISHING) / exponent,
        )
        if exponent > 0.0:
            least, most = max(least, ends[0]), most if typical == 0.0 else min(most, ends[1])
        else:
            most = min(most, math.log2(max(stored, np.finfo(float).tiny) / LARGEST_HALF) / exponent)
            least = least if typical == 0.0 else max(least, ends[1])
    whole = 1 if all(exponent is None or exponent == round(exponent) for exponent in exponents.values()) else 2
    power = whole * math.ceil(least / whole)
    if power > most:
        return Refuse("scale-range", f"{value.name}: what has to follow it would be too small or too large")
    taken = take(state, {value: before * 2.0**power})
    return taken if isinstance(taken, Refuse) else None


def _exponent(state: State, value: Value, scale: Array) -> float | None:
    """e, where a tensor is stored in c^e once the probe is stored in c; None where its channels differ."""
    ratio = scale / state.get("scale", value)
    if np.any(np.abs(ratio / ratio.flat[0] - 1.0) > 1e-12):
        return None
    exponent = math.log(float(ratio.flat[0]), _PROBE)
    nearest = round(2.0 * exponent) / 2.0
    return nearest if abs(exponent - nearest) < 1e-9 else None
