"""Numbers that stand for something else: masks, and those that JSON has no word for."""

from __future__ import annotations

import math

# Beyond this a number is a mask (float32's lowest, -1e30), not a result: it must not set the scale of errors.
MASK = 1e30


def finite(value: float | None) -> float | None:
    """The number, or None where JSON has none for it."""
    return float(value) if value is not None and math.isfinite(value) else None
