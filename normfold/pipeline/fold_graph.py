"""One graph, folded: analysed, rewritten, and what was asked for on top. What `fold` writes and `bench` measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from normfold.analysis.analyse import analyse
from normfold.analysis.centre import Centred, Centring, plan_centring
from normfold.analysis.fixed import FixedStatistics, plan_fixed, readers_of_mean
from normfold.analysis.frames.powers import Powers, Room, choose_powers, rooms
from normfold.analysis.placement.float16_range import Ranges, holds_half
from normfold.analysis.plan import Plan
from normfold.analysis.refusal import Refuse
from normfold.checkpoint.source import Source
from normfold.errors import CannotJudgeError, GraphError
from normfold.graph.float16 import to_half
from normfold.graph.operators import operators
from normfold.graph.powers import Rescaling, rescale
from normfold.graph.prepare import prepare
from normfold.graph.view import Graph
from normfold.graph.write import save
from normfold.inputs.cases import Case, read_cases
from normfold.pipeline.options import FoldOptions
from normfold.rewrite.centre import centre
from normfold.rewrite.fixed import Spelled, drop_means, spell_out
from normfold.rewrite.graph import rewrite
from normfold.system.clock import Clock
from normfold.system.files import scratch
from normfold.system.text import first_few

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

# Of the inputs that are given to calibrate on, so many rows are looked at.
MOST_CASES = 64


@dataclass(frozen=True, slots=True)
class FoldedGraph:
    """A graph and its fold.

    prepared: the graph with the shapes of all its tensors. folded: with the plan carried out; where the plan is empty,
    the very graph that came in. model: that, centred and in float16 where it was asked for. warnings: what there is to
    say of the plan. powers, rescaled: what was folded instead of the graph that came in, where float16 would not hold
    that: the same but for powers of two. room: what each tensor of a float16 model held on the inputs that were looked
    at. fixed: the norms whose statistics cannot matter. remaining: of those, the outputs of norms of which something is
    left in `folded`, and why.
    """

    source: Source
    prepared: ir.Model
    plan: Plan
    folded: ir.Model
    model: ir.Model
    centring: Centring
    warnings: tuple[str, ...] = ()
    powers: Rescaling | None = None
    rescaled: ir.Model | None = None
    room: tuple[Room, ...] = ()
    fixed: FixedStatistics = field(default_factory=FixedStatistics)
    remaining: Mapping[str, Refuse] = field(default_factory=dict)

    def module(self) -> nn.Module:
        """The source's module with the same plan carried out, and judged. Raises NotExpressibleError."""
        from normfold.rewrite.module import folded_module
        from normfold.verify.emitted import check_module

        module = folded_module(self.source, self.prepared, self.plan)
        assert self.source.module is not None, "what was folded has a module"
        with scratch() as folder:
            original, *_ = save(self.prepared, folder / "unfolded.onnx")
            check_module(self.source.module, module, original, self.source.inputs)
        return module


def fold_graph(
    original: ir.Model, source: Source, options: FoldOptions, clock: Clock, *, of_graph: str = ""
) -> FoldedGraph:
    """Fold `original`, which was exported from `source`; nothing is edited in place.

    of_graph: which one it is of several, in words. Raises GraphError and NormStateError, and with `fixed_statistics`
    CannotJudgeError where the graph cannot be run on the inputs.
    """
    if not options.fixed_statistics:
        return _fold(original, source, options, clock, of_graph=of_graph)
    prepared = prepare(original)
    with clock.stage("calibrate", f"looking at what the norms{of_graph} read"):
        fixed = plan_fixed(prepared, source.inputs, source.norms, _given(source, options))
    while fixed.norms:
        spelled = spell_out(prepared, fixed.norms, scoped=bool(source.norms))
        done = _fold(spelled.model, source, options, clock, of_graph=of_graph, fixed=fixed, spelled=spelled)
        if not done.remaining:
            return replace(done, prepared=prepared, fixed=fixed)
        for output, why in done.remaining.items():
            fixed = fixed.without(output, why)
    return replace(_fold(original, source, options, clock, of_graph=of_graph), fixed=fixed)


