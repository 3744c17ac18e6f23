"""Signals and images put together again: DFT, STFT, windows, mel weights, Col2Im."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from onnx import TensorProto

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import F, V, const, row


def cases() -> Iterator[Case]:
    for complex_, inverse, axis, sided in product((1, 2), (None, 1), (1, 2), (None, 1)):
        if sided and (complex_ == 2 and not inverse):
            continue
        x = F(2, 5, 8, complex_)
        yield row("DFT", x, axis=axis, inverse=inverse, onesided=sided)
        yield row("DFT", x, None, const(np.asarray(axis, np.int64)), inverse=inverse, onesided=sided)
        for length in (4, 7, 16):
            yield row("DFT", x, const(np.asarray(length, np.int64)), axis=axis, inverse=inverse, onesided=sided)
    yield row("DFT", F(2, 5, 8, 2), None, const(np.asarray(-2, np.int64)))
    yield row("DFT", F(2, 12, 1))
    for sided, complex_, step in product((None, 0, 1), (1, 2), (2, 4)):
        if complex_ == 2 and sided != 0:
            continue
        signal = F(2, 20, complex_)
        hop = const(np.asarray(step, np.int64))
        yield row("STFT", signal, hop, None, const(np.asarray(8, np.int64)), onesided=sided)
        yield row("STFT", signal, hop, F(8), onesided=sided)
        yield row("STFT", signal, hop, F(7), const(np.asarray(7, np.int64)), onesided=sided)
    yield row("STFT", F(2, 20), const(np.asarray(4, np.int64)), F(8))
    for op, size, periodic in product(("HannWindow", "HammingWindow", "BlackmanWindow"), (1, 2, 5, 10), (None, 0, 1)):
        yield row(op, np.asarray(size, np.int64), periodic=periodic)
        yield row(op, np.asarray(size, np.int32), periodic=periodic, output_datatype=TensorProto.DOUBLE)
    for bins, length, rate, low, high in (
        (8, 16, 8192, 0.0, 4096.0),
        (20, 256, 16000, 20.0, 7600.0),
        (4, 32, 1000, 1.0, 500.0),
    ):
        integers = [const(np.asarray(part, np.int64)) for part in (bins, length, rate)]
        yield row("MelWeightMatrix", *integers, const(np.asarray(low, np.float32)), const(np.asarray(high, np.float32)))
        double = {"output_datatype": TensorProto.DOUBLE}
        yield row("MelWeightMatrix", *integers, const(V(low).reshape(())), const(V(high).reshape(())), **double)
    for image, block, forms in (
        ([5, 5], [1, 5], {}),
        ([5, 5], [2, 2], {"strides": [1, 2]}),
        ([4, 5], [2, 3], {"pads": [0, 1, 1, 0]}),
        ([6, 6], [2, 2], {"dilations": [2, 3]}),
        ([6, 6], [2, 2], {"dilations": [2, 1], "strides": [2, 1], "pads": [1, 0, 1, 0]}),
    ):
        yield row("Col2Im", F(2, 2 * block[0] * block[1], columns(image, block, forms)), image, block, **forms)
    yield row("Col2Im", F(1, 6, 4), [5], [3], strides=[1], pads=[0, 1])
    yield row("Col2Im", F(1, 8, 12), [3, 4, 3], [2, 2, 2])
    for kind in (TensorProto.INT32, TensorProto.UINT32):
        yield row("BitCast", V(1.5, -2.25, 0.0), to=kind)
    yield row("BitCast", V(1, -5, 7, dtype=np.int64), to=TensorProto.DOUBLE)
    yield row("BitCast", V(1, 2**31, 7, dtype=np.uint32), to=TensorProto.INT32)


def columns(image: list[int], block: list[int], forms: dict[str, list[int]]) -> int:
    """How many places the block has in the image."""
    strides, dilations = forms.get("strides", [1, 1]), forms.get("dilations", [1, 1])
    pads = forms.get("pads", [0, 0, 0, 0])
    total = 1
    for k in range(2):
        room = image[k] + pads[k] + pads[k + 2] - dilations[k] * (block[k] - 1) - 1
        total *= room // strides[k] + 1
    return total
