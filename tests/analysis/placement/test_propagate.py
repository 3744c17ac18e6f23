"""One flood: it decides nothing by itself, and stops where it must."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfold.analysis.placement.float16_range import LARGEST_SCALE
from normfold.analysis.placement.propagate import Outcome, ShiftCosts, State, flood
from normfold.analysis.recognition.affine_maps import collapse
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import TABLE
from normfold.graph.constants import SIZES
from normfold.graph.operators import operators
from normfold.graph.prepare import prepare
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph
from tests.support.graphs import build, draw

TEXT = """g (double[B,3,4] x) => (double y, double z) {
    h = MatMul(x, v)
    m = Mul(h, a)
    n = Add(m, b)
    t = Transpose<perm = [0, 2, 1]>(n)
    k = Conv(t, w, c)
    y = Tanh(k)
    s = Shape(n)
    z = Cast<to = 11>(s)
}"""


def state(text: str = TEXT) -> tuple[State, Op, dict[str, Value]]:
    shapes = {"v": (4, 4), "a": (4,), "b": (4,), "w": (5, 4, 1), "c": (5,)}
    model = prepare(ir.from_proto(build(text, **shapes)))
    graph = collapse(Graph(model, operators(model)))
    values = {value.name or "": value for op in graph.ops for value in (*op.outputs, *op.inputs) if value is not None}
    norm = next(op for op in graph.ops if op.affine is not None and op.affine.is_norm)
    return State(graph), norm, values


def test_a_flood_follows_layouts_until_it_is_absorbed() -> None:
    found, norm, values = state()
    a = draw("a", 4).reshape(1, 1, 4)
    outcome = flood(found, "scale", {values["h"]: np.ones((1, 1, 1)), values["n"]: a}, folding=norm)
    assert isinstance(outcome, Outcome)
    assert {value.name for value in outcome.decided} == {"h", "n", "t"}
    np.testing.assert_array_equal(outcome.decided[values["t"]], a.reshape(1, 4, 1))
    assert {op.output.name for op in outcome.reached} == {"n", "t", "k"}


def test_an_outcome_is_taken_in_one_call() -> None:
    """Its frames, its map, and what it makes of a weight that two operators read."""
    text = TEXT.replace("y = Tanh(k)", "p = Conv(j, w, c)\n    q = Add(k, p)\n    y = Tanh(q)").replace(
        "h = MatMul(x, v)", "h = MatMul(x, v)\n    i = Tanh(h)\n    j = Transpose<perm = [0, 2, 1]>(i)"
    )
    found, norm, values = state(text)
    a = draw("a", 4).reshape(1, 1, 4)
    outcome = flood(found, "scale", {values["h"]: np.ones((1, 1, 1)), values["n"]: a}, folding=norm)
    assert isinstance(outcome, Outcome)
    assert not found.moved and not found.untied and not found.is_folded(norm, "scale"), "a flood changes nothing"
    np.testing.assert_array_equal(found.with_outcome("scale", outcome)(values["n"]).scale, a)
    found.commit("scale", norm, outcome)
    assert {value.name for value in found.moved} == {"n", "t"}
    assert found.is_folded(norm, "scale") and not found.is_folded(norm, "shift")
    assert [(weight.name, weight.bytes) for weight in found.untied] == [("w", 5 * 4 * 8)]
    # The same again costs nothing more.
    assert found.allowed("scale", outcome) is outcome


def test_a_graph_is_read_only() -> None:
    found, norm, values = state()
    assert found.graph.readers(values["n"]) and isinstance(found.graph.readers(values["n"]), tuple)
    with pytest.raises(TypeError):
        found.graph.producer[values["n"]] = norm  # type: ignore[index]
    with pytest.raises(TypeError):
        found.graph.consumers[values["n"]] = ()  # type: ignore[index]


def test_a_flood_decides_nothing_by_itself() -> None:
    found, norm, values = state()
    flood(found, "scale", {values["n"]: np.full((1, 1, 1), 2.0)}, folding=norm)
    assert found.frame(values["n"]).is_identity and not found.is_fixed(norm, "scale")
    outcome = flood(found, "scale", {values["n"]: norm.affine.frame.scale if norm.affine else np.ones(1)}, folding=norm)
    assert isinstance(outcome, Outcome)
    found.commit("scale", norm, outcome)
    assert found.is_fixed(norm, "scale") and not found.is_fixed(norm, "shift")
    assert not found.frame(values["t"]).is_identity


def test_a_frame_that_changes_nothing_goes_nowhere() -> None:
    found, norm, values = state()
    outcome = flood(found, "scale", {values["k"]: np.ones((1, 1, 1))}, folding=norm)
    assert isinstance(outcome, Outcome) and not outcome.reached


@pytest.mark.parametrize(("name", "code"), [("k", "wall"), ("x", "graph-input"), ("y", "graph-output")])
def test_where_a_flood_stops(name: str, code: str) -> None:
    found, norm, values = state()
    refused = flood(found, "scale", {values[name]: np.full((1, 1, 1), 2.0)}, folding=norm)
    assert isinstance(refused, Refuse) and refused.code == code
    assert refused.reason


def test_two_starts_that_contradict_each_other_conflict() -> None:
    found, norm, values = state()
    start = {values["n"]: np.full((1, 1, 1), 2.0), values["t"]: np.full((1, 1, 1), 3.0)}
    refused = flood(found, "scale", start, folding=norm)
    assert isinstance(refused, Refuse) and refused.code == "frame-conflict" and "t" in refused.reason


def test_a_scale_beyond_the_range_of_the_type_refuses() -> None:
    found, norm, values = state()
    largest = LARGEST_SCALE[ir.DataType.DOUBLE]
    for size in (largest * 2, 0.5 / largest):
        refused = flood(found, "scale", {values["n"]: np.full((1, 1, 1), size)}, folding=norm)
        assert isinstance(refused, Refuse) and refused.code == "scale-range"
    assert isinstance(flood(found, "scale", {values["n"]: np.full((1, 1, 1), largest / 4)}, folding=norm), Outcome)
    zero = flood(found, "scale", {values["n"]: np.array([[[1.0, 0.0, 1.0, 1.0]]])}, folding=norm)
    assert isinstance(zero, Refuse) and zero.code != "scale-range", "0 is no size"


def test_shifts_cost_what_operators_without_a_bias_would_add() -> None:
    found, _norm, values = state()
    costs = ShiftCosts(found)
    writer = found.graph.producer[values["h"]]
    shift = draw("t", 1, 1, 4)
    assert costs.added_elements({values["h"]: shift}, (writer,)) == 12
    reader = found.graph.producer[values["k"]]
    assert costs.added_elements({values["t"]: shift.reshape(1, 4, 1)}, (reader,)) == 0
    assert costs.writer_cost(values["h"]) == 12 and costs.writer_cost(values["k"]) == 0
    assert costs.absorbs_shift(values["t"]) and not costs.absorbs_shift(values["y"])


def test_every_row_of_the_table_names_attributes_that_exist() -> None:
    """An operator with an attribute that its rule does not know is a wall: a misspelt one would be, always."""
    assert len(TABLE) > 25 and not SIZES & set(TABLE)
    written: dict[str, set[str]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            written.setdefault(schema.name, set()).update(schema.attributes)
    for name, rule in TABLE.items():
        if name != "Affine":
            # One rule for Concat and Split, one list for both poolings.
            joined = {"Concat": {"num_outputs", "split"}, "AveragePool": {"storage_order"}}
            assert rule.attributes <= written[name] | joined.get(name, set()), name
