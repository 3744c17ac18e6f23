"""One reading of what an operator is told beside its tensors: older opsets write it as an attribute, newer ones as an
input. The file keeps the spelling that it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.graph.types import Op
from normfold.graph.view import Graph


@dataclass(frozen=True, slots=True)
class Told:
    """value: what is told; None: it is computed at run time. attribute: its name, where it is one."""

    value: NDArray[Any] | None
    attribute: str | None = None

    @property
    def numbers(self) -> list[Any] | None:
        """The value as a list."""
        return None if self.value is None else list(self.value.reshape(-1).tolist())


def told(graph: Graph, op: Op, port: int, attribute: str) -> Told | None:
    """What `op` is told at an input, or by the attribute that older opsets have for it; None: nothing."""
    if attribute in op.attributes:
        return Told(np.asarray(op.attributes[attribute]), attribute)
    value = op.inputs[port] if len(op.inputs) > port else None
    if value is None:
        return None
    return Told(graph.constant(value) if graph.is_constant(value) else None)
