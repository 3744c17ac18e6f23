"""What operators make of constants alone: one row an operator, in numpy.

Floats of any width are float64, all else as it is stored; a Cast rounds to its type, for what a constant is stored as
is part of the model. Neither torch nor the evaluator of the truth is used: most graphs are analysed without them, and
a fault here must not be one there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.graph.constant_layout import (
    Form,
    axis_of,
    counted,
    expanded,
    filled,
    flattened,
    gathered,
    joined,
    listed,
    parts,
    reshaped,
    sliced,
    squeezed,
    stated,
    tiled,
    transposed,
    unsqueezed,
)

Array = NDArray[Any]
# How many elements an operator makes of these operands, at most; asked before it makes them.
Elements = Callable[[ir.Node, Sequence[Array]], int]

_T = ir.DataType
_ROUNDED: Mapping[ir.DataType, Any] = {
    _T.FLOAT: np.float32,
    _T.FLOAT16: np.float16,
    _T.BFLOAT16: ml_dtypes.bfloat16,
    _T.DOUBLE: np.float64,
}
# Types of eight bits, and the largest number of each.
_NARROW: Mapping[ir.DataType, tuple[Any, float]] = {
    _T.FLOAT8E4M3FN: (ml_dtypes.float8_e4m3fn, 448.0),
    _T.FLOAT8E4M3FNUZ: (ml_dtypes.float8_e4m3fnuz, 240.0),
    _T.FLOAT8E5M2: (ml_dtypes.float8_e5m2, 57344.0),
    _T.FLOAT8E5M2FNUZ: (ml_dtypes.float8_e5m2fnuz, 57344.0),
}
_INTEGERS = frozenset({_T.INT8, _T.INT16, _T.INT32, _T.INT64, _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64})

_IN_EIGHT_BITS: Mapping[str, Any] = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8}


def compute(node: ir.Node, opset: int, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """One operator of OPERATORS on constants; opset: of the standard operators. The results may share memory with them.

    Raises ValueError, TypeError, IndexError, ZeroDivisionError or OverflowError where it cannot take its operands, or
    has an attribute that is not known.
    """
    form = Form(node, opset)
    given = [None if array is None else _held(array) for array in inputs]
    while given and given[-1] is None:
        given.pop()
    # NaN and infinities are values like others; a division of integers by zero is none.
    with np.errstate(all="ignore"):
        made = OPERATORS[node.op_type].compute(form, *given)
    unread = sorted(set(node.attributes) - form.read)
    if unread:
        raise ValueError(f"its attribute {unread[0]!r} is unknown")
    return made if isinstance(made, tuple) else (made,)


def _held(array: Array) -> Array:
    """Integers of four bits and less in eight, which numpy computes with."""
    name = array.dtype.name
    return array.astype(_IN_EIGHT_BITS[name]) if name in _IN_EIGHT_BITS else array


def _elementwise(function: Callable[..., Any]) -> Callable[..., Array]:
    return lambda form, *arrays: np.asarray(function(*arrays))


def _divide(form: Form, a: Array, b: Array) -> Array:
    """Integers towards zero, as in C."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not b.all():
        raise ZeroDivisionError("integers are divided by zero")
    floor = a // b
    return np.asarray(floor + ((floor * b != a) & ((a < 0) != (b < 0))).astype(a.dtype))


def _power(form: Form, a: Array, b: Array) -> Array:
    """In the type of A. Integers go through double, but for the short cuts of onnxruntime, the exponents 2 and 3."""
    if a.dtype.kind == "f":
        return np.asarray(np.power(a, b.astype(np.float64)))
    if b.size == 1 and b.item() in (2, 3):
        return np.broadcast_to(a * a if b.item() == 2 else a * a * a, np.broadcast_shapes(a.shape, b.shape))
    return _truncated(np.asarray(np.power(a.astype(np.float64), b.astype(np.float64))), a.dtype)


def _cast(form: Form, x: Array) -> Array:
    to, saturate = ir.DataType(form.integer("to", _T.UNDEFINED)), form.integer("saturate", 1)
    form.integer("round_mode", 0)  # of a type that is not among these
    return _as_type(x, to, saturate=saturate)


def _as_type(x: Array, to: ir.DataType, *, saturate: int) -> Array:
    if x.dtype.kind not in "fiub":
        raise TypeError(f"it casts {x.dtype} to {to}")
    if to == _T.BOOL:
        return np.asarray(x != 0)
    if to in _INTEGERS:
        return _truncated(x, to.numpy()) if x.dtype.kind == "f" else x.astype(to.numpy())
    x = x.astype(np.float64)
    if to in _NARROW:
        dtype, largest = _NARROW[to]
        return (np.clip(x, -largest, largest) if saturate else x).astype(dtype).astype(np.float64)
    if to not in _ROUNDED:
        raise TypeError(f"it casts to {to}")
    return x.astype(_ROUNDED[to]).astype(np.float64)


