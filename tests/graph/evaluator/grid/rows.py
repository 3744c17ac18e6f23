"""How a row of the grid is written, and the case that it becomes.

    row("Conv", F(1, 4, 9, 9), F(6, 2, 3, 3), F(6), group=2, dilations=[2, 1])

Operands: F(2, 3) normal floats, U(low, high, 2, 3) uniform ones, N(low, high, 2, 3) integers, numpy arrays as they are
(all of these are fed), const(...) of any of them an initializer; a list of integers is an int64 initializer, a float a
float32 one; None is left out. An attribute of None is left out. `outputs` is their number, or their names ("" unused).
A row stands for every opset whose schema accepts it, and for float64 and float16 in place of float32.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.variants import NEWEST, OLDEST, RUNTIME_ONLY, accepted

Draw = Callable[[np.random.Generator], np.ndarray]
MICROSOFT = "com.microsoft"
ML = "ai.onnx.ml"
# The opset of ai.onnx beside operators of other domains.
BESIDE = 17
IR_VERSION = 10


@dataclass(frozen=True, slots=True)
class Drawn:
    """Random numbers: what they are called, and how they are drawn."""

    label: str
    draw: Draw


@dataclass(frozen=True, slots=True)
class Constant:
    """An operand that is an initializer."""

    value: Any


def F(*shape: int) -> Drawn:
    """Normal floats, none of them very near to 0, where derivatives of activations jump."""
    return Drawn(f"F{list(shape)}", lambda rng: _away(rng.standard_normal(shape)).astype(np.float32))


def U(low: float, high: float, *shape: int) -> Drawn:
    """Uniform floats."""
    return Drawn(f"U{list(shape)}", lambda rng: np.asarray(rng.uniform(low, high, shape), np.float32))


def N(low: int, high: int, *shape: int, dtype: Any = np.int64) -> Drawn:
    """Integers from low to high - 1."""
    return Drawn(f"{np.dtype(dtype).name}{list(shape)}", lambda rng: np.asarray(rng.integers(low, high, shape), dtype))


def B(*shape: int) -> Drawn:
    """Booleans."""
    return Drawn(f"B{list(shape)}", lambda rng: np.asarray(rng.integers(0, 2, shape), bool))


def V(*values: Any, dtype: Any = np.float32) -> np.ndarray:
    """These numbers."""
    return np.asarray(values, dtype)


def S(*values: Any) -> np.ndarray:
    """These strings."""
    return np.asarray(values, object)


def const(value: Any) -> Constant:
    """An operand that is an initializer."""
    return Constant(value)


def row(
    op: str,
    *inputs: Any,
    outputs: int | str = 1,
    domain: str = "",
    note: str = "",
    at: int | None = None,
    **attributes: Any,
) -> Case:
    """One operator at the newest opset (up to `at`) that accepts it; the variants are made of this case."""
    given = {name: value for name, value in attributes.items() if value is not None}
    name = " ".join([f"{domain}.{op}" if domain else op, *map(_label, inputs), *_attributes(given), note]).strip()
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    feeds: dict[str, Any] = {}
    weights = []
    names = []
    for number, operand in enumerate(inputs):
        names.append("" if operand is None else f"x{number}")
        if operand is None:
            continue
        constant, array = _content(operand, rng)
        if constant:
            weights.append(numpy_helper.from_array(array, names[-1]))
        else:
            feeds[names[-1]] = array
    results = outputs.split(",") if isinstance(outputs, str) else [f"y{number}" for number in range(outputs)]
    node = helper.make_node(op, names, results, name="", domain=domain, **given)
    model = _newest(node, feeds, weights, [name for name in results if name], at or NEWEST.get(domain, 1))
    return Case(name, model, feeds)


def text(source: str, *, note: str, **feeds: Any) -> Case:
    """A model in ONNX's text form; feeds as operands are written (lists of them for sequences)."""
    rng = np.random.default_rng(zlib.crc32(note.encode()))
    fed = {name: value if isinstance(value, list) else _content(value, rng)[1] for name, value in feeds.items()}
    return Case(note, onnx.parser.parse_model(source), fed)


def numbered(family: str, cases: Iterable[Case]) -> Iterator[Case]:
    """The cases of a family with names of their own."""
    seen: dict[str, int] = {}
    for case in cases:
        seen[case.name] = seen.get(case.name, 0) + 1
        again = f" ({seen[case.name]})" if seen[case.name] > 1 else ""
        yield replace(case, name=f"{family}/{case.name}{again}")


def _newest(
    node: Any, feeds: dict[str, Any], weights: Sequence[Any], results: Sequence[str], newest: int
) -> onnx.ModelProto:
    """The model at the newest opset that accepts the node, `newest` or older. Its outputs have no types."""
    inputs = [helper.make_tensor_value_info(n, _element_type(v), v.shape) for n, v in feeds.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in results]
    graph = helper.make_graph([node], "grid", inputs, outputs, initializer=weights)
    if node.domain == MICROSOFT or (node.op_type in RUNTIME_ONLY and not onnx.defs.has(node.op_type)):
        imports = [helper.make_opsetid("", BESIDE), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    oldest = OLDEST if node.domain == "" else 1
    for deprecated, version in product((False, True), range(newest, oldest - 1, -1)):
        imports = [helper.make_opsetid(node.domain, version)]
        if node.domain:
            imports.append(helper.make_opsetid("", BESIDE))
        model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
        if accepted(model, deprecated=deprecated):
            return model
    raise AssertionError(f"no opset accepts {helper.printable_node(node)}")


def _content(operand: Any, rng: np.random.Generator) -> tuple[bool, np.ndarray]:
    """Whether an operand is an initializer, and its numbers."""
    if isinstance(operand, Constant):
        return True, _content(operand.value, rng)[1]
    if isinstance(operand, Drawn):
        return False, operand.draw(rng)
    if isinstance(operand, list | int) and not isinstance(operand, bool):
        return True, np.asarray(operand, np.int64)
    if isinstance(operand, float):
        return True, np.asarray(operand, np.float32)
    return False, np.asarray(operand)


def _element_type(array: np.ndarray) -> int:
    return int(onnx.TensorProto.STRING if array.dtype == object else helper.np_dtype_to_tensor_dtype(array.dtype))


def _away(numbers: Any) -> np.ndarray:
    return np.where(np.abs(numbers) < 1e-3, 1e-3, numbers)


def _label(operand: Any) -> str:
    if operand is None:
        return "-"
    if isinstance(operand, Drawn):
        return operand.label
    if isinstance(operand, Constant):
        return f"const({_label(operand.value)})"
    if isinstance(operand, np.ndarray):
        shown = " ".join(str(operand.tolist()).split())
        return f"{operand.dtype}{shown if len(shown) <= 48 else list(operand.shape)}"
    return "".join(str(operand).split())


def _attributes(given: dict[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        shown = "..." if isinstance(value, onnx.TensorProto | onnx.GraphProto) else "".join(str(value).split())
        yield f"{name}={shown if len(shown) < 60 else '...'}"
