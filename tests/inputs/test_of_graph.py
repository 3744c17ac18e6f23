"""What a graph says of its own inputs, and what it must say."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from normfold.errors import InputSpecError
from normfold.inputs.of_graph import graph_inputs


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (TensorProto.FLOAT, None, "input x has no shape, which ONNX requires"),
        (TensorProto.COMPLEX64, [1], "input x has complex64 dtype, which normfold cannot feed"),
    ],
)
def test_inputs_that_cannot_be_fed_say_why(kind: int, shape: list[int] | None, message: str) -> None:
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, shape)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(InputSpecError, match=f"model.onnx: {message}"):
        graph_inputs(ir.from_proto(model), Path("model.onnx"))


def test_an_unknown_size_becomes_a_letter() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, "batch", 3])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [x])
    specs = graph_inputs(ir.from_proto(helper.make_model(graph)), Path("model.onnx"))
    assert [str(spec) for spec in specs] == ["x:float32[x_0,batch,3]"]
