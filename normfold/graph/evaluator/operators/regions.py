"""Regions of images: pooling inside of boxes.

Where a coordinate decides which pixels are read, it is computed in float32 as onnxruntime does it.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import Tensor


def max_roi_pool(call: Call, x: Tensor, rois: Tensor) -> Tensor:
    """The largest in each cell of a grid over each box. rois: (image, x1, y1, x2, y2), inclusive and rounded."""
    scale = np.float32(call.number("spatial_scale", 1.0))
    height, width = call.integers("pooled_shape") or []
    call.reserve(rois.shape[0], x.shape[1], height, width)
    y = x.new_zeros((rois.shape[0], x.shape[1], height, width))
    for number, roi in enumerate(rois.numpy().astype(np.float32)):
        image = x[int(roi[0])]
        # Halves go away from zero.
        left, top, right, bottom = (
            np.trunc(roi[1:] * scale + np.copysign(np.float32(0.5), roi[1:])).astype(int).tolist()
        )
        rows = _cells(top, bottom, height, x.shape[2])
        columns = _cells(left, right, width, x.shape[3])
        for (down, row), (across, column) in itertools.product(enumerate(rows), enumerate(columns)):
            cell = image[:, row, column]
            if cell.numel():
                y[number, :, down, across] = cell.amax(dim=(1, 2))
    return y


def _cells(first: int, last: int, count: int, size: int) -> list[slice]:
    """What each of `count` cells between two pixels covers of an axis."""
    width = np.float32(max(last - first + 1, 1)) / np.float32(count)
    found = []
    for cell in range(count):
        start = int(np.floor(np.float32(cell) * width)) + first
        stop = int(np.ceil(np.float32(cell + 1) * width)) + first
        found.append(slice(min(max(start, 0), size), min(max(stop, 0), size)))
    return found


# For each cell of an axis and each of its points: a pixel and its share, for the two neighbours.
_Neighbours = list[tuple[Tensor, Tensor]]


def roi_align(call: Call, x: Tensor, rois: Tensor, images: Tensor) -> Tensor:
    """The mean, or the largest, of points inside each cell of a grid over each box, interpolated linearly.

    The largest is that of the weighted neighbours, not of their sums: onnxruntime and the standard's own tests have it
    so.
    """
    mode = call.text("mode", "avg")
    height, width = call.integer("output_height", 1), call.integer("output_width", 1)
    points, scale = call.integer("sampling_ratio", 0), call.number("spatial_scale", 1.0)
    half_pixel = call.version >= 16 and call.text("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    if mode not in ("avg", "max"):
        raise call.refuse(f"mode {mode!r}")
    call.reserve(rois.shape[0], x.shape[1], height, width)
    y = x.new_zeros((rois.shape[0], x.shape[1], height, width))
    for number, (roi, image) in enumerate(zip(rois.tolist(), images.tolist(), strict=True)):
        down = _neighbours(roi[1], roi[3], scale, half_pixel, height, points, x.shape[2])
        across = _neighbours(roi[0], roi[2], scale, half_pixel, width, points, x.shape[3])
        if not down[0][0].numel() or not across[0][0].numel():
            continue
        if mode == "avg":
            y[number] = _mean_matrix(down, x.shape[2]) @ x[image] @ _mean_matrix(across, x.shape[3]).T
        else:
            y[number] = _largest(x[image], down, across)
    return y


def _mean_matrix(neighbours: _Neighbours, size: int) -> Tensor:
    """(cells, size): what every pixel of an axis counts for in the mean of a cell."""
    cells, points = neighbours[0][0].shape
    found = torch.zeros((cells, size), dtype=torch.float64)
    for place, share in neighbours:
        found.scatter_add_(1, place, share / points)
    return found


def _largest(image: Tensor, down: _Neighbours, across: _Neighbours) -> Tensor:
    found = []
    for (row, high), (column, wide) in itertools.product(down, across):
        read = image[:, row[:, :, None, None], column[None, None]]
        found.append((read * (high[:, :, None, None] * wide)).amax(dim=(2, 4)))
    return torch.stack(found).amax(dim=0)


def _neighbours(
    start: float, stop: float, scale: float, half_pixel: bool, cells: int, points: int, size: int
) -> _Neighbours:
    """Linear interpolation at the points of every cell. A pixel beyond the border there is nothing any more."""
    first, last = (end * scale - (0.5 if half_pixel else 0.0) for end in (start, stop))
    length = last - first if half_pixel else max(last - first, 1.0)
    if points <= 0:
        narrow = np.float32(stop) * np.float32(scale) - np.float32(start) * np.float32(scale)
        points = max(int(np.ceil((narrow if half_pixel else max(narrow, np.float32(1))) / np.float32(cells))), 0)
    step = length / cells
    within = (torch.arange(points, dtype=torch.float64) + 0.5) * step / max(points, 1)
    at = first + torch.arange(cells, dtype=torch.float64)[:, None] * step + within
    inside = ((at >= -1) & (at <= size)).double()
    held = at.clamp(0, size - 1)
    low = held.floor()
    high = (low + 1).clamp(max=size - 1)
    return [(low.long(), (1 - (held - low)) * inside), (high.long(), (held - low) * inside)]


ROWS: Rows = {
    "MaxRoiPool": {(1, 22): max_roi_pool},
    "RoiAlign": {(10, 16, 22): roi_align},
}
