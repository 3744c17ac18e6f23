"""The page for someone who decides, on records that were made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import worth
from benchmarks.fill_in import fill_in, filled_in
from benchmarks.worth_share import by_operator
from tests.paths import DOCS


def record(runtime: str, dtype: str, gain: float | None, *, width: float = 0.01) -> dict[str, Any]:
    """A network that folding makes `gain` times as fast as either other variant; None: too few launches to tell."""
    value = 1.0 if gain is None else 1 / gain
    ends = {"low": None, "high": None} if gain is None else {"low": value * (1 - width), "high": value * (1 + width)}
    variants = {
        name: {"summary": {"median": 0.01}, "failure": None, "memory": {"weights": place * 10**6, "load": 5 * 10**6}}
        for place, name in enumerate(worth.VARIANTS, start=1)
    }
    ratios = [{"of": "folded", "to": name, "value": value, **ends} for name in ("layernorm", "unfolded")]
    ratios.append({"of": "unfolded", "to": "layernorm", "value": 9.0, "low": 8.0, "high": 10.0})
    return {
        "title": "a network",
        "runtime": runtime,
        "dtype": dtype,
        "share": None if runtime == "litert" else 0.034,
        "bench": {
            "machine": {"cpu": "A Processor", "threads": 2, "versions": {"onnxruntime": "1.32"}, "load": 3.0},
            "rounds": 20,
            "launches": 10,
            "confidence": 0.99,
            "rows": [{"variants": variants, "ratios": ratios}],
        },
    }


RECORDS = [
    record("ort", "float32", 1.05),
    record("ort", "int8", 1.005, width=0.02),
    record("litert", "int8", 0.9),
    record("litert", "float32", None),
    {
        "title": "a network",
        "runtime": "openvino",
        "dtype": "float16",
        "refused": "--dtype float16: it computes no such",
    },
]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ((1.05, 1.04, 1.06), "faster"),
        ((1.05, 0.99, 1.1), "no measurable difference"),
        ((0.9, 0.8, 0.95), "slower"),
        ((1.05, None, None), "not measured"),
        (None, "not measured"),
    ],
)
def test_the_interval_decides(found: Any, said: str) -> None:
    assert worth.verdict(found) == said


def test_a_row_has_the_ratios_the_other_way_round() -> None:
    rows = list(worth.ratios(RECORDS))[2:]
    assert rows[0] == (
        "| a network | onnxruntime | float32 | 10 ms | 1.05 (1.04 to 1.06) | 1.05 (1.04 to 1.06) | 3.4% |"
    )
    assert rows[2].endswith("| 0.90 (0.89 to 0.91) | 0.90 (0.89 to 0.91) | not measured |")
    assert rows[3].endswith("| 1.00 | 1.00 | not measured |")
    assert rows[4] == "| a network | OpenVINO | float16 | not measured: it computes no such | | | |"


def test_a_cell_that_is_not_there_is_a_row_that_says_so(tmp_path: Path) -> None:
    cell = worth.cells(worth.QUICK)[0]
    (said,) = list(worth.ratios([worth.recorded(cell, tmp_path / "none.json")]))[2:]
    assert said == f"| {cell.model.title} | onnxruntime | float32 | not measured | | | |"


def test_a_variant_that_stopped_says_why() -> None:
    stopped = record("litert", "int8", 1.1)
    row = stopped["bench"]["rows"][0]
    row["ratios"] = []
    row["variants"]["layernorm"] = {"summary": None, "failure": {"code": "rejected", "reason": "no such operator"}}
    (said,) = list(worth.ratios([stopped]))[2:]
    assert "(layernorm: no such operator) | not measured | not measured" in said


def test_what_was_not_measured_is_in_no_verdict() -> None:
    said = "\n".join(worth.verdicts(RECORDS))
    beside_twin, unfolded = said.split("beside its LayerNorm twin**")[1:]
    assert "of 3 rows with an interval:" in beside_twin
    assert "- faster: 1: a network, onnxruntime float32 (1.05)" in beside_twin
    assert "- no measurable difference: 1: a network, onnxruntime int8 (1.00)" in beside_twin
    assert "- slower: 1: a network, LiteRT int8 (0.90)" in beside_twin
    # One row is slower folded.
    assert "Not folding loses" not in said
    faster = "\n".join(worth.verdicts(RECORDS[:2]))
    assert "Not folding loses in 1 of these rows, gains in none, and cannot be told apart in 1." in faster
    assert "Not folding loses" not in "\n".join(worth.verdicts(RECORDS[1:2]))
    # 9 times the time of the twin, in every record.
    assert "- faster: 0\n" in unfolded and "- slower: 4:" in unfolded
    assert "OpenVINO" not in said and "LiteRT float32" not in beside_twin
    assert "Nothing has been measured yet" in "\n".join(worth.machine(RECORDS[-1:]))


def test_memory_is_of_two_runtimes() -> None:
    rows = list(worth.memory(RECORDS))[2:]
    assert rows[0] == "| a network | onnxruntime | float32 | 1 / 2 / 3 | 5 / 5 / 5 | ? / ? / ? |"
    assert len(rows) == 2


def test_the_page_has_a_place_for_every_part(tmp_path: Path) -> None:
    page = tmp_path / "worth.md"
    page.write_text((DOCS / "worth.md").read_text(encoding="utf-8"), encoding="utf-8")
    for part in (worth.machine, worth.verdicts, worth.ratios, worth.memory):
        fill_in(page, part.__name__, part(RECORDS))
        assert filled_in(page, part.__name__).strip()


def test_a_profile_counts_the_kernels_of_an_operator() -> None:
    def event(name: str, op: str, dur: int, cat: str = "Node") -> dict[str, Any]:
        return {"cat": cat, "name": name, "dur": dur, "args": {"op_name": op}}

    events = [
        event("a_kernel_time", "LayerNormalization", 3),
        event("a_fence_before", "LayerNormalization", 100),
        event("b_kernel_time", "LayerNormalization", 4),
        event("c_kernel_time", "MatMul", 13),
        event("model_run", "", 50, "Session"),
    ]
    assert by_operator(events) == {"LayerNormalization": 7, "MatMul": 13}
