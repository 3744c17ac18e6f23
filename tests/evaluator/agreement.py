"""Whether the evaluator agrees with onnxruntime: a model and its inputs, run in both, and what came of it.

Verdicts of a case:

    agrees        onnxruntime runs it, and the evaluator comes to the same
    recorded      onnxruntime does not run it; the evaluator comes to the outputs that the ONNX project recorded
    not run       onnxruntime does not run it, and nobody else said what is right
    not covered   the evaluator says that it does not know the operator, or this form of it
    disagrees     they come to different results, or the evaluator fails where onnxruntime does not
    departs       as disagrees, but from the recorded outputs, where onnxruntime does not run it

The truth is float64, so what is compared is a run in the tensor's own type against it. With float64 inputs, where
onnxruntime has kernels for them, the bound is far below anything but an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from normfold.errors import CannotJudgeError
from normfold.evaluator import Evaluator, NotCoveredError
from normfold.evaluator.operators import lookup

Verdict = Literal["agrees", "recorded", "not run", "not covered", "disagrees", "departs"]
ort.set_default_logger_severity(4)  # it warns of forms that are deprecated

# Domain ("" for ai.onnx), operator, and the opset that introduced the schema in force.
Operator = tuple[str, str, int]

# Bounds are so many units in the last place of the tensor's own type, beside its largest number: an operator sums tens
# to hundreds of products, each rounded, and exp, tanh and erf of onnxruntime are polynomials good to a few units.
UNITS = {
    "float16": 16.0,  # computed in float32 and rounded once or twice
    "bfloat16": 8.0,
    "float32": 256.0,
    "float64": 1e6,  # 2e-10: some constants of onnxruntime's double kernels are short of the last digits
}
# A network of many operators rounds at each of them: the bound grows with the depth, to this many times at most.
MOST_DEPTH = 16.0
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float32": 3.4028e38, "float64": 1.797e308}
# Quantised results are rounded from a float that float32 and float64 hold a little differently: where it lies within
# this of a half, beside the largest, the step may go either way.
NUDGE = 2.0**-20
NUDGES = 12
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
        found = run_onnxruntime(case.model, case.feeds)
    except Exception as error:  # onnxruntime's classes share no base; whatever it says, it does not run this
        ran, why = False, _line(error)
    if missing:
        return Outcome(case.name, "not covered", operators, missing=missing)
    if not ran and case.recorded is None:
        return Outcome(case.name, "not run", operators, why)
    try:
        evaluator = Evaluator(ir.from_proto(case.model))
        truth = evaluator.run(case.feeds)
    except NotCoveredError as error:
        return Outcome(case.name, "not covered", operators, _line(error))
    except CannotJudgeError as error:
        return Outcome(case.name, "not covered", operators, _line(error))
    except Exception as error:  # what it must not do where onnxruntime runs the model
        return Outcome(case.name, "disagrees" if ran else "not run", operators, f"evaluator: {_line(error)}")
    if not ran:
        problem = _against_recorded(truth, case)
        return Outcome(case.name, "departs" if problem else "recorded", operators, problem)
    assert found is not None
    problem = compare(truth, found, depth=len(case.model.graph.node))
    if problem and {name for _, name, _ in operators} & ROUNDED:
        problem = _within_rounding(evaluator, case, found, problem)
    return Outcome(case.name, "disagrees" if problem else "agrees", operators, problem)


def run_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any]:
    """The outputs of a model as onnxruntime computes them on the CPU, with nothing optimised."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def compare(truth: Sequence[Any], found: Sequence[Any], *, depth: int = 1) -> str:
    """What is wrong with these outputs, in a few words; empty where nothing is."""
    if len(truth) != len(found):
        return f"{len(truth)} outputs, onnxruntime {len(found)}"
    problems = (_different(t, f, depth) for t, f in zip(truth, found, strict=True))
    return next((f"output {number}: {problem}" for number, problem in enumerate(problems) if problem), "")


def _different(truth: Any, found: Any, depth: int) -> str:
    if found is None or truth is None:
        return "" if truth is found else f"{_kind(truth)}, onnxruntime {_kind(found)}"
    if isinstance(found, list) or isinstance(truth, list):
        if not (isinstance(found, list) and isinstance(truth, list)) or len(found) != len(truth):
            return f"{_kind(truth)}, onnxruntime {_kind(found)}"
        return next((p for t, f in zip(truth, found, strict=True) if (p := _different(t, f, depth))), "")
    if isinstance(found, dict) or isinstance(truth, dict):
        if not (isinstance(found, dict) and isinstance(truth, dict)) or found.keys() != truth.keys():
            return f"{_kind(truth)}, onnxruntime {_kind(found)}"
        pairs = ((np.asarray(truth[key]), np.asarray(found[key], np.float32)) for key in found)
        return next((p for t, f in pairs if (p := _different(t, f, depth))), "")
    return _different_arrays(np.asarray(truth), np.asarray(found), depth)


