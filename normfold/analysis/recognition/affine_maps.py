"""Finding fixed per-channel maps by abstract interpretation.

Every tensor is tracked as `scale * L(base) + shift`: a fixed map of some base tensor in some layout L. Batch norms,
products and sums with constants compose the map; Transpose and Reshape change the layout; a sum of two tensors with
the same base in the same layout merges (RepBN's two branches). Where the tracking ends, the map is collapsed into
one `Affine` operator. So all spellings of a norm look alike afterwards, with the transposes and reshapes that only
served it inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import rule_of
from normfold.analysis.rules.axis_maps import AxisMap
from normfold.analysis.rules.base import FixedMap, Rule, to_rank_of
from normfold.graph.affine import Array, Frame, varying_axes
from normfold.graph.dims import Layout, base_layout
from normfold.graph.operators import live
from normfold.graph.types import Affine, Node, Op, Value
from normfold.graph.view import Graph

# Cutting a family of maps apart can reveal another one to cut, as deep as maps are nested.
_ROUNDS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A tensor as `scale * L(base) + shift`.

    sources: the operands it is made from. ops: the operators that compute the map; none while it is a plain layout.
    centres: see `Affine`.
    path: all tensors between the base and it; loose: those that only one branch of a later sum runs
    through.
    """

    base: Value
    layout: Layout
    frame: Frame
    sources: tuple[Value, ...] = ()
    ops: tuple[Op, ...] = ()
    has_scale: bool = False
    has_shift: bool = False
    centres: bool = False
    path: frozenset[Value] = frozenset()
    loose: frozenset[Value] = frozenset()
    batch_norm: bool = False

    @property
    def is_map(self) -> bool:
        return bool(self.ops)


def collapse(graph: Graph) -> Graph:
    """`graph` with every fixed map collapsed into one `Affine` operator, and the operators that only served it gone."""
    cuts: frozenset[Value] = frozenset()
    for _ in range(_ROUNDS):
        forms = _track(graph, cuts)
        found, more = _terminals(graph, forms)
        if more <= cuts:
            break
        cuts |= more
    collapsed = {op.output: op for op in found}
    ops = [collapsed.get(op.output, op) if op.outputs else op for op in graph.ops]
    return Graph(graph.model, live(ops, graph.model.graph.outputs))


def _track(graph: Graph, cuts: frozenset[Value]) -> dict[Value, Form]:
    """The form of every tensor that has one other than itself."""
    forms: dict[Value, Form] = {}
    for op in graph.ops:
        if not op.outputs or graph.is_constant(op.output):
            continue
        form = _extend(graph, op, forms, cuts)
        if form is not None and _per_channel(form):
            forms[op.output] = form
        elif form is not None and (alone := _extend(graph, op, {}, cuts)) is not None:
            forms[op.output] = alone
    return forms


def _form(graph: Graph, value: Value, forms: dict[Value, Form], cuts: frozenset[Value]) -> Form | None:
    """The form of an operand; a tensor that has none is its own base."""
    if value in forms and value not in cuts and not _closed(graph, forms[value]):
        return forms[value]
    dims = graph.dims(value)
    if dims is None or graph.is_constant(value) or not graph.is_floating(value):
        return None
    return Form(value, base_layout(dims), Frame.identity(len(dims)))


def _closed(graph: Graph, form: Form) -> bool:
    """A bias, or a map that differs along several axes (position embeddings), is no part of a norm."""
    return form.is_map and (not _per_channel(form) or _is_bias(graph, form))


def _is_bias(graph: Graph, form: Form) -> bool:
    """A shift alone, right behind a weight or behind another bias of it."""
    value = None if form.has_scale else form.base
    while value is not None and (op := graph.producer.get(value)) is not None:
        rule = rule_of(op.type)
        if rule.bias_follows:
            return True
        value = op.inputs[0] if rule.rearranges else _shifted(graph, op, rule)
    return False


def _shifted(graph: Graph, op: Op, rule: Rule) -> Value | None:
    """What `op` adds a constant to."""
    fixed = rule.fixed_map(graph, op) if rule.adds else None
    return fixed.source if fixed is not None and fixed.scale is None else None


def _per_channel(form: Form) -> bool:
    return len(set(varying_axes(form.frame.scale)) | set(varying_axes(form.frame.shift))) <= 1


def _extend(graph: Graph, op: Op, forms: dict[Value, Form], cuts: frozenset[Value]) -> Form | None:
    rule = rule_of(op.type)
    if rule.rearranges:
        return _through_layout(graph, op, rule, forms, cuts)
    fixed = rule.fixed_map(graph, op)
    if fixed is not None:
        return _compose(graph, op, fixed, forms, cuts)
    sign = rule.sign_of_second
    return None if sign is None else _merge(graph, op, sign, forms, cuts)


def _through_layout(graph: Graph, op: Op, rule: Rule, forms: dict[Value, Form], cuts: frozenset[Value]) -> Form | None:
    source = op.inputs[0]
    if not rule.reads(op):
        return None
    form = _form(graph, source, forms, cuts) if source is not None else None
    axis_map = rule.axis_map(graph, op)
    if form is None or source is None or isinstance(axis_map, Refuse) or graph.dims(op.output) is None:
        return None
    layout = axis_map.rearranged(form.layout)
    frame = _carried(axis_map, form.frame)
    if layout is None or frame is None:
        return None
    return replace(form, layout=layout, frame=frame, sources=(source,), path=form.path | {op.output})


def _carried(axis_map: AxisMap, frame: Frame) -> Frame | None:
    scale, shift = axis_map.forward(frame.scale), axis_map.forward(frame.shift)
    return None if isinstance(scale, Refuse) or isinstance(shift, Refuse) else Frame(scale, shift)


