"""External data of an ONNX file: read where it lies beside the model and whole, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from normfold.errors import GraphError
from normfold.graph.read import read_graph
from tests.support.hostile import seeds


def outside(model: onnx.ModelProto, location: str, offset: int = 0, length: int = 16) -> onnx.ModelProto:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "gamma4")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return model


@pytest.mark.parametrize(
    ("location", "offset", "length", "complaint"),
    [
        ("../secret", 0, 16, "outside the model's folder"),
        ("{folder}/secret", 0, 16, "outside the model's folder"),
        ("link", 0, 16, "outside the model's folder"),
        ("folder/secret", 0, 16, "outside the model's folder"),
        ("sub\\..\\..\\secret", 0, 16, "outside the model's folder"),
        ("", 0, 16, "outside the model's folder"),
        (".", 0, 16, "is missing"),
        ("hard", 0, 16, "is a hard link"),
        ("data", 60, 16, "is truncated"),
        ("data", 2**62, 16, "is truncated"),
        ("data", -8, 16, "cannot be read as an ONNX graph"),
        ("data", 0, 8, "the file is damaged"),
        ("data", 0, 2**62, "the file is damaged"),
    ],
)
def test_nothing_is_read_outside_the_folder(
    tmp_path: Path, location: str, offset: int, length: int, complaint: str
) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(64))
    (folder / "data").write_bytes(bytes(64))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    os.link(tmp_path / "secret", folder / "hard")
    model = outside(seeds()["stream"], location.format(folder=tmp_path), offset, length)
    (folder / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match=complaint):
        read_graph(folder / "bad.onnx")


def test_attributes_do_not_read_outside_either(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "model").mkdir()
    model = seeds()["stream"]
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))
    (tmp_path / "model" / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="outside the model's folder"):
        read_graph(tmp_path / "model" / "bad.onnx")
