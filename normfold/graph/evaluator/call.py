"""One run of an operator, as its function sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from normfold.errors import CannotJudgeError, GraphError
from normfold.graph.evaluator.limits import Meter
from normfold.graph.evaluator.values import Value, from_numpy

# Inputs that are left out are None; one output is returned as it is, several as a tuple.
Function = Callable[..., Any]
# One family of the operator table: operator -> opsets of its schema -> function.
Rows = Mapping[str, Mapping[tuple[int, ...], Function]]


class NotCoveredError(CannotJudgeError):
    """The graph has an operator, or an attribute of one, whose float64 value normfold does not know."""


class EvaluationError(GraphError):
    """An operator cannot take what it is given: the sizes of the inputs do not fit the graph, or it is malformed."""


# A value as the file declares it: its name, and its type and shape where they are known.
Declared = ir.Value


class Body(Protocol):
    """A subgraph of an If, Loop or Scan, to be called with its inputs in order. inputs, outputs: as the file declares
    them.
    """

    @property
    def inputs(self) -> Sequence[Declared]: ...

    @property
    def outputs(self) -> Sequence[Declared]: ...

    def __call__(self, *inputs: Value) -> tuple[Value, ...]: ...


@dataclass(frozen=True, slots=True)
class Bound:
    """A node in the body of a model's own function, as one call of it sees it: with attributes of its own."""

    name: str | None
    domain: str
    op_type: str
    inputs: Sequence[ir.Value | None]
    outputs: Sequence[ir.Value]
    attributes: Mapping[str, ir.Attr]


Node = ir.Node | Bound


@dataclass(frozen=True, slots=True)
class Call:
    """An operator's attributes and what else its function may ask.

    version: of its schema (the opset that introduced it). constant: whether all its inputs are the same for every
    input of the model. bodies: its subgraphs by attribute. meter: counts work and memory. read: attributes that were
    asked for, so that one that no function reads is an error.
    """

    node: Node
    version: int
    meter: Meter
    constant: bool = False
    bodies: Mapping[str, Body] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def attribute(self, name: str) -> Any:
        """The attribute as onnx-ir holds it, None where the node has none of this name."""
        self.read.add(name)
        found = self.node.attributes.get(name)
        return None if found is None else found.value

    def has(self, name: str) -> bool:
        """Whether the node has this attribute."""
        return self.attribute(name) is not None

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.attribute(name)
        return default if value is None else int(value)

    def number(self, name: str, default: float) -> float:
        """A floating attribute. ONNX stores float32, and its defaults are float32 too: 1e-5 is 9.99999975e-6."""
        value = self.attribute(name)
        return float(np.float32(default if value is None else value))

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value = self.attribute(name)
        return default if value is None else _text(value)

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        """A list of integers, `default` where there is none."""
        value = self.attribute(name)
        chosen = default if value is None else value
        return None if chosen is None else [int(item) for item in chosen]

    def numbers(self, name: str) -> list[float] | None:
        """A list of floats, None where there is none."""
        value = self.attribute(name)
        return None if value is None else [float(np.float32(item)) for item in value]

    def texts(self, name: str) -> list[str] | None:
        """A list of strings, None where there is none."""
        value = self.attribute(name)
        return None if value is None else [_text(item) for item in value]

    def tensor(self, name: str) -> Value:
        """A tensor attribute as a value, None where there is none."""
        value = self.attribute(name)
        return None if value is None else from_numpy(value.numpy())

    def element_type(self, name: str, default: ir.DataType) -> ir.DataType:
        """An attribute that names an element type."""
        return ir.DataType(self.integer(name, int(default)))

    def body(self, name: str) -> Body:
        """A subgraph, to be called with its inputs."""
        self.read.add(name)
        return self.bodies[name]

    def declared(self, index: int) -> ir.DataType | None:
        """The element type that an input has in the file, if it is a float there; None where nothing says."""
        return _element_type(self.node.inputs[index])

    def wants(self, output: int) -> bool:
        """Whether anybody reads this output."""
        return output < len(self.node.outputs) and bool(self.node.outputs[output].name)

    def reserve(self, *sizes: int) -> None:
        """Say that a tensor of this shape is about to be made; call it wherever a result can be larger than what it
        is made of. Raises CannotJudgeError when memory would run out.
        """
        self.meter.reserve(sizes, self.label)

    def refuse(self, why: str) -> NotCoveredError:
        """The error to raise for a form of the operator that has no float64 value here."""
        return NotCoveredError(
            f"{self.label}: {why}, which normfold cannot compute in float64, so there can be no verdict; "
            "`fold --no-verify` folds without one"
        )

    @property
    def label(self) -> str:
        """The node, for people: its name or first output, and its operator."""
        return label_of(self.node)


def label_of(node: Node) -> str:
    """A node, for people: its name or first output, and its operator."""
    name = node.name or next((value.name for value in node.outputs if value.name), "") or "?"
    return f"{name} ({operator_of(node)})"


def operator_of(node: Node) -> str:
    """The operator with its domain, where that is not the standard's."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _element_type(value: ir.Value | None) -> ir.DataType | None:
    """What the file says of a value, or of what it is made of: nearly all operators keep the type of their floats."""
    while value is not None and value.dtype is None:
        node = value.producer()
        if node is None or not node.inputs:
            return None
        if "to" in node.attributes:
            return ir.DataType(node.attributes["to"].as_int())
        value = node.inputs[1 if node.op_type in ("CastLike", "Where") else 0]
    return None if value is None else value.dtype


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
