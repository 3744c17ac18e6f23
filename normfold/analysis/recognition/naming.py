"""Which norm of the checkpoint a site is: names and kinds for people.

Exporters leave the module path on every operator. A site belongs to the outermost norm module that all its
operators lie in; where there is no checkpoint, the class names that the exporter left decide, and where there are
none, the operators themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from normfold.analysis.plan import SCALE, ShiftPlace, Site, Status
from normfold.analysis.recognition.token_norms import statistic_norm
from normfold.analysis.refusal import Code, Refuse
from normfold.graph.scopes import classes, node_name, scopes
from normfold.graph.types import Node, Op
from normfold.graph.view import Graph
from normfold.norms.base import NormModule
from normfold.norms.kinds import is_token_norm, kind_of_class, kind_of_operators, token_norm_of


def per_token(kind: str) -> Refuse:
    """Why a norm of this kind is left alone by default."""
    return Refuse(
        "statistic",
        f"{kind} computes a statistic for every token, which stays; its weight and bias move on request only "
        "(--norm-affine)",
    )


@dataclass(frozen=True, slots=True)
class OperatorOutcome:
    """The outcome of folding one operator, before it has a norm's name.

    behind: the norm in front of which it scales a residual stream, where it is no norm itself (DeepNorm).
    """

    op: Op
    status: Status
    refused: Refuse | None
    into: tuple[str, ...]
    channels: int
    shift: ShiftPlace | None = None
    shift_elements: int = 0
    behind: Op | None = None


def name_sites(graph: Graph, outcomes: Sequence[OperatorOutcome], norms: Sequence[NormModule]) -> tuple[Site, ...]:
    """A `Site` for every norm of an outcome, every LayerNorm that stays, and every norm module without an operator."""
    modules = {norm.name: norm for norm in norms}
    sites: list[tuple[int, Site]] = []
    attempted = {outcome.op for outcome in outcomes}
    for outcome in outcomes:
        sites += [(outcome.op.index, site) for site in _sites(graph, outcome, norms)]
    for op in graph.ops:
        written = token_norm_of(op.type)
        if op in attempted or written is None:
            continue
        name, kind = _owner(_nodes(op), modules) or (op.name, written.name)
        why = per_token(kind)
        sites.append((op.index, Site(name, kind, _width(graph, op), "kept", why.code, why.reason)))
    sites.sort(key=lambda item: item[0])
    seen = {site.name for _, site in sites}
    return tuple(site for _, site in sites) + tuple(_unseen(graph, norm) for norm in norms if norm.name not in seen)


def site_names(op: Op, norms: Sequence[NormModule], behind: Op | None = None) -> tuple[str, ...]:
    """The names that `name_sites` gives to the sites of `op`; behind: see `OperatorOutcome`."""
    if behind is not None:
        return (f"{site_names(behind, norms)[0]}.alpha",)
    return tuple(_norms_of(op, {norm.name: norm for norm in norms})) or (op.name,)


def _norms_of(op: Op, modules: dict[str, NormModule]) -> dict[str, str]:
    """The norms that one operator stands for, each with its kind; none where nothing has a norm's name.

    Norms in a row are one map, and so is a norm with what multiplies it.
    """
    nodes = _nodes(op)
    owner = _owner(nodes, modules)
    if owner is not None:
        return dict([owner])
    owners = [owner for node in nodes if (owner := _owner([node], modules)) is not None]
    bare = [
        (node_name(node), kind.name)
        for node in nodes
        if (kind := kind_of_operators({node.op_type})) is not None
        and not kind.per_token
        and _owner([node], modules) is None
    ]
    if len(owners) + len(bare) < 2 and not owners:
        return {}
    return dict([*owners, *bare])


def token_norm(graph: Graph, op: Op, norms: Sequence[NormModule]) -> str | None:
    """LayerNorm or RMSNorm when `op` is one or holds the weight and bias of one; else None."""
    owner, written = _owner(_nodes(op), {norm.name: norm for norm in norms}), token_norm_of(op.type)
    if written is not None:
        return written.name
    kind = statistic_norm(graph, op) if owner is None else owner[1]
    return kind if kind is not None and is_token_norm(kind) else None


def _sites(graph: Graph, outcome: OperatorOutcome, norms: Sequence[NormModule]) -> Iterator[Site]:
    op, modules = outcome.op, {norm.name: norm for norm in norms}
    found = _norms_of(op, modules) or {op.name: statistic_norm(graph, op) or _kind(op, _nodes(op))}
    if outcome.behind is not None:
        found = dict.fromkeys(site_names(op, norms, outcome.behind), "DeepNorm")
    for name, kind in found.items():
        status, reason = outcome.status, None
        code: Code | None = None
        if outcome.refused is not None:
            code, reason = outcome.refused.code, outcome.refused.reason
        module = modules.get(name)
        if status == "folded" and (is_token_norm(kind) or (module is not None and module.keeps_statistic)):
            status, code = "partial", "statistic"
            reason = "its weight and bias are folded; the statistic that it computes for every token stays"
        into = tuple(item for item in outcome.into if item != name)
        yield Site(name, kind, outcome.channels, status, code, reason, into, outcome.shift, outcome.shift_elements)


def _nodes(op: Op) -> tuple[Node, ...]:
    if op.affine is not None:
        return op.affine.nodes
    node = op.output.producer()
    return () if node is None else (node,)


def _owner(nodes: Sequence[Node], modules: dict[str, NormModule]) -> tuple[str, str] | None:
    """The outermost norm module that every operator of a site lies in."""
    paths = [scopes(node) for node in nodes if scopes(node)]
    if not paths:
        return None
    shared = [path for path in paths[0] if all(path in other for other in paths)]
    for path in shared:
        if path in modules:
            return path, modules[path].kind
    if modules:
        return None
    for path, cls in zip(paths[0], classes(nodes[0]), strict=False):
        kind = kind_of_class(cls.rsplit(".", 1)[-1])
        if path in shared and kind is not None:
            return path, kind.name
    return None


def _kind(op: Op, nodes: Sequence[Node]) -> str:
    kind = kind_of_operators({node.op_type for node in nodes})
    if kind is not None:
        return kind.name
    # A box decoder's strides and an averaging factor multiply; a norm centres its channels too.
    return "scale and shift" if op.affine is not None and op.affine.centres else SCALE


def _width(graph: Graph, op: Op) -> int:
    weight = op.inputs[1] if len(op.inputs) > 1 else None
    return 0 if weight is None else graph.size(weight)


def _unseen(graph: Graph, norm: NormModule) -> Site:
    """A norm module for which the analysis found no fixed map."""
    called = any(norm.name in scopes(node) for node in graph.nodes())
    code: Code
    if is_token_norm(norm.kind):
        why = per_token(norm.kind)
        code, reason = why.code, why.reason
    elif called:
        code, reason = "not-affine", "it is computed in the graph, but not as a fixed map of each channel"
    else:
        code, reason = "not-in-graph", "no operator of the exported graph stands for it: the model does not call it"
    return Site(norm.name, norm.kind, norm.channels, "kept", code, reason)
