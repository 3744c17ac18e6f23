"""How far one output is from the truth, in the figures that people ask for. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Beyond this a number is a mask (float32's lowest, -1e30), not a result: it must not set the scale of errors.
MASK = 1e30

# Fewer than this many numbers in a row, and the best five of them say nothing.
FEWEST_CLASSES = 6


@dataclass(frozen=True, slots=True)
class Figures:
    """One output of one sample against float64.

    max_abs: see `difference`. rms: root mean square of the error, of all entries (integers: as max_abs). beyond: the
    largest |value - truth| - rtol * |truth|, what atol has to allow. cosine: of the two as vectors. top1, top5: share
    of rows (last axis) whose largest entry agrees, and mean overlap of their five largest. first_token: (row, position)
    of the first sequence position with another largest entry.
    The last four are None where they do not apply.
    """

    max_abs: float
    rms: float
    beyond: float
    cosine: float | None = None
    top1: float | None = None
    top5: float | None = None
    first_token: tuple[int, int] | None = None


FAILED = Figures(float("inf"), float("inf"), float("inf"))


def figures(value: Array, true: Array, *, rtol: float = 0.0) -> Figures:
    """The figures of one output. `true`: float64, or integers and booleans as they are."""
    value = np.asarray(value)
    max_abs = difference(value, true)
    if not np.isfinite(max_abs):
        return FAILED
    if true.dtype.kind != "f":
        return Figures(max_abs, max_abs, max_abs)
    value = value.astype(np.float64)
    rms, beyond = rms_error(value, true), _beyond(value, true, rtol) if rtol else max_abs
    if true.ndim < 2 or true.shape[-1] < FEWEST_CLASSES or true.size == 0:
        return Figures(max_abs, rms, beyond, _cosine(value, true))
    agree = value.argmax(-1) == true.argmax(-1)
    return Figures(
        max_abs, rms, beyond, _cosine(value, true), float(agree.mean()), _overlap(value, true), _first_token(agree)
    )


def settled(value: Array, true: Array, undecided: Array | None) -> Array:
    """The output with its undecided entries as they are in `true`."""
    if undecided is None or np.shape(value) != true.shape:
        return np.asarray(value)
    return np.where(undecided, true, value).astype(np.asarray(value).dtype)


def difference(value: Array, true: Array) -> float:
    """Largest absolute error of floats; share of entries that differ of anything else; inf for a wrong shape or NaN.

    Infinities and mask values (beyond `MASK`) have to be where they are in `true`, with their sign.
    """
    value = np.asarray(value)
    if value.shape != true.shape:
        return float("inf")
    if true.dtype.kind != "f":
        return float(np.mean(np.asarray(value != true, dtype=bool))) if true.size else 0.0
    if value.dtype.kind not in "fiub":
        return float("inf")
    value = value.astype(np.float64)
    masked = np.abs(true) >= MASK
    if np.isnan(value).any() or (np.abs(value[masked]) < MASK).any() or (value[masked] * true[masked] < 0).any():
        return float("inf")
    return float(np.max(np.abs(value[~masked] - true[~masked]), initial=0.0))


def rms_error(value: Array, true: Array) -> float:
    """Root mean square of the error of floats, masks left out; of anything else the share of entries that differ."""
    if value.shape != true.shape or true.dtype.kind != "f":
        return difference(value, true)
    kept = np.abs(true) < MASK
    return float(np.sqrt(np.mean(np.square(value[kept].astype(np.float64) - true[kept])))) if kept.any() else 0.0


def _beyond(value: Array, true: Array, rtol: float) -> float:
    kept = np.abs(true) < MASK
    return float(np.max(np.abs(value[kept] - true[kept]) - rtol * np.abs(true[kept]), initial=0.0))


def _cosine(value: Array, true: Array) -> float | None:
    kept = np.abs(true) < MASK
    a, b = value[kept], true[kept]
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0.0 else None


def _overlap(value: Array, true: Array) -> float:
    ours, theirs = (np.argpartition(array, -5, axis=-1)[..., -5:] for array in (value, true))
    return float((ours[..., :, None] == theirs[..., None, :]).sum((-1, -2)).mean() / 5)


def _first_token(agree: Array) -> tuple[int, int] | None:
    """The first position, row by row, at which a (rows, positions, vocabulary) output has another largest entry."""
    if agree.ndim != 2 or agree.all():
        return None
    # The earliest position of all rows, for a decoder goes astray from there on.
    rows = np.where(agree.all(1), agree.shape[1], (~agree).argmax(1))
    row = int(rows.argmin())
    return row, int(rows[row])
