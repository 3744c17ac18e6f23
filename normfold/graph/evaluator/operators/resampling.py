"""Resizing, one axis after the other: every place of the output is a weighted sum of places of the input.

onnxruntime computes coordinates in float32. Where one decides which pixel is read, so does this; the weights of an
interpolation, which change little, are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import Array, Tensor


@dataclass(frozen=True, slots=True)
class _Form:
    """How a node resizes: its attributes."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis to be resized. scale: as a float32, and as exactly as it is known. region: of tf_crop_and_resize."""

    number: int
    size: int
    count: int
    narrow: np.float32
    scale: float
    region: tuple[float, float]


# onnxruntime takes coordinates as near as this to the middle between two pixels for the middle.
_HALF = 1e-6

_FORM_10 = _Form("nearest", "asymmetric", "simple", -0.75, False, False, 0.0)


def upsample_7(call: Call, x: Tensor) -> Tensor:
    """Scales in an attribute; coordinates are divided by them."""
    return _by_scales(call, x, call.numbers("scales") or [])


def upsample_9(call: Call, x: Tensor, scales: Tensor) -> Tensor:
    """As above with the scales in an input; also what Resize does in opset 10."""
    return _by_scales(call, x, scales.tolist())


def _by_scales(call: Call, x: Tensor, scales: Sequence[float]) -> Tensor:
    mode = call.text("mode", "nearest")
    form = _Form(mode, *(getattr(_FORM_10, name) for name in _Form.__slots__[1:]))
    return _resized(call, x, [_scaled_axis(x, axis, scale, (0.0, 1.0)) for axis, scale in enumerate(scales)], form)


