"""Models and calls that the tests of `normfold verify` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from normfold.cli.app import app

RUN = CliRunner()


CHANNELS = 16


def graph(path: Path, *, seed: int = 0, batch: int | str = "B", channels: int = CHANNELS, name: str = "x") -> Path:
    """x W1, BatchNormalization, W2 + b2, Gelu, W3: one norm that folds."""
    rng = np.random.default_rng(seed)
    tensors = {
        "W1": rng.standard_normal((channels, CHANNELS)) / 4,
        "gamma": rng.uniform(0.3, 2.0, CHANNELS) * rng.choice([-1, 1], CHANNELS),
        "beta": rng.standard_normal(CHANNELS),
        "mean": rng.standard_normal(CHANNELS),
        "var": rng.uniform(0.3, 2.0, CHANNELS),
        "W2": rng.standard_normal((CHANNELS, CHANNELS)) / 4,
        "b2": rng.standard_normal(CHANNELS),
        "W3": rng.standard_normal((CHANNELS, 8)) / 4,
    }
    node = helper.make_node
    nodes = [
        node("MatMul", [name, "W1"], ["h"], "first"),
        node("BatchNormalization", ["h", "gamma", "beta", "mean", "var"], ["n"], "norm"),
        node("Gemm", ["n", "W2", "b2"], ["u"], "second"),
        node("Gelu", ["u"], ["v"], "gelu"),
        node("MatMul", ["v", "W3"], ["y"], "third"),
    ]
    model = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8])],
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in tensors.items()],
    )
    onnx.save(helper.make_model(model, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def change(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return path


def verify(*words: object) -> Result:
    return RUN.invoke(app, ["verify", *map(str, words)])


def said(result: Result) -> str:
    """What was printed, with the line breaks of a narrow terminal taken out."""
    return " ".join((result.stdout + result.stderr).split())


def spoil(model: onnx.ModelProto, prefix: str = "W2") -> None:
    """The largest entry of the folded weight, one percent off."""
    tensor = next(
        tensor for tensor in model.graph.initializer if tensor.name.startswith(prefix) and len(tensor.dims) == 2
    )
    values = numpy_helper.to_array(tensor).copy()
    values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
