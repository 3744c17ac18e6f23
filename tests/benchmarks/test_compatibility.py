"""docs/compatibility.md is whole, and a row of it comes out as it should."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from benchmarks.compatibility import PART, SUBJECTS, norms_in, other_maps, row
from benchmarks.compatibility_page import COLUMNS, Row, Tried, page, shortcomings
from benchmarks.fill_in import filled_in
from normfold.graph.prepare import prepare
from tests.paths import DOCS
from tests.support.graphs import build

PAGE = DOCS / "compatibility.md"


def tables() -> list[list[list[str]]]:
    """The rows of both tables of the committed page, as cells."""
    text = filled_in(PAGE, PART)
    parts = text.split("\n## ")[1:]
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| ")]
        for part in parts
    ]


def test_the_page_has_every_model() -> None:
    ours, _ = tables()
    assert {cells[0] for cells in ours if not cells[0].startswith("*")} == {"model", *SUBJECTS}


def test_no_right_result_of_another_tool_folds_more() -> None:
    _, theirs = tables()
    assert theirs[0] == ["model", "norms", "normfold", *COLUMNS]
    checked = 0
    for _, norms, own, *others in theirs[1:-1]:
        for cell in others:
            if cell.isdecimal():
                checked += 1
                assert int(cell) <= int(own) <= int(norms)
    assert checked > len(SUBJECTS)


def test_a_row() -> None:
    found = row("convnet_bn", tools=["onnxruntime all", "onnxscript"])
    assert (found.norms, found.folded, found.partial, found.kept) == (4, 4, {}, {})
    assert found.left == 0 and found.error <= found.bound
    # onnxruntime's layout optimiser writes three of them as Conv; they are counted all the same.
    assert {name: (tried.left, tried.right) for name, tried in found.tools.items()} == {
        "onnxruntime all": (3, True),
        "onnxscript": (3, True),
    }
    assert not shortcomings([found])
    lines = page([found])
    assert any(line.startswith("| convnet_bn | 4 | 4 | 0 | 0 |") for line in lines)
    assert "| convnet_bn | 4 | 4 | not measured | not measured | not measured | not measured | 1 | 1 |" in lines


FACTOR = """g (double[B,4] x) => (double y) <double alpha = {0.5}> {
    n = Mul(x, a)
    h = MatMul(n, w)
    k = Mul(h, alpha)
    y = Tanh(k)
}"""


def test_a_factor_that_took_up_a_scale_is_no_norm() -> None:
    model = prepare(ir.from_proto(build(FACTOR, a=(4,), w=(4, 4))))
    changed = prepare(ir.from_proto(build(FACTOR.replace("h, alpha", "h, c"), a=(4,), w=(4, 4), c=(4,))))
    others = other_maps(model)
    assert norms_in(model) == norms_in(changed, besides=others) == 1
    assert norms_in(changed) == 2


@pytest.mark.parametrize(("right", "left", "expected"), [(True, 0, 1), (True, 1, 0), (False, 0, 0)])
def test_a_right_result_that_folds_more_is_a_shortcoming(right: bool, left: int, expected: int) -> None:
    tried = Tried(left=left, nodes=1, error=0.0, right=right)
    own = Row("m", "g", 2, 1, {}, {"wall": 1}, 0, 1, (2, 1), 0.0, 1.0, {"onnxsim": tried})
    assert len(shortcomings([own])) == expected
