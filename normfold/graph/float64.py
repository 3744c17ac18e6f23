"""An ONNX graph in float64, as the judge runs it: one case after the other, its outputs as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from normfold.errors import GraphError
from normfold.graph.evaluator.call import EvaluationError, Node, NotCoveredError
from normfold.graph.evaluator.evaluator import Evaluator
from normfold.graph.evaluator.program import Watch
from normfold.graph.inference import infer_shapes
from normfold.graph.order import sort
from normfold.graph.sparse import densify
from normfold.inputs.cases import Array, Case
from normfold.system.failures import check_memory

Outputs = tuple[Array, ...]


class SizeError(GraphError):
    """The graph does not run on inputs of these sizes."""


def read_again(path: Path) -> ir.Model:
    """A graph that `graph.read` has checked already; nothing is checked here. External data is mapped, not read."""
    proto = onnx.load(path, load_external_data=False)
    sort(proto)
    densify(proto, path)
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def evaluator_of(model: ir.Model, path: Path, *, move: float = 0.0) -> Evaluator:
    """The float64 evaluator of a graph. Raises NotCoveredError, with the name of the file."""
    try:
        return Evaluator(model, move=move)
    except NotCoveredError as error:
        raise NotCoveredError(f"{path}: {error}") from error


def run_evaluator(evaluator: Evaluator, case: Case, path: Path, *, watch: Watch | None = None) -> Outputs:
    """One case in float64, flattened. Raises SizeError where the graph cannot take inputs of these sizes."""
    try:
        return flat(evaluator.run(case.fed_to(evaluator.input_names), watch=watch))
    except EvaluationError as error:
        raise SizeError(f"{path}: the graph does not run at {case}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        check_memory(error, f"{path} in float64")
        raise


def check_bounded(model: ir.Model, path: Path, cases: Sequence[Case]) -> None:
    """Raise CannotJudgeError where the graph allocates or loops without end, before onnxruntime does so.

    Looked at on the smallest case; a graph that the evaluator does not know, or that does not run, is left to others.
    """
    smallest = min(cases, key=lambda case: case.elements)
    try:
        run_evaluator(evaluator_of(model, path), smallest, path)
    except (NotCoveredError, GraphError):
        return


def graph_tensors(model: ir.Model, case: Case, keep: Callable[[str, Array], None]) -> None:
    """Every floating tensor of the main graph in float64, told to `keep` with its name as soon as it is there."""
    names = {value: str(value.name) for node in model.graph for value in node.outputs if value.name}

    def watch(node: Node, read: Sequence[Any], written: Sequence[Any]) -> None:
        for value, content in zip(node.outputs, written, strict=False):
            if value in names and hasattr(content, "is_floating_point") and content.is_floating_point():
                keep(names[value], content.numpy())

    run_evaluator(evaluator_of(model, Path("the graph")), case, Path("the graph"), watch=watch)


def parameter_count(model: ir.Model) -> int:
    """How many numbers the weights of a graph are."""
    return sum(tensor.size for graph in model.graphs() for tensor in _tensors(graph))


@dataclass(frozen=True, slots=True)
class Body:
    """How finely a graph computes inside, whatever its inputs and outputs are.

    eps: the distance from 1 to the next number of the coarsest floating type that an operator writes. ceiling,
    rms_ceiling: the largest error and RMS error, relative to the RMS of an output, that rounding in it explains. steps:
    whether it rounds to whole numbers: where it does, the last bit of an input can move a sample by a whole step.
    """

    eps: float
    ceiling: float
    rms_ceiling: float
    steps: bool = False


# Deep networks lose two or three of float32's seven digits; beyond this it is not rounding that parts two runs. Of
# float16's three digits, and of eight-bit steps, one may be left, and single entries may have none.
_CEILINGS, COARSE_CEILINGS = (1e-2, 1e-2), (1.0, 0.25)
_EPS = {
    ir.DataType.BFLOAT16: 2.0**-7,
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.FLOAT: 2.0**-23,
    ir.DataType.DOUBLE: 2.0**-52,
}
_COARSE = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
_QUANTISERS = frozenset({"DynamicQuantizeLinear", "QuantizeLinear", "QLinearConv", "QLinearMatMul"})
_STEPS = _QUANTISERS | {"Ceil", "Floor", "Round"}


def body_of(model: ir.Model) -> Body:
    """How finely `model` computes: the types that its inputs have and its operators write."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    stored = [tensor.dtype for graph in model.graphs() for tensor in _tensors(graph)]
    casts = [ir.DataType(node.attributes["to"].as_int()) for node in nodes if "to" in node.attributes]
    inputs = [value.dtype for value in model.graph.inputs if value.dtype in _EPS]
    if any(kind in _COARSE for kind in (*stored, *casts)):
        infer_shapes(model)
    written = [value.dtype for node in nodes if not _is_constant(node) for value in node.outputs]
    eps = max((_EPS[kind] for kind in (*inputs, *written) if kind in _EPS), default=_EPS[ir.DataType.FLOAT])
    kinds = {node.op_type for node in nodes}
    coarse = eps > _EPS[ir.DataType.FLOAT] or not kinds.isdisjoint(_QUANTISERS)
    return Body(eps, *(COARSE_CEILINGS if coarse else _CEILINGS), steps=not kinds.isdisjoint(_STEPS))


def _tensors(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield attribute.as_tensor()


def _is_constant(node: ir.Node) -> bool:
    """Whether a node only makes of weights what others compute with: half precision that is stored, not computed."""
    return all(value is None or value.is_initializer() or _from_constant(value) for value in node.inputs)


def _from_constant(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Constant"


def flat(values: Sequence[Any]) -> Outputs:
    """Outputs as arrays: of a sequence or a map its content, and behind it the shapes or the keys."""
    return tuple(array for value in values for array in _leaves(value))


def flat_names(names: Sequence[str], values: Sequence[Any]) -> tuple[str, ...]:
    """What the arrays of `flat` are called."""
    return tuple(
        name if number == 0 else f"{name}, its shapes or keys"
        for name, value in zip(names, values, strict=True)
        for number, _ in enumerate(_leaves(value))
    )


def _leaves(value: Any) -> tuple[Array, ...]:
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return (np.zeros(0) if value is None else np.asarray(value),)
    if value and isinstance(value[0], dict):
        pairs = [pair for row in value for pair in sorted(row.items(), key=lambda pair: str(pair[0]))]
        return np.array([content for _, content in pairs]), np.array([key for key, _ in pairs])
    arrays = [np.asarray(item) for item in value]
    shapes = [size for array in arrays for size in (array.ndim, *array.shape)]
    content = np.concatenate([array.ravel() for array in arrays]) if arrays else np.zeros(0)
    return content, np.array(shapes, dtype=np.int64)
