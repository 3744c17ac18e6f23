"""Figures of repeated timings, and whether two variants differ at all. numpy only.

The unit of evidence is the launch: a fresh process has a memory layout of its own, whose effect no number of
repetitions inside it averages out. So a ratio is formed within every launch, from rounds that ran side by side, and the
interval is taken over the launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Several ratios stand in one table: at 95 % one of twenty would call equal things different.
CONFIDENCE = 0.99
# Five values can agree in sign by chance too often for this confidence.
FEWEST_LAUNCHES = 6
_RESAMPLES = 10_000

# Launches of rounds of calls, in seconds.
Samples = Sequence[Sequence[Sequence[float]]]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Summary:
    """Seconds over all calls. spread: the distance between the quartiles, relative to the median."""

    median: float
    p90: float
    p99: float
    spread: float
    calls: int

    @classmethod
    def of(cls, samples: Samples) -> Summary:
        """The figures of samples that hold at least one call."""
        calls = np.array([seconds for launch in samples for turn in launch for seconds in turn])
        lower, median, upper, p90, p99 = (float(q) for q in np.percentile(calls, (25, 50, 75, 90, 99)))
        return cls(median, p90, p99, (upper - lower) / median if median else 0.0, calls.size)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of one variant relative to another's; below 1 it is faster. low, high: None with too few launches."""

    value: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """faster, slower, no measurable difference, or unknown."""
        if self.low is None or self.high is None:
            return "unknown"
        return "faster" if self.high < 1.0 else "slower" if self.low > 1.0 else "no measurable difference"

    @classmethod
    def between(cls, first: Samples, second: Samples) -> Ratio | None:
        """first / second over the launches and rounds that both have; None where there are none."""
        logs = [
            float(np.median([np.log(np.median(a) / np.median(b)) for a, b in zip(ours, theirs, strict=False)]))
            for ours, theirs in zip(first, second, strict=False)
            if ours and theirs
        ]
        if not logs:
            return None
        value = float(np.exp(np.mean(logs)))
        if len(logs) < FEWEST_LAUNCHES:
            return cls(value, None, None)
        low, high = (float(np.exp(end)) for end in interval(np.array(logs)))
        return cls(value, low, high)


def interval(values: Array, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Bootstrap-t interval of the mean of a few independent values.

    The plain percentile interval of ten values is a third too narrow; studentised, it is not.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5.
    """
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))
    if error == 0.0:
        return mean, mean
    drawn = values[np.random.default_rng(0).integers(0, values.size, (_RESAMPLES, values.size))]
    errors = drawn.std(axis=1, ddof=1) / np.sqrt(values.size)
    kept = errors > 0.0  # a draw of one value over and over says nothing of its own error
    t = (drawn.mean(axis=1)[kept] - mean) / errors[kept]
    low, high = np.quantile(t, ((1 - confidence) / 2, (1 + confidence) / 2))
    return mean - float(high) * error, mean - float(low) * error
