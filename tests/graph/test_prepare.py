"""Shapes that ONNX's own inference does not find, for they are computed in the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from normfold.graph.prepare import prepare
from tests.support.graphs import fold, parse, run

# As the TorchScript exporter writes F.pad: the paddings in the order of torch, filled up with zeros, turned round.
PADDED = """g (double[2,3,5,5] x) => (double[2,4,?,?] y) {
    n = BatchNormalization(x, gamma, beta, mean, var)
    fill = ConstantOfShape <value = int64[1] {0}> (four)
    all = Concat <axis = 0> (last, fill)
    rows = Reshape(all, pairs)
    turned = Slice(rows, end, start, first, back)
    columns = Transpose <perm = [1, 0]> (turned)
    flat = Reshape(columns, line)
    pads = Cast <to = 7> (flat)
    p = Pad(n, pads)
    y = Conv(p, w)
}"""
SIZES = {
    "four": np.array([4], np.int64),
    "last": np.array([1, 0, 2, 1], np.int64),
    "pairs": np.array([-1, 2], np.int64),
    "end": np.array([-1], np.int64),
    "start": np.array([-(2**62)], np.int64),
    "first": np.array([0], np.int64),
    "back": np.array([-1], np.int64),
    "line": np.array([-1], np.int64),
}


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"gamma": (3,), "beta": (3,), "mean": (3,), "w": (4, 3, 3, 3)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()} | {"var": rng.uniform(0.5, 2.0, 3)}


def test_the_shape_behind_computed_paddings_is_found() -> None:
    prepared = prepare(ir.from_proto(parse(PADDED, **SIZES, **weights())))
    shapes = {value.name: value.shape for node in prepared.graph for value in node.outputs}
    assert shapes["p"] == [2, 3, 8, 6] and shapes["y"] == [2, 4, 6, 4]
    # What was computed is still computed: the graph is what it was.
    assert [node.op_type for node in prepared.graph].count("Cast") == 1 and "pads.content" not in shapes


def test_a_norm_in_front_of_computed_paddings_folds() -> None:
    model = parse(PADDED, **SIZES, **weights())
    folded, plan = fold(model)
    assert [(site.status, site.code) for site in plan.sites] == [("partial", "shift-meets-padding")]
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 3, 5, 5))}
    assert np.allclose(run(folded, feeds)[0], run(model, feeds)[0], atol=1e-12)


@pytest.mark.parametrize("text", [PADDED.replace("(double[2,3,5,5] x)", "(double[2,3,5,5] x, int64[4] last)")])
def test_paddings_that_depend_on_an_input_stay_unknown(text: str) -> None:
    sizes = {name: value for name, value in SIZES.items() if name != "last"}
    prepared = prepare(ir.from_proto(parse(text, **sizes, **weights())))
    (p,) = (value for node in prepared.graph for value in node.outputs if value.name == "p")
    assert p.shape is None or not any(isinstance(dim, int) for dim in p.shape)


def test_what_cannot_be_computed_stays_unknown() -> None:
    text = """g (float[2,3] x) => (float[?,?] y) {
        size = Div(one, zero)
        shape = Concat <axis = 0> (size, size)
        y = Expand(x, shape)
    }"""
    constants = {"one": np.array([1], np.int64), "zero": np.array([0], np.int64)}
    prepared = prepare(ir.from_proto(parse(text, **constants)))
    assert prepared.graph.outputs[0].shape is not None
