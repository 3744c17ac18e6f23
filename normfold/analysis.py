"""From a graph to a plan: find the norms, fold them one after the other, say what becomes of each.

Norms are taken in the order of the graph. For each the scale is flooded first, towards the consumers, or else
towards the producer. If either closes, its shift goes where it costs the fewest elements: to the consumers, to the
producer (the residual stream carries b / a), or it stays as one Add. Nothing here changes the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from normfold.errors import GraphError
from normfold.flood import Half, Outcome, ShiftCosts, State, flood
from normfold.frame import Array, Frame, Refuse, agree, total, varying_axes
from normfold.graph import OLDEST_OPSET, Affine, Graph, Model, Op, Value, operators, opset
from normfold.magnitude import fits
from normfold.names import Named, NormModule, name_sites, site_name
from normfold.plan import Map, Plan, Status
from normfold.rules import TABLE
from normfold.rules.base import Edit, name_of, to_rank_of
from normfold.rules.normalize import NormalizeRule
from normfold.sites import collapse


@dataclass(slots=True)
class _Attempt:
    """How folding one site went."""

    op: Op
    frame: Frame
    refusals: dict[Half, Refuse] = field(default_factory=dict)
    reached: list[Op] = field(default_factory=list)


def analyse(
    model: Model,
    *,
    norms: Sequence[NormModule] = (),
    norm_affine: bool = False,
    only: Collection[str] | None = None,
) -> Plan:
    """Plan the folding of every norm in `model` (see `graph.prepare`), which is not changed.

    norms: the norm modules of the checkpoint, for names and kinds. norm_affine: also fold the weight and bias of
    LayerNormalization and RMSNormalization, whose statistic stays. only: names of the sites to fold, by default all.
    Raises GraphError, NormStateError.
    """
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
    graph = collapse(Graph(model, operators(model)))
    state = State(graph)
    found = [(op, op.affine.frame) for op in graph.ops if op.affine is not None and op.affine.is_norm]
    if norm_affine:
        found += [(op, frame) for op in graph.ops if (frame := _own_frame(graph, op)) is not None]
    attempts = [
        _fold(state, op, frame) if only is None or site_name(op, norms) in only else _left(op, frame)
        for op, frame in found
    ]
    # A norm that stayed because of its cost may cost less now that the norms behind it have moved their shifts.
    attempts = [_fold(state, again.op, again.frame) if _stayed_for_cost(again) else again for again in attempts]
    maps = tuple(written for op in graph.ops if op.affine is not None and (written := _written(state, op)) is not None)
    return Plan(
        sites=name_sites(graph, [_outcome(state, attempt) for attempt in attempts], norms),
        frames={name_of(value): state.frame(value) for value in _moved(state)},
        maps=maps,
        edits=tuple(_edits(state)),
    )


def _fold(state: State, op: Op, frame: Frame) -> _Attempt:
    attempt = _Attempt(op, frame)
    scale = _fold_scale(state, op, frame)
    if isinstance(scale, Refuse):
        attempt.refusals["scale"] = scale
        return attempt
    whole = bool(np.any(scale.decided[op.output] == 0.0))
    shift = _fold_shift(state, op, frame, whole=whole)
    if isinstance(shift, Refuse) and whole:
        attempt.refusals["scale"] = shift
        return attempt
    state.commit("scale", op, scale.decided)
    attempt.reached += scale.reached
    if isinstance(shift, Refuse):
        attempt.refusals["shift"] = shift
        return attempt
    state.commit("shift", op, shift.decided)
    attempt.reached += shift.reached
    return attempt


def _left(op: Op, frame: Frame) -> _Attempt:
    return _Attempt(op, frame, {"scale": Refuse("not-asked", "other norms were asked for (--only)")})


def _stayed_for_cost(attempt: _Attempt) -> bool:
    return "scale" in attempt.refusals and attempt.refusals["scale"].code == "narrow-add"


def _fold_scale(state: State, op: Op, frame: Frame) -> Outcome | Refuse:
    """Towards the consumers: s_y = a * s_x with s_x as it is; else towards the producer: s_x = s_y / a."""
    if op.affine is None:  # a LayerNormalization's own weight
        return flood(state, "scale", {op.output: frame.scale}, folding=op)
    source = _source(op)
    before, after = state.half("scale", source), state.half("scale", op.output)
    found = flood(state, "scale", {source: before, op.output: frame.scale * before}, folding=op)
    if isinstance(found, Outcome) or np.any(frame.scale == 0.0):
        return found
    backward = to_rank_of(state.graph, source, after / frame.scale)
    other = flood(state, "scale", {op.output: after, source: backward}, folding=op) if backward is not None else found
    return other if isinstance(other, Outcome) else found


def _fold_shift(state: State, op: Op, frame: Frame, *, whole: bool) -> Outcome | Refuse:
    """The placement that touches the fewest elements; a refusal when the shift is to stay where it is.

    whole: a channel has scale 0. In `v = 0 * stored + shift` it is its shift, so the scale stays where the shift does.
    """
    costs = ShiftCosts(state)
    best: tuple[int, Outcome] | None = None
    refused: Refuse | None = None
    for start, limit in _placements(state, op, frame):
        found = flood(state, "shift", start, folding=op, writer_limit=limit)
        if isinstance(found, Refuse):
            refused = refused or found
            continue
        if _source_moves(state, op, start) and not _carried_well(state, found):
            continue
        needed = costs.added_elements(found.decided, found.reached)
        if best is None or needed < best[0]:
            best = needed, found
        if needed <= 0:
            break
    if best is None:
        assert refused is not None, "the first placement is always tried"
        return refused
    stays = state.graph.size(op.output) * (2 if whole else 1)
    if best[0] > stays:
        return Refuse("narrow-add", f"{op.name}: one Add of {stays} elements here costs less than {best[0]} elsewhere")
    return best[1]


def _placements(state: State, op: Op, frame: Frame) -> Iterable[tuple[dict[Value, Array], float]]:
    """Where the shift may go, cheapest for the reader of the graph first: consumers, then producer."""
    if op.affine is None:
        yield {op.output: frame.shift}, 0.0
        return
    source = _source(op)
    before, after = state.half("shift", source), state.half("shift", op.output)
    consumers = {source: before, op.output: total(frame.scale * before, frame.shift)}
    yield consumers, 0.0
    yield consumers, np.inf
    if not np.any(frame.scale == 0.0):
        backward = to_rank_of(state.graph, source, total(after, -frame.shift) / frame.scale)
        if backward is not None:
            producer = {op.output: after, source: backward}
            yield producer, 0.0
            yield producer, np.inf


def _source_moves(state: State, op: Op, start: Mapping[Value, Array]) -> bool:
    """Whether a placement gives the tensor in front of the norm a shift."""
    return op.affine is not None and not agree(start[_source(op)], state.half("shift", _source(op)))


def _carried_well(state: State, found: Outcome) -> bool:
    """Whether no tensor that others read too loses more than a few digits to a shift for the norm behind it.

    Where the norm alone reads a tensor, nobody else's digits are at stake.
    """
    return all(
        fits(state.graph, value, shift)
        for value, shift in found.decided.items()
        if len(state.graph.readers(value)) > 1 and not agree(shift, state.half("shift", value))
    )


def _source(op: Op) -> Value:
    source = op.inputs[0]
    assert source is not None
    return source


def _own_frame(graph: Graph, op: Op) -> Frame | None:
    """The weight and bias of a LayerNormalization as the frame its output would have without them."""
    rule = TABLE.get(op.type)
    dims = graph.dims(op.output)
    if not isinstance(rule, NormalizeRule) or dims is None:
        return None
    return rule.own_frame(graph, op, len(dims))


def _outcome(state: State, attempt: _Attempt) -> Named:
    refused = attempt.refusals.get("scale") or attempt.refusals.get("shift")
    status: Status = "folded" if refused is None else "kept" if "scale" in attempt.refusals else "partial"
    into = [op.name for op in dict.fromkeys(attempt.reached) if op is not attempt.op and _takes(state, op)]
    return Named(attempt.op, status, refused, tuple(dict.fromkeys(into)), _channels(attempt.frame))


def _takes(state: State, op: Op) -> bool:
    """Whether constants of `op` change."""
    if op.affine is not None:
        written = _written(state, op)
        return written is not None and (written.scale is not None or written.shift is not None)
    return any(True for _ in TABLE[op.type].edits(state.graph, op, state.frame))


def _channels(frame: Frame) -> int:
    return (
        int(np.broadcast_shapes(frame.scale.shape, frame.shift.shape)[axes[0]])
        if (axes := varying_axes(frame.scale))
        else 1
    )


def _moved(state: State) -> list[Value]:
    values = dict.fromkeys([*state.frames["scale"], *state.frames["shift"]])
    return [value for value in values if not state.frame(value).is_identity]


def _written(state: State, op: Op) -> Map | None:
    """The affine map of `op` between stored tensors; None when it is what stands in the graph already."""
    affine, source = op.affine, _source(op)
    assert affine is not None
    before, after = state.frame(source), state.frame(op.output)
    scale = affine.frame.scale * before.scale / after.scale if not state.is_fixed(op, "scale") else None
    shift = None
    if not state.is_fixed(op, "shift"):
        shift = (affine.frame.scale * before.shift + affine.frame.shift - after.shift) / after.scale
    touched = op in state.fixed["scale"] or op in state.fixed["shift"]
    same_scale = scale is None or _equal(scale, affine.frame.scale)
    same_shift = shift is None or _equal(shift, affine.frame.shift)
    if not touched and same_scale and same_shift and not _leans_on_moved(state, op):
        return None
    return Map(name_of(source), name_of(op.output), scale, shift, _is_batch_norm(affine, scale, shift))


def _leans_on_moved(state: State, op: Op) -> bool:
    """Whether operators inside the map read a tensor that others read too, and that is stored differently from now on.

    Its operators as they stand would read that; written anew, the map starts from its own input.
    """
    assert op.affine is not None
    shared = [value for value in op.affine.inside if value in state.graph.producer]
    around = [*shared, _source(op), op.output] if shared else []
    return any(not state.frame(value).is_identity for value in around)


def _equal(first: Array, second: Array) -> bool:
    return bool(np.all(first == second))


def _is_batch_norm(affine: Affine, scale: Array | None, shift: Array | None) -> bool:
    """Whether a BatchNormalization wrote the map and can write what has become of it."""
    axes = {axis for half in (scale, shift) if half is not None for axis in varying_axes(half)}
    return len(affine.nodes) == 1 and affine.nodes[0].op_type == "BatchNormalization" and axes <= {1}


def _edits(state: State) -> Iterable[Edit]:
    moved = set(_moved(state))
    for op in state.graph.ops:
        if op.affine is None and op.type in TABLE and any(value in moved for value in (*op.inputs, *op.outputs)):
            yield from TABLE[op.type].edits(state.graph, op, state.frame)
