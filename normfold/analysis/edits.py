"""What a fold changes in a graph, as data: the constants, attributes and additions of a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from normfold.graph.affine import Array


@dataclass(frozen=True, slots=True)
class NewConstant:
    """Input `input` of the operator that writes `output` becomes `source * times / over + add`, in float64, cast last.

    source: name of the constant it is made from; None: a new constant, `add` alone.
    """

    output: str
    input: int
    source: str | None
    times: Array | None = None
    over: Array | None = None
    add: Array | None = None

    def content(self, source: Array, spread: Callable[[Array], Array] = np.asarray) -> Array:
        """What it holds, in float64: of all of its source (0 where it has none), or of some rows of it.

        spread: lays `times`, `over` and `add` over these rows.
        """
        array = source if self.times is None else source * spread(self.times)
        array = array if self.over is None else array / spread(self.over)
        return array if self.add is None else array + spread(self.add)

    @property
    def key(self) -> tuple[str | None, ...]:
        """The same for edits that make the same of one source."""
        return (self.source, *(_digest(part) for part in (self.times, self.over, self.add)))


@dataclass(frozen=True, slots=True)
class NewAttribute:
    """Attribute `name` of the operator that writes `output` becomes `value`."""

    output: str
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class NewAdd:
    """`add` is added to tensor `output` right after it is written: the bias that a MatMul does not have."""

    output: str
    add: Array


@dataclass(frozen=True, slots=True)
class NewMap:
    """An affine map as it is to be written: `output = scale * input + shift` on stored tensors.

    Both None: nothing is left of it. input, output: tensor names. batch_norm: its channels lie on axis 1, and one
    BatchNormalization wrote it.
    """

    input: str
    output: str
    scale: Array | None
    shift: Array | None
    batch_norm: bool


Edit = NewConstant | NewAttribute | NewAdd


def _digest(array: Array | None) -> str | None:
    if array is None:
        return None
    return f"{array.shape}{hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
