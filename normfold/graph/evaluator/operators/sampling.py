"""Images read at places that are computed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import Tensor

# For one axis: pixels and their weights, each (batch, points).
Taps = Sequence[tuple[Tensor, Tensor]]

# Keys' cubic convolution, as torch and onnxruntime have it.
_CUBIC = -0.75


def read_at(image: Tensor, axes: Sequence[Taps]) -> Tensor:
    """Weighted sums of pixels of images (batch, channels, ...), for every combination of the axes' taps:
    (batch, channels, points).
    """
    flat, sizes = image.flatten(2), image.shape[2:]
    found = image.new_zeros((*image.shape[:2], axes[0][0][0].shape[1]))
    for taps in itertools.product(*axes):
        place, weight = torch.zeros_like(taps[0][0]), torch.ones_like(taps[0][1])
        for (pixel, share), size in zip(taps, sizes, strict=True):
            place, weight = place * size + pixel, weight * share
        found.addcmul_(flat.gather(2, place.unsqueeze(1).expand(-1, flat.shape[1], -1)), weight.unsqueeze(1))
    return found


def linear_taps(at: Tensor, size: int) -> Taps:
    """The two neighbours of each place; outside of the axis is zero."""
    low = at.floor()
    return [inside_only(low + shift, 1 - (at - low - shift).abs(), size) for shift in (0, 1)]


def inside_only(pixel: Tensor, weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pixels outside of the axis count nothing."""
    inside = (pixel >= 0) & (pixel < size)
    return torch.where(inside, pixel, 0).long(), torch.where(inside, weight, 0.0)


def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """x (N, C, ...) read at the places of a grid (N, ..., axes): coordinates from -1 to 1, innermost axis first."""
    mode = call.text("mode", "linear").removeprefix("bi")
    padding, aligned = call.text("padding_mode", "zeros"), bool(call.integer("align_corners", 0))
    if mode not in ("nearest", "linear", "cubic") or padding not in ("zeros", "border", "reflection"):
        raise call.refuse(f"mode {mode!r} with padding {padding!r}")
    call.reserve(*x.shape[:2], *grid.shape[1:-1])
    places = grid.flatten(1, -2).flip(-1)
    axes = [
        _grid_taps(places[..., axis], size, mode, padding, aligned=aligned) for axis, size in enumerate(x.shape[2:])
    ]
    return read_at(x, axes).reshape(*x.shape[:2], *grid.shape[1:-1])


def _grid_taps(at: Tensor, size: int, mode: str, padding: str, *, aligned: bool) -> Taps:
    """What is read of one axis. The nearest pixel is found in float32, as onnxruntime finds it."""
    if mode == "nearest":
        at = _on_axis(at.float(), size, aligned=aligned).round().double()
    else:
        at = _on_axis(at, size, aligned=aligned)
    least, most = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
    beyond = (at < least) | (at > most)
    if padding == "border" and mode != "cubic":
        at = at.clamp(0, size - 1)
    elif padding == "reflection":
        at = torch.where(beyond, _reflected(at, least, most), at)
    low = at.floor()
    found = []
    for shift in {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}[mode]:
        pixel = low + shift
        weight = _weight((at - pixel).abs(), mode)
        if padding == "border":
            pixel = pixel.clamp(0, size - 1)
        elif padding == "reflection":
            pixel = _reflected(pixel, least, most).trunc()
        found.append(inside_only(pixel, weight, size))
    return found


def _on_axis(at: Tensor, size: int, *, aligned: bool) -> Tensor:
    return (at + 1) / 2 * (size - 1) if aligned else ((at + 1) * size - 1) / 2


def _weight(distance: Tensor, mode: str) -> Tensor:
    if mode == "nearest":
        return torch.ones_like(distance)
    if mode == "linear":
        return 1 - distance
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * _CUBIC
    return torch.where(distance < 1, near, far)


def _reflected(at: Tensor, least: float, most: float) -> Tensor:
    """Folded at both ends until it lies between them."""
    span = most - least
    if span == 0:
        return torch.full_like(at, least)
    within = (at - least).remainder(2 * span)
    return least + torch.where(within > span, 2 * span - within, within)


def affine_grid(call: Call, theta: Tensor, size: Tensor) -> Tensor:
    """Affine maps of the places of an output, -1 to 1 on every axis, as a grid for GridSample.

    With aligned corners the only place of an axis is its last, 1, as in onnxruntime (torch has it in the middle).
    """
    batch, _, *sizes = size.tolist()
    call.reserve(batch, *sizes, len(sizes))
    aligned = bool(call.integer("align_corners", 0))
    axes = []
    for count in sizes:
        if aligned:
            axes.append(torch.linspace(-1, 1, count, dtype=torch.float64) if count != 1 else torch.ones(1).double())
        else:
            axes.append((2 * torch.arange(count, dtype=torch.float64) + 1) / count - 1)
    # The last axis is x, the one before it y.
    places = torch.stack([*reversed(torch.meshgrid(*axes, indexing="ij")), torch.ones(sizes).double()], dim=-1)
    return torch.einsum("...k,njk->n...j", places, theta)


ROWS: Rows = {
    "AffineGrid": {(20,): affine_grid},
    "GridSample": {(16, 20, 22): grid_sample},
}
