"""Figures of one output, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from normfold.figures import FAILED, figures


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
