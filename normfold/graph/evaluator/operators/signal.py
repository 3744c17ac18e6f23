"""Fourier transforms and what goes with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Function, Rows
from normfold.graph.evaluator.values import DTYPES, Tensor


def dft_17(call: Call, x: Tensor, length: Tensor | None = None) -> Tensor:
    """The transform along the axis of an attribute."""
    return _dft(call, x, length, call.integer("axis", 1))


def dft(call: Call, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    """The transform along the axis of an input, the last of the signal by default."""
    return _dft(call, x, length, -2 if axis is None else int(axis.reshape(-1)[0]))


def _dft(call: Call, x: Tensor, length: Tensor | None, axis: int) -> Tensor:
    """x: (..., 1) real, or (..., 2) complex. onesided: of a real signal the first half, and back from that half."""
    axis = axis % x.dim()
    inverse, onesided = call.integer("inverse", 0), call.integer("onesided", 0)
    size = None if length is None else int(length.reshape(-1)[0])
    if size is not None:
        call.reserve(*x.shape[:axis], size, *x.shape[axis + 1 :])
    if onesided and not inverse:
        if x.shape[-1] != 1:
            raise call.refuse("one side of a complex signal")
        return torch.view_as_real(torch.fft.rfft(x[..., 0], n=size, dim=axis))
    numbers = _complex(x)
    if onesided:
        if size is not None and size // 2 + 1 != x.shape[axis]:
            raise call.refuse("half a spectrum that does not fit dft_length, of which onnxruntime reads something else")
        back: Tensor = torch.fft.irfft(numbers, n=size, dim=axis)
        return back.unsqueeze(-1)
    transform = torch.fft.ifft if inverse else torch.fft.fft
    return torch.view_as_real(transform(numbers, n=size, dim=axis))


def _complex(x: Tensor) -> Tensor:
    if x.shape[-1] == 1:
        return torch.complex(x[..., 0], torch.zeros_like(x[..., 0]))
    return torch.view_as_complex(x.contiguous())


def stft(
    call: Call, signal: Tensor, step: Tensor, window: Tensor | None = None, frame_length: Tensor | None = None
) -> Tensor:
    """The transform of every frame of a signal (batch, length, 1 or 2), times a window."""
    onesided = bool(call.integer("onesided", 1))
    signal = signal.unsqueeze(-1) if signal.dim() == 2 else signal
    if window is not None:
        size = window.shape[0]
    elif frame_length is not None:
        size = int(frame_length.reshape(-1)[0])
    else:
        size = signal.shape[1]
    every = int(step.reshape(-1)[0])
    frames = (signal.shape[1] - size) // every + 1
    call.reserve(signal.shape[0], frames, size, 2)
    real = signal.shape[-1] == 1
    cut = (signal[..., 0] if real else _complex(signal)).unfold(1, size, every)
    if window is not None:
        cut = cut * window
    if onesided and not real:
        raise call.refuse("one side of a complex signal")
    return torch.view_as_real(torch.fft.rfft(cut) if onesided else torch.fft.fft(cut))


def window(factors: Sequence[float]) -> Function:
    """A window that is a sum of cosines; the periodic one leaves its last number, a repetition, away.

    Its factors are float32's, in the standard's functions and in onnxruntime.
    """
    narrow = [float(np.float32(factor)) for factor in factors]

    def function(call: Call, size: Tensor) -> Tensor:
        count = int(size.reshape(-1)[0])
        call.reserve(count)
        span = count if call.integer("periodic", 1) else count - 1
        if count == 1 and span == 0:
            raise call.refuse("a symmetric window of one number, which is 0 / 0")
        angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / span)
        found = torch.full((count,), narrow[0], dtype=torch.float64)
        for number, factor in enumerate(narrow[1:], start=1):
            found += factor * torch.cos(number * angle)
        return found.to(_output_dtype(call))

    return function


def _output_dtype(call: Call) -> torch.dtype:
    number = call.integer("output_datatype", 1)
    dtype = next(dtype for kind, dtype in DTYPES.items() if int(kind) == number)
    if not dtype.is_floating_point:
        raise call.refuse("fractions cut down to integers")
    return dtype


def mel_weights(call: Call, bins: Tensor, length: Tensor, rate: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """Triangles over the bins of a spectrum, evenly spaced on the mel scale: (length // 2 + 1, bins)."""
    count, size = int(bins.reshape(-1)[0]), int(length.reshape(-1)[0])
    low, high = (2595 * math.log10(1 + float(edge.reshape(-1)[0]) / 700) for edge in (lowest, highest))
    call.reserve(size // 2 + 1, count)
    steps = low + (high - low) / (count + 2) * torch.arange(count + 2, dtype=torch.float64)
    hertz = 700 * (torch.pow(10, steps / 2595) - 1)
    edges = ((size + 1) * hertz / int(rate.reshape(-1)[0])).floor().long().tolist()
    found = torch.zeros((size // 2 + 1, count), dtype=torch.float64)
    for number, (first, top, last) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        if top == first:
            found[top, number] = 1
        for place in range(first, top + 1) if top > first else ():
            found[place, number] = (place - first) / (top - first)
        for place in range(top, last):
            found[place, number] = (last - place) / (last - top)
    return found.to(_output_dtype(call))


ROWS: Rows = {
    # 0.42 as onnxruntime comes to it.
    "BlackmanWindow": {(17,): window([float(np.float32(0.5) - np.float32(0.08)), -0.5, 0.08])},
    "DFT": {(17,): dft_17, (20,): dft},
    "HammingWindow": {(17,): window([25 / 46, -21 / 46])},
    "HannWindow": {(17,): window([0.5, -0.5])},
    "MelWeightMatrix": {(17,): mel_weights},
    "STFT": {(17,): stft},
}
