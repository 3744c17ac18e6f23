"""What a fold changes in a graph, as data: the constants, attributes and additions of a plan."""

from __future__ import annotations

from dataclasses import dataclass

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


Edit = NewConstant | NewAttribute | NewAdd
