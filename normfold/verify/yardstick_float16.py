"""What a float16 model is held to when its source is float32: the error of the source, converted in the same way.

Truth stays the source in float64, on inputs that float16 can hold. The converter is one for both sides, so that what it
got wrong would excuse itself: the converted source is therefore held against the truth by a bound of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from normfold.graph.float16 import to_half
from normfold.graph.float64 import COARSE_CEILINGS
from normfold.graph.write import save
from normfold.inputs.float16 import half_specs
from normfold.inputs.spec import InputSpec
from normfold.system.clock import Tick, nothing
from normfold.verify.judge import HALF_EDGE, Edge, Judged, Tolerance, judge
from normfold.verify.truth import Truth
from normfold.verify.yardstick import Yardstick


def lay(
    truth: Truth,
    original: Path,
    specs: Sequence[InputSpec],
    *,
    half: Path | None = None,
    rescaled: ir.Model | None = None,
    tolerance: Tolerance | None = None,
    tick: Tick = nothing,
) -> tuple[Yardstick, tuple[Edge, ...]]:
    """The yardstick for a model that was made from the graph at `original`, and what has to hold before it is used.

    specs: what the source takes. half: where to write the converted source; None where the model was not converted.
    rescaled: what is converted where float16 cannot hold the original itself; in float32 it computes the same.
    Raises what `Yardstick.lay` does, and GraphError where float16 cannot hold the source.
    """
    edges: tuple[Edge, ...] = ()
    if half is None or truth.narrow is not None:
        yardstick = Yardstick.lay(truth, original, tolerance=tolerance, tick=tick)
        edges = yardstick.export_edges()
        if half is None or not all(edge.passed for edge in edges):
            return yardstick, edges
    save(to_half(ir.load(original) if rescaled is None else rescaled), half)
    cases = tuple(case.typed(half_specs(specs)) for case in truth.cases)
    yardstick = Yardstick.lay(
        replace(truth, cases=cases, narrow=None), half, tolerance=tolerance, tick=tick, ceiling=False
    )
    return yardstick, (*edges, _half_edge(yardstick))


def _half_edge(yardstick: Yardstick) -> Edge:
    """The converted source against the truth."""
    own, truth = yardstick.original, yardstick.truth
    # Of the three digits of float16 a deep network leaves one or two. With none left nothing can be held to them.
    most, rms = COARSE_CEILINGS
    outputs = [
        Judged(
            name,
            tuple(row[i] for row in own.samples),
            yardstick.scales[i],
            own.ulps[i],
            most,
            tuple(rms * yardstick.scales[i] for _ in truth.cases) if own.ulps[i] else None,
        )
        for i, name in enumerate(own.names)
    ]
    cases, said = yardstick.truth.cases, f"the source in float16, against {yardstick.truth.method}"
    return judge(HALF_EDGE, cases, outputs, said, own.failures)
