"""To integers and back: per tensor, per axis, per block, in every width."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from onnx import TensorProto

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import F, N, U, V, const, row, text

WIDTHS = (np.int8, np.uint8, np.int16, np.uint16)
EXACT = V(0.25, 0.75, 1.25, -0.25, -0.75, -1.25, 1.75, 2.25, 1000.0, -1000.0, 0.0)


def cases() -> Iterator[Case]:
    yield from there()
    yield from back()
    yield from dynamic()
    yield from narrow()
    yield from to_half()


def there() -> Iterator[Case]:
    for dtype in WIDTHS:
        # Halves exactly, so that nothing hangs on the last digit: ties go to the even step.
        yield row("QuantizeLinear", EXACT, V(0.5).reshape(()), np.asarray(3, dtype), note="ties")
        yield row("QuantizeLinear", U(-9, 9, 3, 4, 5), V(0.1).reshape(()), np.asarray(2, dtype))
        for axis in (0, 1, 2, -1, None):
            size = (3, 4, 5)[1 if axis is None else axis]
            yield row("QuantizeLinear", U(-9, 9, 3, 4, 5), U(0.05, 0.3, size), N(0, 9, size, dtype=dtype), axis=axis)
        for axis, block in ((1, 2), (2, 3), (-1, 2), (0, 3)):
            shape = [3, 4, 5]
            shape[axis] = -(-shape[axis] // block)
            forms = {"axis": axis, "block_size": block}
            yield row("QuantizeLinear", U(-9, 9, 3, 4, 5), U(0.05, 0.3, *shape), N(0, 9, *shape, dtype=dtype), **forms)
    yield row("QuantizeLinear", EXACT, V(0.5).reshape(()), note="ties")
    yield row("QuantizeLinear", EXACT, V(0.5))
    for kind in (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16):
        yield row("QuantizeLinear", EXACT, V(0.5).reshape(()), output_dtype=kind)
    yield row("QuantizeLinear", N(-900, 900, 3, 4, dtype=np.int32), V(3.0).reshape(()), np.asarray(5, np.uint8))
    yield row("QuantizeLinear", V(np.inf, -np.inf, 1e30, -1e30), V(0.5).reshape(()), np.asarray(3, np.uint8))


def back() -> Iterator[Case]:
    for dtype in (*WIDTHS, np.int32):
        low = 0 if np.dtype(dtype).kind == "u" else -99
        x = N(low, 100, 3, 4, 5, dtype=dtype)
        zero = 0 if dtype == np.int32 else 3
        yield row("DequantizeLinear", x, V(0.1).reshape(()), np.asarray(zero, dtype))
        yield row("DequantizeLinear", x, V(0.1).reshape(()))
        yield row("DequantizeLinear", x, V(0.1), V(zero, dtype=dtype))
        for axis in (0, 1, 2, -1, None):
            size = (3, 4, 5)[1 if axis is None else axis]
            points = N(0, zero + 1, size, dtype=dtype)
            yield row("DequantizeLinear", x, U(0.05, 0.3, size), points, axis=axis)
            yield row("DequantizeLinear", x, U(0.05, 0.3, size), axis=axis)
        for axis, block in ((1, 2), (2, 3), (-1, 2), (0, 3)):
            shape = [3, 4, 5]
            shape[axis] = -(-shape[axis] // block)
            points = N(0, zero + 1, *shape, dtype=dtype)
            yield row("DequantizeLinear", x, U(0.05, 0.3, *shape), points, axis=axis, block_size=block)


def to_half() -> Iterator[Case]:
    """Scales of float32, results of float16, which opset 23 has."""
    x, scale = N(0, 200, 3, 4, dtype=np.uint8), U(0.05, 0.3, 4)
    yield row("DequantizeLinear", x, scale, N(0, 9, 4, dtype=np.uint8), axis=1, output_dtype=TensorProto.FLOAT16)
    yield row(
        "QuantizeLinear", U(-9, 9, 3, 4), V(0.5), axis=1, output_dtype=TensorProto.INT8, precision=TensorProto.FLOAT
    )


def dynamic() -> Iterator[Case]:
    for low, high in ((-3, 5), (0.5, 4), (-4, -0.5), (0, 0)):
        yield row("DynamicQuantizeLinear", U(low, high, 3, 4), outputs=3)
    yield row("DynamicQuantizeLinear", V(-1.0, 0.0, 1.5, 2.0), outputs=3)


def narrow() -> Iterator[Case]:
    """Types of eight bits of float, and of four: behind Casts, as numpy has none of them."""
    kinds = ("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz")
    numbers = V(0.1, -0.3, 1.7, 240.0, 447.0, 500.0, -70000.0, 1e-4, 0.0, -0.0, np.nan, np.inf)
    for kind, saturate in product(kinds, (0, 1)):
        source = f"""<ir_version: 10, opset_import: ["" : 21]> g (float[12] x) => (float[12] y) {{
            n = Cast<to = {kind_of(kind)}, saturate = {saturate}>(x)
            y = Cast<to = 1>(n)
        }}"""
        yield text(source, note=f"Cast {kind} saturate={saturate}", x=numbers)
        source = f"""<ir_version: 10, opset_import: ["" : 21]> g (float[12] x, float s) => (float[12] y) {{
            zero = Constant<value_float = 0.0>()
            point = Cast<to = {kind_of(kind)}>(zero)
            q = QuantizeLinear<saturate = {saturate}>(x, s, point)
            y = DequantizeLinear(q, s, point)
        }}"""
        yield text(
            source,
            note=f"QuantizeLinear {kind} saturate={saturate}",
            x=numbers[:10].repeat(2)[:12],
            s=V(0.5).reshape(()),
        )
    for kind in ("int4", "uint4", "bfloat16"):
        small = V(0, 1, 2, 7, 3, 5) if kind == "uint4" else V(0, -1, 2, 7, -8, 5)
        source = f"""<ir_version: 10, opset_import: ["" : 21]> g (float[6] x) => (float[6] y) {{
            n = Cast<to = {kind_of(kind)}>(x)
            y = Cast<to = 1>(n)
        }}"""
        yield text(source, note=f"Cast {kind}", x=small)
    for kind in ("int4", "uint4"):
        source = f"""<ir_version: 10, opset_import: ["" : 21]> g (float[2,6] x, float[2] s) => (float[2,6] y) {{
            points = Constant<value = float[2] {{1.0, 2.0}}>()
            point = Cast<to = {kind_of(kind)}>(points)
            q = QuantizeLinear<axis = 0>(x, s, point)
            y = DequantizeLinear<axis = 0>(q, s, point)
        }}"""
        yield text(source, note=f"QuantizeLinear {kind}", x=F(2, 6), s=const(U(0.1, 0.4, 2)))


def kind_of(name: str) -> int:
    return int(TensorProto.DataType.Value(name.upper()))
