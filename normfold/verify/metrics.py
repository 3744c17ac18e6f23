"""How far one output is from the truth, in the figures that people ask for. numpy only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from normfold.system.numbers import MASK

Array = npt.NDArray[Any]


# Entries that are looked at at once.
BLOCK = 1 << 18

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


def blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Pieces of arrays of one shape, flattened: what is computed of them needs little memory beside theirs."""
    flat = [np.asarray(array).reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield tuple(array[start : start + BLOCK] for array in flat)


def figures(value: Array, true: Array, *, rtol: float = 0.0, errors_alone: bool = False) -> Figures:
    """The figures of one output. `true`: float64, or integers and booleans as they are.

    errors_alone: without those that decide nothing.
    """
    value = np.asarray(value)
    max_abs = difference(value, true)
    if not np.isfinite(max_abs):
        return FAILED
    if true.dtype.kind != "f":
        return Figures(max_abs, max_abs, max_abs)
    rms, beyond = rms_error(value, true), _beyond(value, true, rtol) if rtol else max_abs
    if errors_alone:
        return Figures(max_abs, rms, beyond)
    if true.ndim < 2 or true.shape[-1] < FEWEST_CLASSES or true.size == 0:
        return Figures(max_abs, rms, beyond, _cosine(value, true))
    agree, top5 = _classes(value, true)
    return Figures(max_abs, rms, beyond, _cosine(value, true), float(agree.mean()), top5, _first_token(agree))


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
    worst = 0.0
    for ours, theirs in blocks(value, true):
        ours = ours.astype(np.float64)
        masked = np.abs(theirs) >= MASK
        if np.isnan(ours).any() or (np.abs(ours[masked]) < MASK).any() or (ours[masked] * theirs[masked] < 0).any():
            return float("inf")
        worst = max(worst, float(np.max(np.abs(ours[~masked] - theirs[~masked]), initial=0.0)))
    return worst


def rms_error(value: Array, true: Array) -> float:
    """Root mean square of the error of floats, masks left out; of anything else the share of entries that differ."""
    if value.shape != true.shape or true.dtype.kind != "f":
        return difference(value, true)
    total, count = 0.0, 0
    for ours, theirs in _kept(value, true):
        total, count = total + float(np.square(ours - theirs).sum()), count + theirs.size
    return float(np.sqrt(total / count)) if count else 0.0


def _kept(value: Array, true: Array) -> Iterator[tuple[Array, Array]]:
    """Blocks of both in float64, without masks."""
    for ours, theirs in blocks(value, true):
        kept = np.abs(theirs) < MASK
        yield ours[kept].astype(np.float64), theirs[kept]


def _beyond(value: Array, true: Array, rtol: float) -> float:
    each = (np.abs(ours - theirs) - rtol * np.abs(theirs) for ours, theirs in _kept(value, true))
    return max((float(np.max(block, initial=0.0)) for block in each), default=0.0)


def _cosine(value: Array, true: Array) -> float | None:
    products = np.zeros(3)
    for a, b in _kept(value, true):
        products += (a @ b, a @ a, b @ b)
    norms = float(np.sqrt(products[1]) * np.sqrt(products[2]))
    return float(products[0]) / norms if norms > 0.0 else None


def _classes(value: Array, true: Array) -> tuple[Array, float]:
    """For every row whether its largest entry agrees; of all rows the mean overlap of their five largest."""
    width = true.shape[-1]
    rows = max(BLOCK // width, 1)
    ours, theirs = value.reshape(-1, width), true.reshape(-1, width)
    agree, overlap = np.zeros(len(theirs), dtype=bool), 0
    for start in range(0, len(theirs), rows):
        part = slice(start, start + rows)
        agree[part] = ours[part].argmax(-1) == theirs[part].argmax(-1)
        best = [np.argpartition(array[part], -5, axis=-1)[:, -5:] for array in (ours, theirs)]
        overlap += int((best[0][:, :, None] == best[1][:, None, :]).sum())
    return agree.reshape(true.shape[:-1]), overlap / (5 * len(theirs))


def _first_token(agree: Array) -> tuple[int, int] | None:
    """The first position, row by row, at which a (rows, positions, vocabulary) output has another largest entry."""
    if agree.ndim != 2 or agree.all():
        return None
    # The earliest position of all rows, for a decoder goes astray from there on.
    rows = np.where(agree.all(1), agree.shape[1], (~agree).argmax(1))
    row = int(rows.argmin())
    return row, int(rows[row])
