"""Whether the evaluator agrees with onnxruntime: a model and its inputs, run in both, and what came of it.

Verdicts of a case:

    agrees        onnxruntime runs it, and the evaluator comes to the same
    recorded      onnxruntime does not run it; the evaluator comes to the outputs that the ONNX project recorded
    not run       onnxruntime does not run it, and nobody else said what is right
    not covered   the evaluator says that it does not know the operator, or this form of it
    disagrees     they come to different results, or the evaluator fails where onnxruntime does not
    known         as disagrees, and departures.py says why
    departs       as disagrees, but from the recorded outputs, where onnxruntime does not run it

The truth is float64, so what is compared is a run in the tensor's own type against it. With float64 inputs, where
onnxruntime has kernels for them, the bound is far below anything but an error.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper

from normfold.errors import CannotJudgeError
from normfold.graph.evaluator.call import NotCoveredError
from normfold.graph.evaluator.evaluator import Evaluator
from normfold.graph.evaluator.operators import lookup
from tests.graph.evaluator.compare import EPSILON, UNITS, bounds, compare, compare_recorded
from tests.graph.evaluator.departures import SINGLE, known
from tests.graph.evaluator.single import run_session

Verdict = Literal["agrees", "recorded", "not run", "not covered", "disagrees", "known", "departs"]
ort.set_default_logger_severity(4)  # it warns of forms that are deprecated

# Domain ("" for ai.onnx), operator, and the opset that introduced the schema in force.
Operator = tuple[str, str, int]

# Quantised results are rounded from a float that the type of the tensors and float64 hold a little differently: where
# it lies within this of a half, beside the largest, the step may go either way.
NUDGE = {"float16": 2.0**-10, "float32": 2.0**-20}
NUDGES = 32
ROUNDED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "MatMulIntegerToFloat",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearConv",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMatMul",
        "QLinearMul",
        "QLinearReduceMean",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QLinearWhere",
        "QuantizeLinear",
    }
)


@dataclass(frozen=True, slots=True)
class Case:
    """A model and what it is given. recorded: its outputs, if somebody wrote them down, within rtol and atol."""

    name: str
    model: onnx.ModelProto
    feeds: Mapping[str, Any]
    recorded: Sequence[Any] | None = None
    rtol: float = 1e-3
    atol: float = 1e-7


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case. operators: those in its model. why: what was said, or where and how far they differ."""

    name: str
    verdict: Verdict
    operators: frozenset[Operator]
    why: str = ""
    missing: frozenset[Operator] = field(default_factory=frozenset)


def judge(case: Case) -> Outcome:
    """Run a case in both and compare."""
    operators = frozenset(operators_of(case.model))
    missing = frozenset(operator for operator in operators if lookup(*operator) is None)
    found, ran = None, True
    try:
        found = run_session(case.model, case.feeds)
    except Exception as error:  # onnxruntime's classes share no base; whatever it says, it does not run this
        ran, why = False, _line(error)
    if missing:
        return Outcome(case.name, "not covered" if ran else "not run", operators, missing=missing)
    if not ran and case.recorded is None:
        return Outcome(case.name, "not run", operators, why)
    try:
        graph = ir.from_proto(case.model)
    except ir.serde.SerdeError as error:
        return Outcome(case.name, "not covered", operators, f"onnx-ir cannot read it: {_line(error)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # people would see them
            evaluator = Evaluator(graph)
            truth = evaluator.run(case.feeds)
    except NotCoveredError as error:
        return Outcome(case.name, "not covered", operators, _line(error))
    except CannotJudgeError as error:
        return Outcome(case.name, "not covered", operators, _line(error))
    except Exception as error:  # what it must not do where onnxruntime runs the model
        return (
            _departing(case, operators, f"evaluator: {_line(error)}")
            if ran
            else Outcome(case.name, "not run", operators)
        )
    if not ran:
        assert case.recorded is not None
        problem = compare_recorded(truth, case.recorded, rtol=case.rtol, atol=case.atol)
        return Outcome(case.name, "departs" if problem else "recorded", operators, problem)
    assert found is not None
    names = {name for _, name, _ in operators}
    through = {"float32"} if names & SINGLE else set()
    problem = compare(truth, found, bounds(len(case.model.graph.node), through=through | types_of(case.model)))
    if problem and names & ROUNDED:
        problem = _within_rounding(evaluator, case, found, problem)
    return _departing(case, operators, problem) if problem else Outcome(case.name, "agrees", operators)


def _departing(case: Case, operators: frozenset[Operator], problem: str) -> Outcome:
    return Outcome(case.name, "known" if known(case.name) else "disagrees", operators, problem)


def _within_rounding(evaluator: Evaluator, case: Case, found: Sequence[Any], problem: str) -> str:
    """Whether the outputs lie between those for inputs that differ by less than float32 can tell."""
    floats = {n: v for n, v in case.feeds.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.size}
    if not floats and not case.model.graph.initializer:
        return problem
    nudge = NUDGE["float16" if "float16" in types_of(case.model) else "float32"]
    low: list[np.ndarray] | None = None
    high: list[np.ndarray] | None = None
    for number in range(NUDGES):
        rng = np.random.default_rng(number)
        moved = {}
        for place, (name, value) in enumerate(floats.items()):
            wide = value.astype(np.float64)
            up = rng.choice([-1.0, 1.0], size=wide.shape) if number > 1 else (-1.0) ** (number + place)
            moved[name] = wide * (1 + nudge * up)
        outputs = [np.asarray(value, np.float64) for value in evaluator.run({**case.feeds, **moved})]
        low = outputs if low is None else [np.minimum(a, b) for a, b in zip(low, outputs, strict=True)]
        high = outputs if high is None else [np.maximum(a, b) for a, b in zip(high, outputs, strict=True)]
    assert low is not None
    assert high is not None
    for least, most, there in zip(low, high, found, strict=True):
        wide = np.asarray(there, np.float64)
        slack = 0.0 if there.dtype.kind in "iu" else UNITS["float32"] * EPSILON["float32"] * np.abs(most).max(initial=0)
        if wide.shape != least.shape or not ((wide >= least - slack) & (wide <= most + slack)).all():
            return problem
    return ""


def operators_of(model: onnx.ModelProto) -> Iterator[Operator]:
    """Every operator of a model, those in bodies and in its own functions included."""
    own = {(function.domain, function.name) for function in model.functions}
    opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
    yield from _operators(model.graph.node, opsets, own)
    for function in model.functions:
        inner = {_domain(entry.domain): entry.version for entry in function.opset_import}
        yield from _operators(function.node, {**opsets, **inner}, own)


def _operators(
    nodes: Sequence[onnx.NodeProto], opsets: Mapping[str, int], own: set[tuple[str, str]]
) -> Iterator[Operator]:
    for node in nodes:
        if (node.domain, node.op_type) not in own:
            domain = _domain(node.domain)
            yield domain, node.op_type, since(domain, node.op_type, opsets.get(domain, 1))
        for body in itertools.chain.from_iterable([a.g] if a.HasField("g") else a.graphs for a in node.attribute):
            yield from _operators(body.node, opsets, own)


def types_of(model: onnx.ModelProto) -> set[str]:
    """The element types that are declared in a model or cast to, by numpy's names."""
    graph = model.graph
    declared = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    declared |= {a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    return {helper.tensor_dtype_to_np_dtype(kind).name for kind in declared if kind}


@cache
def since(domain: str, name: str, opset: int) -> int:
    """The opset that introduced the schema in force; 1 where the onnx package has none."""
    try:
        return int(onnx.defs.get_schema(name, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return 1


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
