"""One operator, in onnxruntime and in the evaluator: what the tests of the operator families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper

from normfold.graph.evaluator.evaluator import Evaluator

# float32 kernels against float64: a few roundings of 6e-8 each, of values around 1.
FLOAT32 = 1e-5

Case = tuple[str, int, Sequence[Any], Mapping[str, Any]]


def name_of(case: Case) -> str:
    """A case for pytest: operator, opset, shapes, attributes."""
    operator, opset, inputs, attributes = case
    shapes = [f"{item.dtype}{list(item.shape)}" if item is not None else "-" for item in inputs]
    said = ",".join(f"{key}={value}" for key, value in attributes.items() if not isinstance(value, onnx.GraphProto))
    return f"{operator}-{opset}-{';'.join(shapes)}-{said}"[:100]


def model_of(
    operator: str,
    opset: int,
    inputs: Sequence[Any],
    attributes: Mapping[str, Any],
    *,
    outputs: int = 1,
    domain: str = "",
    constant: Sequence[int] = (),
) -> onnx.ModelProto:
    """A model of one node. constant: the numbers of the inputs that are initializers."""
    names = ["" if item is None else f"i{place}" for place, item in enumerate(inputs)]
    given = [place for place, item in enumerate(inputs) if item is not None and place not in constant]
    node = helper.make_node(operator, names, [f"o{place}" for place in range(outputs)], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "single",
        [helper.make_tensor_value_info(names[place], _kind(inputs[place]), inputs[place].shape) for place in given],
        [helper.make_empty_tensor_value_info(f"o{place}") for place in range(outputs)],
        [onnx.numpy_helper.from_array(inputs[place], names[place]) for place in constant],
    )
    imports = {"": 21 if domain else opset, **({domain: opset} if domain else {})}
    ids = [helper.make_opsetid(name, version) for name, version in imports.items()]
    return helper.make_model(graph, opset_imports=ids, ir_version=10)


def _kind(array: Any) -> int:
    return onnx.TensorProto.STRING if array.dtype == object else helper.np_dtype_to_tensor_dtype(array.dtype)


def run(model: onnx.ModelProto, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The evaluator's outputs."""
    return Evaluator(ir.from_proto(model)).run(_feeds(model, inputs))


def run_onnxruntime(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    """onnxruntime's outputs, without its optimiser."""
    return run_session(model, _feeds(model, inputs))


def run_session(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any]:
    """onnxruntime's outputs for inputs by name."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def of_type(kind: type, *shape: int, seed: int = 0) -> np.ndarray:
    """Integers of all sizes that a type holds."""
    info = np.iinfo(kind)
    return np.asarray(np.random.default_rng((seed, *shape)).integers(info.min, info.max + 1, shape), kind)


def _feeds(model: onnx.ModelProto, inputs: Sequence[Any]) -> dict[str, Any]:
    return {value.name: inputs[int(value.name[1:])] for value in model.graph.input}


def check(case: Case, *, outputs: int = 1, domain: str = "", tolerance: float = FLOAT32) -> None:
    """The evaluator computes what onnxruntime does."""
    operator, opset, inputs, attributes = case
    model = model_of(operator, opset, inputs, attributes, outputs=outputs, domain=domain)
    expected = run_onnxruntime(model, inputs)
    found = run(model, inputs)
    assert len(found) == len(expected) == outputs
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, tolerance)


def assert_same(found: Any, expected: Any, tolerance: float = FLOAT32) -> None:
    """Two values are the same; floats within a relative tolerance, and an absolute one where they are below 1."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, tolerance)
        return
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        assert_same([found[key] for key in found], [np.asarray(item) for item in expected.values()], tolerance)
        return
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    if expected.dtype.kind == "f":
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected.astype(np.float64), rtol=tolerance, atol=tolerance)
    elif expected.dtype.kind in "OUS":
        assert found.tolist() == expected.tolist()
    else:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
