"""Shapes, slices, indices: operators that move elements."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import B, F, N, S, V, const, row

DTYPES = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.bool_)


def cases() -> Iterator[Case]:
    yield from shapes()
    yield from slices()
    yield from splits()
    yield from pads()
    yield from gathers()
    yield from scatters()
    yield from made()
    yield from searched()
    yield from other_types()


def shapes() -> Iterator[Case]:
    for target, allowzero in product(([6, 4], [-1], [0, -1], [2, 0, 4], [0, 0, 2, 2], [4, -1, 3]), (None, 1)):
        if allowzero is None or 0 not in target:
            yield row("Reshape", F(2, 3, 4), target, allowzero=allowzero)
    yield row("Reshape", F(0, 3, 4), [3, 4, 0], allowzero=1)
    yield row("Reshape", F(0, 3, 4), [0, 12])
    yield row("Reshape", F(0, 3), [-1, 3])
    yield row("Reshape", F(1), const(np.asarray([], np.int64)))
    yield row("Reshape", F(2, 3, 4), V(4, 6, dtype=np.int64))
    for axis in (None, 0, 1, 2, 3, -1, -2, -3):
        yield row("Flatten", F(2, 3, 4), axis=axis)
    yield row("Flatten", F(0, 3))
    for axes in ([0], [0, 2], [2, 0], [-1], [-3, 2]):
        yield row("Squeeze", F(1, 3, 1), axes=axes)
        yield row("Squeeze", F(1, 3, 1), axes)
        yield row("Unsqueeze", F(3, 4), axes=axes)
        yield row("Unsqueeze", F(3, 4), axes)
    yield row("Squeeze", F(1, 3, 1))
    yield row("Squeeze", F(1, 1))
    yield row("Unsqueeze", F(), [0])
    for perm in permutations(range(3)):
        yield row("Transpose", F(2, 3, 4), perm=list(perm))
    for shape in ((2, 3, 4), (5,), (), (0, 3)):
        yield row("Transpose", F(*shape))
    for axis in (0, 1, 2, -1, -2, -3):
        parts = [tuple(size if place != axis % 3 else n for place, size in enumerate((2, 3, 4))) for n in (1, 0, 3)]
        yield row("Concat", *(F(*part) for part in parts), axis=axis)
    yield row("Concat", F(2, 3), axis=1)
    for start, end in product((None, 0, 1, -1, -9, 2), (None, 1, -1, 9)):
        yield row("Shape", F(2, 3, 4), start=start, end=end)
    for shape in ((), (0, 3), (2, 3)):
        yield row("Shape", F(*shape))
        yield row("Size", F(*shape))
    for block, mode in product((1, 2, 3), (None, "DCR", "CRD")):
        yield row("DepthToSpace", F(2, 36, 2, 3), blocksize=block, mode=mode)
    for block in (1, 2, 3):
        yield row("SpaceToDepth", F(2, 3, 6, 12), blocksize=block)


def slices() -> Iterator[Case]:
    forms = [
        ([0], [2], None, None),
        ([1, 0], [9, 3], None, None),
        ([0, -2], [-1, 99], [2, 1], None),
        ([-1], [-99], [0], [-1]),
        ([3, -1], [0, -5], [1, 2], [-1, -2]),
        ([0, 0], [4, 5], [-2, -1], [2, 3]),
        ([2], [1], [0], None),
        ([-99], [99], [1], [2]),
        ([99], [-99], [1], [-2]),
        ([0], [2**63 - 1], [1], None),
        ([2**63 - 1], [-(2**63) + 1], [1], [-1]),
        ([0], [0], [0], None),
        ([-9], [-9], [0], [-1]),
        ([-9, 9], [-99, -9], [1, 2], [-2, -1]),
    ]
    for starts, ends, axes, steps in forms:
        yield row("Slice", F(4, 5, 6), starts, ends, axes, steps)
        if steps is None:
            yield row("Slice", F(4, 5, 6), starts=starts, ends=ends, axes=axes)
    yield row("Slice", F(4, 0, 6), [0], [3], [0])
    yield row("Slice", F(4, 0, 6), [-1], [-9], [1], [-1])
    narrow = [const(np.asarray(part, np.int32)) for part in ([1], [-1], [2], [2])]
    yield row("Slice", F(4, 5, 6), *narrow)
    yield row("Slice", F(4, 5), V(1, dtype=np.int64), V(4, dtype=np.int64), V(1, dtype=np.int64))


def splits() -> Iterator[Case]:
    for axis in (None, 0, 1, -1, -2):
        yield row("Split", F(6, 6), axis=axis, outputs=3)
        yield row("Split", F(6, 6), axis=axis, split=[1, 5, 0], outputs=3)
        yield row("Split", F(6, 6), [2, 4], axis=axis, outputs=2)
        yield row("Split", F(6, 7), axis=axis, num_outputs=3, outputs=3)
    yield row("Split", F(7, 2), axis=0, num_outputs=4, outputs=4)
    yield row("Split", F(0, 2), axis=0, num_outputs=2, outputs=2)
    yield row("Split", F(4), axis=0, num_outputs=1, outputs=1)


def pads() -> Iterator[Case]:
    amounts = [[0, 1, 2, 0, 1, 2], [1, 0, 2, 0, 3, 1], [0, 0, 0, 0, 0, 0], [0, -1, 2, 0, 1, -2], [0, -1, -1, 0, -1, 0]]
    for pads, mode in product(amounts, (None, "constant", "reflect", "edge", "wrap")):
        yield row(
            "Pad",
            F(2, 4, 5),
            pads=pads,
            mode=mode if mode != "wrap" else "edge",
            value=1.5 if mode == "constant" else None,
        )
        yield row("Pad", F(2, 4, 5), pads, mode=mode)
    yield row("Pad", F(2, 4, 5), [0, 1, 2, 0, 1, 2], 2.5)
    yield row("Pad", F(2, 4, 5), [1, 2, 3, 0], 2.5, [1, 2])
    for axes, mode in product(([1, 2], [-1, 0], [-1, -2]), ("constant", "reflect", "edge", "wrap")):
        yield row("Pad", F(3, 4, 5), [1, 2, 0, 2], None, axes, mode=mode)
    yield row("Pad", F(3, 4), [1, 2], None, const(V(-1, dtype=np.int32)), mode="reflect")
    yield row("Pad", F(0, 3), [1, 0, 2, 1], 4.0)
    yield row("Pad", F(3, 4), [0, 9, 0, 9], mode="wrap")
    yield row("Pad", F(3), [-2, 5], mode="edge")
    yield row("Pad", F(5), [-2, 2], mode="reflect")
    for dtype in DTYPES:
        yield row("Pad", N(0, 2, 2, 3, dtype=dtype), [0, 1, 1, 0], np.asarray(1, dtype))
        yield row("Pad", N(0, 2, 2, 3, dtype=dtype), [0, 1, 1, 0], mode="edge")


def gathers() -> Iterator[Case]:
    for axis, indices in product((None, 0, 1, 2, -1, -2), ([[0, 1], [1, -1]], [1], [0, -2, 0, 1], 1)):
        yield row("Gather", F(2, 3, 4), np.asarray(indices, np.int64), axis=axis)
    yield row("Gather", F(2, 3), V(1, 0, dtype=np.int32), axis=1)
    yield row("Gather", F(2, 3), np.zeros((0,), np.int64))
    yield row("Gather", F(3, 0), V(1, 2, dtype=np.int64))
    yield row("Gather", S("a", "b", "c"), V(2, 0, dtype=np.int64))
    for axis in (None, 0, 1, 2, -1, -3):
        yield row("GatherElements", F(3, 3, 3), N(-3, 3, 3, 3, 3), axis=axis)
        yield row("GatherElements", F(3, 3, 3), N(-3, 3, 2, 3, 1, dtype=np.int32), axis=axis)
    for batch, indices in [(None, (2, 3)), (0, (4, 1)), (0, (2, 2, 2)), (1, (2, 2)), (1, (2, 5, 1)), (2, (2, 2, 1))]:
        yield row("GatherND", F(2, 2, 2, 3), N(-2, 2, *indices), batch_dims=batch)
    yield row("GatherND", F(2, 3), np.zeros((0, 1), np.int64))
    yield row("Compress", F(3, 4), V(0, 1, 1, dtype=np.bool_), axis=0)
    yield row("Compress", F(3, 4), V(1, 0, 1, dtype=np.bool_), axis=-1)
    yield row("Compress", F(3, 4), V(1, 0, 1, 0, 0, 1, dtype=np.bool_))
    yield row("Compress", F(3, 4), V(0, 0, 0, dtype=np.bool_), axis=0)
    for time, batch in ((0, 1), (1, 0)):
        yield row("ReverseSequence", F(4, 4, 2), V(1, 4, 2, 3, dtype=np.int64), time_axis=time, batch_axis=batch)
    yield row("ReverseSequence", F(3, 2), V(1, 3, dtype=np.int64))


def scatters() -> Iterator[Case]:
    for op, axis in product(("Scatter", "ScatterElements"), (None, 0, 1, -1)):
        yield row(op, F(3, 4), V([0, 2, 1], [1, -1, 0], dtype=np.int64), F(2, 3), axis=axis)
    for reduction, axis in product((None, "none", "add", "mul", "max", "min"), (0, 1, -1)):
        indices = (
            V([0, 2, 1], [0, 2, -1], dtype=np.int64)
            if reduction in (None, "none")
            else V([0, 0, 1], [1, 0, 0], dtype=np.int64)
        )
        if reduction in (None, "none") and axis == 0:
            indices = V([0, 2, 1], [1, 0, -1], dtype=np.int64)
        yield row("ScatterElements", F(3, 4), indices, F(2, 3), axis=axis, reduction=reduction)
        yield row("ScatterND", F(4, 3), V([0], [2], dtype=np.int64), F(2, 3), reduction=reduction)
        yield row("ScatterND", F(4, 3), V([0, 1], [2, -1], dtype=np.int64), F(2), reduction=reduction)
    for reduction in ("add", "mul", "max", "min"):
        yield row("ScatterND", F(4, 3), V([1], [1], [-1], dtype=np.int64), F(3, 3), reduction=reduction)
        yield row("ScatterND", N(1, 9, 4, 3), V([1], [1], [3], dtype=np.int64), N(1, 9, 3, 3), reduction=reduction)
        indices = V([1, 1], [0, 1], dtype=np.int32)
        yield row(
            "ScatterElements",
            N(1, 9, 4, 3, dtype=np.int32),
            indices,
            N(1, 9, 2, 2, dtype=np.int32),
            reduction=reduction,
        )
    yield row("ScatterND", F(4, 3), np.zeros((0, 1), np.int64), F(0, 3))
    yield row("ScatterElements", F(4, 3), np.zeros((0, 3), np.int64), F(0, 3))
    for axis, mode in product((None, -2, 1, 2), (None, "linear", "circular")):
        yield row("TensorScatter", F(2, 4, 4, 3), F(2, 4, 4, 3), V(0, 0, dtype=np.int64), axis=axis, mode=mode)
    yield row("TensorScatter", F(2, 6, 3), F(2, 2, 3), V(1, 4, dtype=np.int64), axis=1)
    yield row("TensorScatter", F(2, 6, 3), F(2, 3, 3), V(1, 5, dtype=np.int64), axis=1, mode="circular")
    yield row("TensorScatter", F(2, 6, 3), F(2, 2, 3), axis=-2)
    yield row("TensorScatter", F(2, 6, 4, 3), F(2, 2, 4, 3), V(1, 4, dtype=np.int64), axis=1)
    yield row("TensorScatter", F(2, 2, 4, 6), F(2, 2, 4, 3), V(1, 5, dtype=np.int64), axis=-1, mode="circular")


def made() -> Iterator[Case]:
    for shape in ([2, 3], [0], [3, 0, 2]):
        yield row("ConstantOfShape", shape)
        yield row("Expand", F(1), shape)
    yield row("ConstantOfShape", const(np.asarray([], np.int64)))
    for dtype in (*DTYPES, np.float32, np.float64, np.float16):
        yield row("ConstantOfShape", V(2, 2, dtype=np.int64), value=numpy_helper.from_array(np.asarray([1], dtype)))
    for shape, target in [
        ((3, 1), [2, 1, 4]),
        ((3, 4), [1]),
        ((), [2, 2]),
        ((2, 1), [2, 0]),
        ((4,), [3, 4]),
        ((3, 4), [3, 1]),
    ]:
        yield row("Expand", F(*shape), target)
    for repeats in ([1, 2], [2, 3], [0, 1], [3, 1]):
        yield row("Tile", F(2, 3), repeats)
    yield row("Tile", F(2, 3), V(2, 2, dtype=np.int64))
    for start, limit, delta in [(0, 5, 1), (5, 0, -2), (1, 1, 1), (0, 7, 3), (5, 0, 1)]:
        for dtype in (np.int16, np.int32, np.int64, np.float32, np.float64):
            yield row("Range", *(np.asarray(part, dtype) for part in (start, limit, delta)))
    yield row("Range", *(np.asarray(part, np.float32) for part in (0.5, 3.0, 0.25)))
    for axis in (None, 0, 1, 2, -1, -2):
        yield row("OneHot", N(-4, 4, 2, 3), const(V(4, dtype=np.int64)), const(V(0, 1)), axis=axis)
    yield row("OneHot", V(0, 2, 9, -9, dtype=np.int64), const(V(3, dtype=np.int64)), const(V(2.5, -1.5)))
    yield row("OneHot", V(0.0, 2.0, 1.0), const(V(3)), const(V(0, 1)))
    yield row("OneHot", V(0, 2, dtype=np.int64), const(np.asarray(3, np.int64)), const(V(5, 7, dtype=np.int64)))
    for k, shape in product((None, 0, 1, -1, 5, -5), ((3, 4), (4, 3))):
        yield row("EyeLike", F(*shape), k=k)
        yield row("EyeLike", N(0, 3, *shape, dtype=np.int32), k=k, dtype=TensorProto.FLOAT)
    for upper, k, shape in product((None, 0), (None, 0, 1, -1, 9, -9), ((3, 4), (2, 4, 3))):
        yield row("Trilu", F(*shape), None if k is None else const(np.asarray(k, np.int64)), upper=upper)
    yield row("Trilu", F(0, 3))
    yield row("Trilu", N(0, 9, 3, 3))
    for axes, shape in [(None, [5, 2]), ([0, 1], [2, 6]), ([1], [7]), ([-1], [3]), ([-2], [1])]:
        yield row("CenterCropPad", F(4, 5), shape, axes=axes)
    for value in ("value_float", "value_int", "value_floats", "value_ints", "value_string", "value_strings"):
        content = {"value_float": 0.1, "value_int": -3, "value_floats": [0.1, 2.5], "value_ints": [1, -2]}
        yield row("Constant", **{value: content.get(value, "a" if value == "value_string" else ["a", "b"])})
    yield row("Constant", value=numpy_helper.from_array(V(0.1, 1.5)))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(V(1.5, -2.5), "v"), numpy_helper.from_array(V(1, 5, dtype=np.int64), "i"), [2, 3]
    )
    yield row("Constant", sparse_value=sparse)


def searched() -> Iterator[Case]:
    for op, axis, keepdims, last in product(("ArgMax", "ArgMin"), (None, 0, 1, -1), (None, 0), (None, 1)):
        yield row(op, V([1, 3, 3], [2, 2, 1]), axis=axis, keepdims=keepdims, select_last_index=last)
        yield row(op, N(0, 3, 3, 4, dtype=np.int32), axis=axis, keepdims=keepdims, select_last_index=last)
    for op, dtype in product(("ArgMax", "ArgMin"), (np.int8, np.uint8, np.int64)):
        yield row(op, N(0, 9, 3, 4, dtype=dtype), axis=1)
    yield row("ArgMax", V(1, np.nan, 3), axis=0)
    for axis, largest, sort in product((None, 0, 1, -1), (None, 0), (None,)):
        yield row("TopK", F(5, 6), const(V(3, dtype=np.int64)), axis=axis, largest=largest, sorted=sort, outputs=2)
        yield row("TopK", F(5, 6), axis=axis, k=3, outputs=2)
    yield row("TopK", V(1, 3, 3, 2, 3, 1), const(V(4, dtype=np.int64)), outputs=2)
    yield row("TopK", V(1, 3, 3, 2, 3, 1), const(V(4, dtype=np.int64)), largest=0, outputs=2)
    yield row("TopK", F(3, 4), const(V(2, dtype=np.int64)), sorted=1, outputs=2)
    yield row("TopK", F(3, 4), const(V(0, dtype=np.int64)), outputs=2)
    for dtype in (np.int32, np.int64, np.int8, np.uint8, np.uint64):
        yield row("TopK", N(0, 50, 4, 9, dtype=dtype), const(V(3, dtype=np.int64)), outputs=2)
    for dtype in (np.float32, np.int32, np.int64, np.uint8, np.bool_):
        yield row("NonZero", N(0, 2, 3, 4, dtype=dtype))
    yield row("NonZero", F())
    yield row("NonZero", np.asarray(0.0, np.float32))
    yield row("NonZero", F(0, 2))
    for axis, order in product((None, 0, 1, -1), (None, 0, 1)):
        yield row("Unique", N(0, 3, 5, 3), axis=axis, sorted=order, outputs=4)
        yield row("Unique", N(0, 3, 4, 2, dtype=np.float32), axis=axis, sorted=order, outputs=4)
    yield row("Unique", S("b", "a", "b", "c"), outputs=4)
    yield row("Unique", V(2, 1, 1, 3, dtype=np.int8), outputs="y,,inverse")


def other_types() -> Iterator[Case]:
    """Everything that only moves elements, on everything that can be moved."""
    for dtype in DTYPES:
        x = N(0, 2, 2, 4, dtype=dtype)
        yield row("Reshape", x, [4, 2])
        yield row("Transpose", x)
        yield row("Concat", x, N(0, 2, 1, 4, dtype=dtype), axis=0)
        yield row("Split", x, [1, 3], axis=1, outputs=2)
        yield row("Slice", x, [3], [-9], [1], [-2])
        yield row("Gather", x, V(1, 0, dtype=np.int64), axis=1)
        yield row("GatherElements", x, N(0, 2, 2, 3), axis=1)
        yield row("GatherND", x, N(0, 2, 3, 2))
        yield row("Expand", N(0, 2, 1, 4, dtype=dtype), [3, 1])
        yield row("Tile", x, [2, 1])
        yield row("Flatten", x)
        yield row("ScatterElements", x, V([1, 0], dtype=np.int64), N(0, 2, 1, 2, dtype=dtype), axis=1)
        yield row("ScatterND", x, V([1], dtype=np.int64), N(0, 2, 1, 4, dtype=dtype))
        yield row("Unsqueeze", x, [1])
        yield row("Squeeze", N(0, 2, 1, 4, dtype=dtype), [0])
        yield row("Compress", x, V(0, 1, dtype=np.bool_), axis=0)
        yield row("DepthToSpace", N(0, 2, 1, 4, 2, 2, dtype=dtype), blocksize=2)
    words = S(["a", "b"], ["c", "d"])
    yield row("Reshape", words, [4])
    yield row("Transpose", words)
    yield row("Concat", words, words, axis=1)
    yield row("Slice", words, [1], [-9], [1], [-1])
    yield row("Split", words, axis=0, outputs=2)
    yield row("GatherND", words, V([0, 1], dtype=np.int64))
    yield row("GatherElements", words, V([1, 0], dtype=np.int64), axis=1)
    yield row("Expand", S("a"), [2, 2])
    yield row("Tile", words, [1, 2])
    yield row("Squeeze", S(["a"]), [0])
    yield row("Unsqueeze", words, [0])
    yield row("Flatten", words)
    yield row("Identity", words)
    yield row("Shape", words)
    yield row("ScatterND", words, V([1], dtype=np.int64), S(["x", "y"]))
    yield row("Where", B(2, 2), words, words)
