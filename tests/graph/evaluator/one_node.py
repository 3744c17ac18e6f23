"""One node, run by onnxruntime and in float64: what the tests of the operator families share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper

from normfold.graph.evaluator.evaluator import Evaluator

# onnxruntime computes in float32, with sums of at most some hundred terms here.
RELATIVE, ABSOLUTE = 3e-5, 3e-6

Given = Sequence[np.ndarray | onnx.TensorProto | None]


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def model_of(
    operator: str, opset: int, inputs: Given, attributes: Mapping[str, Any], domain: str, outputs: int
) -> onnx.ModelProto:
    """Arrays become inputs of the graph, tensors its initializers."""
    weights, values = [], []
    names = ["" if given is None else f"x{number}" for number, given in enumerate(inputs)]
    for name, given in zip(names, inputs, strict=True):
        if isinstance(given, onnx.TensorProto):
            weights.append(onnx.TensorProto())
            weights[-1].CopyFrom(given)
            weights[-1].name = name
        elif given is not None:
            kind = helper.np_dtype_to_tensor_dtype(given.dtype)
            values.append(helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(given.ndim)]))
    written = [f"y{number}" for number in range(outputs)]
    node = helper.make_node(operator, names, written, domain=domain, **attributes)
    graph = helper.make_graph([node], "one", values, [onnx.ValueInfoProto(name=name) for name in written], weights)
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10 if opset < 23 else 12)


def feeds_of(inputs: Given) -> dict[str, np.ndarray]:
    return {f"x{number}": given for number, given in enumerate(inputs) if isinstance(given, np.ndarray)}


def evaluated(
    operator: str,
    opset: int,
    inputs: Given,
    attributes: Mapping[str, Any] | None = None,
    *,
    domain: str = "",
    outputs: int = 1,
) -> tuple[Any, ...]:
    model = model_of(operator, opset, inputs, attributes or {}, domain, outputs)
    return Evaluator(ir.from_proto(model)).run(feeds_of(inputs))


def agrees(
    operator: str,
    opset: int,
    inputs: Given,
    attributes: Mapping[str, Any] | None = None,
    *,
    domain: str = "",
    outputs: int = 1,
    relative: float = RELATIVE,
    absolute: float = ABSOLUTE,
) -> None:
    """Both give the same; onnxruntime has to run it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = model_of(operator, opset, inputs, attributes or {}, domain, outputs)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds_of(inputs))
    found = evaluated(operator, opset, inputs, attributes, domain=domain, outputs=outputs)
    assert len(found) == len(expected) == outputs
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        if theirs.dtype.kind in "iub":
            np.testing.assert_array_equal(mine, theirs, strict=True)
        else:
            np.testing.assert_allclose(mine, theirs.astype(np.float64), rtol=relative, atol=absolute, strict=True)


def initializer(array: Any, kind: int | None = None) -> onnx.TensorProto:
    """A weight; `kind` where numpy has no such type."""
    if kind is None:
        return numpy_helper.from_array(np.asarray(array))
    array = np.asarray(array)
    return helper.make_tensor("weight", kind, array.shape, array.reshape(-1).tolist())


def grid(**choices: Sequence[Any]) -> list[dict[str, Any]]:
    """Attributes: the product of the choices, where None leaves one out."""
    found = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    return [{name: value for name, value in case.items() if value is not None} for case in found]
