"""Small ONNX graphs in and out of tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from normfold.analysis import analyse
from normfold.graph import prepare
from normfold.plan import Plan
from normfold.rewrite import rewrite


def parse(text: str, **constants: NDArray[np.generic]) -> onnx.ModelProto:
    """A model from ONNX's text form; `constants` become its initializers. IR 10, opset 20 unless the text says so."""
    if not text.lstrip().startswith("<"):
        text = '<ir_version: 10, opset_import: ["" : 20]>\n' + text
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return model


def fold(model: onnx.ModelProto, **options: bool) -> tuple[onnx.ModelProto, Plan]:
    graph = prepare(ir.from_proto(model))
    plan = analyse(graph, **options)
    return ir.to_proto(rewrite(graph, plan)), plan


def run(model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """Outputs by the onnx project's reference implementation, in the model's own precision."""
    return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, dict(feeds))]


def run_float32(model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """Outputs by onnxruntime, graph optimisations off, floating inputs as float32."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    cast = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in feeds.items()}
    return list(session.run(None, cast))


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