def _different_arrays(truth: np.ndarray, found: np.ndarray, depth: int) -> str:
    if truth.shape != found.shape:
        return f"shape {list(truth.shape)}, onnxruntime {list(found.shape)}"
    name = found.dtype.name
    if name not in EPSILON:
        if truth.dtype != found.dtype and not (truth.dtype.kind == found.dtype.kind == "O"):
            return f"{truth.dtype}, onnxruntime {found.dtype}"
        wrong = truth != found
    else:
        if truth.dtype != np.float64:
            return f"{truth.dtype}, onnxruntime {found.dtype}"
        found = found.astype(np.float64)
        wrong = ~_close(truth, found, name, depth)
    if not wrong.any():
        return ""
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    many = f"{int(wrong.sum())} of {wrong.size}"
    return f"{many} differ ({name}), first at {list(place)}: {truth[place]!s}, onnxruntime {found[place]!s}"


def _close(truth: np.ndarray, found: np.ndarray, name: str, depth: int) -> np.ndarray:
    """Where a run in a floating type is the truth: within its rounding, with the same NaN and infinities."""
    finite = np.isfinite(truth) & np.isfinite(found)
    largest = float(np.abs(truth[finite]).max(initial=0.0))
    bound = UNITS[name] * EPSILON[name] * min(max(1.0, depth), MOST_DEPTH) * max(largest, np.finfo(np.float32).tiny)
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(truth - found) <= bound
        same = (truth == found) | (np.isnan(truth) & np.isnan(found))
        # What the type cannot hold is an infinity there.
        beyond = np.isinf(found) & (np.sign(truth) == np.sign(found)) & (np.abs(truth) >= 0.999 * LARGEST[name])
    return np.where(finite, near, same | beyond)


def _within_rounding(evaluator: Evaluator, case: Case, found: Sequence[Any], problem: str) -> str:
    """Whether the outputs lie between those for inputs that differ by less than float32 can tell."""
    floats = {n: v for n, v in case.feeds.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.size}
    if not floats and not case.model.graph.initializer:
        return problem
    low: list[np.ndarray] | None = None
    high: list[np.ndarray] | None = None
    for number in range(NUDGES):
        rng = np.random.default_rng(number)
        moved = {}
        for name, value in floats.items():
            wide = value.astype(np.float64)
            up = rng.choice([-1.0, 1.0], size=wide.shape) if number > 1 else (-1.0) ** number
            moved[name] = wide * (1 + NUDGE * up)
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


def _against_recorded(truth: Sequence[Any], case: Case) -> str:
    assert case.recorded is not None
    for number, (there, recorded) in enumerate(zip(truth, case.recorded, strict=False)):
        if problem := _unlike(there, recorded, case):
            return f"output {number} recorded: {problem}"
    return ""


def _unlike(truth: Any, recorded: Any, case: Case) -> str:
    if recorded is None or truth is None:
        return "" if truth is recorded else f"{_kind(truth)}, recorded {_kind(recorded)}"
    if isinstance(recorded, list):
        if not isinstance(truth, list) or len(truth) != len(recorded):
            return f"{_kind(truth)}, recorded {_kind(recorded)}"
        return next((p for t, r in zip(truth, recorded, strict=True) if (p := _unlike(t, r, case))), "")
    truth, recorded = np.asarray(truth), np.asarray(recorded)
    if truth.shape != recorded.shape:
        return f"shape {list(truth.shape)}, recorded {list(recorded.shape)}"
    if truth.dtype.kind in "OSU":
        same = truth == recorded.astype(object)
    elif truth.dtype.kind == "f":
        units = EPSILON.get(recorded.dtype.name, 0.25)  # 0.25: types of eight bits and less
        wide = recorded.astype(np.float64)
        same = np.isclose(truth, wide, rtol=max(case.rtol, 2 * units), atol=max(case.atol, units), equal_nan=True)
    else:
        same = truth.astype(np.int64) == recorded.astype(np.int64)
    if same.all():
        return ""
    place = tuple(np.argwhere(~same)[0])
    return f"{int((~same).sum())} of {same.size} differ, first at {list(map(int, place))}: {truth[place]!s}, recorded {recorded[place]!s}"


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


def since(domain: str, name: str, opset: int) -> int:
    """The opset that introduced the schema in force; 1 where the onnx package has none."""
    try:
        return int(onnx.defs.get_schema(name, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return 1


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a map of {len(value)}"
    return "nothing" if value is None else "a tensor"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
