"""Masks, half precision, and numbers that JSON cannot hold."""

from __future__ import annotations

import math

# Beyond this a number is a mask (float32's lowest, -1e30), not a result: it must not set the scale of errors.
MASK = 1e30
# Half precision, as numpy, torch and ONNX call it.
HALF = "float16"
LARGEST_HALF = 65504.0


def finite(value: float | None) -> float | None:
    """The number, or None where JSON has none for it."""
    return float(value) if value is not None and math.isfinite(value) else None
