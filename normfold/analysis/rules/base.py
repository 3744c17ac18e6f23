"""What a rule is: all that normfold knows of one operator, asked in one place.

A *port* is an input (0, 1, ...) or an output (-1, -2, ...) of an operator that carries a frame. Three questions every
rule answers: `scale` and `shift`: given the scales, or the shifts, that a flood has brought to some ports, which do the
other ports need, or why can it not be done; and `edits`: which constants change once all frames are decided. All others
are optional: their defaults are right for an operator that has no part in what is asked.

A class of rules is either abstract or final, and no code asks which class a rule is of.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, final

import numpy as np

from normfold.analysis.edits import Edit, NewConstant
from normfold.analysis.refusal import Code, Refuse, refuse
from normfold.analysis.rules.axis_maps import AxisMap
from normfold.analysis.rules.windows import Window
from normfold.errors import InternalError
from normfold.graph.affine import Array, Frame, to_rank, varying_axes
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph

OUT = -1

Demands = dict[int, Array] | Refuse

# What an operator is where a LayerNorm or RMSNorm is written out: nothing but another type or name for its input; a
# mean; another reduction; a step between the reduction and the statistic, such as a square root.
InStatistic = Literal["same", "mean", "reduction", "step"]


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

    def read_by_convolutions(self, value: Value) -> bool:
        """Whether every reader of `value` is a convolution."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a flood knows around one operator.

    known: the ports it has reached, float64 of the rank of each tensor. before: the scale, or shift, that a port has
    had until now. fixed: for a map with constants, whether it carries what arrives: it has been folded away, or is
    the one being folded (folding), or is to stay as it is.
    costs: what a shift would cost around it. writer_limit: how many elements a bias may touch that takes a shift at
    once, where another tensor could carry it on. map_limit: how many elements an Add may touch whose bias differs from
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
        return refuse(self.op, code, why)

    def zero_output(self) -> Refuse | None:
        """Why the scale on the output cannot be there: 0 on some channel."""
        if OUT in self.known and np.any(self.known[OUT] == 0.0):
            return self.refuse("zero-scale", "a channel with scale 0 cannot be restored")
        return None

    def not_constant(self, weight: Value | None, bias: Value | None) -> Refuse | None:
        """Why nothing can be merged into a weight and, where there is one, a bias: they are computed."""
        if weight is None or not all(self.graph.is_constant(one) for one in (weight, bias) if one is not None):
            return self.refuse("two-tensors", "its weight or its bias is not a constant")
        return None


FrameOf = Callable[[Value], Frame]
# The size of each channel at an input, of the rank of its tensor; None where the graph does not tell.
SizeOf = Callable[[int], Array | None]


@dataclass(frozen=True, slots=True)
class FixedMap:
    """`scale * source + shift` with constant coefficients, None where there is none. batch_norm: a norm by name."""

    source: Value
    scale: Array | None = None
    shift: Array | None = None
    batch_norm: bool = False


