"""What a graph is made of. The in-memory graph is onnx-ir's (docs/decisions/0001-graph-library.md); `Op` is a read-only
view of one operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from normfold.graph.affine import Frame

Value = ir.Value
Node = ir.Node
Model = ir.Model

# Before it, operators broadcast by attributes, and BatchNormalization trained unless told not to.
OLDEST_OPSET = 7
# Before it every initializer was an input as well, and no runtime let another value be fed for it.
IR_OF_CONSTANTS = 4

BATCH_NORM = "BatchNormalization"
# The domain of the standard operators, as files spell it.
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """A fixed map `y = scale * x + shift` with constant coefficients, however many operators spell it.

    frame: (scale, shift), broadcastable to y. nodes: the operators that compute it. has_scale / has_shift: whether
    it holds a constant of that kind, which can take up a change of frame. is_norm: a batch norm, or a scale that
    differs from channel to channel; a scalar or a bias is never folded for its own sake. centres: a constant that it
    adds differs from channel to channel as well, as a statistic does. inside: the tensors between x and y, which other
    operators may read too.
    """

    frame: Frame
    nodes: tuple[Node, ...]
    has_scale: bool
    has_shift: bool
    is_norm: bool
    centres: bool = False
    inside: frozenset[Value] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operator as the analysis sees it. `type` is the ONNX operator, or "Affine" for a collapsed fixed map."""

    type: str
    index: int
    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    affine: Affine | None = None

    @property
    def output(self) -> Value:
        return self.outputs[0]

    @property
    def label(self) -> str:
        return f"{self.name} ({self.type})"

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers, or None when it is not written."""
        value = self.attributes.get(name)
        return None if value is None else tuple(int(item) for item in value)

    def number(self, name: str, default: float) -> float:
        """A floating attribute. ONNX stores float32, and so are its defaults: 1e-5 is 9.99999975e-6."""
        return float(np.float32(self.attributes.get(name, default)))

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        return str(self.attributes.get(name, default))
