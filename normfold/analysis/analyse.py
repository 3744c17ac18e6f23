"""From a graph to a plan: find the norms, fold them one after the other, say what becomes of each.

Norms are taken in the order of the graph, those on a residual stream backwards (`_in_turn`). For each the scale is
flooded first, towards the consumers, or else towards the producer. If either closes, its shift goes where it costs
the fewest elements: to the consumers, to the producer (the residual stream carries b / a), or it stays as one Add.
Nothing here changes the graph.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from normfold.analysis.frames.equalize import balance, compared, spreads, weights_of
from normfold.analysis.frames.regions import content
from normfold.analysis.merge.branches import Merged, merges
from normfold.analysis.merge.stored_maps import constants_of, maps_of, moved_around, written_map
from normfold.analysis.placement.float16_range import Ranges, holds_half
from normfold.analysis.placement.place import leaves_range, place_scale, place_shift, source_of
from normfold.analysis.placement.propagate import State
from normfold.analysis.plan import Plan, ShiftPlace, Status
from normfold.analysis.recognition.affine_maps import collapse
from normfold.analysis.recognition.deepnorm import residual_scales
from normfold.analysis.recognition.naming import OperatorOutcome, name_sites, per_token, site_names, token_norm
from normfold.analysis.recognition.quantised import quantised
from normfold.analysis.refusal import Code, Refuse, refuse
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.base import name_of
from normfold.analysis.rules.batch_norm import fixed_batch_norm
from normfold.errors import GraphError
from normfold.graph.affine import Frame, varying_axes
from normfold.graph.operators import inner_operators, operators, opset
from normfold.graph.types import BATCH_NORM, OLDEST_OPSET, Model, Op
from normfold.graph.view import Graph
from normfold.norms.base import NormModule
from normfold.system.collector import uncollected
from normfold.system.text import first_few

_log = logging.getLogger(__name__)

# Powers of two that may bring a norm's tensors into the range of float16, the nearest first.
POWERS = (2, -2, 4, -4, 6, -6, 8, -8, 10, -10)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """How folding one norm went.

    scale_refused: why it stays. shift_refused: why its shift stays behind. reached: the operators that were asked, in
    order. merged: the convolution that took up what was left of the norm.
    """

    op: Op
    frame: Frame
    scale_refused: Refuse | None = None
    shift_refused: Refuse | None = None
    reached: tuple[Op, ...] = ()
    shift: ShiftPlace | None = None
    shift_elements: int = 0
    merged: Op | None = None

    def stays_for(self, code: Code) -> bool:
        return self.scale_refused is not None and self.scale_refused.code == code


@uncollected()
def analyse(
    model: Model,
    *,
    norms: Sequence[NormModule] = (),
    norm_affine: bool = False,
    only: Collection[str] | None = None,
    keep_tied: bool = False,
    ranges: Ranges | None = None,
    equalize: bool = False,
    whole: Collection[str] = (),
) -> Plan:
    """Plan the folding of every norm (and of DeepNorm's alphas) in `model` (see `graph.prepare`), which is not changed.

    norms: the norm modules of the checkpoint, for names and kinds. norm_affine: also fold the weight and bias of
    LayerNormalization and RMSNormalization, whose statistic stays. only: names of the sites to fold, by default all.
    keep_tied: fold nothing that would need a second copy of a weight that several operators read. ranges: what the
    tensors hold, where float16 is to store them (calibrate.py); without them no scale goes past 2^6.
    equalize: choose the scales that are still free so that the ranges of weights balance (frames/equalize.py). whole:
    the names of the tensors that norms write which are to go whole, whatever that costs elsewhere.
    Raises GraphError, NormStateError.
    """
    _check(model)
    graph = collapse(Graph(model, operators(model)))
    ranges = Ranges({}) if ranges is None and holds_half(model) else ranges
    state = State(graph, ranges, keep_tied=keep_tied, whole=whole)
    scales = residual_scales(graph)
    maps_found = [(op, op.affine) for op in graph.ops if op.affine is not None]
    found = [(op, affine.frame) for op, affine in maps_found if affine.is_norm or op in scales]
    if norm_affine:
        found += [(op, frame) for op in graph.ops if (frame := rule_of(op.type).own_frame(graph, op)) is not None]
    integers = quantised(graph)

    def left(op: Op) -> Refuse | None:
        """Why a norm is not even tried."""
        kind = token_norm(graph, op, norms)
        if integers is not None:
            return integers
        if kind is not None and not norm_affine:
            return per_token(kind)
        if only is not None and not set(site_names(op, norms, scales.get(op))) <= set(only):
            return Refuse("not-asked", "other norms were asked for (--only)")
        return None

    attempts: dict[Op, _Attempt] = {}
    for op, frame in _in_turn(graph, found):
        refused = left(op)
        attempts[op] = _fold(state, op, frame) if refused is None else _Attempt(op, frame, refused)
    # A norm that stayed because of its cost may cost less now that the norms around it have moved their shifts.
    for op, frame in found:
        if attempts[op].stays_for("narrow-add"):
            attempts[op] = _fold(state, op, frame)
    attempts = _with_followers(state, attempts)
    # Weights of operators that nothing moved around are as they were: it would be no use to read them.
    weighed = weights_of(state, graph.ops if equalize else moved_around(state))
    before = spreads(weighed, lambda weight: graph.constant(weight.value))
    as_stored = partial(content, state)
    folded = spreads(weighed, as_stored)
    if equalize and integers is None:
        balance(state)
    merged = _merged(state, attempts.values())
    attempts = _with_merges(attempts, merged)
    outcomes = [_outcome(state, attempts[op], scales.get(op)) for op, _ in found]
    return Plan(
        sites=name_sites(graph, [*outcomes, *_no_maps(graph)], norms),
        frames={name_of(value): state.frame(value) for value in state.moved},
        maps=tuple(maps_of(state)),
        edits=tuple(constants_of(state)),
        merges=tuple(one.merge for one in merged),
        untied=state.untied,
        spreads=compared(before, folded, spreads(weighed, as_stored) if equalize else None),
    )


def _check(model: Model) -> None:
    """Raise GraphError for a graph that cannot be analysed."""
    names = [value.name for node in model.graph for value in node.outputs if value.name]
    if len(set(names)) != len(names):
        raise GraphError("Two operators of the graph write tensors of one name; the file is malformed.")
    outputs = [value.name for value in model.graph.outputs]
    if twice := next((name for name in outputs if outputs.count(name) > 1), None):
        raise GraphError(f"The graph lists its output {twice} twice; the file is malformed.")
    if opset(model) < OLDEST_OPSET:
        raise GraphError(
            f"The model is written in ONNX opset {opset(model)}; normfold reads {OLDEST_OPSET} and later, where "
            "constants broadcast as in numpy. graph.prepare raises it."
        )


def _in_turn(graph: Graph, found: Iterable[tuple[Op, Frame]]) -> list[tuple[Op, Frame]]:
    """Where a norm alone reads its input, in the order of the graph: the next norm takes up what one leaves.

    Where others read it too, a residual stream carries its shift on: the last one first, so that the writers behind a
    norm have taken theirs by then and take its own as well, and a stream of n norms is not walked to its end n times.
    """
    alone: list[tuple[Op, Frame]] = []
    shared: list[tuple[Op, Frame]] = []
    for op, frame in found:
        (alone if len(graph.readers(source_of(op))) == 1 else shared).append((op, frame))
    return [*alone, *reversed(shared)]


def _fold(state: State, op: Op, frame: Frame) -> _Attempt:
    """Find a place for the scale and the shift of one norm, and take it.

    Where float16 would not hold what comes out, the tensors around it are stored as multiples of a power of two too.
    """
    attempt = _fold_with(state, op, frame, power=0)
    if not attempt.stays_for("scale-range") or state.ranges is None or not state.ranges.of:
        return attempt
    tries = (_fold_with(state, op, frame, power=power) for power in POWERS)
    return next((one for one in tries if one.scale_refused is None), attempt)


def _fold_with(state: State, op: Op, frame: Frame, *, power: int) -> _Attempt:
    attempt = _Attempt(op, frame)
    scale = place_scale(state, op, frame, power=power)
    if isinstance(scale, Refuse):
        _log.debug("%s: its scale stays: %s", op.name, scale.reason)
        return replace(attempt, scale_refused=scale)
    with_zero = bool(np.any(scale.decided[op.output] == 0.0))
    shift = place_shift(state, op, frame, scale=scale, with_zero=with_zero)
    _log.debug("%s: its scale goes to %s", op.name, _names(op, scale.reached))
    if isinstance(shift, Refuse):
        _log.debug("%s: its shift stays: %s", op.name, shift.reason)
        stays = shift if with_zero else leaves_range(state, scale, None)
        if stays is not None:
            return replace(attempt, scale_refused=stays)
        state.commit("scale", op, scale)
        return replace(attempt, shift_refused=shift, shift="add", reached=scale.reached)
    state.commit("scale", op, scale)
    state.commit("shift", op, shift.outcome)
    costs = (op.name, shift.place, _names(op, shift.outcome.reached), shift.elements)
    _log.debug("%s: its shift goes to its %s, %s, at the cost of %d elements", *costs)
    return replace(
        attempt,
        reached=(*scale.reached, *shift.outcome.reached),
        shift=shift.place,
        shift_elements=shift.elements,
    )


def _names(norm: Op, reached: Sequence[Op]) -> str:
    """A few of the operators that were reached from a norm, for people."""
    names = list(dict.fromkeys(op.name for op in reached if op is not norm and op.name != norm.name))
    return first_few(names, most=4) or "nothing else"


def _with_followers(state: State, attempts: Mapping[Op, _Attempt]) -> dict[Op, _Attempt]:
    """Fold the scalars that have taken up a norm's scale: they are one per channel now, and go as a norm does."""
    attempts = dict(attempts)
    left = [op for op in state.graph.ops if op.affine is not None and op.affine.has_scale and op not in attempts]
    while followers := [op for op in left if _follows(state, op)]:
        left = [op for op in left if op not in followers]
        for op in followers:
            assert op.affine is not None
            reached = _fold(state, op, op.affine.frame).reached
            for norm, attempt in attempts.items():
                if op in attempt.reached:
                    attempts[norm] = replace(attempt, reached=(*attempt.reached, *reached))
    return attempts


def _follows(state: State, op: Op) -> bool:
    written = written_map(state, op)
    return written is not None and written.scale is not None and bool(varying_axes(written.scale))


def _merged(state: State, attempts: Collection[_Attempt]) -> list[Merged]:
    """The sums that become one convolution."""
    leave = [attempt.op for attempt in attempts if attempt.stays_for("not-asked")]
    return merges(state, leave={*leave, *state.shared.weights_of})


def _with_merges(attempts: Mapping[Op, _Attempt], found: Iterable[Merged]) -> dict[Op, _Attempt]:
    """What is left of the norms in merged branches goes into the convolution that stands for them."""
    attempts = dict(attempts)
    for op, into in ((op, one.into) for one in found for op in one.maps):
        attempt = attempts.get(op)
        if attempt is None:
            continue
        attempts[op] = attempt = replace(attempt, merged=into)
        if attempt.scale_refused is not None or attempt.shift_refused is not None:
            shift: ShiftPlace = "writer" if np.any(attempt.frame.shift) else "none"
            attempts[op] = replace(attempt, scale_refused=None, shift_refused=None, shift=shift)
    return attempts


def _outcome(state: State, attempt: _Attempt, behind: Op | None) -> OperatorOutcome:
    refused = attempt.scale_refused or attempt.shift_refused
    status: Status = "folded" if refused is None else "kept" if attempt.scale_refused is not None else "partial"
    takers = [op for op in attempt.reached if op is not attempt.op and _takes(state, op)]
    takers += [attempt.merged] if attempt.merged is not None else []
    into = tuple(dict.fromkeys(op.name for op in takers))
    channels = _channels(attempt.frame)
    return OperatorOutcome(attempt.op, status, refused, into, channels, attempt.shift, attempt.shift_elements, behind)


def _no_maps(graph: Graph) -> Iterable[OperatorOutcome]:
    """The BatchNormalizations that run and are no fixed map of the main graph, each with the reason."""
    for op in graph.ops:
        if op.type == BATCH_NORM:
            why = fixed_batch_norm(graph, op)
            if not isinstance(why, Refuse):
                why = refuse(op, "not-affine", "it reads a constant, or a tensor that is no floating one")
            yield OperatorOutcome(op, "kept", why, (), _stored_channels(graph, op))
    running = {op.index for op in graph.ops}
    for op in inner_operators(graph.model):
        if op.type == BATCH_NORM and op.index in running:
            why = refuse(op, "in-subgraph", "it runs inside the body of an If, a Loop or a Scan")
            yield OperatorOutcome(op, "kept", why, (), _stored_channels(graph, op))


def _stored_channels(graph: Graph, op: Op) -> int:
    """How many channels a BatchNormalization has; 0 where it is not known."""
    weight = op.inputs[1] if len(op.inputs) > 1 else None
    dims = (graph.dims(weight) if weight is not None else None) or ()
    return graph.size(weight) if weight is not None and dims and all(dim.static for dim in dims) else 0


def _takes(state: State, op: Op) -> bool:
    """Whether constants of `op` change."""
    if op.affine is not None:
        written = written_map(state, op)
        return written is not None and (written.scale is not None or written.shift is not None)
    return any(True for _ in rule_of(op.type).edits(state.graph, op, state.frame))


def _channels(frame: Frame) -> int:
    return (
        int(np.broadcast_shapes(frame.scale.shape, frame.shift.shape)[axes[0]])
        if (axes := varying_axes(frame.scale))
        else 1
    )
