"""Reductions, running sums, and the softmax family."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import F, N, U, V, const, row

SIGNED = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare")
REDUCTIONS = (*SIGNED, "ReduceLogSumExp", "ReduceLogSum")
AXES = (None, [0], [1, 2], [2, 0], [-1], [-2, 0], [0, 1, 2])
SPECIAL = V([np.nan, 1, 2], [np.inf, 1, -1], [-np.inf, -np.inf, -np.inf], [0, 0, 0], [80, 90, 100])


def cases() -> Iterator[Case]:
    yield from reductions()
    yield from running()
    yield from softmax()
    yield from losses()


def reductions() -> Iterator[Case]:
    for op in REDUCTIONS:
        x = U(0.1, 3.0, 2, 3, 4)
        for axes, keepdims in product(AXES, (None, 0, 1)):
            yield row(op, x, axes=axes, keepdims=keepdims)
            yield row(op, x, axes, keepdims=keepdims)
        for noop, axes in product((0, 1), (None, const(np.asarray([], np.int64)), [1])):
            yield row(op, x, axes, noop_with_empty_axes=noop)
            yield row(op, x, axes, noop_with_empty_axes=noop, keepdims=0)
        yield row(op, x, V(1, dtype=np.int64))
        yield row(op, U(0.5, 2.0))
        yield row(op, U(0.5, 2.0, 1))
        yield row(op, SPECIAL, axes=[1])
        yield row(op, SPECIAL, [1])
        yield row(op, F(0, 3), [0])
        yield row(op, F(0, 3), axes=[0])
        yield row(op, F(0, 3), [1])
        yield row(op, F(2, 0, 3), [1, 2], keepdims=0)
    for op in SIGNED:
        yield row(op, F(3, 4, 5), axes=[1])
        yield row(op, F(3, 4, 5), [1])
        for dtype in (np.int32, np.int64):
            yield row(op, N(-5, 6, 3, 4, dtype=dtype), axes=[1])
            yield row(op, N(-5, 6, 3, 4, dtype=dtype), [1], keepdims=0)
            yield row(op, N(-5, 6, 3, 4, dtype=dtype))
    for op, dtype in product(("ReduceLogSum", "ReduceLogSumExp"), (np.int32, np.int64)):
        yield row(op, N(1, 9, 6, 4, dtype=dtype), [1], at=18)
        yield row(op, N(1, 9, 6, 4, dtype=dtype), axes=[1], keepdims=0)
    yield row("ReduceLogSumExp", N(-6, 0, 9, 4), [1], keepdims=0, at=18)
    yield row("ReduceLogSumExp", N(-6, 0, 0, 4), axes=[0])
    for op, dtype in product(("ReduceMax", "ReduceMin"), (np.int8, np.uint8, np.bool_)):
        yield row(op, N(0, 2, 3, 4, dtype=dtype), axes=[1])
        yield row(op, N(0, 2, 3, 4, dtype=dtype), [1])


def running() -> Iterator[Case]:
    for op in ("CumSum", "CumProd"):
        for axis, exclusive, reverse in product((0, 1, 2, -1, -3), (None, 1), (None, 1)):
            yield row(op, F(2, 3, 4), axis, exclusive=exclusive, reverse=reverse)
        yield row(op, F(4), np.asarray([0], np.int32), reverse=1)
        yield row(op, F(0, 4), 0)
        yield row(op, F(1, 4), 0, exclusive=1)
        yield row(op, F(1, 4), 0, reverse=1)
        for dtype in (np.int32, np.int64):
            yield row(op, N(-3, 4, 3, 4, dtype=dtype), 1)


def softmax() -> Iterator[Case]:
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        for axis in (None, 0, 1, 2, 3, -1, -2, -3, -4):
            yield row(op, F(2, 3, 4, 5), axis=axis)
        yield row(op, F(7), axis=0)
        yield row(op, F(3, 4), axis=0)
        yield row(op, V([1, 3, 3], [2, 2, 1]))
        yield row(op, V([1000, 1001, 999], [-1000, -1001, 5]))
        yield row(op, F(0, 3))
        yield row(op, F(3, 0))
    yield row("Softmax", V([-np.inf, 0, 1], [-np.inf, -np.inf, 0]))


def losses() -> Iterator[Case]:
    labels = N(0, 5, 3)
    for reduction, ignore, weighted in product((None, "none", "sum", "mean"), (None, 2, -1), (False, True)):
        weight = U(0.2, 2.0, 5) if weighted else None
        forms = {"reduction": reduction, "ignore_index": ignore}
        yield row("NegativeLogLikelihoodLoss", U(-5, 0, 3, 5), labels, weight, **forms)
        yield row("NegativeLogLikelihoodLoss", U(-5, 0, 3, 5, 2, 2), N(0, 5, 3, 2, 2), weight, **forms)
        yield row("SoftmaxCrossEntropyLoss", F(3, 5), labels, weight, **forms)
        yield row("SoftmaxCrossEntropyLoss", F(3, 5, 2), N(0, 5, 3, 2), weight, outputs=2, **forms)
