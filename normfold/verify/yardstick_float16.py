"""What a float16 model is held to when its source is float32: the error of the source, converted in the same way.

Truth stays the source in float64, on inputs that float16 can hold. The converter is one for both sides, so that what it
got wrong would excuse itself: the converted source is therefore held against the truth by a bound of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from normfold.errors import GraphError
from normfold.graph.float16 import to_half
from normfold.graph.float64 import COARSE_CEILINGS
from normfold.graph.powers import Rescaling, rescale
from normfold.graph.prepare import prepare
from normfold.graph.write import save
from normfold.inputs.cases import Case
from normfold.inputs.float16 import half_specs
from normfold.inputs.spec import InputSpec
from normfold.system.clock import Tick, nothing
from normfold.system.failures import check_memory, one_line
from normfold.verify.judge import FEW, FLOOR_ULPS, HALF_EDGE, PLAIN, POWERS_EDGE, Edge, Judged, Tolerance, judge
from normfold.verify.metrics import Array, figures
from normfold.verify.runtime import open_session, run_session
from normfold.verify.truth import Truth
from normfold.verify.yardstick import Yardstick


def lay(
    truth: Truth,
    original: Path,
    specs: Sequence[InputSpec],
    *,
    half: Path | None = None,
    powers: Rescaling | None = None,
    tolerance: Tolerance | None = None,
    tick: Tick = nothing,
) -> tuple[Yardstick, tuple[Edge, ...]]:
    """The yardstick for a model that was made from the graph at `original`, and what has to hold before it is used.

    specs: what the source takes. half: where to write the converted source; None where the model was not converted.
    powers: of two, in which the original is stored before it is converted, where float16 could not hold it; held to
    compute the same in float32.
    Raises what `Yardstick.lay` does, and GraphError where float16 cannot hold the source, or the powers do not fit it.
    """
    edges: tuple[Edge, ...] = ()
    if half is None or truth.narrow is not None:
        yardstick = Yardstick.lay(truth, original, tolerance=tolerance, tick=tick)
        edges = yardstick.export_edges()
        if half is None or not all(edge.passed for edge in edges):
            return yardstick, edges
    source = ir.load(original)
    if powers is not None:
        source = rescale(prepare(source), powers)
        edges = (*edges, _powers_edge(truth.cases[:FEW], original, source, half.with_name("rescaled.onnx")))
        if not edges[-1].passed:
            return Yardstick.lay(truth, original, tolerance=tolerance, tick=tick), edges
    save(to_half(source), half)
    cases = tuple(case.typed(half_specs(specs)) for case in truth.cases)
    yardstick = Yardstick.lay(
        replace(truth, cases=cases, narrow=None), half, tolerance=tolerance, tick=tick, ceiling=False
    )
    return yardstick, (*edges, _half_edge(yardstick))


def _powers_edge(cases: Sequence[Case], original: Path, rescaled: ir.Model, place: Path) -> Edge:
    """The source in powers of two against itself: in float32 every bit is the same but where a root is a power."""
    own = _outputs(original, cases)
    try:
        others = _outputs(save(rescaled, place)[0], cases)
    except GraphError as error:
        return Edge(POWERS_EDGE, math.inf, math.inf, 0.0, passed=False, detail=str(error))
    judged = []
    for (name, truths), found in zip(own.items(), others.values(), strict=True):
        wide = [np.asarray(true, np.float64) if true.dtype.kind == "f" else true for true in truths]
        sizes = [np.abs(true[np.isfinite(true)]) for true in wide if true.dtype.kind == "f"]
        flat = np.concatenate([size.reshape(-1) for size in sizes]) if sizes else np.ones(1)
        scale = float(np.sqrt(np.mean(np.square(flat)))) if flat.size and np.any(flat) else 1.0
        ulp = float(np.finfo(truths[0].dtype).eps) if truths[0].dtype.kind == "f" else 0.0
        bound = FLOOR_ULPS * ulp * max(1.0, float(flat.max(initial=0.0)) / scale)
        samples = tuple(figures(value, true) for value, true in zip(found, wide, strict=True))
        judged.append(Judged(name, samples, scale, ulp, bound))
    return judge(POWERS_EDGE, cases, judged, "the source stored in powers of two, in float32, against the source", {})


def _outputs(path: Path, cases: Sequence[Case]) -> dict[str, list[Array]]:
    """What a graph gives, case by case. Raises GraphError where it does not run."""
    session = open_session(path, PLAIN)
    names = [value.name for value in session.get_inputs()]
    try:
        rows = [run_session(session, None, case.fed_to(names)) for case in cases]
    except Exception as error:  # onnxruntime's own classes share no base but this
        check_memory(error, str(path))
        raise GraphError(f"{path.name} does not run: {one_line(error)}") from error
    return {value.name: [row[i] for row in rows] for i, value in enumerate(session.get_outputs())}


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
