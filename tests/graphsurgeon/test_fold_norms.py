"""A graph of onnx-graphsurgeon, folded in place, edited before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest

from normfold.errors import GraphError, NormfoldError, NotFoldedError, UsageError
from normfold.graphsurgeon import fold_norms, register
from tests.pipeline.test_run import CHANNELS, foldable, stuck


def graph_of(path: Path) -> gs.Graph:
    return gs.import_onnx(onnx.load(path))


def outputs(graph: gs.Graph) -> np.ndarray:
    model = gs.export_onnx(graph)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((3, CHANNELS)).astype(np.float32)
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def test_it_is_folded_in_place(tmp_path: Path) -> None:
    graph = graph_of(foldable(tmp_path))
    inputs, outs, before = list(graph.inputs), list(graph.outputs), outputs(graph)
    names = {node.name for node in graph.nodes}
    report = fold_norms(graph)
    assert [site.status for site in report.norms] == ["folded"]
    assert "BatchNormalization" not in [node.op for node in graph.nodes]
    assert {node.name for node in graph.nodes} < names
    assert all(a is b for a, b in zip(graph.inputs, inputs, strict=True))
    assert all(a is b for a, b in zip(graph.outputs, outs, strict=True))
    assert np.abs(outputs(graph) - before).max() < 1e-5
    assert not fold_norms(graph).changed, "a second time there is nothing to do"


def test_edits_before_and_after_hold(tmp_path: Path) -> None:
    graph = graph_of(foldable(tmp_path))
    doubled = gs.Variable("doubled", dtype=np.float32)
    first = graph.nodes[0]
    graph.layer(op="Add", inputs=[graph.inputs[0], graph.inputs[0]], outputs=[doubled])
    first.inputs[0] = doubled
    graph.cleanup().toposort()
    want = outputs(graph)
    fold_norms(graph)
    assert np.abs(outputs(graph) - want).max() < 1e-5
    last = graph.outputs[0]
    more = gs.Variable("more", dtype=np.float32, shape=last.shape)
    graph.layer(op="Neg", inputs=[last], outputs=[more])
    graph.outputs = [more]
    assert np.abs(outputs(graph.cleanup().toposort()) + want).max() < 1e-5


def test_as_a_method(tmp_path: Path) -> None:
    register()
    graph = graph_of(foldable(tmp_path))
    assert graph.fold_norms(verify=False).norms[0].status == "folded"


def test_what_fails_leaves_the_graph_as_it_was(tmp_path: Path) -> None:
    graph = graph_of(stuck(tmp_path))
    nodes = list(graph.nodes)
    with pytest.raises(NotFoldedError):
        fold_norms(graph, strict=True)
    assert list(graph.nodes) == nodes
    with pytest.raises(UsageError, match=r"takes an onnx_graphsurgeon\.Graph, not a ModelProto"):
        fold_norms(onnx.load(foldable(tmp_path)))
    broken = gs.Graph(nodes=[gs.Node("Relu", attrs={"no attribute": object()})])
    with pytest.raises(GraphError, match="cleanup"):
        fold_norms(broken)
    assert issubclass(GraphError, NormfoldError)


def test_an_operator_of_another_runtime(tmp_path: Path) -> None:
    graph = graph_of(foldable(tmp_path))
    plugged = gs.Variable("plugged", dtype=np.float32, shape=graph.outputs[0].shape)
    graph.layer(op="MyPlugin", inputs=[graph.outputs[0]], outputs=[plugged], attrs={"level": 3})
    graph.nodes[-1].domain = "my.company"
    graph.outputs = [plugged]
    report = fold_norms(graph, verify=False)
    assert [site.status for site in report.norms] == ["folded"]
    (plugin,) = [node for node in graph.nodes if node.op == "MyPlugin"]
    assert plugin.attrs == {"level": 3} and plugin.domain == "my.company"
