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
from normfold.analysis.placement.float16_range import Range, Ranges, sums_of
from normfold.analysis.placement.propagate import Outcome, State, flood, raises
from normfold.analysis.plan import Plan
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import FrameOf, name_of
from normfold.errors import InternalError
from normfold.graph.affine import Array, varying_axes
from normfold.graph.operators import live, operators
from normfold.graph.powers import Rescaling, rescale
from normfold.graph.scopes import unused
from normfold.graph.types import Model, Op, Value
from normfold.graph.view import Graph
from normfold.system.numbers import LARGEST_HALF, MASK

# From here on a tensor is stored smaller: other inputs than those that were seen may be four times larger.
NEAR_END = LARGEST_HALF / 4.0
# The least RMS that a tensor is stored with, the smallest normal number: half a step of 2^-24 is then 2^-11 of it, what
# rounding to a normal number costs. A fold keeps further off (float16_range.SMALLEST_STORED): it has the choice.
SMALLEST_RMS = float(np.finfo(np.float16).tiny)
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
        return _with_results(ranges, self.rescaling).scaled(self.of)


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
    hold it otherwise and all else closes. Where that is not enough either (the squares of a stream whose layers differ
    a thousandfold), the squares of written-out norms get one in front of them.
    """
    found = _chosen(model, ranges)
    if found.beyond is None:
        return found
    before_squares = _products_before_squares(model)
    others = _chosen(rescale(model, before_squares), _with_results(ranges, before_squares))
    return found if others.beyond is not None else _joined(others, before_squares)


def _products_before_squares(model: Model) -> Rescaling:
    """A product with 1 in front of whatever squares a tensor, one for each tensor."""
    graph = Graph(model, live(operators(model), model.graph.outputs))
    state, squares = State(graph), dict[Value, list[str]]()
    for op in graph.ops:
        if (value := raises(state, op)) is not None:
            squares.setdefault(value, []).append(name_of(op.output))
    taken = {value.name for op in graph.ops for value in (*op.inputs, *op.outputs) if value is not None}
    return Rescaling(
        products=tuple(
            (name_of(value), unused(f"{value.name}.to_square", taken), 0, tuple(readers))
            for value, readers in squares.items()
        )
    )


def _joined(found: Powers, before_squares: Rescaling) -> Powers:
    """What was chosen where there are products with 1, as what is to change where there are none."""
    factors = {output: power for output, _, power in found.rescaling.constants}
    results = {tensor: result for tensor, result, *_ in found.rescaling.products}
    added = tuple(
        (results.get(tensor, tensor), result, factors[result], readers)
        for tensor, result, _, readers in before_squares.products
        if result in factors
    )
    own = {result for _, result, *_ in before_squares.products}
    constants = tuple(row for row in found.rescaling.constants if row[0] not in own)
    rescaling = Rescaling(constants, found.rescaling.attributes, (*found.rescaling.products, *added))
    kept = {result for _, result, *_ in added}
    of = {name: power for name, power in found.of.items() if name not in own or name in kept}
    return Powers(rescaling, of, found.starts)


def _with_results(ranges: Ranges, rescaling: Rescaling) -> Ranges:
    """The ranges of tensors, those that products add included."""
    of = dict(ranges.of)
    for tensor, result, *_ in rescaling.products:
        if tensor in of:
            of[result] = of[tensor]
    return Ranges(of, ranges.half)


def _chosen(model: Model, ranges: Ranges) -> Powers:
    """The powers of two for the tensors of a graph, products behind what takes none included."""
    graph = Graph(model, live(operators(model), model.graph.outputs))
    choice = _Choice(State(graph, ranges), ranges)
    starts: set[Value] = set()
    beyond: Refuse | None = None
    for op in graph.ops:
        if choice.largest_constant(op, choice.state.frame) > LARGEST_HALF:
            choice.scale_down(op.output)
        for value in op.outputs:
            known = ranges.get(value)
            if known is None or choice.stored(value, known) <= NEAR_END:
                continue
            refused = choice.scale_down(value)
            if refused is None or choice.stored(value, known) <= LARGEST_HALF:
                continue
            if choice.scale_down(value, starts) is not None:
                size = f"{value.name}: it holds numbers up to {known.largest:.3g}"
                why = f"{size}, and float16 ends at {LARGEST_HALF:.0f}; no power of two helps: {refused.reason}"
                beyond = beyond or Refuse("scale-range", why)
    return _written(choice.state, starts, beyond)


def _written(state: State, starts: set[Value], beyond: Refuse | None) -> Powers:
    """What was decided, as data."""
    powers = {value: _log2(state.get("scale", value)) for value in state.moved}
    taken = {value.name for op in state.graph.ops for value in (*op.inputs, *op.outputs) if value is not None}
    results = {value: unused(f"{value.name}.scaled", taken) for value in powers if value in starts}
    edits = list(constants_of(state))
    products = tuple((name_of(value), result, -powers[value], ()) for value, result in results.items())
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


class _Choice:
    """Scales that become larger, one region after the other, until all fits."""

    def __init__(self, state: State, ranges: Ranges) -> None:
        self.state, self.ranges = state, ranges
        self._largest: dict[Value, float] = {}

    def stored(self, value: Value, known: Range) -> float:
        """The largest number that is stored of a tensor, by its size."""
        return float(known.largest / self.state.get("scale", value).min())

    def largest_constant(self, op: Op, frame: FrameOf) -> float:
        """The largest number among the constants of an operator, were tensors stored so; a mask is none."""
        graph = self.state.graph
        edits = rule_of(op.type).edits(graph, op, frame)
        changed = {edit.input: edit for edit in edits if isinstance(edit, NewConstant) and edit.source is not None}
        largest = 0.0
        for port, value in enumerate(op.inputs):
            if value is None or not graph.is_constant(value) or not graph.is_floating(value):
                continue
            if value not in self._largest:
                sizes = np.abs(graph.constant(value))
                self._largest[value] = float(sizes.max(where=sizes < MASK, initial=0.0))
            array = np.full((), self._largest[value])
            largest = max(largest, float(np.max(changed[port].content(array) if port in changed else array)))
        return largest

    def scale_down(self, value: Value, starts: set[Value] | None = None) -> Refuse | None:
        """Store `value`, and all that has to follow, smaller by a power of two that keeps each of them in range.

        starts: the tensors with a product behind them; more of them may be needed. None: there are to be no more. In a
        norm that divides a sum of squares by their number, that product has to carry the power on to the root.
        """
        refused = self._try(value, starts, rigid=False)
        return None if refused is None or self._try(value, starts, rigid=True) is None else refused

    def _try(self, value: Value, starts: set[Value] | None, *, rigid: bool) -> Refuse | None:
        before = self.state.get("scale", value)
        new: set[Value] | None = None if starts is None else set()
        probed = flood(self.state, "scale", {value: before * _PROBE}, starts=new, rigid=rigid)
        if isinstance(probed, Refuse):
            return probed
        power = self._power(value, probed, new)
        if isinstance(power, Refuse):
            return power
        chosen = {value: before * 2.0**power}
        taken = take(self.state, chosen, starts=new, rigid=rigid, smallest=SMALLEST_RMS)
        if isinstance(taken, Refuse):
            return taken
        if starts is not None and new is not None:
            starts |= new
        return None

    def _power(self, value: Value, probed: Outcome, new: set[Value] | None) -> int | Refuse:
        """The smallest power that keeps what a probe reached within float16. new: see `scale_down`."""
        exponents = {other: _exponent(self.state, other, scale) for other, scale in probed.decided.items()}
        least, most = self._least_for_constants(probed), math.inf
        for other, exponent in exponents.items():
            known = self.ranges.get(other)
            if exponent is None:
                return Refuse("scale-range", f"{other.name}: it would be stored as no power of two of itself")
            if known is None or exponent == 0.0:
                continue
            scale = self.state.get("scale", other)
            if new and other in new:
                if known.largest > LARGEST_HALF:
                    return Refuse("scale-range", f"{other.name}: it is too large where it is written")
                most = min(most, (-_log2(scale) - SMALLEST_FACTOR) / exponent) if exponent > 0.0 else most
            stored = self.stored(other, known)
            # A part of a sum needs no digits that the sum has not, which has the same scale.
            part = exponent > 0.0 and bool(sums_of(self.state.graph, other))
            typical = 0.0 if part else float(known.typical(np.zeros(()), ()).max() / scale.max())
            end = LARGEST_HALF if exponent < 0.0 else NEAR_END
            largest, smallest = (
                math.log2(max(size, np.finfo(float).tiny) / limit) / exponent
                for size, limit in ((stored, end), (typical, SMALLEST_RMS))
            )
            if exponent > 0.0:
                least, most = max(least, largest), most if typical == 0.0 else min(most, smallest)
            else:
                least, most = least if typical == 0.0 else max(least, smallest), min(most, largest)
        whole = 1 if all(exponent is None or exponent == round(exponent) for exponent in exponents.values()) else 2
        power = whole * math.ceil(least / whole) if math.isfinite(least) else 0
        if power > most:
            return Refuse("scale-range", f"{value.name}: what has to follow it would be too small or too large")
        return power

    def _least_for_constants(self, probed: Outcome) -> float:
        """The power from which on the constants that a probe made smaller are finite."""
        frame, least = self.state.with_outcome("scale", probed), -math.inf
        for op in probed.reached:
            before = self.largest_constant(op, self.state.frame)
            if before > LARGEST_HALF and (after := self.largest_constant(op, frame)) < before:
                least = max(least, math.log2(before / LARGEST_HALF) / math.log(before / after, _PROBE))
        return least


def _exponent(state: State, value: Value, scale: Array) -> float | None:
    """e, where a tensor is stored in c^e once the probe is stored in c; None where its channels differ."""
    ratio = scale / state.get("scale", value)
    if np.any(np.abs(ratio / ratio.flat[0] - 1.0) > 1e-12):
        return None
    exponent = math.log(float(ratio.flat[0]), _PROBE)
    nearest = round(2.0 * exponent) / 2.0
    return nearest if abs(exponent - nearest) < 1e-9 else None
