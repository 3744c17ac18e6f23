"""What a rule is: how one operator relates the frames of the tensors around it.

A *port* is an input (0, 1, ...) or an output (-1, -2, ...) of an operator that carries a frame. A rule answers
three questions: `scale` and `shift`: given the halves of the frames that a flood has brought to some ports, which
do the other ports need, or why can it not be done; and `edits`: which constants change once all frames are decided.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from normfold.analysis.edits import Edit, NewConstant
from normfold.analysis.refusal import Code, Refuse
from normfold.errors import InternalError
from normfold.graph.affine import Array, Frame, to_rank, varying_axes
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph

OUT = -1

Demands = dict[int, Array] | Refuse


class Costs(Protocol):
    """What a rule may ask about the tensors around its operator, as decided so far."""

    @property
    def graph(self) -> Graph:
        """The graph whose shifts they are."""

    def is_fixed(self, op: Op) -> bool:
        """Whether an affine map carries shifts instead of absorbing them."""

    def shift(self, value: Value) -> Array:
        """The shift of a tensor."""

    def writer_cost(self, value: Value) -> float:
        """Elements that a shift of `value` costs where it is written."""

    def absorbs_shift(self, value: Value) -> bool:
        """Whether every reader of `value` takes a shift on it for nothing."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What a flood knows around one operator.

    known: the ports it has reached, float64 of the rank of each tensor. before: the same half of a port it has not
    reached. fixed: for an affine map, whether it has been folded away, or is the one being folded (folding). costs:
    what a shift would cost around it. writer_limit: how many elements a bias may touch that takes a shift at once,
    where another tensor could carry it on. map_limit: how many elements an Add may touch whose bias differs from
    position to position, for the flood to be worth it.
    """

    graph: Graph
    op: Op
    known: Mapping[int, Array]
    before: Callable[[int], Array]
    fixed: bool
    costs: Costs
    writer_limit: float = 0.0
    map_limit: float = 0.0
    folding: bool = False

    def get(self, port: int) -> Array:
        found = self.known.get(port)
        return self.before(port) if found is None else found

    def value(self, port: int) -> Value:
        return value_at(self.op, port)

    def refuse(self, code: Code, why: str) -> Refuse:
        return Refuse(code, f"{self.op.label}: {why}")


FrameOf = Callable[[Value], Frame]


class Rule(ABC):
    """The base of all rules: an operator that passes nothing on. Its subclasses are the rows of the operator table."""

    attributes: frozenset[str] = frozenset()  # those that it reads; an operator with any other is refused
    late: ClassVar[bool] = False  # ask it only when nothing else is left to ask: its answer depends on all its ports

    def ports(self, graph: Graph, op: Op) -> tuple[int, ...]:
        """The ports that carry a frame; a constant carries none, it is rewritten."""
        first = op.inputs[0]
        carried = first is not None and not graph.is_constant(first)
        return (0, OUT) if carried else (OUT,)

    def writer_cost(self, costs: Costs, op: Op) -> float:
        """Elements that a shift of the output costs here: 0 where a bias takes it, infinity where nothing can."""
        return math.inf

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        """Whether a shift of the input is taken here, or behind, for nothing."""
        return False

    @abstractmethod
    def scale(self, at: Ports) -> Demands: ...

    @abstractmethod
    def shift(self, at: Ports) -> Demands: ...

    def added_elements(self, graph: Graph, op: Op, shift: Callable[[Value], Array]) -> int:
        """Elements of the Add that these shifts would need here; 0 for all operators that have a bias."""
        return 0

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        return ()


def value_at(op: Op, port: int) -> Value:
    """The tensor at a port; an InternalError where none is connected."""
    value = op.outputs[-1 - port] if port < 0 else op.inputs[port]
    if value is None:
        raise InternalError(f"{op.label}: a rule asked for a port that is not connected")
    return value


def name_of(value: Value) -> str:
    """The name of a tensor, as plans refer to it."""
    return value.name or ""


def only_along(array: Array, axes: tuple[int, ...]) -> bool:
    """Whether `array` is the same along every axis but `axes`."""
    return set(varying_axes(array)) <= set(axes)


def along(array: Array, size: int) -> Array:
    """`array`, which varies along one axis at most, as a vector of `size`."""
    return np.broadcast_to(array.reshape(-1), (size,))


def to_rank_of(graph: Graph, value: Value, array: Array) -> Array | None:
    """`array` under broadcasting at `value`; None where `value` is itself broadcast, or its size is not known."""
    dims = graph.dims(value)
    shaped = None if dims is None else to_rank(array, len(dims))
    if dims is None or shaped is None:
        return None
    fits = all(size == 1 or (dim.static and dim.size == size) for size, dim in zip(shaped.shape, dims, strict=True))
    return shaped if fits else None


def to_port(at: Ports, array: Array, port: int) -> Array | Refuse:
    """`array` under broadcasting at the tensor of `port`; refused where that tensor is itself broadcast."""
    shaped = to_rank_of(at.graph, at.value(port), array)
    if shaped is None:
        return at.refuse("broadcast", "one value is broadcast over channels that would need different frames")
    return shaped


def rescaled_constant(op: Op, index: int, frame: Frame) -> NewConstant:
    """The constant at input `index`, stored in `frame`: (constant - shift) / scale."""
    source = op.inputs[index]
    assert source is not None
    return NewConstant(name_of(op.output), index, name_of(source), over=frame.scale, add=-frame.shift / frame.scale)
