"""Sparse initializers as dense ones: few tools read the sparse form, and onnx-ir does not."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from normfold.errors import GraphError

# Elements that a sparse initializer may have when it is written out: 1 GiB in float64.
LARGEST = 1 << 27


def densify(model: onnx.ModelProto, path: object) -> None:
    """Replace the sparse initializers of the main graph by dense ones, in place. Raises GraphError."""
    for sparse in model.graph.sparse_initializer:
        name, elements = sparse.values.name, math.prod(sparse.dims)
        if elements > LARGEST:
            raise GraphError(f"{path}: the sparse initializer {name!r} has {elements} elements; {LARGEST} can be read.")
        try:
            values = numpy_helper.to_array(sparse.values).reshape(-1)
            places = numpy_helper.to_array(sparse.indices)
            dense = np.zeros(tuple(sparse.dims), dtype=values.dtype)
            dense[np.unravel_index(places, dense.shape) if places.ndim == 1 else tuple(places.T)] = values
        except (ValueError, IndexError, TypeError) as error:
            raise GraphError(f"{path}: the sparse initializer {name!r} is malformed: {error}.") from error
        model.graph.initializer.append(numpy_helper.from_array(dense, name))
    model.graph.ClearField("sparse_initializer")
