"""One graph, folded: analysed, rewritten, and what was asked for on top. What `fold` writes and `bench` measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from normfold.analysis.analyse import analyse
from normfold.analysis.centre import Centring, plan_centring
from normfold.analysis.placement.calibrate import calibrate
from normfold.analysis.placement.float16_range import Ranges, holds_half
from normfold.analysis.plan import Plan
from normfold.checkpoint.source import Source
from normfold.errors import CannotJudgeError, GraphError
from normfold.graph.float16 import to_half
from normfold.graph.prepare import prepare
from normfold.graph.write import save
from normfold.pipeline.options import FoldOptions
from normfold.rewrite.centre import centre
from normfold.rewrite.graph import rewrite
from normfold.rewrite.module import folded_module
from normfold.system.clock import Clock
from normfold.system.files import scratch
from normfold.verify.emitted import check_module

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn


@dataclass(frozen=True, slots=True)
class FoldedGraph:
    """A graph and its fold.

    prepared: the graph with the shapes of all its tensors. folded: with the plan carried out; where the plan is empty,
    the very graph that came in. model: that, centred and in float16 where it was asked for. warnings: what there is to
    say of the plan.
    """

    source: Source
    prepared: ir.Model
    plan: Plan
    folded: ir.Model
    model: ir.Model
    centring: Centring
    warnings: tuple[str, ...] = ()

    def module(self) -> nn.Module:
        """The source's module with the same plan carried out, and judged. Raises NotExpressibleError."""
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

    of_graph: which one it is of several, in words. Raises GraphError and NormStateError.
    """
    with clock.stage("analyse", f"looking for norms{of_graph} and where they can go"):
        prepared = prepare(original)
        plan, warnings = _analyse(prepared, source, options)
    with clock.stage("rewrite", "folding"):
        # With nothing to fold the graph is left exactly as it is.
        folded = original if plan.is_empty else rewrite(prepared, plan)
        shaped = prepared if plan.is_empty else folded
        centring = plan_centring(shaped) if options.center else Centring()
        model = centre(shaped, centring) if centring.norms else folded
        model = to_half(model) if options.half else model
    return FoldedGraph(source, prepared, plan, folded, model, centring, warnings)


def _analyse(graph: ir.Model, source: Source, options: FoldOptions) -> tuple[Plan, tuple[str, ...]]:
    """The plan, and what there is to say of it. What float16 is to hold is looked at on inputs first."""
    plan_with = partial(
        analyse,
        graph,
        norms=source.norms,
        norm_affine=options.affine,
        only=options.only or None,
        keep_tied=options.keep_tied,
        equalize=options.equalize,
    )
    if not (options.half or holds_half(graph)):
        return plan_with(), ()
    plan = plan_with(ranges=Ranges({}, options.half))
    if all(site.status == "kept" and site.code != "scale-range" for site in plan.sites):
        return plan, ()
    try:
        ranges = calibrate(graph, source.inputs, half=options.half)
    except (GraphError, CannotJudgeError) as error:
        return plan, (f"The scales of the fold are bounded by 2^6, for its tensors could not be looked at: {error}",)
    return plan_with(ranges=ranges), ()
