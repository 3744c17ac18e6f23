"""The evaluator and onnxruntime come to the same: a sample of the cases in the default run, all in the slow one."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import cache, partial
from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from normfold.graph.evaluator.evaluator import Evaluator
from normfold.graph.evaluator.operators import TABLE
from tests.graph.evaluator import backend, grid, random_rows, table
from tests.graph.evaluator.agreement import Case, Outcome, judge
from tests.graph.evaluator.apart import judged
from tests.graph.evaluator.compare import bounds, compare
from tests.graph.evaluator.departures import DEPARTURES
from tests.graph.evaluator.grid.rows import F, const, row
from tests.graph.evaluator.single import run_session
from tests.graph.evaluator.variants import accepted, opsets, retyped
from tests.paths import DOCS

PAGE = DOCS / "truth.md"
# One row of the grid in so many, at one of its opsets: seconds.
SAMPLE = 4


def chosen(case: Case) -> bool:
    """Whether a case is of the sample: always the same ones."""
    return zlib.crc32(case.name.encode()) % SAMPLE == 0


def check(judgements: Iterable[Outcome]) -> Counter[str]:
    counts: Counter[str] = Counter()
    wrong = []
    for outcome in judgements:
        counts[outcome.verdict] += 1
        # An attribute that nobody read, of a node that ONNX's checker accepts, is one that its function forgot.
        if outcome.verdict in ("disagrees", "departs") or "is unknown" in outcome.why:
            wrong.append(f"{outcome.name}: {outcome.verdict}: {outcome.why}")
    assert not wrong, "\n".join(wrong[:50])
    return counts


def test_a_sample_of_the_grid_agrees() -> None:
    counts = check(judge(case) for case in grid.cases() if chosen(case))
    assert counts["agrees"] > 1000


@cache
def outcomes(source: ModuleType) -> tuple[Outcome, ...]:
    return tuple(judged(source.cases, source.variants))


@pytest.mark.slow
@pytest.mark.parametrize("source", [backend, grid], ids=["backend", "grid"])
def test_all_cases_agree(source: ModuleType) -> None:
    assert check(outcomes(source))["agrees"] > 10_000


@pytest.mark.slow
def test_random_rows_agree() -> None:
    counts = check(judged(partial(random_rows.cases, 2500), grid.variants))
    assert counts["agrees"] > 4 * counts["not run"] / 3


@pytest.mark.slow
def test_every_row_of_the_grid_is_run_by_onnxruntime_or_covered() -> None:
    """A row that nobody runs tests nothing: few are meant (forms that onnxruntime refuses)."""
    verdicts: dict[str, set[str]] = {}
    for outcome in outcomes(grid):
        verdicts.setdefault(re.sub(r", (opset \d+|float64|float16)", "", outcome.name), set()).add(outcome.verdict)
    dead = [name for name, found in verdicts.items() if found == {"not run"}]
    assert len(dead) < 0.05 * len(verdicts), dead


def test_rows_name_schemas_that_exist() -> None:
    """A row for an opset that brought no schema would never be looked up."""
    microsoft = {schema.name for schema in runtime.get_all_operator_schema() if schema.domain == "com.microsoft"}
    assert len(TABLE) > 400
    for domain, name, version in TABLE:
        if (domain, name) in table.schemas():
            assert version in table.schemas()[domain, name], (domain, name, version)
        else:
            assert version == 1 and name in microsoft, (domain, name, version)


def test_what_onnxruntime_runs_is_covered_or_left_out_with_a_reason() -> None:
    there = table.run_by_onnxruntime()
    assert len(there) > 600
    missing = {operator for operator in there if operator not in TABLE and operator[:2] not in table.LEFT_OUT}
    assert not missing, sorted(missing)
    known = {operator[:2] for operator in there}
    for domain, name in table.LEFT_OUT:
        assert (domain, name) in known, f"{name} is left out, and onnxruntime does not run it"
        assert any(op[:2] == (domain, name) and op not in TABLE for op in there), f"{name} is left out and covered"


def test_the_page_lists_every_operator_and_says_that_none_disagrees() -> None:
    text = PAGE.read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE))
    assert {name for _, name, _ in TABLE} <= listed
    assert {name for _, name in table.LEFT_OUT} <= set(re.findall(r"\w+", text))
    header = next(line for line in text.splitlines() if line.startswith("| cases |")).split("|")
    total = next(line for line in text.splitlines() if line.startswith("| all |")).split("|")
    found = {name.strip(): value.strip() for name, value in zip(header, total, strict=True)}
    assert found["disagrees"] == found["departs"] == "0"


def test_known_departures_are_still_there() -> None:
    """An entry that no case needs is to be removed."""
    rows = [case for case in grid.cases() if any(re.search(entry.pattern, case.name) for entry in DEPARTURES)]
    for entry in DEPARTURES:
        named = (case for case in rows if re.search(entry.pattern, case.name))
        cases = (case for case in chain.from_iterable(map(grid.variants, named)) if entry.matches(case.name))
        assert any(judge(case).verdict == "known" for case in cases), entry.operator


def test_weights_in_a_file_of_their_own_agree(tmp_path: Path) -> None:
    case = row("Gemm", F(3, 40), const(F(50, 40)), const(F(50)), transB=1)
    file = tmp_path / "model.onnx"
    onnx.save(case.model, file, save_as_external_data=True, location="weights", size_threshold=0)
    assert (tmp_path / "weights").stat().st_size > 8000
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    truth = Evaluator(ir.load(file)).run(case.feeds)
    assert compare(truth, session.run(None, dict(case.feeds)), bounds()) == ""


class TestTheCheckItself:
    """It has to be able to fail."""

    @staticmethod
    def outputs(case: Case) -> tuple[list[np.ndarray], list[np.ndarray]]:
        found = run_session(case.model, case.feeds)
        return [np.asarray(value, np.float64) for value in found], found

    def test_a_wrong_number_disagrees(self) -> None:
        truth, found = self.outputs(row("Softmax", F(3, 4), axis=0))
        within = bounds()
        assert compare(truth, found, within) == ""
        truth[0][1, 2] *= 1 + 1e-3
        assert "1 of 12 differ" in compare(truth, found, within)

    @pytest.mark.parametrize(
        ("truth", "found"),
        [
            (np.zeros((2, 1)), np.zeros((2,), np.float32)),
            (np.array([np.nan]), np.zeros(1, np.float32)),
            (np.array([np.inf]), np.array([-np.inf], np.float32)),
            (np.array([1e30]), np.array([np.inf], np.float32)),
            (np.array([1]), np.array([1], np.int32)),
            (np.array([1]), np.array([2], np.int64)),
            (np.array(["a"], object), np.array(["b"], object)),
            ([np.zeros(1)], [np.zeros(1, np.float32)] * 2),
            ({"a": 1.0}, {"b": 1.0}),
            (None, np.zeros(1, np.float32)),
            (np.array([1.0 + 1e-9]), np.array([1.0])),
        ],
    )
    def test_what_differs_is_found(self, truth: object, found: object) -> None:
        assert compare([truth], [found], bounds())

    def test_what_float16_cannot_hold_is_infinite_there(self) -> None:
        assert compare([np.array([7e4])], [np.array([np.inf], np.float16)], bounds()) == ""

    def test_opsets_are_those_that_accept_the_node(self) -> None:
        names = [case.name.rpartition(", ")[2] for case in opsets(row("ReduceSum", F(2, 3), axes=[1]))]
        assert names[1:] == ["opset 7"] or "opset 7" in names
        node = helper.make_node("ReduceSum", ["x"], ["y"], axes=[1])
        graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", 1, [2])], [])
        assert not accepted(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))
        assert accepted(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)]))

    def test_a_case_in_float64_has_no_float32_left(self) -> None:
        case = retyped(row("Conv", F(1, 2, 5), F(3, 2, 3)), onnx.TensorProto.DOUBLE)
        assert case is not None
        assert {array.dtype for array in case.feeds.values()} == {np.dtype(np.float64)}
        assert {value.type.tensor_type.elem_type for value in case.model.graph.input} == {onnx.TensorProto.DOUBLE}
