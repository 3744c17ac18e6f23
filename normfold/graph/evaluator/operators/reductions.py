"""Reductions along axes, arguments of extremes, running sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Function, Rows
from normfold.graph.evaluator.operators.casts import truncated
from normfold.graph.evaluator.operators.indexing import ordered
from normfold.graph.evaluator.values import Array, Tensor, axis_in, is_float, through_numpy

# A tensor, the axes (at least one), whether they stay.
Reduction = Callable[[Tensor, list[int], bool], Tensor]


def total(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The sum; integers wrap."""
    if is_float(x):
        return x.sum(axes, keep)
    found: Tensor = through_numpy(lambda array: array.sum(tuple(axes), dtype=array.dtype, keepdims=keep), x)
    return found


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The product; integers wrap."""
    found: Tensor = through_numpy(lambda array: array.prod(tuple(axes), dtype=array.dtype, keepdims=keep), x)
    return found


def mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The mean; that of integers is their sum, divided towards zero. Of nothing it is 0, as in onnxruntime."""
    if not _count(x, axes):
        return total(x, axes, keep)
    if is_float(x):
        return x.mean(axes, keep)
    return truncated(total(x, axes, keep).to(torch.float64) / _count(x, axes), x.dtype)


def _count(x: Tensor, axes: Sequence[int]) -> int:
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return count


def l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The sum of absolute values."""
    return total(x.abs() if x.dtype.is_signed else x, axes, keep)


def square_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The sum of squares."""
    if is_float(x):
        return x.square().sum(axes, keep)
    return total(through_numpy(np.square, x), axes, keep)


def _in_float(function: Reduction) -> Reduction:
    """Integers are worked in floats and truncated."""

    def run(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        found = function(x.to(torch.float64), axes, keep)
        return found if is_float(x) else truncated(found, x.dtype)

    return run


def l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The square root of the sum of squares."""
    return square_sum(x, axes, keep).sqrt()


def log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The logarithm of the sum."""
    return x.sum(axes, keep).log()


def log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The logarithm of the sum of exponentials; onnxruntime's exponentials of integers are integers, 1 of the largest
    and 0 of the others.
    """
    wide = x.to(torch.float64)
    if is_float(x) or not _count(x, axes):
        found = torch.logsumexp(wide, axes, keep)
        return found if is_float(x) else truncated(found, x.dtype)
    most = wide.amax(axes, keepdim=True)
    found = most + (wide == most).sum(axes, keepdim=True).log()
    return truncated(found if keep else found.amax(axes), x.dtype)


def largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The maximum; of nothing it is the least that the type has."""
    if is_float(x) and _count(x, axes):
        return x.amax(axes, keep)
    found: Tensor = through_numpy(lambda a: a.max(tuple(axes), keepdims=keep, initial=_limits(a.dtype)[0]), x)
    return found


def smallest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The minimum; of nothing it is the most that the type has."""
    if is_float(x) and _count(x, axes):
        return x.amin(axes, keep)
    found: Tensor = through_numpy(lambda a: a.min(tuple(axes), keepdims=keep, initial=_limits(a.dtype)[1]), x)
    return found


def _limits(dtype: np.dtype[Any]) -> tuple[float | int, float | int]:
    if dtype.kind == "f":
        return -np.inf, np.inf
    if dtype.kind == "b":
        return False, True
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _by_attribute(function: Reduction) -> Function:
    def run(call: Call, x: Tensor) -> Tensor:
        return _reduced(call, function, x, call.integers("axes"))

    return run


def _by_input(function: Reduction) -> Function:
    def run(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = None if axes is None else axes.reshape(-1).tolist()
        if call.integer("noop_with_empty_axes", 0) and not chosen:
            call.integer("keepdims", 1)
            return _of_single_elements(function, x)
        return _reduced(call, function, x, chosen)

    return run


def _of_single_elements(function: Reduction, x: Tensor) -> Tensor:
    """A reduction over no axis: what it makes of each element."""
    return function(x.unsqueeze(-1), [x.ndim], False)


def _reduced(call: Call, function: Reduction, x: Tensor, axes: Sequence[int] | None) -> Tensor:
    keep = bool(call.integer("keepdims", 1))
    if x.ndim == 0:
        return _of_single_elements(function, x)
    return function(x, sorted({axis_in(axis, x.ndim) for axis in axes or range(x.ndim)}), keep)


def _argument(pick: Callable[..., Tensor]) -> Function:
    def run(call: Call, x: Tensor) -> Tensor:
        axis = axis_in(call.integer("axis", 0), x.ndim)
        keep, last = bool(call.integer("keepdims", 1)), bool(call.integer("select_last_index", 0))
        values = ordered(x)
        found = pick(values.flip(axis) if last else values, axis, keep)
        return x.shape[axis] - 1 - found if last else found

    return run


def _running(function: Callable[[Array, int], Array], start: int) -> Function:
    def run(call: Call, x: Tensor, axis: Tensor) -> Tensor:
        place = axis_in(int(axis), x.ndim)
        exclusive, reverse = call.integer("exclusive", 0), call.integer("reverse", 0)

        def along(array: Array) -> Array:
            array = np.flip(array, place) if reverse else array
            if exclusive:
                first = np.full_like(array.take([0], place), start) if array.shape[place] else array
                array = np.concatenate([first, array.take(range(array.shape[place] - 1), place)], place)
            found = function(array, place)
            return np.flip(found, place) if reverse else found

        found: Tensor = through_numpy(along, x)
        return found

    return run


ROWS: Rows = {
    "ArgMax": {(1, 11, 12, 13): _argument(torch.argmax)},
    "ArgMin": {(1, 11, 12, 13): _argument(torch.argmin)},
    "CumProd": {(26,): _running(lambda array, axis: np.cumprod(array, axis, dtype=array.dtype), 1)},
    "CumSum": {(11, 14): _running(lambda array, axis: np.cumsum(array, axis, dtype=array.dtype), 0)},
    "ReduceL1": {(1, 11, 13): _by_attribute(l1), (18,): _by_input(l1)},
    "ReduceL2": {(1, 11, 13): _by_attribute(_in_float(l2)), (18,): _by_input(_in_float(l2))},
    "ReduceLogSum": {(1, 11, 13): _by_attribute(_in_float(log_sum)), (18, 28): _by_input(_in_float(log_sum))},
    "ReduceLogSumExp": {
        (1, 11, 13): _by_attribute(log_sum_exp),
        (18, 28): _by_input(log_sum_exp),
    },
    "ReduceMax": {(1, 11, 12, 13): _by_attribute(largest), (18, 20): _by_input(largest)},
    "ReduceMean": {(1, 11, 13): _by_attribute(mean), (18,): _by_input(mean)},
    "ReduceMin": {(1, 11, 12, 13): _by_attribute(smallest), (18, 20): _by_input(smallest)},
    "ReduceProd": {(1, 11, 13): _by_attribute(product), (18,): _by_input(product)},
    "ReduceSum": {(1, 11): _by_attribute(total), (13,): _by_input(total)},
    "ReduceSumSquare": {(1, 11, 13): _by_attribute(square_sum), (18,): _by_input(square_sum)},
}
