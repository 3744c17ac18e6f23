"""What operators make of constants alone: one row an operator, in numpy.

Floats of any width are float64, all else as it is stored; a Cast rounds to its type, for what a constant is stored as
is part of the model. Neither torch nor the evaluator of the truth is used: most graphs are analysed without them, and
a fault here must not be one there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

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


@dataclass(frozen=True, slots=True)
class Form:
    """The form of an operator: its attributes, the opset, how many outputs it has. read: which attributes were."""

    node: ir.Node
    opset: int
    read: set[str] = field(default_factory=set)

    def value(self, name: str) -> Any:
        """An attribute as onnx-ir holds it, None where there is none of this name."""
        self.read.add(name)
        found = self.node.attributes.get(name)
        return None if found is None else found.value

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.value(name)
        return default if value is None else int(value)

    def axis(self, rank: int, default: int = 0) -> int:
        """The attribute `axis`, counted from the front."""
        return _axis(self.integer("axis", default), rank)


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


def _concat(form: Form, *parts: Array) -> Array:
    return np.concatenate(parts, form.axis(parts[0].ndim, 1))


def _constant(form: Form) -> Array:
    """A tensor, a number, a string, or a list of them. Sparse ones are dense since the file was read."""
    (name,) = form.node.attributes
    value = form.value(name)
    if name == "value":
        return np.asarray(value.numpy())
    kinds = {"value_float": np.float32, "value_int": np.int64, "value_string": object}
    # A string may be a bytes object here, and nobody computes with it.
    return np.asarray(value, kinds[name.removesuffix("s")])


def _constant_of_shape(form: Form, shape: Array) -> Array:
    value = form.value("value")
    return np.full(shape.tolist(), 0.0 if value is None else value.numpy().reshape(-1)[0])


def _expand(form: Form, x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _flatten(form: Form, x: Array) -> Array:
    axis = form.integer("axis", 1)
    axis = axis if axis == x.ndim else _axis(axis, x.ndim)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _gather(form: Form, x: Array, indices: Array) -> Array:
    return np.take(x, indices, form.axis(x.ndim))


def _range(form: Form, start: Array, limit: Array, delta: Array) -> Array:
    form.integer("stash_type", 1)  # how float16 is worked
    first, last, step = (array.reshape(()).item() for array in (start, limit, delta))
    if start.dtype.kind != "f":
        return np.arange(first, last, step, dtype=start.dtype)
    return np.asarray(first + np.arange(max(math.ceil((last - first) / step), 0), dtype=np.float64) * step)


def _reshape(form: Form, x: Array, shape: Array) -> Array:
    sizes = shape.tolist()
    if not form.integer("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _slice(form: Form, x: Array, *operands: Array | None) -> Array:
    """Starts and ends, axes and steps are operands, or before opset 10 attributes."""
    names = ("starts", "ends", "axes", "steps")
    given: list[Any] = [form.value(each) for each in names[:3]] if form.opset < 10 else [*map(_list, operands)]
    starts, ends, axes, steps = [*given, None, None][:4]
    ranges = [slice(None)] * x.ndim
    places = range(len(starts)) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, places, steps or [1] * len(starts), strict=True):
        place = _axis(axis, x.ndim)
        first, stop, step = slice(start, end, step).indices(x.shape[place])
        if step < 0 and x.shape[place]:
            # Unlike Python's, a slice that goes backwards from before the beginning starts at the first element.
            first = max(first, 0)
        ranges[place] = slice(first, None if stop < 0 else stop, step)
    return np.asarray(x[tuple(ranges)])


def _split(form: Form, x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    """Parts of the sizes in an operand (before opset 13: an attribute), or equal ones.

    From opset 18 on the last of equal ones may be smaller.
    """
    axis = form.axis(x.ndim)
    whole, count = x.shape[axis], len(form.node.outputs)
    given = form.value("split") if form.opset < 13 else _list(sizes)
    if given is None and form.opset >= 18:
        count = form.integer("num_outputs", count)
        given = [-(-whole // count)] * (count - 1)
        given.append(whole - sum(given))
    given = given or [whole // count] * count
    if sum(given) != whole or min(given) < 0:
        raise ValueError(f"{whole} entries cannot be split into {list(given)}")
    return tuple(np.split(x, np.cumsum(given)[:-1].tolist(), axis))


def _squeeze(form: Form, x: Array, axes: Array | None = None) -> Array:
    given = form.value("axes") if form.opset < 13 else _list(axes)
    return np.squeeze(x, tuple(given)) if given else np.squeeze(x)


def _unsqueeze(form: Form, x: Array, axes: Array | None = None) -> Array:
    given = form.value("axes") if form.opset < 13 else _list(axes)
    return np.expand_dims(x, tuple(given or ()))


def _tile(form: Form, x: Array, repeats: Array) -> Array:
    if repeats.size != x.ndim:
        raise ValueError(f"{repeats.size} repeats for {x.ndim} dimensions")
    return np.tile(x, repeats.tolist())


def _transpose(form: Form, x: Array) -> Array:
    return np.transpose(x, form.value("perm"))


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} in {rank} dimensions")
    return axis % rank


def _list(array: Array | None) -> list[int] | None:
    return None if array is None else array.reshape(-1).tolist()


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
    "Cast": Operator(_as_many, _cast),
    "Concat": Operator(_together, _concat),
    "Constant": Operator(_as_many, _constant),
    "ConstantOfShape": Operator(_filled, _constant_of_shape),
    "Div": Operator(_broadcast, _divide),
    "Expand": Operator(_expanded, _expand),
    "Flatten": Operator(_as_many, _flatten),
    "Gather": Operator(_looked_up, _gather),
    "Identity": Operator(_as_many, lambda form, x: x),
    "Mul": Operator(_broadcast, _elementwise(np.multiply)),
    "Neg": Operator(_as_many, _elementwise(np.negative)),
    "Pow": Operator(_broadcast, _power),
    "Range": Operator(_counted, _range),
    "Reciprocal": Operator(_as_many, _elementwise(np.reciprocal)),
    "Reshape": Operator(_as_many, _reshape),
    "Slice": Operator(_as_many, _slice),
    "Split": Operator(_as_many, _split),
    "Sqrt": Operator(_as_many, _elementwise(np.sqrt)),
    "Squeeze": Operator(_as_many, _squeeze),
    "Sub": Operator(_broadcast, _elementwise(np.subtract)),
    "Tile": Operator(_tiled, _tile),
    "Transpose": Operator(_as_many, _transpose),
    "Unsqueeze": Operator(_as_many, _unsqueeze),
}
