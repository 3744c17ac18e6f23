"""Figures of one output, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from normfold.inputs.cases import draw_cases
from normfold.inputs.spec import parse_specs
from normfold.verify import metrics as module
from normfold.verify.fingerprint import project
from normfold.verify.judge import RUNTIME_EDGE, Judged, judge
from normfold.verify.metrics import FAILED, Figures, difference, figures, rms_error


def test_an_output_without_classes_has_error_and_cosine_alone() -> None:
    found = figures(np.array([3.0, 4.0], np.float32), np.array([3.0, 3.0]))
    assert (found.max_abs, found.beyond, found.top1, found.top5, found.first_token) == (1.0, 1.0, None, None, None)
    assert found.cosine == pytest.approx(21 / (5 * np.sqrt(18)))


def test_a_relative_tolerance_leaves_what_an_absolute_one_has_to_allow() -> None:
    true = np.array([10.0, 0.0])
    assert figures(true + 1.0, true, rtol=0.05).beyond == 1.0
    assert figures(true + np.array([1.0, 0.0]), true, rtol=0.05).beyond == pytest.approx(0.5)
    assert figures(true + np.array([1.0, 0.0]), true, rtol=0.2).beyond == 0.0


def test_classes_that_change_places() -> None:
    true = np.tile(np.arange(10.0), (4, 1))
    value = true.copy()
    value[1, [8, 9]] = value[1, [9, 8]]  # the first two change places: top-5 stays
    value[2, [0, 9]] = value[2, [9, 0]]  # the first goes: four of five stay
    found = figures(value, true)
    assert (found.top1, found.top5) == (0.5, pytest.approx((1 + 1 + 0.8 + 1) / 4))


def test_the_first_differing_token_is_the_earliest_position_of_all_rows() -> None:
    true = np.random.default_rng(0).standard_normal((3, 7, 50))
    assert figures(true, true).first_token is None
    value = true.copy()
    value[0, 5] *= -1
    value[2, 3] *= -1
    value[2, 6] *= -1
    assert figures(value, true).first_token == (2, 3)
    assert figures(value, true).top1 == pytest.approx(18 / 21)


def test_what_cannot_be_compared_fails() -> None:
    true = np.ones((2, 8))
    for value in (np.ones((2, 7)), np.full((2, 8), np.nan), np.full((2, 8), np.inf)):
        assert figures(value, true) == FAILED or figures(value, true).max_abs == np.inf


def test_integers_count_entries() -> None:
    assert figures(np.array([1, 2, 3, 5]), np.array([1, 2, 3, 4])).max_abs == 0.25


def test_masks_are_no_part_of_the_figures() -> None:
    lowest = float(np.finfo(np.float32).min)
    true = np.array([[1.0, 2.0, lowest, 4.0, 5.0, 6.0]])
    found = figures(true.astype(np.float32), true, rtol=1e-3)
    assert found.max_abs == found.beyond == 0.0
    assert found.cosine == pytest.approx(1.0)


def test_empty_outputs_agree() -> None:
    empty = np.zeros((2, 0, 8))
    assert figures(empty, empty).max_abs == 0.0


def test_in_blocks_or_whole_the_figures_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    true = rng.standard_normal((5, 7, 11))
    true[0, 0, :2], true[3, 1, 4] = -np.inf, 1e35
    value = (true * (1 + 1e-3 * rng.standard_normal(true.shape))).astype(np.float32)
    value[4, 6, [3, 5]] = value[4, 6, [5, 3]]
    whole = figures(value, true, rtol=1e-4), project(true)
    monkeypatch.setattr(module, "BLOCK", 8)
    found = figures(value, true, rtol=1e-4), project(true)
    for name in ("max_abs", "rms", "beyond", "cosine", "top1", "top5", "first_token"):
        assert getattr(found[0], name) == pytest.approx(getattr(whole[0], name), rel=1e-12)
    np.testing.assert_allclose(found[1], whole[1], rtol=1e-12)
    kept = np.abs(true) < 1e30
    assert difference(value, true) == np.abs(value[kept] - true[kept]).max()
    assert rms_error(value, true) == pytest.approx(np.sqrt(np.mean(np.square(value[kept] - true[kept]))))


def test_a_level_that_ran_on_the_first_samples_alone_is_blamed_at_one_of_them() -> None:
    cases = draw_cases(parse_specs(["x:float32[N,8]"]))
    samples = (Figures(1e-3, 1e-4, 1e-3), Figures(1e-3, 1e-2, 1e-3))
    output = Judged("y", samples, scale=1.0, ulp=1e-7, bound=1e-2, allowed=(1e-3, 1e-3))
    edge = judge(RUNTIME_EDGE, cases, [output], "against itself", {})
    assert len(cases) > len(samples) and not edge.passed
    assert f"at {cases[1]} its root mean square error is 1.0e-02" in edge.detail
