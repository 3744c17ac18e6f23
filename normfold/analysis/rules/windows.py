"""What a convolution makes of a constant tensor: the map of biases that takes a shift where zeros are padded.

`out[o, p] = sum over i, k of kernel[o, i, k] * padded[i, p * stride + k * dilation]`. Near the border some taps read
padding, which a shift does not reach: there the sum lacks them, so every position has a value of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.graph.affine import Array
from normfold.graph.types import Op, Value
from normfold.graph.view import Graph

# An Add of one value for each channel reads and writes its tensor; one of a map reads that as well, which
# serves every example of a batch and so mostly comes from a cache.
MAP_COST = 1.25


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel moves over the axes behind the channels: one number for each of them."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    def over(self, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the output."""
        around = zip(sizes, kernel, self.strides, self.dilations, self.begins, self.ends, strict=True)
        return tuple((size + b + e - (taps - 1) * d - 1) // s + 1 for size, taps, s, d, b, e in around)


def window(op: Op, kernel: tuple[int, ...], sizes: tuple[int, ...] | None) -> Window | None:
    """The window of a Conv. sizes: of its input, None where they are not known: nor is automatic padding then."""
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    strides, dilations = op.integers("strides") or ones, op.integers("dilations") or ones
    automatic = op.text("auto_pad", "NOTSET")
    if automatic in ("NOTSET", ""):
        pads = op.integers("pads") or (*zeros, *zeros)
        return Window(strides, dilations, pads[: len(kernel)], pads[len(kernel) :])
    if automatic == "VALID":
        return Window(strides, dilations, zeros, zeros)
    if sizes is None:
        return None
    around = zip(sizes, kernel, strides, dilations, strict=True)
    total = [max((-(-size // s) - 1) * s + (taps - 1) * d + 1 - size, 0) for size, taps, s, d in around]
    less, more = tuple(pad // 2 for pad in total), tuple(pad - pad // 2 for pad in total)
    return Window(strides, dilations, *((less, more) if automatic == "SAME_UPPER" else (more, less)))


def convolve(array: Array, kernel: Array, groups: int, moved: Window) -> Array:
    """The convolution of `array`, (C, *sizes), with `kernel`, (O, C / groups, *taps): (O, *output sizes), float64."""
    taps, outputs = kernel.shape[2:], kernel.shape[0]
    sizes = moved.over(array.shape[1:], taps)
    padded = np.pad(array, [(0, 0), *zip(moved.begins, moved.ends, strict=True)])
    result = np.zeros((groups, outputs // groups, int(np.prod(sizes))))
    for tap in np.ndindex(*taps):
        starts = [k * d for k, d in zip(tap, moved.dilations, strict=True)]
        reads = [slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(starts, sizes, moved.strides, strict=True)]
        read = padded[(slice(None), *reads)].reshape(groups, -1, result.shape[-1])
        result += kernel[(slice(None), slice(None), *tap)].reshape(groups, outputs // groups, -1) @ read
    return result.reshape(outputs, *sizes)


def spatial(graph: Graph, value: Value) -> tuple[int, ...] | None:
    """The sizes of the axes behind the channels, where all are known."""
    dims = graph.dims(value)
    if dims is None or len(dims) < 3 or not all(dim.static for dim in dims[2:]):
        return None
    return tuple(dim.size for dim in dims[2:])


def kernel_of(graph: Graph, op: Op) -> tuple[int, ...]:
    """The taps of a convolution's kernel along each axis behind the channels."""
    weight = op.inputs[1]
    return tuple(dim.size for dim in ((graph.dims(weight) if weight is not None else None) or ())[2:])


def map_elements(graph: Graph, value: Value) -> int:
    """What an Add of a map behind `value` costs, in elements of an Add of one value for each channel."""
    return int(MAP_COST * graph.size(value))
