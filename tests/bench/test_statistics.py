from __future__ import annotations

import numpy as np
import pytest

from normfold.bench.statistics import FEWEST_LAUNCHES, Ratio, Summary, interval

# A run of 1,000 intervals at 99 % misses 10 times on average, and 23 times once in 2,000 runs.
INTERVALS = 1_000
MISSES = 23


def launches(values: list[float]) -> list[list[list[float]]]:
    """One round of one call in each launch."""
    return [[[value]] for value in values]


def test_a_summary_is_of_all_calls() -> None:
    found = Summary.of([[[1.0, 2.0], [3.0]], [[4.0, 5.0]]])
    assert (found.median, found.calls) == (3.0, 5)
    assert found.spread == pytest.approx(2.0 / 3.0)
    assert found.p90 <= found.p99 <= 5.0


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(INTERVALS):
        low, high = interval(rng.normal(0.0, 0.01, 10))
        missed += not low <= 0.0 <= high
    assert missed <= MISSES


def test_equal_values_have_no_width() -> None:
    assert interval(np.full(8, 0.25)) == (0.25, 0.25)


def test_a_ratio_is_paired_within_each_launch() -> None:
    # The machine gets ten times slower half-way; side by side, nothing has changed.
    base = [1.0, 1.1, 0.9, 1.0, 10.0, 11.0, 9.0, 10.0]
    ratio = Ratio.between(launches([0.5 * value for value in base]), launches(base))
    assert ratio is not None
    assert ratio.value == pytest.approx(0.5)
    assert ratio.verdict == "faster"


def test_noise_is_no_difference() -> None:
    rng = np.random.default_rng(1)
    first, second = (launches(list(rng.lognormal(0.0, 0.05, 10))) for _ in range(2))
    ratio = Ratio.between(first, second)
    assert ratio is not None
    assert ratio.verdict == "no measurable difference"


def test_too_few_launches_have_a_ratio_and_no_verdict() -> None:
    ratio = Ratio.between(launches([2.0] * (FEWEST_LAUNCHES - 1)), launches([1.0] * 10))
    assert ratio == Ratio(2.0, None, None)
    assert ratio is not None and ratio.verdict == "unknown"


def test_nothing_in_common_has_no_ratio() -> None:
    assert Ratio.between([], launches([1.0])) is None
    assert Ratio.between([[]], launches([1.0])) is None
