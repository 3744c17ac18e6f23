"""The inputs that a verification draws."""

from __future__ import annotations

import numpy as np

from normfold.inputs.cases import draw_cases
from normfold.inputs.spec import parse_specs
from tests.verify.test_judge import SPECS


def test_cases_cover_sizes_seeds_and_scales() -> None:
    cases = draw_cases(SPECS)
    assert {case.sizes["B"] for case in cases} == {1, 2, 3, 4, 7, 513}
    assert {case.scale for case in cases} == {0.5, 1.0, 2.0}
    assert len({case.seed for case in cases}) == len(cases)
    again = draw_cases(SPECS)
    assert all(np.array_equal(a.feeds["x"], b.feeds["x"]) for a, b in zip(cases, again, strict=True))
    assert str(cases[0]) == "B=3 (seed 0, inputs x1)"


def test_tokens_are_dealt_so_that_every_row_of_a_table_is_read() -> None:
    specs = parse_specs(["ids:int32[B,L]<103"])
    cases = draw_cases(specs, count=32)
    dealt = np.concatenate([case.feeds["ids"].ravel() for case in cases])
    assert dealt.dtype == np.int32
    assert dealt.size >= 103
    assert set(dealt[:103].tolist()) == set(range(103))
