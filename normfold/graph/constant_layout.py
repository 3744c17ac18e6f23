"""How operators lay constants out anew, in numpy: constant_operators.py has the table.

Each takes the form of the operator and its operands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


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
        return axis_of(self.integer("axis", default), rank)


def joined(form: Form, *parts: Array) -> Array:
    """Concat: along one axis."""
    return np.concatenate(parts, form.axis(parts[0].ndim, 1))


def stated(form: Form) -> Array:
    """A tensor, a number, a string, or a list of them. Sparse ones are dense since the file was read."""
    (name,) = form.node.attributes
    value = form.value(name)
    if name == "value":
        return np.asarray(value.numpy())
    kinds = {"value_float": np.float32, "value_int": np.int64, "value_string": object}
    # A string may be a bytes object here; nothing is computed with it.
    return np.asarray(value, kinds[name.removesuffix("s")])


def filled(form: Form, shape: Array) -> Array:
    """ConstantOfShape: of one value."""
    value = form.value("value")
    return np.full(shape.tolist(), 0.0 if value is None else value.numpy().reshape(-1)[0])


def expanded(form: Form, x: Array, shape: Array) -> Array:
    """Expand: broadcast to a shape that is an operand."""
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def flattened(form: Form, x: Array) -> Array:
    """Flatten: the axes before one, and those from it on."""
    axis = form.integer("axis", 1)
    axis = axis if axis == x.ndim else axis_of(axis, x.ndim)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def gathered(form: Form, x: Array, indices: Array) -> Array:
    """Gather: entries of one axis."""
    return np.take(x, indices, form.axis(x.ndim))


def counted(form: Form, start: Array, limit: Array, delta: Array) -> Array:
    """Range: from a start, in steps."""
    form.integer("stash_type", 1)  # how float16 is worked
    first, last, step = (array.reshape(()).item() for array in (start, limit, delta))
    if start.dtype.kind != "f":
        return np.arange(first, last, step, dtype=start.dtype)
    return np.asarray(first + np.arange(max(math.ceil((last - first) / step), 0), dtype=np.float64) * step)


def reshaped(form: Form, x: Array, shape: Array) -> Array:
    """Reshape: 0 is the size that was there."""
    sizes = shape.tolist()
    if not form.integer("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def sliced(form: Form, x: Array, *operands: Array | None) -> Array:
    """Starts and ends, axes and steps are operands, or before opset 10 attributes."""
    names = ("starts", "ends", "axes", "steps")
    given: list[Any] = [form.value(each) for each in names[:3]] if form.opset < 10 else [*map(listed, operands)]
    starts, ends, axes, steps = [*given, None, None][:4]
    ranges = [slice(None)] * x.ndim
    places = range(len(starts)) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, places, steps or [1] * len(starts), strict=True):
        place = axis_of(axis, x.ndim)
        first, stop, step = slice(start, end, step).indices(x.shape[place])
        if step < 0 and x.shape[place]:
            # Unlike Python's, a slice that goes backwards from before the beginning starts at the first element.
            first = max(first, 0)
        ranges[place] = slice(first, None if stop < 0 else stop, step)
    return np.asarray(x[tuple(ranges)])


def parts(form: Form, x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    """Parts of the sizes in an operand (before opset 13: an attribute), or equal ones.

    From opset 18 on the last of equal ones may be smaller.
    """
    axis = form.axis(x.ndim)
    whole, count = x.shape[axis], len(form.node.outputs)
    given = form.value("split") if form.opset < 13 else listed(sizes)
    if given is None and form.opset >= 18:
        count = form.integer("num_outputs", count)
        given = [-(-whole // count)] * (count - 1)
        given.append(whole - sum(given))
    given = given or [whole // count] * count
    if sum(given) != whole or min(given) < 0:
        raise ValueError(f"{whole} entries cannot be split into {list(given)}")
    return tuple(np.split(x, np.cumsum(given)[:-1].tolist(), axis))


def squeezed(form: Form, x: Array, axes: Array | None = None) -> Array:
    """Squeeze: the axes are an operand, or before opset 13 an attribute."""
    given = form.value("axes") if form.opset < 13 else listed(axes)
    return np.squeeze(x, tuple(given)) if given else np.squeeze(x)


def unsqueezed(form: Form, x: Array, axes: Array | None = None) -> Array:
    """Unsqueeze: the axes are an operand, or before opset 13 an attribute."""
    given = form.value("axes") if form.opset < 13 else listed(axes)
    return np.expand_dims(x, tuple(given or ()))


def tiled(form: Form, x: Array, repeats: Array) -> Array:
    """Tile: repeated along each axis."""
    if repeats.size != x.ndim:
        raise ValueError(f"{repeats.size} repeats for {x.ndim} dimensions")
    return np.tile(x, repeats.tolist())


def transposed(form: Form, x: Array) -> Array:
    """Transpose: the axes in another order."""
    return np.transpose(x, form.value("perm"))


def axis_of(axis: int, rank: int) -> int:
    """An axis, counted from the front."""
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} in {rank} dimensions")
    return axis % rank


def listed(array: Array | None) -> list[int] | None:
    """An operand as a list of integers."""
    return None if array is None else array.reshape(-1).tolist()
