"""Columns put back into an image, and the convolution whose windows are bent."""

from __future__ import annotations

import itertools

import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.convolution import add_bias
from normfold.graph.evaluator.operators.sampling import linear_taps, read_at
from normfold.graph.evaluator.operators.windows import padded, taps_of, windows
from normfold.graph.evaluator.values import Tensor


def col2im(call: Call, x: Tensor, image_shape: Tensor, block_shape: Tensor) -> Tensor:
    """Every column is a window of the image; where windows overlap they are added. x: (N, C * prod(block), L)."""
    sizes, block = image_shape.tolist(), block_shape.tolist()
    layout = windows(call, sizes, block)
    counts = layout.counts(sizes)
    whole = [size + begin + end for size, begin, end in zip(sizes, layout.begins, layout.ends, strict=True)]
    taps = taps_of(layout, counts)
    columns = x.reshape(x.shape[0], x.shape[1] // len(taps), len(taps), *counts)
    call.reserve(*columns.shape[:2], *whole)
    y = x.new_zeros((*columns.shape[:2], *whole))
    for number, tap in enumerate(taps):
        y[(slice(None), slice(None), *tap)] += columns[:, :, number]
    return padded(y, [-begin for begin in layout.begins], [-end for end in layout.ends])


def deform_conv(
    call: Call, x: Tensor, w: Tensor, offset: Tensor, b: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """A convolution of images that reads every tap of every window at a place of its own, by bilinear interpolation.

    offset: (N, offset groups * taps * 2, height, width), vertical before horizontal; mask: the same without the 2.
    Outside of the image is zero. Source: Zhu et al., arXiv:1811.11168.
    """
    if x.dim() != 4:
        raise call.refuse(f"{x.dim() - 2} spatial axes")
    groups, bent = call.integer("group", 1), call.integer("offset_group", 1)
    layout = windows(call, x.shape[2:], w.shape[2:])
    height, width = layout.counts(x.shape[2:])
    taps = list(itertools.product(*map(range, layout.kernel)))
    call.reserve(x.shape[0], w.shape[0], height, width)
    offsets = offset.reshape(x.shape[0], bent, len(taps), 2, height, width)
    weights = w.reshape(groups, w.shape[0] // groups, w.shape[1], len(taps))
    image = x.reshape(x.shape[0] * bent, x.shape[1] // bent, *x.shape[2:])
    rows, columns = (
        torch.arange(count, dtype=torch.float64) * stride - begin
        for count, stride, begin in zip((height, width), layout.strides, layout.begins, strict=True)
    )
    y = x.new_zeros((x.shape[0], groups, w.shape[0] // groups, height * width))
    for number, (down, right) in enumerate(taps):
        at_row = rows[:, None] + down * layout.dilations[0] + offsets[:, :, number, 0]
        at_column = columns + right * layout.dilations[1] + offsets[:, :, number, 1]
        places = zip((at_row, at_column), x.shape[2:], strict=True)
        read = read_at(image, [linear_taps(at.reshape(x.shape[0] * bent, -1), size) for at, size in places])
        if mask is not None:
            read *= mask.reshape(x.shape[0], bent, len(taps), -1)[:, :, number].reshape(x.shape[0] * bent, 1, -1)
        y += weights[..., number] @ read.reshape(x.shape[0], groups, -1, height * width)
    return add_bias(y.reshape(x.shape[0], w.shape[0], height, width), b)


ROWS: Rows = {
    "Col2Im": {(18,): col2im},
    "DeformConv": {(19, 22): deform_conv},
}