def resize(
    call: Call, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """Every mode, to scales or to sizes. As in onnxruntime the region of interest does not change the output's size."""
    form = _Form(
        call.text("mode", "nearest"),
        call.text("coordinate_transformation_mode", "half_pixel"),
        call.text("nearest_mode", "round_prefer_floor"),
        call.number("cubic_coeff_a", -0.75),
        bool(call.integer("exclude_outside", 0)),
        bool(call.integer("antialias", 0)),
        call.number("extrapolation_value", 0.0),
    )
    axes = [axis % x.dim() for axis in call.integers("axes") or range(x.dim())]
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    regions = [(0.0, 1.0)] * len(axes)
    if form.coordinates == "tf_crop_and_resize":
        assert roi is not None
        regions = list(zip(roi[: len(axes)].tolist(), roi[len(axes) :].tolist(), strict=True))
    if sizes is None or sizes.numel() == 0:
        assert scales is not None
        pairs = zip(axes, scales.tolist(), regions, strict=True)
        return _resized(call, x, [_scaled_axis(x, axis, scale, region) for axis, scale, region in pairs], form)
    wanted = sizes.tolist()
    found = [_sized_axis(x, *given) for given in zip(axes, wanted, regions, strict=True)]
    if policy != "stretch":
        found = _with_one_scale(call, x, found, policy)
    return _resized(call, x, found, form)


def _scaled_axis(x: Tensor, axis: int, scale: float, region: tuple[float, float]) -> _Axis:
    narrow, size = np.float32(scale), x.shape[axis]
    return _Axis(axis, size, int(narrow * np.float32(size)), narrow, scale, region)


def _sized_axis(x: Tensor, axis: int, count: int, region: tuple[float, float]) -> _Axis:
    size = x.shape[axis]
    if size == 0:
        return _Axis(axis, 0, count, np.float32(1), 1.0, region)
    return _Axis(axis, size, count, np.float32(count) / np.float32(size), count / size, region)


def _with_one_scale(call: Call, x: Tensor, axes: Sequence[_Axis], policy: str) -> list[_Axis]:
    """The same scale for all axes: the smallest or the largest. Halves are rounded up."""
    if policy not in ("not_larger", "not_smaller"):
        raise call.refuse(f"keep_aspect_ratio_policy {policy!r}")
    chosen = (min if policy == "not_larger" else max)(axes, key=lambda axis: axis.scale)
    return [
        _Axis(
            axis.number,
            axis.size,
            int(np.floor(float(chosen.narrow * np.float32(axis.size)) + 0.5)),
            chosen.narrow,
            chosen.scale,
            axis.region,
        )
        for axis in axes
    ]


def _resized(call: Call, x: Tensor, axes: Sequence[_Axis], form: _Form) -> Tensor:
    """Apply one axis after the other, those that shrink first. An axis whose scale is 1 stays as it is.

    Where no size changes onnxruntime copies X, whatever the scales and the region are; and with antialias it leaves the
    axes alone whose size does not change. The specification knows neither.
    """
    if form.mode not in ("nearest", "linear", "cubic"):
        raise call.refuse(f"mode {form.mode!r}")
    moved = [axis for axis in axes if axis.narrow != 1 or axis.count != axis.size]
    if form.antialias or all(axis.count == axis.size for axis in moved):
        moved = [axis for axis in moved if axis.count != axis.size]
    shape = list(x.shape)
    for axis in moved:
        shape[axis.number] = axis.count
    call.reserve(*shape)
    if not x.is_floating_point() and form.mode != "nearest":
        raise call.refuse("interpolation of integers")
    y = x
    for axis in sorted(moved, key=lambda axis: axis.scale):
        if form.mode == "nearest":
            y = y.index_select(axis.number, torch.from_numpy(_nearest(call, axis, form)))
        else:
            y = _interpolated(y, axis.number, *_taps(call, axis, form))
    if form.coordinates == "tf_crop_and_resize":
        y = y.clone()
        for axis in moved:
            at = _coordinates(call, axis, form.coordinates, narrow=True)
            outside = np.flatnonzero((at < 0) | (at > axis.size - 1))
            y.index_fill_(axis.number, torch.from_numpy(outside), form.extrapolation)
    return y


def _coordinates(call: Call, axis: _Axis, kind: str, *, narrow: bool = False) -> Array:
    """Where the output's places lie on the input's axis. narrow: in float32, as onnxruntime computes them."""
    real: Any = np.float32 if narrow else np.float64
    scale, size, count = real(axis.narrow if narrow else axis.scale), real(axis.size), real(axis.count)
    start, stop = (real(end) for end in axis.region)
    half = real(0.5)
    at: Array = np.arange(axis.count).astype(real)
    match kind:
        case "half_pixel":
            at = (at + half) / scale - half
        case "half_pixel_symmetric":
            # Its halves are double in onnxruntime.
            shift = float(size / 2 * (1 - count / (scale * size)))
            at = (shift + (at.astype(np.float64) + 0.5) / float(scale) - 0.5).astype(real)
        case "pytorch_half_pixel":
            at = (at + half) / scale - half if axis.count > 1 else 0 * at
        case "align_corners":
            at = at * (size - 1) / (count - 1) if axis.count > 1 else 0 * at
        case "asymmetric":
            at = at / scale
        case "tf_half_pixel_for_nn":
            at = (at + half) / scale
        case "tf_crop_and_resize" if axis.count > 1:
            at = start * (size - 1) + at * (stop - start) * (size - 1) / (count - 1)
        case "tf_crop_and_resize":
            at = 0 * at + half * (start + stop) * (size - 1)
        case _:
            raise call.refuse(f"coordinate_transformation_mode {kind!r}")
    return at


def _nearest(call: Call, axis: _Axis, form: _Form) -> Array:
    """The pixel that every place of the output reads."""
    at = _coordinates(call, axis, form.coordinates, narrow=True).astype(np.float64)
    half = np.abs(at - np.floor(at) - 0.5) < _HALF
    match form.nearest:
        case "simple":
            found = np.ceil(at) if axis.narrow < 1 else np.trunc(at)
        case "round_prefer_floor":
            found = np.where(half, np.floor(at), np.rint(at))
        case "round_prefer_ceil":
            found = np.where(half, np.ceil(at), np.rint(at))
        case "floor":
            found = np.floor(at)
        case "ceil":
            found = np.ceil(at)
        case _:
            raise call.refuse(f"nearest_mode {form.nearest!r}")
    return np.clip(found, 0, axis.size - 1).astype(np.int64)


def _taps(call: Call, axis: _Axis, form: _Form) -> tuple[Array, Array]:
    """For every place of the output the places that it reads, and their weights: (count, taps) both."""
    at = _coordinates(call, axis, form.coordinates)
    stretch = max(1 / axis.scale, 1.0) if form.antialias else 1.0
    reach = (1 if form.mode == "linear" else 2) * stretch
    if form.mode == "linear" and not form.antialias:
        at = np.clip(at, 0, axis.size - 1)
    first = np.floor(at - reach).astype(np.int64) + 1
    places = first[:, None] + np.arange(int(np.ceil(2 * reach)))
    weights = _kernel((places - at[:, None]) / stretch, form)
    if form.exclude_outside:
        weights = np.where((places >= 0) & (places < axis.size), weights, 0)
    if form.exclude_outside or form.antialias:
        sums = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(sums == 0, 1, sums)
    return np.clip(places, 0, axis.size - 1), weights


def _kernel(distance: Array, form: _Form) -> Array:
    """The weight of a pixel at this distance: a triangle, or Keys' cubic convolution."""
    x: Array = np.abs(distance)
    if form.mode == "linear":
        return np.asarray(np.maximum(1 - x, 0))
    near = ((form.cubic + 2) * x - (form.cubic + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * form.cubic
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _interpolated(x: Tensor, axis: int, places: Array, weights: Array) -> Tensor:
    """The weighted sums along one axis."""
    y = x.new_zeros([*x.shape[:axis], len(places), *x.shape[axis + 1 :]])
    for tap in range(places.shape[1]):
        factor = torch.from_numpy(weights[:, tap]).reshape(-1, *[1] * (x.dim() - axis - 1))
        y.addcmul_(x.index_select(axis, torch.from_numpy(places[:, tap])), factor)
    return y


ROWS: Rows = {
    "Resize": {(10,): upsample_9, (11, 13, 18, 19): resize},
    "Upsample": {(7,): upsample_7, (9,): upsample_9},
}
