"""What the tensors of a graph hold, seen on inputs: what bounds the scales of a fold that float16 is to store.

The graph runs in float64, on the first of the inputs that the verification draws: several sizes of
every dynamic axis, several scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from normfold.analysis.placement.float16_range import Range, Ranges
from normfold.graph.float64 import graph_tensors
from normfold.inputs.cases import SEEN, Array, Case, draw_cases
from normfold.inputs.spec import InputSpec
from normfold.system.numbers import MASK


def calibrate(
    model: ir.Model, specs: Sequence[InputSpec], *, half: bool = False, cases: Sequence[Case] | None = None
) -> Ranges:
    """The ranges of every floating tensor that the main graph of `model` takes or writes.

    half: its float32 tensors are going to be float16. cases: the inputs, by default `SEEN` drawn ones.
    Raises GraphError where the graph cannot run, CannotJudgeError where memory runs out or an operator is not known.
    """
    cases = draw_cases(specs, count=SEEN) if cases is None else cases
    names = {value.name or "" for node in model.graph for value in node.outputs}
    inputs = [value.name or "" for value in model.graph.inputs]
    seen: dict[str, list[tuple[int, Range]]] = {}

    def keep(name: str, array: Array) -> None:
        if name in names and array.size:
            seen.setdefault(name, []).append((array.size, range_of(array)))

    for case in cases:
        for name, array in case.fed_to(inputs).items():
            if array.dtype.kind == "f" and array.size:
                seen.setdefault(name, []).append((array.size, range_of(array.astype(np.float64))))
        graph_tensors(model, case, keep)
    return Ranges({name: _joined(found) for name, found in seen.items()}, half)


def range_of(array: Array) -> Range:
    """The range of one tensor. Masks and infinities, which no scale brings into range, count as 0."""
    finite = np.where(np.abs(array) < MASK, array, 0.0).astype(np.float64, copy=False)
    parts = [tuple(range(array.ndim))]
    parts += [tuple(other for other in range(array.ndim) if other != axis) for axis in range(array.ndim)]

    def along(reduce: np.ufunc, values: Array) -> tuple[Array, ...]:
        return tuple(np.asarray(reduce.reduce(values, axis=axes, keepdims=True)) for axes in parts)

    def mean(values: Array) -> tuple[Array, ...]:
        return tuple(np.asarray(np.mean(values, axis=axes, keepdims=True)) for axes in parts)

    return Range(along(np.minimum, finite), along(np.maximum, finite), mean(finite), mean(np.square(finite)))


def _joined(found: Sequence[tuple[int, Range]]) -> Range:
    """One range out of those of several inputs, which counted so many elements each."""
    sizes = np.array([size for size, _ in found], dtype=np.float64)
    shares = sizes / sizes.sum()
    ranges = [part for _, part in found]

    def averaged(parts: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
        weighted = [[share * array for array in part] for share, part in zip(shares, parts, strict=True)]
        return tuple(_merged(column, np.add, np.mean) for column in zip(*weighted, strict=True))

    return Range(
        tuple(_merged(column, np.minimum, np.min) for column in zip(*(part.lowest for part in ranges), strict=True)),
        tuple(_merged(column, np.maximum, np.max) for column in zip(*(part.highest for part in ranges), strict=True)),
        averaged([part.mean for part in ranges]),
        averaged([part.square for part in ranges]),
    )


def _merged(arrays: Iterable[Array], merge: np.ufunc, collapse: Callable[..., Array]) -> Array:
    """Merge entry by entry; where the inputs had several sizes of the axis, the axis is collapsed before."""
    arrays = list(arrays)
    if len({array.shape for array in arrays}) > 1:
        arrays = [np.asarray(collapse(array, keepdims=True)) for array in arrays]
    found = arrays[0]
    for array in arrays[1:]:
        found = merge(found, array)
    return found
