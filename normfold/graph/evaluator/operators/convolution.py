"""Convolutions, and what is made of them.

torch's double kernels write out every window of the whole batch before they multiply. Here a convolution is cut into
pieces small enough that these columns never weigh more than a fixed amount.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch.nn import functional as F

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.matrix import shifted, to_int32
from normfold.graph.evaluator.operators.windows import Windows, padded, taps_of, windows
from normfold.graph.evaluator.values import Tensor

_DIRECT = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

# Elements of the columns of one piece (32 MB), and of a block that stays in a processor's cache: torch gives it to one
# thread, and does not wait for others.
_COLUMNS = 1 << 22
_CACHED = 1 << 15


def conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Cross-correlation with strides, gaps, groups and padding."""
    return add_bias(convolved(call, x, w), b)


def convolved(call: Call, x: Tensor, w: Tensor) -> Tensor:
    """The convolution that a node's attributes describe, of these doubles."""
    groups = call.integer("group", 1)
    layout = windows(call, x.shape[2:], w.shape[2:])
    counts = layout.counts(x.shape[2:])
    if x.shape[1] != w.shape[1] * groups:
        raise ValueError(f"{x.shape[1]} channels, and {groups} groups of weights for {w.shape[1]}")
    call.reserve(x.shape[0], w.shape[0], *counts)
    columns = 0 if math.prod(w.shape[2:]) == 1 else x.shape[0] * math.prod(w.shape[1:]) * math.prod(counts)
    if 3 <= x.dim() <= 5 and x.numel() and columns <= _COLUMNS and not (w.shape[1] == 1 and groups > 1):
        return _DIRECT[x.dim() - 2](
            padded(x, layout.begins, layout.ends),
            w,
            stride=layout.strides,
            dilation=layout.dilations,
            groups=groups,
        )
    y = x.new_zeros((x.shape[0], w.shape[0], *counts))
    if y.numel():
        _convolve(padded(x, layout.begins, layout.ends), w, y, layout, groups)
    return y


def add_bias(y: Tensor, b: Tensor | None) -> Tensor:
    """Add one number for every channel, in place."""
    return y if b is None else y.add_(b.reshape(-1, *[1] * (y.dim() - 2)))


def _convolve(x: Tensor, w: Tensor, y: Tensor, layout: Windows, groups: int) -> None:
    """Add the convolution of the padded x to y, piece by piece."""
    if y.dim() > 5:
        _convolve_by_first_axis(x, w, y, layout, groups)
        return
    if w.shape[1] == 1 and groups > 1:
        _convolve_each_channel(x, w, y, layout)
        return
    row = w.shape[1] * math.prod(w.shape[2:]) * math.prod(y.shape[3:])
    rows = max(min(_COLUMNS // max(row, 1), y.shape[2]), 1)
    samples = max(_COLUMNS // max(row * y.shape[2], 1), 1)
    stride, extent = layout.strides[0], layout.extents[0]
    for first in range(0, x.shape[0], samples):
        for start in range(0, y.shape[2], rows):
            stop = min(start + rows, y.shape[2])
            needed = slice(start * stride, (stop - 1) * stride + extent)
            y[first : first + samples, :, start:stop] += _DIRECT[y.dim() - 2](
                x[first : first + samples, :, needed],
                w,
                stride=layout.strides,
                dilation=layout.dilations,
                groups=groups,
            )


def _convolve_by_first_axis(x: Tensor, w: Tensor, y: Tensor, layout: Windows, groups: int) -> None:
    """More than three axes: one position of the output's first axis and one tap of the kernel's at a time."""
    inner = Windows(
        *(part[1:] for part in (layout.kernel, layout.strides, layout.dilations, layout.begins, layout.ends))
    )
    for position, tap in itertools.product(range(y.shape[2]), range(w.shape[2])):
        read = position * layout.strides[0] + tap * layout.dilations[0]
        _convolve(x[:, :, read], w[:, :, tap], y[:, :, position], inner, groups)


def _convolve_each_channel(x: Tensor, w: Tensor, y: Tensor, layout: Windows) -> None:
    """Each channel on its own: a sum over the taps of the kernel, in blocks of channels that fit the cache."""
    multiple, counts = w.shape[0] // x.shape[1], y.shape[2:]
    factors = w.reshape(x.shape[1], multiple, -1, *[1] * len(counts))
    block = max(_CACHED // (multiple * math.prod(counts)), 1)
    taps = taps_of(layout, counts)
    for sample, first in itertools.product(range(x.shape[0]), range(0, x.shape[1], block)):
        read = x[sample, first : first + block].unsqueeze(1)
        written = y[sample].view(-1, multiple, *counts)[first : first + block]
        for number, tap in enumerate(taps):
            written.addcmul_(read[(slice(None), slice(None), *tap)], factors[first : first + block, :, number])


def conv_transpose(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """The transpose of a convolution. output_shape, or SAME, says how much of it is cut off."""
    groups = call.integer("group", 1)
    begins, ends, layout = _cut(call, x.shape[2:], w.shape[2:])
    channels = w.shape[1] * groups
    whole = [(n - 1) * s + extent for n, s, extent in zip(x.shape[2:], layout.strides, layout.extents, strict=True)]
    call.reserve(x.shape[0], channels, *whole)
    if x.dim() - 2 not in _TRANSPOSED:
        raise call.refuse(f"{x.dim() - 2} spatial axes")
    y = _TRANSPOSED[x.dim() - 2](x, w, stride=layout.strides, dilation=layout.dilations, groups=groups)
    return add_bias(padded(y, [-cut for cut in begins], [-cut for cut in ends]), b)


def _cut(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int], Windows]:
    """What is cut off the whole transposed convolution, before and behind; negative: added as zeros."""
    layout = windows(call, sizes, kernel)
    extra = call.integers("output_padding") or [0] * len(sizes)
    wanted = call.integers("output_shape")
    mode = call.text("auto_pad", "NOTSET")
    whole = [
        (size - 1) * stride + extent + more
        for size, stride, extent, more in zip(sizes, layout.strides, layout.extents, extra, strict=True)
    ]
    if wanted:
        wanted = wanted[-len(sizes) :]
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        # onnxruntime cuts and never pads: where a stride is wider than the kernel, fewer than size * stride are left.
        wanted = [min(n * stride, most) for n, stride, most in zip(sizes, layout.strides, whole, strict=True)]
    if not wanted:
        behind = [end - more for end, more in zip(layout.ends, extra, strict=True)]
        return list(layout.begins), behind, layout
    totals = [max(size - want, 0) for size, want in zip(whole, wanted, strict=True)]
    # As onnxruntime does it: the odd one is cut at the end for SAME_UPPER, else at the beginning.
    begins = [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals]
    ends = [size - more - want - begin for size, more, want, begin in zip(whole, extra, wanted, begins, strict=True)]
    return begins, ends, layout


def conv_integer(
    call: Call, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """A convolution of eight-bit integers in int32. float64 holds these sums exactly."""
    return to_int32(convolved(call, shifted(x, x_zero), shifted(w, _by_channel(w_zero, w))))


def _by_channel(zero: Tensor | None, w: Tensor) -> Tensor | None:
    return zero if zero is None or zero.numel() == 1 else zero.reshape(-1, *[1] * (w.dim() - 1))


ROWS: Rows = {
    "Conv": {(1, 11, 22): conv},
    "ConvInteger": {(10,): conv_integer},
    "ConvTranspose": {(1, 11, 22): conv_transpose},
}