def _truncated(x: Array, dtype: np.dtype[Any]) -> Array:
    """Floats as integers, as x86 casts them: towards zero, in 32 bits, or in 64 for a wide target, of which the low
    ones are kept; what has no place in those is their smallest number.
    """
    if dtype in (np.uint32, np.uint64):
        signed = np.dtype(np.int64 if dtype == np.uint64 else np.int32)
        least = -(1 << (8 * signed.itemsize - 1))
        low = _of_x86(np.where(x >= -float(least), x + float(least), x), signed)
        return np.where(x >= -float(least), low ^ signed.type(least), low).view(dtype)
    return _of_x86(x, np.dtype(np.int64 if dtype == np.int64 else np.int32)).astype(dtype)


def _of_x86(x: Array, dtype: np.dtype[Any]) -> Array:
    least = -(1 << (8 * dtype.itemsize - 1))
    fits = (x > float(least) - 1) & (x < -float(least)) | (x == float(least))
    return np.where(fits, np.where(fits, x, 0).astype(dtype), dtype.type(least))


def _batch_norm(form: Form, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array | tuple[Array, ...]:
    """Along axis 1, by stored statistics; in training mode by those of its input, and the running ones are outputs."""
    epsilon, momentum = form.value("epsilon"), form.value("momentum")
    epsilon = float(np.float32(1e-5)) if epsilon is None else float(epsilon)
    momentum = float(np.float32(0.9)) if momentum is None else float(momentum)
    training = bool(form.integer("training_mode", 0))
    if not form.integer("spatial", 1) or (len(form.node.outputs) > 1 and not training):
        raise TypeError("it computes statistics as older opsets do")
    running = (mean, var)
    if training:
        _check_some(x)
        others = tuple(axis for axis in range(x.ndim) if axis != 1)
        mean, var = x.mean(axis=others), x.var(axis=others)
    shape = (-1,) + (1,) * (x.ndim - 2)
    y = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + epsilon) * scale.reshape(shape) + bias.reshape(shape)
    updated = (old * momentum + new * (1.0 - momentum) for old, new in zip(running, (mean, var), strict=True))
    return (y, *updated)[: len(form.node.outputs)] if training else np.asarray(y)


def _cast_like(form: Form, x: Array, target: Array) -> Array:
    """In the type that the second operand is declared to have; widened, it no longer tells."""
    declared = form.node.inputs[1]
    if declared is None or declared.dtype is None:
        raise TypeError("its type is not declared")
    return _as_type(x, declared.dtype, saturate=form.integer("saturate", 1))


