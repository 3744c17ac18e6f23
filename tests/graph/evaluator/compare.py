"""Outputs beside outputs: what differs, where, and by how much."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# The relative bound for each floating type.
Bounds = Mapping[str, float]
Array = npt.NDArray[Any]

# Bounds are so many units in the last place of the tensor's own type, beside its largest number: an operator sums tens
# to hundreds of products, each rounded, and exp, tanh and erf of onnxruntime are polynomials good to a few units.
UNITS = {
    "float16": 16.0,  # computed in float32 and rounded once or twice
    "bfloat16": 8.0,
    "float32": 256.0,
    "float64": 1e6,  # 2e-10: some constants of onnxruntime's double kernels are short of the last digits
}
# A network of many operators rounds at each of them: the bound grows with the depth, to this many times at most.
MOST_DEPTH = 16.0
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
# Numbers below these lose their digits.
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float32": 3.4028e38, "float64": 1.797e308}


def bounds(depth: int = 1, *, through: Collection[str] = ()) -> Bounds:
    """The bounds for a model of `depth` operators. through: types that its numbers go through on their way."""
    more = min(max(1.0, depth), MOST_DEPTH)
    found = {name: units * EPSILON[name] * more for name, units in UNITS.items()}
    least = max((found[name] for name in through if name in found), default=0.0)
    return {name: max(bound, least) for name, bound in found.items()}


def compare(truth: Sequence[Any], found: Sequence[Any], within: Bounds) -> str:
    """What is wrong with these outputs, in a few words; empty where nothing is."""
    if len(truth) != len(found):
        return f"{len(truth)} outputs, onnxruntime {len(found)}"
    problems = (_different(t, f, within) for t, f in zip(truth, found, strict=True))
    return next((f"output {number}: {problem}" for number, problem in enumerate(problems) if problem), "")


def _different(truth: Any, found: Any, within: Bounds) -> str:
    if found is None or truth is None:
        return "" if truth is found else f"{_kind(truth)}, onnxruntime {_kind(found)}"
    if isinstance(found, list) or isinstance(truth, list):
        if not (isinstance(found, list) and isinstance(truth, list)) or len(found) != len(truth):
            return f"{_kind(truth)}, onnxruntime {_kind(found)}"
        return next((p for t, f in zip(truth, found, strict=True) if (p := _different(t, f, within))), "")
    if isinstance(found, dict) or isinstance(truth, dict):
        if not (isinstance(found, dict) and isinstance(truth, dict)) or found.keys() != truth.keys():
            return f"{_kind(truth)}, onnxruntime {_kind(found)}"
        pairs = ((np.asarray(truth[key]), np.asarray(found[key], np.float32)) for key in found)
        return next((p for t, f in pairs if (p := _different(t, f, within))), "")
    return _different_arrays(np.asarray(truth), np.asarray(found), within)


def _different_arrays(truth: Array, found: Array, within: Bounds) -> str:
    if truth.shape != found.shape:
        return f"shape {list(truth.shape)}, onnxruntime {list(found.shape)}"
    name = found.dtype.name
    if name not in EPSILON:
        if truth.dtype != found.dtype and not (truth.dtype.kind == found.dtype.kind == "O"):
            return f"{truth.dtype}, onnxruntime {found.dtype}"
        wrong = truth != found
    else:
        if truth.dtype != np.float64:
            return f"{truth.dtype}, onnxruntime {found.dtype}"
        found = found.astype(np.float64)
        wrong = ~_close(truth, found, name, within)
    if not wrong.any():
        return ""
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    many = f"{int(wrong.sum())} of {wrong.size}"
    return f"{many} differ ({name}), first at {list(place)}: {truth[place]!s}, onnxruntime {found[place]!s}"


def _close(truth: Array, found: Array, name: str, within: Bounds) -> Array:
    """Where a run in a floating type is the truth: within its rounding, with the same NaN and infinities."""
    finite = np.isfinite(truth) & np.isfinite(found)
    largest = float(np.abs(truth[finite]).max(initial=0.0))
    bound = max(within[name] * largest, SMALLEST[name])
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(truth - found) <= bound
        same = (truth == found) | (np.isnan(truth) & np.isnan(found))
        # What the type cannot hold is an infinity there, or its largest number.
        beyond = (np.abs(found) >= LARGEST[name]) & (np.abs(truth) >= 0.999 * LARGEST[name])
    agree: Array = np.where(finite, near, same) | (beyond & (np.sign(truth) == np.sign(found)))
    return agree


def compare_recorded(truth: Sequence[Any], recorded: Sequence[Any], *, rtol: float, atol: float) -> str:
    """What is wrong with these outputs beside those that the ONNX project recorded, within its tolerances."""
    problems = (_unlike(t, r, rtol, atol) for t, r in zip(truth, recorded, strict=False))
    return next((f"output {number}: {problem}" for number, problem in enumerate(problems) if problem), "")


def _unlike(truth: Any, recorded: Any, rtol: float, atol: float) -> str:
    if recorded is None or truth is None:
        return "" if truth is recorded else f"{_kind(truth)}, recorded {_kind(recorded)}"
    if isinstance(recorded, list):
        if not isinstance(truth, list) or len(truth) != len(recorded):
            return f"{_kind(truth)}, recorded {_kind(recorded)}"
        return next((p for t, r in zip(truth, recorded, strict=True) if (p := _unlike(t, r, rtol, atol))), "")
    truth, recorded = np.asarray(truth), np.asarray(recorded)
    if truth.shape != recorded.shape:
        return f"shape {list(truth.shape)}, recorded {list(recorded.shape)}"
    if truth.dtype.kind in "OSU":
        same = truth == recorded.astype(object)
    elif truth.dtype.kind == "f":
        units = EPSILON.get(recorded.dtype.name, 0.25)  # 0.25: types of eight bits and less
        wide = recorded.astype(np.float64)
        same = np.isclose(truth, wide, rtol=max(rtol, 2 * units), atol=max(atol, units), equal_nan=True)
    else:
        same = truth.astype(np.int64) == recorded.astype(np.int64)
    if same.all():
        return ""
    place = tuple(np.argwhere(~same)[0])
    many = f"{int((~same).sum())} of {same.size}"
    return f"{many} differ, first at {list(map(int, place))}: {truth[place]!s}, recorded {recorded[place]!s}"


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a map of {len(value)}"
    return "nothing" if value is None else "a tensor"
