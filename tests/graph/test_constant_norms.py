"""A batch norm of a weight is a constant: it is computed, and the norms of tensors fold into what it makes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from normfold.graph.prepare import prepare
from tests.support.graphs import build, fold, run

# As timm standardises weights: a batch norm over the weight of every output channel, as stored or by its own statistic.
STORED = """g (double[2,3,6,6] x) => (double y) {
    flat = Reshape(w, rows)
    mean = ReduceMean <keepdims = 0> (flat, axes)
    centre = ReduceMean <keepdims = 1> (flat, axes)
    apart = Sub(flat, centre)
    squares = Mul(apart, apart)
    var = ReduceMean <keepdims = 0> (squares, axes)
    standard = BatchNormalization <epsilon = 0.00001> (flat, gain, zero, mean, var)
    kernel = Reshape(standard, square)
    n = BatchNormalization(x, gamma, beta, m, v)
    y = Conv(n, kernel)
}"""
TRAINED = """g (double[2,3,6,6] x) => (double y) {
    flat = Reshape(w, rows)
    standard, a, b = BatchNormalization <epsilon = 0.00001, training_mode = 1> (flat, gain, zero, zero, gain)
    kernel = Reshape(standard, square)
    n = BatchNormalization(x, gamma, beta, m, v)
    y = Conv(n, kernel)
}"""
CONSTANTS = {
    "w": (4, 3, 3, 3),
    "rows": np.array([1, 4, 27], np.int64),
    "square": np.array([4, 3, 3, 3], np.int64),
    "gain": (4,),
    "zero": np.zeros(4),
    "gamma": (3,),
    "beta": (3,),
    "m": (3,),
    "v": np.array([0.5, 1.0, 2.0]),
}
AXES = np.array([0, 2], np.int64)


@pytest.mark.parametrize("text", [STORED, TRAINED])
def test_a_norm_folds_into_a_standardised_weight(text: str) -> None:
    model = build(text, **CONSTANTS, axes=AXES)
    folded, plan = fold(model)
    assert [(site.status, site.kind) for site in plan.sites] == [("folded", "BatchNorm")]
    assert {"BatchNormalization", "ReduceMean"}.isdisjoint(node.op_type for node in folded.graph.node)
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 3, 6, 6))}
    assert np.allclose(run(folded, feeds)[0], run(model, feeds)[0], atol=1e-12)


def test_a_weight_that_depends_on_an_input_is_left() -> None:
    model = build(STORED.replace("x) =>", "x, double[4,3,3,3] w) =>"), **{**CONSTANTS, "w": (4, 3, 3, 3)}, axes=AXES)
    del model.graph.initializer[[tensor.name for tensor in model.graph.initializer].index("w")]
    before = [node.op_type for node in ir.from_proto(model).graph]
    assert [node.op_type for node in prepare(ir.from_proto(model)).graph] == before


@pytest.mark.parametrize("name", ["a", "standard"])
def test_a_result_that_somebody_else_reads_is_left(name: str) -> None:
    text = TRAINED.replace("(double y)", f"(double y, double {name})")
    prepared = prepare(ir.from_proto(build(text, **CONSTANTS)))
    assert [node.op_type for node in prepared.graph].count("BatchNormalization") == 2