def _fold(
    original: ir.Model,
    source: Source,
    options: FoldOptions,
    clock: Clock,
    *,
    of_graph: str,
    fixed: FixedStatistics | None = None,
    spelled: Spelled | None = None,
) -> FoldedGraph:
    """`fold_graph`, without a look at inputs. fixed: the norms that are written out in `original`, as `spelled`."""
    norms = source.norms if fixed is None else fixed.renamed(source.norms)
    with clock.stage("analyse", f"looking for norms{of_graph} and where they can go"):
        prepared = prepare(original)
        ranges, warnings = _looked_at(prepared, source, options)
        powers = choose_powers(prepared, ranges) if options.half and ranges is not None else None
        if powers is not None and powers.beyond is not None:
            raise GraphError(
                f"--dtype float16: {powers.beyond.reason}. Write it in float32 (leave --dtype out), or say with "
                "--calibrate FILE.npz what real inputs are"
            )
        rescaled = None if powers is None or powers.rescaling.is_empty else rescale(prepared, powers.rescaling)
        if powers is not None and ranges is not None and rescaled is not None:
            original, prepared, ranges = rescaled, prepare(rescaled), powers.ranges(ranges)
            warnings += _multiplied(powers)
        plan = analyse(
            prepared,
            norms=norms,
            norm_affine=options.affine,
            only=options.only or None,
            keep_tied=options.keep_tied,
            equalize=options.equalize,
            ranges=ranges,
            whole=frozenset(() if fixed is None else (norm.output for norm in fixed.norms)),
        )
    with clock.stage("rewrite", "folding"):
        # With nothing to fold the graph is left exactly as it is.
        folded = original if plan.is_empty else rewrite(prepared, plan)
        remaining: Mapping[str, Refuse] = {}
        if spelled is not None and fixed is not None:
            folded, remaining = _without_means(folded, spelled, fixed, plan, options)
        shaped = prepared if plan.is_empty else folded
        centring = plan_centring(shaped) if options.center else Centring()
        model = centre(shaped, centring) if centring.norms else folded
        model = to_half(model) if options.half else model
    room = () if powers is None or ranges is None else rooms(ranges, plan, powers.of)
    record = None if powers is None or rescaled is None else powers.rescaling
    return FoldedGraph(
        source, prepared, plan, folded, model, centring, warnings, record, rescaled, room, remaining=remaining
    )


def _multiplied(powers: Powers) -> tuple[str, ...]:
    """What there is to say of the products that powers of two need."""
    rows = powers.rescaling.products
    behind = tuple(
        f"One Mul by 2^{power} was added behind {tensor}: what writes it ({powers.starts[tensor]}) takes no power of "
        "two, and float16 would not hold what it is added to otherwise."
        for tensor, _, power, readers in rows
        if not readers
    )
    squared = [tensor for tensor, _, _, readers in rows if readers]
    if not squared:
        return behind
    return (
        *behind,
        f"A Mul by a power of two was added in front of the squares of {first_few(squared)}: the layers differ so much "
        "that no one power suits the squares of all.",
    )


def _without_means(
    folded: ir.Model, spelled: Spelled, fixed: FixedStatistics, plan: Plan, options: FoldOptions
) -> tuple[ir.Model, dict[str, Refuse]]:
    """The folded graph without the means of fixed norms; those of which something would be left, each with the reason.

    Such a norm is better off as one operator.
    """
    graph = Graph(folded, operators(folded))
    values = {value.name: value for value in graph.producer}
    reasons = [site.reason for site in plan.sites if site.status != "folded" and site.reason]
    remaining: dict[str, Refuse] = {}
    weights: dict[str, list[Centred]] = {}
    for norm in fixed.norms:
        mean = spelled.centred.get(norm.output)
        if norm.output in values:
            why = next((f": {reason}" for reason in reasons), "")
            remaining[norm.output] = Refuse("statistic", f"{norm.name}: as a fixed map it would not fold whole{why}")
        elif mean is not None and mean in values:
            found = readers_of_mean(graph, values[mean], keep_tied=options.keep_tied)
            if isinstance(found, Refuse):
                remaining[norm.output] = found
            else:
                weights[mean] = found
    return (folded if remaining or not weights else drop_means(folded, weights)), remaining


def _given(source: Source, options: FoldOptions) -> tuple[Case, ...] | None:
    """The inputs to calibrate on, where there are any. Raises InputSpecError for those that do not fit."""
    if not options.calibrate:
        return None
    return tuple(read_cases(options.calibrate, source.inputs, count=MOST_CASES))


def _looked_at(graph: ir.Model, source: Source, options: FoldOptions) -> tuple[Ranges | None, tuple[str, ...]]:
    """What the tensors hold, where float16 is to store some of them; a warning instead where the graph cannot run.

    Raises InputSpecError for inputs to calibrate on that do not fit.
    """
    if not (options.half or holds_half(graph)):
        return None, ()
    from normfold.analysis.placement.calibrate import calibrate

    try:
        return calibrate(graph, source.inputs, half=options.half, cases=_given(source, options)), ()
    except (GraphError, CannotJudgeError) as error:
        said = f"The scales of the fold are bounded by 2^6, for its tensors could not be looked at: {error}"
        return Ranges({}, options.half), (said,)
