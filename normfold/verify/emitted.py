"""The torch module of a fold, held to the yardstick of the original as its graph is.

In float64, as the original's own truth is computed: what has been rounded is its weights alone. A module that does not
run in float64 is held to what the graph says, in its own precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from normfold.errors import NotExpressibleError
from normfold.inputs.cases import SCALES, draw_case
from normfold.inputs.spec import InputSpec, traced_sizes
from normfold.system.failures import one_line
from normfold.verify.measure import measure_module
from normfold.verify.truth import establish
from normfold.verify.yardstick import Yardstick


def check_module(source: nn.Module, folded: nn.Module, original: Path, specs: Sequence[InputSpec]) -> None:
    """Raise NotExpressibleError unless `folded` computes what `source` does.

    original: the graph that `source` was exported to; its own error is the yardstick.
    """
    cases = [draw_case(specs, traced_sizes(specs), seed=seed, scale=scale) for seed, scale in enumerate(SCALES)]
    truth = establish(source, original, specs, cases=cases)
    yardstick = Yardstick.lay(truth, original, ceiling=False)
    try:
        measured = measure_module(yardstick.truth, folded, like=yardstick.original)
    # The module is the user's program: with its norms gone, anything can come out of it.
    except Exception as error:
        raise NotExpressibleError(f"the folded module does not run: {one_line(error)}") from error
    edge = yardstick.fold_edge(measured)
    if not edge.passed:
        raise NotExpressibleError(
            f"the folded module differs from the folded graph: its relative error is {edge.relative:.1e}, and "
            f"{edge.bound:.1e} would be rounding; this architecture uses its parameters in a way that the graph does "
            "not show"
        )
