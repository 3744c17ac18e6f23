"""An ONNX graph in float64: every narrower float in it widened, run by onnx.reference.

onnx.reference computes in the dtype it is given, with two exceptions that matter here and are replaced: its Erf rounds
to float32 (and so does Gelu, which is expanded into Erf), and Constant and Cast name dtypes of their own.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from normfold.errors import CannotJudgeError

NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)

# Resident memory for a byte of float32 weights: the message that was read, the widened one and the arrays made of it.
WIDENING = 5

# The attribute by which an operator names the dtype of what it makes.
DTYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "softmax_precision")


class Erf(OpRun):
    """Erf in float64: the reference's own rounds to float32."""

    op_domain = ""

    def _run(self, x: npt.NDArray[Any]) -> tuple[npt.NDArray[Any]]:
        import torch

        return (np.asarray(torch.special.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy(), dtype=x.dtype),)


class Gelu(OpRun):
    """Gelu in float64, for its expansion uses the reference's own Erf."""

    op_domain = ""

    def _run(self, x: npt.NDArray[Any], approximate: str = "none") -> tuple[npt.NDArray[Any]]:
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(x))
        return (np.asarray(torch.nn.functional.gelu(tensor, approximate=approximate).numpy(), dtype=x.dtype),)


def check_fits(path: Path) -> None:
    """Raise CannotJudgeError where the weights of a graph would not fit into this machine's memory in float64."""
    try:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
        available = int(found[1]) * 1024 if found else available
    except (OSError, ValueError, AttributeError):
        return  # this system does not say
    model = onnx.load(path, load_external_data=False)
    stored = sum(math.prod(tensor.dims) * _item_bytes(tensor.data_type) for tensor in model.graph.initializer)
    needed = WIDENING * stored
    if needed > available:
        raise CannotJudgeError(
            f"{path} cannot be verified here: its {stored / 1e9:.1f} GB of weights need about {needed / 1e9:.0f} GB of "
            f"memory to run in float64, and {available / 1e9:.0f} GB are free. `fold --no-verify` folds it without; "
            "`normfold verify FOLDED.onnx` can judge the result later, on a larger machine"
        )


def _item_bytes(data_type: int) -> int:
    try:
        return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)
    except KeyError:
        return 0


def reference_session(path: Path) -> ReferenceEvaluator:
    """An evaluator of the graph at `path` in float64. Feed it float64 arrays."""
    return ReferenceEvaluator(widened(onnx.load(path)), new_ops=[Erf, Gelu])


def float_weights(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The initializers in float16 and float32 of the graph at `path`, by name."""
    tensors = onnx.load(path).graph.initializer
    return {
        t.name: numpy_helper.to_array(t) for t in tensors if t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    }


def rounded_anew(weights: Mapping[str, npt.NDArray[Any]], *, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Copies of `weights` with one entry in twelve moved to a neighbouring number; 0, 1 and the largest (masks) stay.

    The variance of that is the variance of rounding, a twelfth of a unit in the last place squared.
    """
    rng = np.random.default_rng(seed)
    moved = {}
    for name, array in weights.items():
        result = array.copy().reshape(-1)
        at = rng.integers(0, result.size, result.size // 12) if result.size else np.zeros(0, int)
        before = result[at]
        after = np.nextafter(before, rng.choice(np.array([-np.inf, np.inf], array.dtype), at.shape))
        kept = (before == 0) | (np.abs(before) == 1) | ~np.isfinite(after)
        result[at] = np.where(kept, before, after)
        moved[name] = result.reshape(array.shape)
    return moved


def widened(model: ModelProto) -> ModelProto:
    """Make every float16, bfloat16 and float32 of `model` a float64, in place: weights, constants, casts and types."""
    _widen_graph(model.graph)
    for function in model.functions:
        _widen_nodes(function.node)
        for value in function.value_info:
            _widen_type(value.type)
    return model


def _widen_graph(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _widen_type(value.type)
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        if node.op_type == "ConstantOfShape" and not node.attribute:
            # Without a value it fills with float32 zeros.
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
        for attribute in node.attribute:
            _widen_attribute(node, attribute)


def _widen_attribute(node: NodeProto, attribute: AttributeProto) -> None:
    if attribute.type == AttributeProto.GRAPH:
        _widen_graph(attribute.g)
    elif attribute.type == AttributeProto.GRAPHS:
        for graph in attribute.graphs:
            _widen_graph(graph)
    elif attribute.type == AttributeProto.TENSOR:
        _widen_tensor(attribute.t)
    elif attribute.name in DTYPE_ATTRIBUTES and attribute.type == AttributeProto.INT and attribute.i in NARROW:
        attribute.i = TensorProto.DOUBLE
    elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        # These two make float32 by definition.
        floats = np.float64(attribute.f) if attribute.name == "value_float" else np.array(attribute.floats, np.float64)
        attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(np.asarray(floats))))


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in NARROW:
        wide = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        tensor.CopyFrom(wide)


def _widen_type(kind: TypeProto) -> None:
    if kind.HasField("tensor_type"):
        if kind.tensor_type.elem_type in NARROW:
            kind.tensor_type.elem_type = TensorProto.DOUBLE
    elif kind.HasField("sequence_type"):
        _widen_type(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        _widen_type(kind.optional_type.elem_type)
