"""Small ONNX graphs in and out of tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from normfold.analysis.analyse import analyse
from normfold.analysis.plan import Plan
from normfold.graph.operators import operators
from normfold.graph.prepare import prepare
from normfold.graph.view import Graph
from normfold.rewrite.graph import rewrite


def parse(text: str, **constants: NDArray[np.generic]) -> onnx.ModelProto:
    """A model from ONNX's text form; `constants` become its initializers. IR 10, opset 20 unless the text says so."""
    if not text.lstrip().startswith("<"):
        text = '<ir_version: 10, opset_import: ["" : 20]>\n' + text
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return model


def fold(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, Plan]:
    graph = prepare(ir.from_proto(model))
    plan = analyse(graph, **options)
    return ir.to_proto(rewrite(graph, plan)), plan


class ConvTranspose(OpRun):  # type: ignore[misc]
    """The definition, tap by tap: the reference implementation of onnx 1.22 does not know groups."""

    op_domain = ""

    def _run(self, x, w, bias=None, **given):  # type: ignore[no-untyped-def]
        rank, groups = x.ndim - 2, given.get("group") or 1
        strides, dilations = (given.get(name) or [1] * rank for name in ("strides", "dilations"))
        pads, extra = given.get("pads") or [0] * 2 * rank, given.get("output_padding") or [0] * rank
        assert given.get("auto_pad") in (None, "NOTSET", "VALID") and given.get("output_shape") is None
        sizes = zip(x.shape[2:], w.shape[2:], strides, dilations, extra, strict=True)
        out = np.zeros((len(x), groups, w.shape[1], *((n - 1) * s + (k - 1) * d + 1 + e for n, k, s, d, e in sizes)))
        apart = x.reshape(len(x), groups, -1, *x.shape[2:])
        weight = w.reshape(groups, -1, *w.shape[1:])
        for taps in np.ndindex(*w.shape[2:]):
            places = zip(taps, x.shape[2:], strides, dilations, strict=True)
            at = tuple(slice(k * d, k * d + (n - 1) * s + 1, s) for k, n, s, d in places)
            out[(..., *at)] += np.einsum("ngi...,gio->ngo...", apart, weight[(..., *taps)])
        out = out.reshape(len(x), -1, *out.shape[3:])
        out = out[(..., *(slice(pads[k], out.shape[2 + k] - pads[k + rank]) for k in range(rank)))]
        return ((out if bias is None else out + bias.reshape(-1, *[1] * rank)).astype(x.dtype),)