def _clip(form: Form, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Between limits that are operands, or before opset 11 attributes."""
    least, most = (form.value("min"), form.value("max")) if form.opset < 11 else (low, high)
    if (least is None or most is None) and np.isinf(x).any():
        raise TypeError("it casts infinities to the largest number of a type")
    x = x if least is None else np.maximum(x, least)
    return np.asarray(x if most is None else np.minimum(x, most))


def _many(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    return lambda form, *arrays: np.asarray(functools.reduce(function, arrays))


def _reduce(function: Callable[..., Any], *, operand_since: int = 18) -> Callable[..., Array]:
    """Along axes that are an attribute, and from `operand_since` on an operand."""

    def reduced(form: Form, x: Array, axes: Array | None = None) -> Array:
        given = form.value("axes") if form.opset < operand_since else listed(axes)
        keep, noop = bool(form.integer("keepdims", 1)), bool(form.integer("noop_with_empty_axes", 0))
        _check_some(x)
        if not given and noop:
            # Nothing is summed; what is done to each number still is.
            return np.asarray(function(x[..., None], axis=-1, keepdims=False))
        along = tuple(axis_of(axis, x.ndim) for axis in given) if given else tuple(range(x.ndim))
        return np.asarray(function(x, axis=along, keepdims=keep), dtype=x.dtype)

    return reduced


def _check_some(x: Array) -> None:
    if not x.size:
        raise TypeError("it reduces nothing")


def _softmax(form: Form, x: Array) -> Array:
    """Along one axis; before opset 13 along all axes from it on, as one."""
    axis = form.axis(x.ndim, -1 if form.opset >= 13 else 1)
    _check_some(x)
    along = (axis,) if form.opset >= 13 else tuple(range(axis, x.ndim))
    powers = np.exp(x - x.max(axis=along, keepdims=True))
    return np.asarray(powers / powers.sum(axis=along, keepdims=True))


def _where(form: Form, condition: Array, x: Array, y: Array) -> Array:
    return np.where(condition, x, y)


def _as_many(node: ir.Node, inputs: Sequence[Array]) -> int:
    """As its largest operand, or fewer."""
    return max((array.size for array in inputs), default=0)


def _broadcast(node: ir.Node, inputs: Sequence[Array]) -> int:
    return math.prod(np.broadcast_shapes(*(array.shape for array in inputs)))


def _together(node: ir.Node, inputs: Sequence[Array]) -> int:
    return sum(array.size for array in inputs)


def _filled(node: ir.Node, inputs: Sequence[Array]) -> int:
    return math.prod(int(size) for size in inputs[0])


def _expanded(node: ir.Node, inputs: Sequence[Array]) -> int:
    return math.prod(np.broadcast_shapes(inputs[0].shape, tuple(int(size) for size in inputs[1])))


def _tiled(node: ir.Node, inputs: Sequence[Array]) -> int:
    return inputs[0].size * math.prod(int(count) for count in inputs[1])


def _counted(node: ir.Node, inputs: Sequence[Array]) -> int:
    start, limit, delta = (array.item() for array in inputs)
    return math.ceil((limit - start) / delta) if delta else 0


def _looked_up(node: ir.Node, inputs: Sequence[Array]) -> int:
    axis = node.attributes.get("axis")
    taken = inputs[0].shape[axis.value if axis else 0] if inputs[0].ndim else 1
    return inputs[0].size // max(taken, 1) * inputs[1].size


@dataclass(frozen=True, slots=True)
class Operator:
    """elements: see `Elements`. compute: takes the form and the operands, None for one that is left out in between."""

    elements: Elements
    compute: Callable[..., Array | tuple[Array, ...]]


# The operators through which constants fold: deterministic ones that make parameters out of parameters. Anything else
# with constant inputs is left to the runtime. Shape and Size need no values: constants.py answers for them.
OPERATORS: Mapping[str, Operator] = {
    "Abs": Operator(_as_many, _elementwise(np.abs)),
    "Add": Operator(_broadcast, _elementwise(np.add)),
    "BatchNormalization": Operator(_as_many, _batch_norm),
    "Cast": Operator(_as_many, _cast),
    "CastLike": Operator(_as_many, _cast_like),
    "Clip": Operator(_as_many, _clip),
    "Concat": Operator(_together, joined),
    "Constant": Operator(_as_many, stated),
    "ConstantOfShape": Operator(_filled, filled),
    "Div": Operator(_broadcast, _divide),
    "Erf": Operator(_as_many, _elementwise(np.vectorize(math.erf, otypes=[np.float64]))),
    "Exp": Operator(_as_many, _elementwise(np.exp)),
    "Expand": Operator(_expanded, expanded),
    "Flatten": Operator(_as_many, flattened),
    "Gather": Operator(_looked_up, gathered),
    "Identity": Operator(_as_many, lambda form, x: x),
    "Log": Operator(_as_many, _elementwise(np.log)),
    "Max": Operator(_broadcast, _many(np.maximum)),
    "Min": Operator(_broadcast, _many(np.minimum)),
    "Mul": Operator(_broadcast, _elementwise(np.multiply)),
    "Neg": Operator(_as_many, _elementwise(np.negative)),
    "Pow": Operator(_broadcast, _power),
    "Range": Operator(_counted, counted),
    "Reciprocal": Operator(_as_many, _elementwise(np.reciprocal)),
    "ReduceL1": Operator(_as_many, _reduce(lambda x, **how: np.abs(x).sum(**how))),
    "ReduceL2": Operator(_as_many, _reduce(lambda x, **how: np.sqrt(np.square(x).sum(**how)))),
    "ReduceLogSum": Operator(_as_many, _reduce(lambda x, **how: np.log(x.sum(**how)))),
    "ReduceMax": Operator(_as_many, _reduce(np.max)),
    "ReduceMean": Operator(_as_many, _reduce(np.mean)),
    "ReduceMin": Operator(_as_many, _reduce(np.min)),
    "ReduceProd": Operator(_as_many, _reduce(np.prod)),
    "ReduceSum": Operator(_as_many, _reduce(np.sum, operand_since=13)),
    "ReduceSumSquare": Operator(_as_many, _reduce(lambda x, **how: np.square(x).sum(**how))),
    "Relu": Operator(_as_many, _elementwise(lambda x: np.maximum(x, 0))),
    "Reshape": Operator(_as_many, reshaped),
    "Sigmoid": Operator(_as_many, _elementwise(lambda x: 1.0 / (1.0 + np.exp(-x)))),
    "Sign": Operator(_as_many, _elementwise(np.sign)),
    "Slice": Operator(_as_many, sliced),
    "Softmax": Operator(_as_many, _softmax),
    "Softplus": Operator(_as_many, _elementwise(lambda x: np.logaddexp(x, 0.0))),
    "Split": Operator(_as_many, parts),
    "Sqrt": Operator(_as_many, _elementwise(np.sqrt)),
    "Squeeze": Operator(_as_many, squeezed),
    "Sub": Operator(_broadcast, _elementwise(np.subtract)),
    "Sum": Operator(_broadcast, _many(np.add)),
    "Tanh": Operator(_as_many, _elementwise(np.tanh)),
    "Tile": Operator(_tiled, tiled),
    "Transpose": Operator(_as_many, transposed),
    "Unsqueeze": Operator(_as_many, unsqueezed),
    "Where": Operator(_broadcast, _where),
}
