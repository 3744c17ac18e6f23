"""What operators make of constants, against the evaluator: another implementation, held against onnxruntime itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from normfold.graph.constant_operators import OPERATORS, compute
from normfold.graph.evaluator.evaluator import Evaluator
from normfold.graph.types import OLDEST_OPSET
from tests.graph.evaluator import grid
from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.backend import variants
from tests.graph.evaluator.grid import layout, normalisation, pointwise, reductions

# torch and numpy take their powers and roots from different libraries.
RELATIVE = 4 * np.finfo(np.float64).eps
# Forms that are refused, because nobody computes with what they make: text, types of four bits and less, infinities
# that become numbers, a sum of nothing, a training mode.
REFUSED = ("casts", "reduces nothing", "computes statistics")


def cases() -> Iterator[Case]:
    """The grid's rows of these operators, at every opset with another schema."""
    for family in (layout, normalisation, pointwise, reductions):
        for case in grid.numbered(family.__name__, family.cases()):
            nodes = case.model.graph.node
            if len(nodes) == 1 and nodes[0].op_type in OPERATORS and not nodes[0].domain:
                yield case


def constant(case: Case) -> tuple[onnx.ModelProto, int]:
    """The case with all that it is fed as initializers, so that a cast rounds; and its opset."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    del model.graph.input[:]
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in case.feeds.items())
    return model, next(each.version for each in model.opset_import if not each.domain)


def widened(array: Any) -> Any:
    return array.astype(np.float64) if array.dtype.kind == "f" or "float" in array.dtype.name else array


def computed(model: onnx.ModelProto, opset: int) -> tuple[Any, ...]:
    held = {tensor.name: widened(ir.serde.deserialize_tensor(tensor).numpy()) for tensor in model.graph.initializer}
    node = next(iter(ir.from_proto(model).graph))
    return compute(node, opset, [None if value is None else held[str(value.name)] for value in node.inputs])


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_every_operator_comes_to_what_the_evaluator_comes_to(every: int) -> None:
    """every: of the rows of an operator, so many are passed over."""
    seen: set[str] = set()
    refused = checked = 0
    counts = Counter[str]()
    for case in cases():
        for variant in variants(case, convert=False):
            kind = case.model.graph.node[0].op_type
            counts[kind] += 1
            if counts[kind] % every and counts[kind] > 1:
                continue
            model, opset = constant(variant)
            if opset < OLDEST_OPSET:
                continue
            try:
                expected = Evaluator(ir.from_proto(model)).run({})
            # Whatever it cannot take either: nothing to compare with.
            except Exception:
                continue
            try:
                found = computed(model, opset)
            except TypeError as error:
                refused += any(each in str(error) for each in REFUSED)
                continue
            for mine, theirs in zip(found, expected, strict=True):
                if theirs.dtype == object:
                    continue
                label = f"{variant.name} (opset {opset})"
                assert widened(mine).dtype == theirs.dtype and mine.shape == theirs.shape, label
                largest = max(np.abs(theirs[np.isfinite(theirs)]).tolist(), default=0.0)
                np.testing.assert_allclose(mine, theirs, rtol=RELATIVE, atol=RELATIVE * largest, err_msg=label)
                checked += 1
            seen.add(model.graph.node[0].op_type)
    assert seen == set(OPERATORS) and checked > 200 and 0 < refused < checked / 10, (
        set(OPERATORS) - seen,
        checked,
        refused,
    )


def test_an_attribute_that_nobody_knows_is_refused() -> None:
    """Its near-twin without it is not."""
    for attributes in ({}, {"sideways": 1}):
        node = helper.make_node("Neg", ["x"], ["y"], **attributes)
        value = helper.make_tensor_value_info
        graph = helper.make_graph([node], "g", [value("x", 1, [2])], [value("y", 1, [2])])
        made = next(iter(ir.from_proto(helper.make_model(graph)).graph))
        if attributes:
            with pytest.raises(ValueError, match="'sideways' is unknown"):
                compute(made, 20, [np.ones(2)])
        else:
            np.testing.assert_array_equal(compute(made, 20, [np.ones(2)])[0], [-1, -1])


def test_integers_of_four_bits_become_what_they_stand_for() -> None:
    text = "g () => (float[3] y) { y = Cast<to = 1>(x) }"
    node = next(iter(ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')).graph))
    stored = np.array([-8, 0, 7], ml_dtypes.int4)
    (found,) = compute(node, 21, [stored])
    assert found.dtype == np.float64 and found.tolist() == [-8, 0, 7]


def test_integers_are_not_divided_by_zero() -> None:
    node = next(iter(ir.from_proto(onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (int64[2] a, int64[2] b) => (int64[2] c) { c = Div(a, b) }'
    )).graph))  # fmt: skip
    assert compute(node, 20, [np.array([-7, 7]), np.array([2, -2])])[0].tolist() == [-3, -3]
    with pytest.raises(ZeroDivisionError):
        compute(node, 20, [np.array([1, 2]), np.array([1, 0])])