def run(model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """Outputs by the onnx project's reference implementation, in the model's own precision."""
    return [np.asarray(a) for a in ReferenceEvaluator(model, new_ops=[ConvTranspose]).run(None, dict(feeds))]


def session(model: Path | bytes) -> ort.InferenceSession:
    """onnxruntime on the CPU, one thread, graph optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_float32(model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """Outputs by onnxruntime, graph optimisations off, floating inputs as float32."""
    cast = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in feeds.items()}
    return list(session(model.SerializeToString()).run(None, cast))


def as_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every float64 made float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


# Both graphs are evaluated in float64 on values of order 1: what is left is rounding.
EXACT = 1e-10

# Outcomes of sites: the status, and the code where a fold is refused.
Outcome = tuple[str, str | None]
FOLDED: Outcome = ("folded", None)


def kept(code: str) -> Outcome:
    return ("kept", code)


def partial(code: str) -> Outcome:
    return ("partial", code)


def build(text: str, **constants: NDArray[np.generic] | tuple[int, ...]) -> onnx.ModelProto:
    """`parse`, where a constant may be given by its shape (drawn from its name) and outputs need no dimensions."""
    drawn = {k: draw(k, *v) if isinstance(v, tuple) else v for k, v in constants.items()}
    model = parse(text, **drawn)
    open_ended = [value for value in model.graph.output if not value.type.tensor_type.shape.dim]
    for value in open_ended:
        value.type.tensor_type.ClearField("shape")
    known = {v.name: v.type for v in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output}
    for value in open_ended:
        value.type.CopyFrom(known[value.name])
    return model


def draw(name: str, *shape: int, positive: bool = False) -> NDArray[np.float64]:
    """A constant of `shape`: away from 0, of both signs unless `positive`; another for every name."""
    rng = np.random.default_rng(list(name.encode()))
    array = rng.uniform(0.4, 1.6, shape)
    return array if positive else array * rng.choice([-1.0, 1.0], shape)


def feeds_for(model: onnx.ModelProto, size: int, *, high: int = 3) -> dict[str, NDArray[np.generic]]:
    """An input for `model`, its first dynamic axis of `size` and the next ones larger by one each."""
    rng = np.random.default_rng(size)
    fixed = {tensor.name for tensor in model.graph.initializer}
    sizes: dict[str, int] = {}
    feeds: dict[str, NDArray[np.generic]] = {}
    for value in model.graph.input:
        if value.name in fixed:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value or sizes.setdefault(d.dim_param, size + len(sizes)) for d in kind.shape.dim]
        if kind.elem_type in (TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16):
            feeds[value.name] = rng.normal(size=shape).astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        elif kind.elem_type == TensorProto.BOOL:
            feeds[value.name] = np.asarray(rng.integers(0, 2, shape) == 1)
        else:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            feeds[value.name] = np.asarray(rng.integers(0, high, shape)).astype(dtype)
    return feeds


def outcomes(plan: Plan) -> list[Outcome]:
    return [(site.status, site.code) for site in plan.sites]


def same_function(
    before: onnx.ModelProto, after: onnx.ModelProto, sizes: Sequence[int] = (2, 1), *, tolerance: float = EXACT
) -> None:
    """Both models have the same outputs, in float64 and to rounding."""
    for size in sizes:
        feeds = feeds_for(before, size)
        truth, result = run(before, feeds), run(after, feeds)
        assert len(truth) == len(result) > 0
        for expected, found in zip(truth, result, strict=True):
            assert expected.shape == found.shape and expected.dtype == found.dtype
            scale = max(float(np.abs(expected).max(initial=0.0)), 1.0)
            assert expected.size == 0 or np.abs(found - expected).max() <= tolerance * scale


def graph_of(model: onnx.ModelProto) -> Graph:
    """The model as the rules see it, its fixed maps not collapsed."""
    prepared = prepare(ir.from_proto(model))
    return Graph(prepared, operators(prepared))


def halves(text: str, constants: Mapping[str, NDArray[np.generic] | tuple[int, ...]]) -> Iterator[onnx.ModelProto]:
    """The model of `build` with norms that have no scale, and with ones that have no shift: by custom their scale is
    called `a` (in a Sandwich `n_scale`), their shift `b` (`n_shift`).
    """
    for name, value in (("a", 1.0), ("n_scale", 1.0), ("b", 0.0), ("n_shift", 0.0)):
        given = constants.get(name)
        if isinstance(given, tuple) or (given is not None and given.dtype.kind == "f"):
            shape = given if isinstance(given, tuple) else given.shape
            yield build(text, **{**constants, name: np.full(shape, value)})


def check(
    text: str,
    *expected: Outcome,
    sizes: Sequence[int] = (2, 1),
    options: Mapping[str, bool] | None = None,
    tolerance: float = EXACT,
    **constants: NDArray[np.generic] | tuple[int, ...],
) -> tuple[onnx.ModelProto, Plan]:
    """Fold the model of `build`: every norm comes out as expected, and the function stays the same."""
    for half in halves(text, constants):
        same_function(half, fold(half, **(options or {}))[0], sizes[:1], tolerance=tolerance)
    model = build(text, **constants)
    after, plan = fold(model, **(options or {}))
    assert outcomes(plan) == list(expected), plan.sites
    onnx.checker.check_model(after, full_check=True)
    same_function(model, after, sizes, tolerance=tolerance)
    return after, plan


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
