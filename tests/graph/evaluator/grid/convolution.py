"""Convolutions: groups, strides, dilations, pads of both ends, auto_pad, what a transposed one adds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import F, N, U, V, const, row

AUTO = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def cases() -> Iterator[Case]:
    yield from plain()
    yield from transposed()
    yield from integer()
    yield from deformed()


def plain() -> Iterator[Case]:
    for pads, strides, dilations in product(
        (None, [1, 1, 1, 1], [0, 2, 1, 0], [2, 0, 1, 3]), (None, [2, 1], [3, 2]), (None, [2, 1], [2, 3])
    ):
        yield row("Conv", F(2, 4, 9, 10), F(6, 4, 3, 2), F(6), pads=pads, strides=strides, dilations=dilations)
        yield row("Conv", F(2, 4, 9, 10), F(6, 2, 3, 2), group=2, pads=pads, strides=strides, dilations=dilations)
    for auto, strides, dilations, size in product(AUTO, (None, [2, 2], [3, 1]), (None, [2, 2]), (8, 9)):
        forms = {"auto_pad": auto, "strides": strides, "dilations": dilations}
        yield row("Conv", F(1, 2, size, 11), F(3, 2, 3, 2), **forms)
    for group, channels, out in [(1, 4, 3), (2, 4, 6), (4, 4, 4), (4, 4, 8), (3, 3, 3)]:
        yield row(
            "Conv", F(1, channels, 5, 5), F(out, channels // group, 3, 3), F(out), group=group, kernel_shape=[3, 3]
        )
    yield row("Conv", F(2, 3, 8), F(4, 3, 3), F(4), pads=[2, 1])
    yield row("Conv", F(2, 4, 8), F(4, 1, 3), group=4, dilations=[3], auto_pad="SAME_UPPER")
    yield row("Conv", F(2, 3, 8), F(4, 3, 1))
    yield row("Conv", F(1, 2, 4, 5, 6), F(3, 2, 2, 3, 2), F(3), pads=[1, 0, 0, 0, 1, 2], strides=[1, 2, 1])
    yield row("Conv", F(1, 2, 4, 5, 6), F(3, 2, 2, 3, 2), auto_pad="SAME_LOWER", strides=[2, 2, 2])
    yield row("Conv", F(0, 3, 8), F(4, 3, 3))
    yield row("Conv", F(1, 3, 8), const(F(4, 3, 3)), const(F(4)))
    yield row("Conv", F(1, 1, 40), F(2, 1, 3), dilations=[16], pads=[16, 16])


def transposed() -> Iterator[Case]:
    for pads, strides, dilations, extra in product(
        (None, [1, 1, 1, 1], [0, 1, 2, 0]), (None, [2, 2], [3, 2]), (None, [2, 1]), (None, [1, 0])
    ):
        if extra and not strides:
            continue
        forms = {"pads": pads, "strides": strides, "dilations": dilations, "output_padding": extra}
        yield row("ConvTranspose", F(2, 4, 5, 6), F(4, 3, 3, 2), F(3), **forms)
        yield row("ConvTranspose", F(1, 4, 5, 6), F(4, 3, 3, 2), group=2, **forms)
    for auto, strides in product(AUTO, (None, [2, 2], [3, 1], [2, 3])):
        yield row("ConvTranspose", F(1, 2, 5, 6), F(2, 3, 3, 3), auto_pad=auto, strides=strides)
        yield row("ConvTranspose", F(1, 2, 5, 6), F(2, 3, 2, 4), auto_pad=auto, strides=strides)
    for shape, auto, strides in product(([10, 12], [11, 13], [9, 12]), AUTO[:1] + AUTO[2:], ([2, 2],)):
        yield row("ConvTranspose", F(1, 2, 5, 6), F(2, 3, 3, 3), output_shape=shape, auto_pad=auto, strides=strides)
    yield row(
        "ConvTranspose", F(1, 2, 5, 6), F(2, 3, 3, 3), output_shape=[12, 14], output_padding=[1, 1], strides=[2, 2]
    )
    for group, channels, out in [(1, 4, 3), (2, 4, 6), (4, 4, 4), (4, 4, 8)]:
        yield row("ConvTranspose", F(1, channels, 5, 5), F(channels, out // group, 3, 3), F(out), group=group)
    yield row("ConvTranspose", F(2, 3, 8), F(3, 4, 3), F(4), strides=[2], pads=[1, 0])
    yield row("ConvTranspose", F(2, 3, 8), F(3, 4, 3), strides=[2], output_padding=[1], auto_pad="SAME_UPPER")
    yield row("ConvTranspose", F(1, 2, 3, 4, 5), F(2, 3, 2, 3, 2), strides=[2, 1, 2], output_padding=[1, 0, 0])
    yield row("ConvTranspose", F(1, 2, 3, 4, 5), F(2, 3, 2, 3, 2), group=2, pads=[1, 0, 1, 0, 1, 0])
    yield row("ConvTranspose", F(0, 3, 8), F(3, 4, 3))
    yield row("ConvTranspose", F(1, 2, 5, 6), F(2, 3, 3, 2), kernel_shape=[3, 2], auto_pad="SAME_LOWER", strides=[2, 2])


def integer() -> Iterator[Case]:
    for low, dtype, wtype in [(0, np.uint8, np.uint8), (0, np.uint8, np.int8), (-9, np.int8, np.int8)]:
        x, w = N(low, 10, 1, 4, 6, 7, dtype=dtype), N(0, 10, 4, 2, 3, 3, dtype=wtype)
        for pads, strides, points in product((None, [1, 2, 0, 1]), (None, [2, 1]), (0, 1, 2)):
            zeros = [None, None] if not points else [np.asarray(3, dtype), const(np.asarray(2, wtype))]
            if points == 2:
                zeros[1] = None
            yield row("ConvInteger", x, const(w), *zeros, group=2, pads=pads, strides=strides)
            scales = [np.asarray(0.1, np.float32), const(np.asarray(3, dtype))]
            weight = [const(w), const(np.asarray(0.05, np.float32)), const(np.asarray(0, wtype))]
            result = [const(np.asarray(0.3, np.float32)), const(np.asarray(7, dtype))]
            yield row(
                "QLinearConv", x, const(scales[0]), scales[1], *weight, *result, group=2, pads=pads, strides=strides
            )
    each = [const(U(0.01, 0.1, 4)), const(V(0, 0, 0, 0, dtype=np.int8))]
    fixed = [const(np.asarray(0.1, np.float32)), const(np.asarray(3, np.uint8))]
    x, w = N(0, 200, 1, 3, 5, 5, dtype=np.uint8), const(N(-90, 90, 4, 3, 3, 3, dtype=np.int8))
    yield row("QLinearConv", x, *fixed, w, *each, *fixed)
    yield row("QLinearConv", x, *fixed, w, *each, *fixed, const(N(-500, 500, 4, dtype=np.int32)))
    x, w = N(0, 99, 1, 3, 9, 8, dtype=np.uint8), const(N(0, 99, 4, 3, 3, 2, dtype=np.uint8))
    for forms in ({"dilations": [2, 1]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "SAME_LOWER"}):
        yield row("ConvInteger", x, w, kernel_shape=[3, 2], **forms)
        yield row("QLinearConv", x, *fixed, w, *fixed, *fixed, kernel_shape=[3, 2], **forms)
    yield row("ConvInteger", N(0, 9, 1, 2, 7, dtype=np.uint8), const(N(0, 9, 3, 2, 3, dtype=np.uint8)), pads=[1, 1])


def deformed() -> Iterator[Case]:
    x = F(1, 4, 6, 6)
    offset, mask = U(-0.9, 0.9, 1, 18, 4, 4), U(0.1, 1, 1, 9, 4, 4)
    yield row("DeformConv", x, F(3, 4, 3, 3), offset)
    yield row("DeformConv", x, F(3, 4, 3, 3), offset, F(3), mask)
    yield row("DeformConv", x, F(4, 2, 3, 3), offset, F(4), group=2)
    yield row("DeformConv", x, F(3, 4, 3, 3), U(-2, 2, 1, 36, 4, 4), offset_group=2)
    forms = {"pads": [1, 0, 1, 0], "strides": [2, 1], "dilations": [1, 2], "kernel_shape": [3, 3]}
    yield row("DeformConv", x, F(3, 4, 3, 3), U(-2, 2, 1, 18, 3, 2), None, U(0, 1, 1, 9, 3, 2), **forms)
