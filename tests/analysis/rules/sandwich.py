"""One operator between a norm and what absorbs it.

Forward: Tanh -> norm -> operator -> weight. Nothing goes back through Tanh: the norm folds only through the operator.
Backward: weight -> operator -> norm -> Tanh.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from normfold.analysis.plan import Plan
from tests.support.graphs import EXACT, Outcome, check, draw

Direction = Literal["forward", "backward"]
Norm = Literal["affine", "scale", "positive", "positive scale"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")

Constant = NDArray[np.generic] | tuple[int, ...]


@dataclass(frozen=True)
class Sandwich:
    """text: the operator, from `i` to `o`. source, target: their dimensions; axis, out_axis: where the channels are."""

    text: str
    source: str = "B,3,4"
    target: str | None = None
    axis: int = -1
    out_axis: int | None = None
    opset: int = 20
    constants: dict[str, Constant] = field(default_factory=dict)
    tolerance: float = EXACT

    def fold(self, expected: Outcome, direction: Direction, norm: Norm = "affine") -> tuple[onnx.ModelProto, Plan]:
        before, after = self.source, self.target or self.source
        axis, out_axis = self.axis, self.axis if self.out_axis is None else self.out_axis
        operator = f"{self.text}\n"
        if direction == "forward":
            text = f"i0 = Tanh(x)\n{_norm('i0', 'i', norm)}{operator}{_weight('o', 'y', after, out_axis)}"
            constants = {**_norm_constants(before, axis, norm), **_weight_constants(after, out_axis)}
        else:
            text = f"{_weight('x', 'i', before, axis)}{operator}{_norm('o', 'o1', norm)}y = Tanh(o1)"
            constants = {**_norm_constants(after, out_axis, norm), **_weight_constants(before, axis, square=True)}
        header = f'<ir_version: 10, opset_import: ["" : {self.opset}]>\n'
        model = f"{header}g (double[{self.source}] x) => (double y) {{\n{text}\n}}"
        return check(model, expected, tolerance=self.tolerance, **{**constants, **self.constants})


def _channels(dims: str, axis: int) -> int:
    return int(dims.split(",")[axis])


def _norm(source: str, target: str, norm: Norm) -> str:
    if norm.endswith("scale"):
        return f"{target} = Mul({source}, n_scale)\n"
    return f"{target}_scaled = Mul({source}, n_scale)\n{target} = Add({target}_scaled, n_shift)\n"


def _norm_constants(dims: str, axis: int, norm: Norm) -> dict[str, Constant]:
    rank = len(dims.split(","))
    size, tail = _channels(dims, axis), (1,) * (rank - 1 - axis % rank)
    found: dict[str, Constant] = {"n_scale": draw("n_scale", size, *tail, positive=norm.startswith("positive"))}
    return found if norm.endswith("scale") else {**found, "n_shift": draw("n_shift", size, *tail)}


def _weight(source: str, target: str, dims: str, axis: int) -> str:
    rank = len(dims.split(","))
    if axis % rank == rank - 1:
        return f"{target}_product = MatMul({source}, w)\n{target} = Add({target}_product, w_bias)\n"
    assert axis % rank == 1
    return f"{target} = Conv({source}, w, w_bias)\n"


def _weight_constants(dims: str, axis: int, *, square: bool = False) -> dict[str, Constant]:
    rank, size = len(dims.split(",")), _channels(dims, axis)
    out = size if square else 3
    if axis % rank == rank - 1:
        return {"w": (size, out), "w_bias": (out,)}
    return {"w": (out, size) + (1,) * (rank - 2), "w_bias": (out,)}


def statistics(channels: int) -> dict[str, np.ndarray]:
    """Never fresh: a mean of 0 and a variance of 1 make wrong folds look right."""
    names = {name: draw(name, channels) for name in ("gamma", "beta", "mean")}
    return {**names, "var": draw("var", channels, positive=True)}
