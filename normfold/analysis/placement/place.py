"""Where the scale and the shift of one norm go: towards its consumers, towards its producer, or nowhere, by cost.

A scale costs nothing wherever it goes; of two directions that close, the one in which fewer operators change is taken.
A shift costs the elements of the Adds that it needs, and goes where they are fewest; of two places that cost as much,
where fewer digits are lost (docs/decisions/0012-digits.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from normfold.analysis.placement.float16_range import SMALLEST_STORED, first_beyond
from normfold.analysis.placement.magnitude import centres, fits
from normfold.analysis.placement.propagate import Outcome, ShiftCosts, State, flood, short_flood
from normfold.analysis.plan import ShiftPlace
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import to_rank_of
from normfold.graph.affine import Array, Frame, agree, agree_each, total
from normfold.graph.types import Op, Value


@dataclass(frozen=True, slots=True)
class Placed:
    """A shift that has a place: what the flood decided, where that is, and how many elements its Adds touch."""

    outcome: Outcome
    place: ShiftPlace
    elements: int


@dataclass(frozen=True, slots=True)
class _Placement:
    """A start of the shift's flood. writer_limit: see `rules.base.Surroundings`."""

    place: ShiftPlace
    start: dict[Value, Array]
    writer_limit: float


def source_of(op: Op) -> Value:
    """The tensor that a fixed map reads."""
    source = op.inputs[0]
    assert source is not None
    return source


def place_scale(state: State, op: Op, frame: Frame, *, power: int = 0) -> Outcome | Refuse:
    """Towards the consumers, s_y = a * s_x with s_x as it is, or towards the producer, s_x = s_y / a.

    The consumers, unless they refuse or the producer is near and fewer operators change there. power: both ways, with
    s_x times this power of two.
    """
    if op.affine is None:  # a LayerNormalization's own weight
        return flood(state, "scale", {op.output: frame.scale}, folding=op)
    source = source_of(op)
    before, after = state.get("scale", source), state.get("scale", op.output)
    if power:
        before = before * 2.0**power
        return flood(state, "scale", {source: before, op.output: frame.scale * before}, folding=op)
    start = {source: before, op.output: frame.scale * before}
    found = flood(state, "scale", start, folding=op)
    backward = None
    if not np.any(frame.scale == 0.0):
        backward = to_rank_of(state.graph, source, after / frame.scale)
    if backward is None:
        return found
    start = {op.output: after, source: backward}
    if isinstance(found, Outcome):
        nearer = short_flood(state, "scale", start, folding=op, absorbed_below=found.absorbed)
        return found if nearer is None else nearer
    other = flood(state, "scale", start, folding=op)
    # That a copy is forbidden says more than where the other direction ends: it can be allowed.
    return other if isinstance(other, Outcome) or other.code == "shared-weight" else found


def place_shift(state: State, op: Op, frame: Frame, *, scale: Outcome, with_zero: bool) -> Placed | Refuse:
    """The placement that touches the fewest elements; a refusal when the shift is to stay where it is.

    scale: where the scale goes. with_zero: a channel has scale 0. In `v = 0 * stored + shift` it is its shift, so the
    scale stays where the shift does.
    """
    costs = ShiftCosts(state)
    stays = state.graph.size(op.output) * (2 if with_zero else 1)
    best: Placed | None = None
    refused: Refuse | None = None
    for placement in _placements(state, op, frame):
        if best is not None and best.elements <= 0:
            break
        limit, most = placement.writer_limit, float(stays)
        found = flood(state, "shift", placement.start, folding=op, writer_limit=limit, map_limit=most)
        if isinstance(found, Refuse):
            refused = refused or found
            continue
        if placement.place == "writer" and not _carried_well(state, op, placement, found):
            continue
        if left := leaves_range(state, scale, found):
            refused = refused or left
            continue
        needed = costs.added_elements(found.decided, found.reached)
        if best is None or needed < best.elements:
            best = Placed(found, placement.place, needed)
    if best is None:
        assert refused is not None, "the first placement is always tried"
        return refused
    if best.elements > stays and not _goes_whole(state, op):
        why = f"one Add of {stays} elements here costs less than {best.elements} elsewhere"
        return Refuse("narrow-add", f"{op.name}: {why}")
    best = _nearer_the_source(state, op, frame, scale, best)
    return Placed(best.outcome, _name(state, frame, best), best.elements)