class Rule(ABC):
    """The base of all rules: an operator that passes nothing on. Its subclasses are the rows of the operator table."""

    attributes: frozenset[str] = frozenset()  # those that it reads; an operator with any other is refused
    late: ClassVar[bool] = False  # ask it only when nothing else is left to ask: its answer depends on all its ports
    carries: ClassVar[bool] = False  # each element of its output is one of its first input, or made of some of them
    rearranges: bool = False  # it only puts the elements of its first input in another order
    adds: ClassVar[bool] = False  # its output is a sum of its inputs
    sign_of_second: float | None = None  # 1 or -1 where it is the sum of two, `x + sign * y`
    multiplies: ClassVar[bool] = False  # its output is a product or a quotient of its two inputs
    convolves: ClassVar[bool] = False  # its output is a convolution of its input; a shift may become a map of biases
    bias_follows: ClassVar[bool] = False  # a constant that is added right behind it is its bias, and no part of a norm
    normalizes: ClassVar[bool] = False  # it divides by a statistic of its input
    in_statistic: InStatistic | None = None

    def reads(self, op: Op) -> bool:
        """Whether the rule reads every attribute that the operator has."""
        return not op.attributes or set(op.attributes) <= self.attributes

    def ports(self, graph: Graph, op: Op) -> tuple[int, ...]:
        """The ports that carry a frame; a constant carries none, it is rewritten."""
        first = op.inputs[0]
        carried = first is not None and not graph.is_constant(first)
        return (0, OUT) if carried else (OUT,)

    @abstractmethod
    def scale(self, at: Surroundings) -> Demands:
        """The scales that other ports need for those that are known, or why that cannot be."""

    @abstractmethod
    def shift(self, at: Surroundings) -> Demands:
        """The shifts that other ports need for those that are known, or why that cannot be."""

    def edits(self, graph: Graph, op: Op, frame: FrameOf) -> Iterable[Edit]:
        """What of the operator changes once all frames are decided."""
        return ()

    def writer_cost(self, costs: Costs, op: Op) -> float:
        """Elements that a shift of the output costs here: 0 where a bias takes it, infinity where nothing can."""
        return math.inf

    def absorbs_shift(self, costs: Costs, op: Op) -> bool:
        """Whether a shift of the input is taken here, or behind, for nothing."""
        return False

    def added_elements(self, graph: Graph, op: Op, shift: Callable[[Value], Array]) -> int:
        """Elements of the Add that these shifts would need here; 0 for all operators that have a bias."""
        return 0

    def axis_map(self, graph: Graph, op: Op) -> AxisMap | Refuse:
        """Where the axes of the first input are on the output, of a rule that `carries`."""
        return refuse(op, "wall", "its output is not made of its input alone")

    def fixed_map(self, graph: Graph, op: Op) -> FixedMap | None:
        """The operator as a fixed map of one tensor with constants; None where it is none. Raises NormStateError."""
        return None

    def own_frame(self, graph: Graph, op: Op) -> Frame | None:
        """The weight and bias of a norm whose statistic stays, as the frame of its output without them."""
        return None

    def window(self, graph: Graph, op: Op) -> Window | None:
        """How the kernel of a convolution moves over its input; None where that is not known."""
        return None

    def magnitude(self, graph: Graph, op: Op, size: SizeOf) -> Array | None:
        """The size of each channel of the output, for inputs of these sizes; None where it cannot be told."""
        return None

    def contracting_weight(self, graph: Graph, op: Op, port: int, axis: int) -> tuple[int, int] | None:
        """The input that holds the constant weight with which the channels at `port`, along `axis`, are contracted.

        With it, the axis of the weight along which they lie, counted from the last: -1. None where there is none.
        """
        return None

    def without_mean(self, graph: Graph, op: Op, port: int, axis: int) -> Mapping[int, int] | Refuse:
        """Once the tensor at `port` has lost its mean along `axis`, which ports lose theirs, each with its axis.

        A constant at one of them is rewritten. No ports: the output of the operator does not change.
        """
        value = value_at(op, port)
        if port < 0:
            return keeps_mean(op, f"it writes {value.name}, and nothing in it could leave the mean out")
        return keeps_mean(op, f"it reads {value.name}, and would see that the mean is gone")


@final
class Wall(Rule):
    """An operator that no per-channel map passes: all that is not in the table."""

    def ports(self, graph: Graph, op: Op) -> tuple[int, ...]:
        return ()

    def scale(self, at: Surroundings) -> Demands:
        return wall(at.op)

    def shift(self, at: Surroundings) -> Demands:
        return wall(at.op)


def wall(op: Op) -> Refuse:
    """The refusal of an operator that is a wall as it stands there."""
    return refuse(op, "wall", "no per-channel map passes through it")


def keeps_mean(op: Op, why: str) -> Refuse:
    """The refusal of an operator around which a mean over channels has to stay."""
    return refuse(op, "not-centred", why)


def value_at(op: Op, port: int) -> Value:
    """The tensor at a port; an InternalError where none is connected."""
    value = op.outputs[-1 - port] if port < 0 else op.inputs[port]
    if value is None:
        raise InternalError(f"{op.label}: a rule asked for a port that is not connected")
    return value


def weight_and_bias(op: Op) -> tuple[Value | None, Value | None]:
    """The second and the third input, where an operator with a weight and a bias has them."""
    return op.inputs[1] if len(op.inputs) > 1 else None, op.inputs[2] if len(op.inputs) > 2 else None


def others_are_read(graph: Graph, op: Op) -> bool:
    """Whether any output but the first is read: the mean or the deviation of a norm."""
    return any(graph.readers(value) or value in graph.outputs for value in op.outputs[1:])


def tied(at: Surroundings, ports: Iterable[int]) -> Demands:
    """One frame for all of these ports: that of any port that is known."""
    demands: dict[int, Array] = {}
    for array in at.known.values():
        for port in ports:
            shaped = to_port(at, array, port)
            if isinstance(shaped, Refuse):
                return shaped
            demands.setdefault(port, shaped)
    return demands


def unchanged(at: Surroundings) -> Demands:
    """Input and output have the same frame."""
    return {OUT: at.known[0]} if 0 in at.known else {0: at.known[OUT]}


def name_of(value: Value) -> str:
    """The name of a tensor, as plans refer to it."""
    return value.name or ""


def rank_of(graph: Graph, value: Value) -> int | None:
    """The number of axes of a tensor; None where it is not known."""
    dims = graph.dims(value)
    return None if dims is None else len(dims)


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


def to_port(at: Surroundings, array: Array, port: int) -> Array | Refuse:
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


def one_constant(graph: Graph, op: Op) -> tuple[Value, Array, bool] | None:
    """Of two floating operands the computed one, the constant one, and whether that is the first; None otherwise."""
    first, second = op.inputs[:2]
    if first is None or second is None or op.attributes or not graph.is_floating(op.output):
        return None
    fixed = graph.is_constant(first)
    if fixed == graph.is_constant(second):
        return None
    return (second, graph.constant(first), True) if fixed else (first, graph.constant(second), False)
