"""float16 that does not overflow: one power of two for every region whose tensors would leave its range.

A residual stream of some 1e5 does not fit into float16, and the squares of an RMSNorm that is written out end at 256.
Stored as multiples of 2^k they fit, and in float32 nothing changes, not a bit: weights are multiplied by powers of two,
and the norms that read the stream take `eps / 4^k`. What tensors hold is seen on inputs (placement/calibrate.py).

No fixed maps are looked for before: an operator with a constant is left standing, and its constant takes the power.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from normfold.analysis.edits import Edit, NewAttribute, NewConstant
from normfold.analysis.frames.regions import take
from normfold.analysis.merge.stored_maps import constants_of
from normfold.analysis.placement.float16_range import Range, Ranges
from normfold.analysis.placement.propagate import State, flood
from normfold.analysis.plan import Plan
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules.base import name_of
from normfold.errors import InternalError
from normfold.graph.affine import Array, varying_axes
from normfold.graph.operators import live, operators
from normfold.graph.powers import Rescaling
from normfold.graph.scopes import unused
from normfold.graph.types import Model, Value
from normfold.graph.view import Graph
from normfold.system.numbers import LARGEST_HALF

# From here on a tensor is stored smaller: other inputs than those that were seen may be four times larger.
NEAR_END = LARGEST_HALF / 4.0
# Below this RMS three steps of 2^-24 are all that is left of a tensor.
VANISHING = 2.0**-21
# A product by less than this would have a factor that float16 does not hold with all its digits.
SMALLEST_FACTOR = -14
# A probe whose square root, too, is a power of two.
_PROBE = 4.0


@dataclass(frozen=True, slots=True)
class Powers:
    """rescaling: what changes in the graph. of: the power that each tensor is stored in, those that it adds included.

    starts: the tensors that are stored as they are and multiplied behind, each with what writes it. beyond: the first
    tensor that float16 cannot hold all the same, and why; None where all fit.
    """

    rescaling: Rescaling
    of: Mapping[str, int] = field(default_factory=dict)
    starts: Mapping[str, str] = field(default_factory=dict)
    beyond: Refuse | None = None

    def ranges(self, ranges: Ranges) -> Ranges:
        """What the tensors of the graph that is stored in these powers hold."""
        added = {result: ranges.of[tensor] for tensor, result, _ in self.rescaling.products if tensor in ranges.of}
        return Ranges({**ranges.of, **added}, ranges.half).scaled(self.of)


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
    """The powers of two for the tensors of `model` (see `graph.prepare`) that float16 would not hold.

    A region that begins where no scale can be (behind a GELU, at an input) gets a product there, if float16 would not
    hold it otherwise and all else closes.
    """
    graph = Graph(model, live(operators(model), model.graph.outputs))
    state = State(graph, ranges)
    starts: set[Value] = set()
    beyond: Refuse | None = None
    for op in graph.ops:
        for value in op.outputs:
            known = ranges.get(value)
            if known is None or _stored(state, value, known) <= NEAR_END:
                continue
            refused = _scale_down(state, ranges, value)
            if refused is None or _stored(state, value, known) <= LARGEST_HALF:
                continue
            if _scale_down(state, ranges, value, starts) is not None:
                size = f"{value.name}: it holds numbers up to {known.largest:.3g}"
                why = f"{size}, and float16 ends at {LARGEST_HALF:.0f}; no power of two helps: {refused.reason}"
                beyond = beyond or Refuse("scale-range", why)
    return _written(state, starts, beyond)


def _written(state: State, starts: set[Value], beyond: Refuse | None) -> Powers:
    """What was decided, as data."""
    powers = {value: _log2(state.get("scale", value)) for value in state.moved}
    taken = {value.name for op in state.graph.ops for value in (*op.inputs, *op.outputs) if value is not None}
    results = {value: unused(f"{value.name}.scaled", taken) for value in powers if value in starts}
    edits = list(constants_of(state))
    products = tuple((name_of(value), result, -powers[value]) for value, result in results.items())
    rescaling = Rescaling(_constants(edits), _attributes(edits), products)
    of = {results.get(value, name_of(value)): power for value, power in powers.items()}
    writers = {name_of(v): op.label if (op := state.graph.producer.get(v)) else "the input" for v in results}
    return Powers(rescaling, of, writers, beyond)


def _constants(edits: list[Edit]) -> tuple[tuple[str, int, int], ...]:
    found = []
    for edit in edits:
        if isinstance(edit, NewAttribute):
            continue
        if not isinstance(edit, NewConstant) or edit.source is None or (edit.add is not None and np.any(edit.add)):
            raise InternalError(f"{edit.output}: a power of two is no power of two there")
        times, over = (np.ones(()) if part is None else part for part in (edit.times, edit.over))
        if power := _log2(times / over):
            found.append((edit.output, edit.input, power))
    return tuple(found)


def _attributes(edits: list[Edit]) -> tuple[tuple[str, str, float], ...]:
    return tuple((edit.output, edit.name, edit.value) for edit in edits if isinstance(edit, NewAttribute))


def _log2(scale: Array) -> int:
    power = round(math.log2(float(scale.flat[0])))
    if np.any(scale != 2.0**power):
        raise InternalError("a scale that was to be a power of two is none")
    return power


def _stored(state: State, value: Value, known: Range) -> float:
    """The largest number that is stored of a tensor, by its size."""
    return float(known.largest / state.get("scale", value).min())


def _scale_down(state: State, ranges: Ranges, value: Value, starts: set[Value] | None = None) -> Refuse | None:
    """Store `value`, and all that has to follow, smaller by a power of two that keeps each of them in range.

    starts: the tensors with a product behind them; more of them may be needed. None: there are to be no more. In a norm
    that divides a sum of squares by their number, that product has to carry the power on to the root.
    """
    refused = _try(state, ranges, value, starts, rigid=False)
    return None if refused is None or _try(state, ranges, value, starts, rigid=True) is None else refused


def _try(state: State, ranges: Ranges, value: Value, starts: set[Value] | None, *, rigid: bool) -> Refuse | None:
    before = state.get("scale", value)
    new: set[Value] | None = None if starts is None else set()
    probed = flood(state, "scale", {value: before * _PROBE}, starts=new, rigid=rigid)
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
        if new and other in new:
            if known.largest > LARGEST_HALF:
                return Refuse("scale-range", f"{other.name}: it is too large where it is written")
            power = -_log2(state.get("scale", other))
            most = min(most, (power - SMALLEST_FACTOR) / exponent) if exponent > 0.0 else most
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
    taken = take(state, {value: before * 2.0**power}, starts=new, rigid=rigid)
    if isinstance(taken, Refuse):
        return taken
    if starts is not None and new is not None:
        starts |= new
    return None


def _exponent(state: State, value: Value, scale: Array) -> float | None:
    """e, where a tensor is stored in c^e once the probe is stored in c; None where its channels differ."""
    ratio = scale / state.get("scale", value)
    if np.any(np.abs(ratio / ratio.flat[0] - 1.0) > 1e-12):
        return None
    exponent = math.log(float(ratio.flat[0]), _PROBE)
    nearest = round(2.0 * exponent) / 2.0
    return nearest if abs(exponent - nearest) < 1e-9 else None
