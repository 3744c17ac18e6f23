"""ONNX files as sources: their inputs, their external data, and files that are no graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from normfold import fold
from normfold.checkpoint.load import load_checkpoint
from normfold.errors import GraphError, InputSpecError, UsageError
from tests.support.graphs import session


def write_graph(path: Path, *, location: str | None = None) -> None:
    """y = table[ids] + x, the table outside the file where a location is given."""
    table = numpy_helper.from_array(np.ones((9, 4), dtype=np.float32), "table")
    if location is not None:
        table.ClearField("raw_data")
        table.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "144")):
            table.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["ids"], ["long"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "long"], ["rows"]),
            helper.make_node("Add", ["rows", "x"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch size", 7]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch size", None, 4]),
            helper.make_tensor_value_info("table", TensorProto.FLOAT, [9, 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [table],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)


def test_a_graph_brings_its_own_inputs(tmp_path: Path) -> None:
    write_graph(tmp_path / "m.onnx")
    source = load_checkpoint(tmp_path / "m.onnx")
    assert [str(spec) for spec in source.inputs] == ["ids:int32[batch_size,7]<9", "x:float32[batch_size,x_1,4]"]
    assert (source.format, source.module, source.trusted) == ("onnx", None, False)
    assert source.graph is not None
    traced = load_checkpoint(tmp_path / "m.onnx", inputs=["ids:int32[B=8,7]", "x:float32[B,7,4]"])
    assert [str(spec) for spec in traced.inputs] == ["ids:int32[B=8,7]<9", "x:float32[B,7,4]"]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("y:float32[B,7,4]", "has no input 'y'; its inputs are ids:"),
        ("x:float64[B,7,4]", "contradicts the model's own"),
        ("x:float32[B,4]", "contradicts the model's own"),
        ("x:float32[B,7,5]", "contradicts the model's own"),
    ],
)
def test_inputs_that_a_graph_does_not_have(tmp_path: Path, spec: str, complaint: str) -> None:
    write_graph(tmp_path / "m.onnx")
    with pytest.raises(InputSpecError, match=complaint):
        load_checkpoint(tmp_path / "m.onnx", inputs=[spec])


def test_a_graph_takes_no_architecture(tmp_path: Path) -> None:
    write_graph(tmp_path / "m.onnx")
    for option in ({"arch": "vit"}, {"model": "a:b"}, {"ema": True}):
        with pytest.raises(UsageError, match="holds its own architecture"):
            load_checkpoint(tmp_path / "m.onnx", **option)  # type: ignore[arg-type]


def test_external_data_is_mapped_from_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(np.full((9, 4), 2, dtype=np.float32).tobytes())
    write_graph(tmp_path / "m.onnx", location="data/w.bin")
    graph = load_checkpoint(tmp_path / "m.onnx").graph
    assert graph is not None
    table = graph.graph.initializers["table"].const_value
    assert table is not None
    assert (table.numpy() == 2).all()


@pytest.mark.parametrize("location", ["../secret", "{outside}/secret", "sub/../../secret", "link", "folder/secret"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(bytes(144))
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "folder").symlink_to(tmp_path)
    write_graph(inside / "m.onnx", location=location.format(outside=tmp_path))
    with pytest.raises(GraphError, match="outside the model's folder"):
        load_checkpoint(inside / "m.onnx")


def test_external_data_that_is_not_whole(tmp_path: Path) -> None:
    write_graph(tmp_path / "m.onnx", location="w.bin")
    with pytest.raises(GraphError, match=r"'w\.bin' is missing"):
        load_checkpoint(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(bytes(143))
    with pytest.raises(GraphError, match=r"'w\.bin' is truncated: table ends at byte 144"):
        load_checkpoint(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"this is text, not a model", b"\x08\x07"])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(GraphError, match=r"m\.onnx") as caught:
        load_checkpoint(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def test_a_truncated_graph(tmp_path: Path) -> None:
    write_graph(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:-40])
    with pytest.raises(GraphError):
        load_checkpoint(tmp_path / "m.onnx")


def test_operators_in_no_order_are_sorted(tmp_path: Path) -> None:
    """As onnxruntime's converter to float16 leaves them; the body of an If reads what the graph around it writes."""
    text = """<ir_version: 9, opset_import: ["": 17]> g (float[N,4] x, bool c) => (float[N,4] y) {
        y = If (c) <then_branch = t () => (float[N,4] z) { k = MatMul(n, w)  z = Neg(k) },
                    else_branch = e () => (float[N,4] q) { q = Relu(n) }>
        n = Add(m, b)
        m = Mul(h, a)
        h = MatMul(x, w) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32) * 3, "w"))
    model.graph.initializer.extend(numpy_helper.from_array(np.float32([2, 3, 4, 5]), name) for name in "ab")
    onnx.save(model, tmp_path / "a.onnx")
    source = load_checkpoint(tmp_path / "a.onnx")
    assert source.graph is not None
    assert [node.op_type for node in source.graph.graph] == ["MatMul", "Mul", "Add", "If"]
    fold(tmp_path / "a.onnx", tmp_path / "b.onnx")
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for c in (True, False):
        runs = [session(tmp_path / name).run(None, {"x": x, "c": np.array(c)})[0] for name in ("a.onnx", "b.onnx")]
        np.testing.assert_allclose(*runs, rtol=1e-5)
