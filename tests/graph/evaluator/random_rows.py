"""Rows of the grid's kind with attributes and shapes drawn at random, for what nobody thought to write down."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import B, F, N, U, V, const, row


class Dice:
    """Draws of one case."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def size(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def sizes(self, count: int, low: int, high: int) -> list[int]:
        return [self.size(low, high) for _ in range(count)]

    def one(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def maybe(self, value: Any) -> Any:
        return value if self._random.random() < 0.5 else None

    def some(self, count: int, least: int = 0) -> list[int]:
        """Axes, some from the end."""
        chosen = self._random.sample(range(count), self.size(least, count))
        return [axis - count if self.one(True, False) else axis for axis in chosen]

    def scale(self) -> float:
        return round(self._random.uniform(0.3, 3), 2)


def conv(d: Dice) -> Case:
    n, group = d.one(1, 2, 2, 3), d.one(1, 1, 2, 3)
    kernel, auto = d.sizes(n, 1, 4), d.one(None, None, "VALID", "SAME_UPPER", "SAME_LOWER")
    channels, out = d.size(1, 3), group * d.size(1, 3)
    forms = {"pads": d.maybe(d.sizes(2 * n, 0, 3)) if auto is None else None, "auto_pad": auto, "group": group}
    strides = d.maybe([min(size, 2) for size in kernel] if auto else d.sizes(n, 1, 3))
    x = F(d.size(1, 2), channels * group, *d.sizes(n, 3, 11))
    return row(
        "Conv",
        x,
        F(out, channels, *kernel),
        d.maybe(F(out)),
        strides=strides,
        dilations=d.maybe(d.sizes(n, 1, 3)),
        **forms,
    )


def conv_transpose(d: Dice) -> Case:
    n, group = d.one(1, 2, 2, 3), d.one(1, 1, 2)
    strides, dilations = d.sizes(n, 1, 3), d.sizes(n, 1, 2)
    extra = [d.size(0, max(s, gap) - 1) for s, gap in zip(strides, dilations, strict=True)]
    channels, auto = group * d.size(1, 3), d.one(None, None, "VALID", "SAME_UPPER", "SAME_LOWER")
    forms = {"strides": strides, "dilations": dilations, "group": group, "output_padding": d.maybe(extra)}
    pads = d.maybe(d.sizes(2 * n, 0, 2)) if auto is None else None
    x = F(d.size(1, 2), channels, *d.sizes(n, 2, 7))
    return row("ConvTranspose", x, F(channels, d.size(1, 3), *d.sizes(n, 1, 4)), auto_pad=auto, pads=pads, **forms)


def pool(d: Dice) -> Case:
    n, op = d.one(1, 2, 2, 3), d.one("MaxPool", "AveragePool", "LpPool")
    kernel, auto = d.sizes(n, 1, 4), d.one(None, None, "VALID", "SAME_UPPER", "SAME_LOWER")
    pads = [d.size(0, kernel[axis % n] - 1) for axis in range(2 * n)]
    forms: dict[str, Any] = {"kernel_shape": kernel, "ceil_mode": d.maybe(1), "auto_pad": auto}
    forms |= {"pads": d.maybe(pads) if auto is None else None}
    forms |= {"strides": d.maybe([min(s, k) for s, k in zip(d.sizes(n, 1, 4), kernel, strict=True)])}
    if op == "AveragePool":
        forms |= {"count_include_pad": d.maybe(1)}
    if op == "LpPool":
        forms |= {"p": d.maybe(d.size(1, 4))}
    if op == "MaxPool":
        forms |= {"outputs": d.size(1, 2), "storage_order": d.maybe(1)}
    # Windows of at most 4 x 3 - 2 numbers always fit.
    return row(op, F(d.size(1, 2), d.size(1, 3), *d.sizes(n, 10, 13)), dilations=d.maybe(d.sizes(n, 1, 3)), **forms)


def resize(d: Dice) -> Case:
    n = d.one(1, 2, 2, 3)
    mode = d.one("nearest", "linear", "cubic") if n == 2 else d.one("nearest", "linear")
    kinds = (
        "half_pixel",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
        "half_pixel_symmetric",
        "tf_half_pixel_for_nn",
    )
    nearest = d.one(None, "floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    forms = {"mode": mode, "coordinate_transformation_mode": d.one(*kinds), "nearest_mode": nearest}
    if mode != "nearest":
        forms |= {"antialias": d.maybe(1), "exclude_outside": d.maybe(1), "cubic_coeff_a": d.maybe(-0.5)}
    x = F(1, d.size(1, 2), *d.sizes(n, 1, 6))
    if d.one(True, False):
        return row("Resize", x, None, const(V(1, 1, *(d.scale() for _ in range(n)))), **forms)
    return row("Resize", F(1, 2, *d.sizes(n, 1, 6)), None, None, [1, 2, *d.sizes(n, 1, 12)], **forms)


def pad(d: Dice) -> Case:
    n, mode = d.size(1, 4), d.one("constant", "reflect", "edge", "wrap")
    return row(
        "Pad", F(*d.sizes(n, 2, 5)), d.sizes(2 * n, -1, 3), d.maybe(1.5) if mode == "constant" else None, mode=mode
    )


def part(d: Dice) -> Case:
    n = d.size(1, 4)
    axes = d.some(n, 1)
    lists = [d.sizes(len(axes), -8, 8), d.sizes(len(axes), -8, 8), axes, [d.one(-3, -2, -1, 1, 2, 3) for _ in axes]]
    return row("Slice", F(*d.sizes(n, 1, 6)), *lists)


def reduce(d: Dice) -> Case:
    ops = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")
    op, n = f"Reduce{d.one(*ops)}", d.size(0, 4)
    shape = [d.one(0, 1, 2, 3, 4, 5) if not axis else d.size(1, 4) for axis in range(n)]
    x, axes = d.one(F(*shape), N(-5, 6, *shape), N(-5, 6, *shape, dtype=np.int32)), d.some(n)
    if d.one(True, False):
        return row(op, x, axes=axes or None, keepdims=d.maybe(d.size(0, 1)))
    given = const(np.asarray(axes, np.int64))
    return row(op, x, given, keepdims=d.maybe(d.size(0, 1)), noop_with_empty_axes=d.maybe(d.size(0, 1)))


def matmul(d: Dice) -> Case:
    inner, batch = d.size(1, 5), d.sizes(d.size(0, 2), 1, 3)
    other = [d.one(1, size) for size in batch][d.size(0, len(batch)) :]
    return row("MatMul", F(*batch, d.size(1, 4), inner), F(*other, inner, d.size(1, 4)))


def gemm(d: Dice) -> Case:
    a, b, (m, k, n) = d.size(0, 1), d.size(0, 1), d.sizes(3, 1, 4)
    bias = d.maybe(F(*d.one((n,), (m, n), (m, 1), (1, n), (), (1,))))
    operands = [F(*((k, m) if a else (m, k))), F(*((n, k) if b else (k, n))), bias]
    return row("Gemm", *operands, transA=a, transB=b, alpha=d.maybe(0.7), beta=d.maybe(-1.3))


def recurrent(d: Dice) -> Case:
    op, direction = d.one("LSTM", "GRU", "RNN"), d.one("forward", "reverse", "bidirectional")
    gates, ways = {"RNN": 1, "GRU": 3, "LSTM": 4}[op], 2 if direction == "bidirectional" else 1
    time, batch, width, hidden = d.size(1, 6), d.size(1, 3), d.size(1, 4), d.size(1, 4)
    weights = [U(-0.8, 0.8, ways, gates * hidden, size) for size in (width, hidden)]
    lengths = d.maybe(np.asarray(d.sizes(batch, 0, time), np.int32))
    state = F(ways, batch, hidden)
    operands = [F(time, batch, width), *weights, d.maybe(U(-1, 1, ways, 2 * gates * hidden)), lengths, d.maybe(state)]
    forms: dict[str, Any] = {"hidden_size": hidden, "direction": direction, "clip": d.maybe(0.5)}
    if op == "LSTM":
        operands += [d.maybe(state), d.maybe(U(-0.8, 0.8, ways, 3 * hidden))]
        forms |= {"input_forget": d.maybe(1)}
    if op == "GRU":
        forms |= {"linear_before_reset": d.maybe(1)}
    return row(op, *operands, outputs=3 if op == "LSTM" else 2, **forms)


def gather(d: Dice) -> Case:
    shape = d.sizes(d.size(1, 4), 1, 5)
    axis = d.size(-len(shape), len(shape) - 1)
    size = shape[axis]
    if d.one(True, False):
        return row("Gather", F(*shape), N(-size, size, *d.sizes(d.size(0, 2), 1, 3)), axis=axis)
    places = [d.size(1, 6) if at == axis % len(shape) else d.size(1, here) for at, here in enumerate(shape)]
    return row("GatherElements", F(*shape), N(-size, size, *places), axis=axis)


def scatter(d: Dice) -> Case:
    shape = d.sizes(d.size(1, 3), 2, 5)
    axis, places = d.size(-len(shape), len(shape) - 1), [d.size(1, size) for size in shape]
    indices = N(-shape[axis], shape[axis], *places)
    return row(
        "ScatterElements", F(*shape), indices, F(*places), axis=axis, reduction=d.one("add", "mul", "max", "min")
    )


def softmax(d: Dice) -> Case:
    n = d.size(1, 4)
    return row(d.one("Softmax", "LogSoftmax", "Hardmax"), F(*d.sizes(n, 1, 4)), axis=d.maybe(d.size(-n, n - 1)))


def running(d: Dice) -> Case:
    n = d.size(1, 3)
    shape = d.sizes(n, 1, 4)
    forms = {"exclusive": d.maybe(1), "reverse": d.maybe(1)}
    return row("CumSum", d.one(F(*shape), N(-4, 5, *shape)), d.size(-n, n - 1), **forms)


def sampled(d: Dice) -> Case:
    modes = ("linear", "nearest", "cubic", "bilinear", "bicubic")
    forms = {
        "mode": d.one(*modes),
        "padding_mode": d.one("zeros", "border", "reflection"),
        "align_corners": d.size(0, 1),
    }
    return row("GridSample", F(1, 2, *d.sizes(2, 1, 5)), U(-2.5, 2.5, 1, *d.sizes(2, 1, 4), 2), **forms)


def quantised(d: Dice) -> Case:
    shape = d.sizes(d.size(1, 4), 1, 5)
    axis, block = d.size(-len(shape), len(shape) - 1), d.size(1, 4)
    blocks = [*shape]
    blocks[axis] = -(-shape[axis] // block)
    size, forms = d.one(((), {}), ((shape[axis],), {"axis": axis}), (blocks, {"axis": axis, "block_size": block}))
    dtype = d.one(np.uint8, np.int8, np.uint16, np.int16)
    point = d.maybe(N(0, 9, *size, dtype=dtype))
    if d.one(True, False):
        return row("QuantizeLinear", U(-20, 20, *shape), U(0.02, 0.5, *size), point, **forms)
    return row("DequantizeLinear", N(0, 100, *shape, dtype=dtype), U(0.02, 0.5, *size), point, **forms)


def chosen(d: Dice) -> Case:
    shape = d.sizes(d.size(1, 3), 1, 3)
    parts = [[d.one(1, size) for size in shape][d.size(0, len(shape)) :] for _ in range(3)]
    return row("Where", B(*parts[0]), F(*parts[1]), F(*parts[2]))


KINDS: tuple[Callable[[Dice], Case], ...] = (
    conv, conv_transpose, pool, resize, pad, part, reduce, matmul, gemm, recurrent, gather, scatter, softmax, running,
    sampled, quantised, chosen,
)  # fmt: skip


def cases(count: int) -> Iterator[Case]:
    """So many cases, the same ones every time."""
    for seed in range(count):
        dice = Dice(seed)
        yield dice.one(*KINDS)(dice)