def _goes_whole(state: State, op: Op) -> bool:
    """Whether a map holds a norm of which nothing is to stay."""
    inside = () if op.affine is None else op.affine.inside
    return any(value.name in state.whole for value in (op.output, *inside))


def _nearer_the_source(state: State, op: Op, frame: Frame, scale: Outcome, best: Placed) -> Placed:
    """To a near producer rather than to the readers, if that costs no more and changes no more there, in two cases.

    Where the scale went there: the producer then writes the norm's own output, whose digits no shift can cost, and
    changes in any case. And where the readers would lose digits to the mean of what they read.
    """
    moved = op.affine is not None and not agree_each(scale.decided[source_of(op)], state.get("scale", source_of(op)))
    if best.place == "writer" or not (moved or centres(state.graph, op)):
        return best
    start = next((one for one in _placements(state, op, frame) if one.place == "writer"), None)
    found = None
    if start is not None:
        found = short_flood(state, "shift", start.start, folding=op, absorbed_below=best.outcome.absorbed + 1)
    if start is None or found is None:
        return best
    needed = ShiftCosts(state).added_elements(found.decided, found.reached)
    well = _carried_well(state, op, start, found) and not leaves_range(state, scale, found)
    return Placed(found, "writer", needed) if well and needed <= best.elements else best


def leaves_range(
    state: State, scale: Outcome, shift: Outcome | None, *, smallest: float = SMALLEST_STORED
) -> Refuse | None:
    """What float16 could not hold of these two outcomes for one norm; None where nothing is stored in it.

    smallest: see `first_beyond`.
    """
    if state.ranges is None:
        return None
    shifts = {} if shift is None else shift.decided

    def frame(value: Value) -> Frame:
        before = state.frame(value)
        return Frame(scale.decided.get(value, before.scale), shifts.get(value, before.shift))

    ops = dict.fromkeys([*scale.reached, *(() if shift is None else shift.reached)])
    values = dict.fromkeys([*scale.decided, *shifts])
    return first_beyond(state.ranges, state.graph, values, ops, frame, smallest=smallest)


def _placements(state: State, op: Op, frame: Frame) -> Iterable[_Placement]:
    """Where the shift may go, cheapest for the reader of the graph first: consumers, then producer."""
    if op.affine is None:
        yield _Placement("reader", {op.output: frame.shift}, 0.0)
        return
    source = source_of(op)
    before, after = state.get("shift", source), state.get("shift", op.output)
    consumers = {source: before, op.output: total(frame.scale * before, frame.shift)}
    yield _Placement("reader", consumers, 0.0)
    yield _Placement("reader", consumers, np.inf)
    if not np.any(frame.scale == 0.0):
        backward = to_rank_of(state.graph, source, total(after, -frame.shift) / frame.scale)
        if backward is not None:
            producer = {op.output: after, source: backward}
            yield _Placement("writer", producer, 0.0)
            yield _Placement("writer", producer, np.inf)


def _name(state: State, frame: Frame, placed: Placed) -> ShiftPlace:
    if not np.any(frame.shift):
        return "none"
    decided = placed.outcome.decided

    def after(value: Value) -> Array:
        found = decided.get(value)
        return state.get("shift", value) if found is None else found

    convolutions = [op for op in placed.outcome.reached if rule_of(op.type).convolves]
    maps = any(rule_of(op.type).added_elements(state.graph, op, after) for op in convolutions)
    positions = any(
        any(size != 1 for size in decided[op.output].shape[2:]) for op in convolutions if op.output in decided
    )
    return "map" if maps or positions else placed.place


def _carried_well(state: State, op: Op, placement: _Placement, found: Outcome) -> bool:
    """Whether no tensor that others read too loses more than a few digits to a shift for the norm behind it.

    Where the norm alone reads a tensor, no other reader loses digits; nor where its input has that shift already.
    """
    source = source_of(op)
    if agree(placement.start[source], state.get("shift", source)):
        return True
    return all(
        fits(state.graph, value, shift)
        for value, shift in found.decided.items()
        if len(state.graph.readers(value)) > 1 and not agree(shift, state.get("shift", value))
    )
