"""What differs between two graphs, and how it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from normfold.cli.app import app
from normfold.graph.compare import compare
from normfold.pipeline import run as pipeline
from tests.pipeline.test_run import foldable
from tests.support.graphs import build

RUN = CliRunner()
TEXT = "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) n = Add(h, b) y = LeakyRelu<alpha = 0.1>(n) }"


def model(text: str = TEXT, **constants: np.ndarray) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    own = {"w": rng.standard_normal((4, 4)).astype(np.float32), "b": rng.standard_normal(4).astype(np.float32)}
    made = build(text, **{**own, **constants})
    for number, node in enumerate(made.graph.node):
        node.name = f"{node.op_type}_{number}"
    return made


def test_the_same_graph() -> None:
    first = ir.from_proto(model())
    again = model()
    again.metadata_props.append(onnx.StringStringEntryProto(key="normfold", value="{}"))
    found = compare(first, ir.from_proto(again))
    assert found.is_empty and found.equal == 2


def test_every_kind_of_difference_is_found() -> None:
    first = ir.from_proto(model())
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 4)).astype(np.float32)
    w[1, 2] += 0.5
    changed = model(TEXT.replace("0.1", "0.2"), w=w)
    found = compare(first, ir.from_proto(changed))
    assert list(found.changed) == ["LeakyRelu_2"] and "alpha" in found.changed["LeakyRelu_2"]
    (weight,) = found.weights
    assert weight.name == "w" and weight.largest == pytest.approx(0.5, rel=1e-5)
    other = model(TEXT.replace("LeakyRelu<alpha = 0.1>", "Relu").replace("float[N,4] y", "float[N,M] y"))
    found = compare(first, ir.from_proto(other))
    assert dict(found.counts) == {"LeakyRelu": (1, 0), "Relu": (0, 1)}
    assert found.removed == (("LeakyRelu_2", "LeakyRelu"),) and found.added == (("Relu_2", "Relu"),)
    assert "output y" in found.values
    half = model()
    half.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(half.graph.initializer[0]).astype(np.float16), "w")
    )
    assert compare(first, ir.from_proto(half)).weights[0].why == "float -> float16"
    newer = model()
    newer.opset_import[0].version += 1
    assert not compare(first, ir.from_proto(newer)).is_empty


def test_a_fold_is_told_in_80_columns(tmp_path: Path) -> None:
    source = foldable(tmp_path)
    pipeline.fold(source, tmp_path / "out.onnx", verify=False)
    result = RUN.invoke(app, ["diff", str(source), str(tmp_path / "out.onnx")])
    assert result.exit_code == 1, result.output
    assert "BatchNormalization" in result.stdout and "-1" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    place = tmp_path / "d.json"
    quiet = RUN.invoke(app, ["diff", str(source), str(tmp_path / "out.onnx"), "-q", "--json", str(place)])
    assert (quiet.exit_code, quiet.output) == (1, "")
    assert json.loads(place.read_text(encoding="utf-8"))["same"] is False
    same = RUN.invoke(app, ["diff", str(source), str(source)])
    assert same.exit_code == 0 and "The graphs are the same" in same.stdout
    assert RUN.invoke(app, ["diff", str(source), str(tmp_path / "gone.onnx")]).exit_code == 2


def test_long_lists_are_cut_and_names_are_text(tmp_path: Path) -> None:
    def chain(count: int, prefix: str) -> None:
        nodes = [helper.make_node("Relu", [f"t{n}"], [f"t{n + 1}"], f"{prefix}{n}") for n in range(count)]
        info = [helper.make_tensor_value_info(name, 1, ["N"]) for name in ("t0", f"t{count}")]
        graph = helper.make_graph(nodes, "g", info[:1], info[1:])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
            tmp_path / f"{count}.onnx",
        )

    chain(30, "a")
    chain(31, "\x1b[31m[red]b")
    command = ["diff", str(tmp_path / "30.onnx"), str(tmp_path / "31.onnx")]
    cut, whole = RUN.invoke(app, command).stdout, RUN.invoke(app, [*command, "--all"]).stdout
    assert "and 10 more (--all)" in cut and "more (--all)" not in whole
    assert "\x1b" not in whole and "[red]b3" in whole