def _compose(graph: Graph, op: Op, fixed: FixedMap, forms: dict[Value, Form], cuts: frozenset[Value]) -> Form | None:
    """A fixed map of a form, where the constants only widen over the source, never the source over them."""
    form = _form(graph, fixed.source, forms, cuts)
    if form is None:
        return None
    a = _fitted(graph, fixed.source, np.ones(()) if fixed.scale is None else fixed.scale)
    b = _fitted(graph, fixed.source, np.zeros(()) if fixed.shift is None else fixed.shift)
    if a is None or b is None or not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
        return None
    return replace(
        form,
        frame=form.frame.then(a, b),
        sources=(fixed.source,),
        path=form.path | {op.output},
        ops=(*form.ops, op),
        has_scale=form.has_scale or fixed.scale is not None,
        has_shift=form.has_shift or fixed.shift is not None,
        centres=form.centres or bool(varying_axes(b)),
        batch_norm=form.batch_norm or fixed.batch_norm,
    )


def _fitted(graph: Graph, source: Value, constant: Array) -> Array | None:
    dims = graph.dims(source)
    # A constant of higher rank would widen the source even where it adds but axes of size 1.
    return None if dims is None or constant.ndim > len(dims) else to_rank_of(graph, source, constant)


def _merge(graph: Graph, op: Op, sign: float, forms: dict[Value, Form], cuts: frozenset[Value]) -> Form | None:
    """`first + sign * second`, both of one base in one layout."""
    first, second = op.inputs[:2]
    if first is None or second is None or op.attributes or not graph.is_floating(op.output):
        return None
    left, right = _form(graph, first, forms, cuts), _form(graph, second, forms, cuts)
    if left is None or right is None or left.base is not right.base or left.layout != right.layout:
        return None
    if graph.dims(first) != graph.dims(second) or not (left.is_map or right.is_map or first is second):
        return None
    return replace(
        left,
        frame=left.frame.plus(right.frame, sign),
        sources=(first, second),
        ops=(*left.ops, *right.ops, op),
        has_scale=True,
        has_shift=left.has_shift or right.has_shift,
        centres=left.centres or right.centres,
        path=left.path | right.path | {op.output},
        loose=left.loose | right.loose | (left.path ^ right.path),
        batch_norm=left.batch_norm or right.batch_norm,
    )


def _terminals(graph: Graph, forms: dict[Value, Form]) -> tuple[list[Op], frozenset[Value]]:
    """The maps that end, as `Affine` operators, and the tensors at which a map must be cut in two."""
    loose = {value for form in forms.values() for value in form.loose}
    found: dict[Value, Op] = {}
    cuts: set[Value] = set()
    for value, form in forms.items():
        if not form.is_map:
            continue
        # An operator that asks for its sizes keeps it alive, as one that reads it does.
        consumers = graph.consumers.get(value, ())
        goes_on = [op for op in consumers if _continues(op, value, forms)]
        if goes_on and len(goes_on) == len(consumers) and value not in graph.outputs:
            continue
        if goes_on and value not in loose:
            cuts.add(value)
        end = _end(graph, value, forms)
        start = _start(graph, end, forms)
        if start is None:
            # A chain of maps that ends in another layout than it began: take it apart between the maps, in the last
            # resort within.
            cuts.update((form.path - loose - {value}) or form.path)
            continue
        found[end] = _affine(graph, start, end, forms[end])
    return list(found.values()), frozenset(cuts)


def _continues(op: Op, value: Value, forms: dict[Value, Form]) -> bool:
    form = forms.get(op.output) if op.outputs else None
    return form is not None and value in form.sources and form.base is forms[value].base


def _end(graph: Graph, value: Value, forms: dict[Value, Form]) -> Value:
    """Where the map that `value` closes ends: behind the last layout operator that restores a layout from before it."""
    path = [value]
    while (
        rule_of((op := graph.producer[path[-1]]).type).rearranges
        and forms[path[-1]].is_map
        and op.inputs[0] is not None
    ):
        path.append(op.inputs[0])
    last = end = path.pop()
    plain = _plain(graph, forms[last], forms)
    for restored in (last, *reversed(path)):
        if forms[restored].layout in plain:
            end = restored
        if len(graph.consumers.get(restored, ())) > 1 or restored in graph.outputs:
            break
    return end


def _start(graph: Graph, end: Value, forms: dict[Value, Form]) -> Value | None:
    """The tensor before the map that has the same layout as `end`."""
    return _plain(graph, forms[end], forms).get(forms[end].layout)


def _plain(graph: Graph, form: Form, forms: dict[Value, Form]) -> dict[Layout, Value]:
    """The base and its plain layouts on the way to the map, by layout; the base where several have one."""
    plain = {forms[value].layout: value for value in form.path if value in forms and not forms[value].is_map}
    dims = graph.dims(form.base)
    return plain if dims is None else {**plain, base_layout(dims): form.base}


def _affine(graph: Graph, start: Value, end: Value, form: Form) -> Op:
    nodes = _nodes(graph, form.ops)
    producer = graph.producer[end]
    is_norm = form.batch_norm or (form.has_scale and bool(varying_axes(form.frame.scale)))
    inside = form.path - {start, end}
    affine = Affine(form.frame, nodes, form.has_scale, form.has_shift, is_norm, form.centres, inside)
    return Op("Affine", producer.index, form.ops[-1].name, (start,), (end,), affine=affine)


def _nodes(graph: Graph, ops: Sequence[Op]) -> tuple[Node, ...]:
    nodes = [op.output.producer() for op in dict.fromkeys(ops)]
    return tuple(node for node in nodes if node is not None)
