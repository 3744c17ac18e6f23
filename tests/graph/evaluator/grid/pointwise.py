"""Operators on each element: activations, arithmetic, comparison, clipping, casting."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from onnx import TensorProto, helper

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import B, F, N, S, U, V, const, row

SPECIAL = V(np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.7, -3.7, 80.0, -80.0)
SIGNED = (np.int8, np.int16, np.int32, np.int64)
UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)
INTEGERS = (*SIGNED, *UNSIGNED)

# Every unary operator, and where its argument may lie.
ANYWHERE = (
    "Abs",
    "Neg",
    "Ceil",
    "Floor",
    "Round",
    "Sign",
    "Exp",
    "Erf",
    "Sin",
    "Cos",
    "Tan",
    "Sinh",
    "Cosh",
    "Asinh",
    "Atan",
    "Tanh",
    "Sigmoid",
    "Relu",
    "Softplus",
    "Softsign",
    "Selu",
    "HardSwish",
    "Mish",
    "Gelu",
    "Identity",
    "Elu",
    "Celu",
    "LeakyRelu",
    "ThresholdedRelu",
    "HardSigmoid",
    "Shrink",
    "Swish",
    "IsNaN",
    "IsInf",
    "Reciprocal",
)
WITHIN = {
    "Sqrt": (0.0, 9.0),
    "Log": (0.01, 9.0),
    "Asin": (-1, 1),
    "Acos": (-1, 1),
    "Atanh": (-0.99, 0.99),
    "Acosh": (1.01, 9),
}
ATTRIBUTES = [
    ("Elu", {"alpha": 0.3}),
    ("Elu", {"alpha": -1.7}),
    ("Celu", {"alpha": 2.5}),
    ("Celu", {"alpha": 0.25}),
    ("Selu", {"alpha": 1.1, "gamma": 2.0}),
    ("LeakyRelu", {"alpha": 0.3}),
    ("LeakyRelu", {"alpha": -0.3}),
    ("LeakyRelu", {"alpha": 0.0}),
    ("ThresholdedRelu", {"alpha": 0.4}),
    ("ThresholdedRelu", {"alpha": -0.4}),
    ("HardSigmoid", {"alpha": 0.4, "beta": 0.1}),
    ("HardSigmoid", {"alpha": -0.4, "beta": 0.9}),
    ("Shrink", {"lambd": 0.3, "bias": 0.2}),
    ("Shrink", {"bias": 1.0}),
    ("Gelu", {"approximate": "tanh"}),
    ("Gelu", {"approximate": "none"}),
    ("Swish", {"alpha": 1.702}),
    ("IsInf", {"detect_negative": 0}),
    ("IsInf", {"detect_positive": 0}),
    ("IsInf", {"detect_positive": 0, "detect_negative": 0}),
]

ARITHMETIC = ("Add", "Sub", "Mul", "Div")
COMPARISON = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
BROADCASTS = [
    ((2, 3, 4), (2, 3, 4)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 3, 4)),
    ((3, 1), (1, 4)),
    ((2, 3, 4), ()),
    ((), ()),
    ((1, 3, 1, 1), (2, 1, 4, 5)),
    ((0, 3), (1, 3)),
    ((2, 0), ()),
]


def cases() -> Iterator[Case]:
    yield from unary()
    yield from binary()
    yield from variadic()
    yield from integers()
    yield from logic()
    yield from clip()
    yield from cast()
    yield from choice()


def unary() -> Iterator[Case]:
    for op in ANYWHERE:
        for shape in ((), (0, 3), (3, 4, 5)):
            yield row(op, F(*shape))
        yield row(op, SPECIAL)
        yield row(op, U(-9.0, 9.0, 64))
    for op, (low, high) in WITHIN.items():
        for shape in ((), (0, 3), (3, 4, 5)):
            yield row(op, U(low, high, *shape))
        yield row(op, SPECIAL)
    for op, attributes in ATTRIBUTES:
        yield row(op, F(3, 4, 5), **attributes)
        yield row(op, SPECIAL, **attributes)
    for op, dtype in product(("Abs", "Neg", "Sign", "Relu", "Identity", "Shrink"), INTEGERS):
        yield row(op, N(0 if dtype in UNSIGNED else -5, 6, 3, 4, dtype=dtype))
    yield row("Abs", V(-(2**31) + 1, 2**31 - 1, dtype=np.int32))
    for shape, slope in [
        ((2, 3, 4), (4,)),
        ((2, 3, 4), (3, 1)),
        ((2, 3, 4), (1,)),
        ((2, 3, 4), ()),
        ((2, 3, 4), (2, 3, 4)),
    ]:
        yield row("PRelu", F(*shape), F(*slope))
    yield row("PRelu", N(-5, 6, 3, 4, dtype=np.int32), N(2, 4, 4, dtype=np.int32))
    for ratio in (None, 0.3):
        yield row("Dropout", F(3, 4), ratio=ratio)
        yield row("Dropout", F(3, 4), ratio=ratio, outputs=2)
    yield row("Dropout", F(3, 4), const(V(0.5).reshape(())), const(np.asarray(False)), outputs=2)
    yield row("Dropout", F(3, 4), const(V(0.0).reshape(())), const(np.asarray(True)), outputs=2)


def binary() -> Iterator[Case]:
    for (left, right), op in product(BROADCASTS, (*ARITHMETIC, *COMPARISON)):
        yield row(op, F(*left), F(*right))
    for op in (*ARITHMETIC, *COMPARISON, "Pow"):
        yield row(op, SPECIAL.reshape(-1, 1), SPECIAL)
    for op in COMPARISON:
        yield row(op, V(1, 2, 3), V(1, 3, 2))
    for left, right in BROADCASTS:
        yield row("Pow", U(0.1, 3.0, *left), F(*right))
    for base, power in [(np.float32, np.int32), (np.float32, np.int64), (np.int32, np.float32), (np.int64, np.int64)]:
        yield row("Pow", V(1, 2, 3, 5, dtype=base), V(0, 1, 2, 3, dtype=power))
    for base, power in [(np.int32, np.int32), (np.int32, np.int64), (np.int64, np.float32), (np.float64, np.float32)]:
        yield row("Pow", V(-3, 2, 0, 5, dtype=base), V(3, 2, 1, 0, dtype=power))
    yield row("Pow", V(-2, -2, -2, 4, 9), V(2, 3, -1, 0.5, -0.5))
    yield row("Pow", V(-2, -2, 5), 2.0)
    yield row("Pow", V(2, 3, 5), 0.5)
    yield row("Equal", S("a", "b", "c"), S("a", "c", "c"))
    yield row("Equal", S(["a"], ["b"]), S("a", "b"))
    for fmod, dtype in product((0, 1), (*INTEGERS, np.float32, np.float64)):
        low = 0 if dtype in UNSIGNED else -7
        divisor = V(3, 2, 5, 7, dtype=dtype) * (V(1, -1, 1, -1) if low else V(1, 1, 1, 1)).astype(dtype)
        yield row("Mod", N(low, 9, 6, 4, dtype=dtype), divisor, fmod=fmod)
    yield row("Mod", U(-9, 9, 5, 4), V(2.5, -2.5, 0.7, -0.7), fmod=1)
    for direction, dtype in product(("LEFT", "RIGHT"), UNSIGNED):
        yield row("BitShift", V(1, 8, 255, 100, dtype=dtype), V(1, 2, 3, 7, dtype=dtype), direction=direction)


def variadic() -> Iterator[Case]:
    for op in ("Sum", "Mean", "Max", "Min"):
        yield row(op, F(3, 4))
        yield row(op, F(3, 4), F(3, 4))
        yield row(op, F(3, 1), F(4), F(2, 1, 1))
        yield row(op, F(3, 4), F(), F(4), F(3, 1))
        yield row(op, SPECIAL.reshape(-1, 1), SPECIAL)
        yield row(op, F(0, 3), F(3))
    for op, dtype in product(("Max", "Min"), INTEGERS):
        low = 0 if dtype in UNSIGNED else -5
        yield row(op, N(low, 6, 3, 4, dtype=dtype), N(low, 6, 4, dtype=dtype))
        yield row(op, N(low, 6, 3, 4, dtype=dtype))


def integers() -> Iterator[Case]:
    """Integer arithmetic: division truncates, unsigned and narrow types wrap around."""
    for op, dtype in product(ARITHMETIC, INTEGERS):
        low = 0 if dtype in UNSIGNED else -9
        yield row(op, N(low, 10, 5, 4, dtype=dtype), V(3, 2, 5, 7, dtype=dtype))
        if low:
            yield row(op, N(low, 10, 5, 4, dtype=dtype), V(-3, 2, -5, 7, dtype=dtype))
    for op, dtype in product(("Add", "Sub", "Mul"), (np.int32, np.int64, np.uint8, np.uint32, np.uint64)):
        limits = np.iinfo(dtype)
        yield row(op, V(limits.max, limits.min, limits.max, dtype=dtype), V(1, 1, 3, dtype=dtype))
    for op, dtype in product(COMPARISON, INTEGERS):
        low = 0 if dtype in UNSIGNED else -3
        yield row(op, N(low, 4, 5, 4, dtype=dtype), N(low, 4, 4, dtype=dtype))
    yield row("Greater", V(2**64 - 1, 2**63, 1, dtype=np.uint64), V(2**63, 2**64 - 1, 2, dtype=np.uint64))
    yield row("Max", V(2**64 - 1, 2**63, 1, dtype=np.uint64), V(2**63, 2**64 - 1, 2, dtype=np.uint64))
    yield row("Div", V(2**64 - 1, 2**63, dtype=np.uint64), V(3, 2, dtype=np.uint64))


def logic() -> Iterator[Case]:
    for op in ("And", "Or", "Xor", "Equal"):
        yield row(op, B(3, 4), B(3, 4))
        yield row(op, B(3, 4), B(4))
        yield row(op, B(3, 1), B())
    yield row("Not", B(3, 4))
    yield row("Not", B())
    for op, dtype in product(("BitwiseAnd", "BitwiseOr", "BitwiseXor"), INTEGERS):
        low = 0 if dtype in UNSIGNED else -50
        yield row(op, N(low, 51, 3, 4, dtype=dtype), N(low, 51, 4, dtype=dtype))
    for dtype in INTEGERS:
        yield row("BitwiseNot", N(0 if dtype in UNSIGNED else -50, 51, 3, 4, dtype=dtype))


def clip() -> Iterator[Case]:
    for low, high in [(None, None), (-0.5, None), (None, 0.5), (-0.5, 0.5), (0.5, -0.5)]:
        yield row("Clip", F(3, 4), min=low, max=high)
        yield row("Clip", SPECIAL, min=low, max=high)
        bounds = [None if bound is None else const(np.asarray(bound, np.float32)) for bound in (low, high)]
        yield row("Clip", F(3, 4), *bounds)
        yield row("Clip", SPECIAL, *bounds)
        fed = [None if bound is None else np.asarray(bound, np.float32) for bound in (low, high)]
        yield row("Clip", F(0, 4), *fed)
    for dtype in INTEGERS:
        yield row("Clip", N(0, 10, 3, 4, dtype=dtype), np.asarray(2, dtype), np.asarray(7, dtype))
        yield row("Clip", N(0, 10, 3, 4, dtype=dtype), None, np.asarray(7, dtype))


NUMBERS = (*INTEGERS, np.float16, np.float32, np.float64, np.bool_)


def cast() -> Iterator[Case]:
    """All pairs of types, with numbers that both hold; what is outside a type has no defined value."""
    for source, target in product(NUMBERS, NUMBERS):
        numbers = [0, 1, 2, 100] if source is not np.bool_ else [0, 1, 1, 0]
        if source not in (*UNSIGNED, np.bool_) and target not in UNSIGNED:
            numbers = [0, 1, -2, -100]
        yield row("Cast", np.asarray(numbers, source), to=helper.np_dtype_to_tensor_dtype(np.dtype(target)))
    for source, target in product((np.float16, np.float32, np.float64), (*INTEGERS, np.bool_)):
        fractions = V(0.5, 1.5, 2.5, 3.9, 0.1, dtype=source)
        signed = fractions if target in UNSIGNED else V(0.5, -0.5, -1.5, -3.9, 0.0, dtype=source)
        yield row("Cast", fractions, to=helper.np_dtype_to_tensor_dtype(np.dtype(target)))
        yield row("Cast", signed, to=helper.np_dtype_to_tensor_dtype(np.dtype(target)))
        yield row("CastLike", fractions, np.asarray([1], target))
    yield row("Cast", V(np.nan, np.inf, -np.inf), to=TensorProto.BOOL)
    yield row("Cast", V(300, -1, 1000, dtype=np.int64), to=TensorProto.UINT8)
    yield row("Cast", V(2**33 + 5, -(2**31) - 1, dtype=np.int64), to=TensorProto.INT32)
    for target in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64):
        yield row("Cast", S("1", "-2", "3"), to=target)
    yield row("Cast", S("1.5", "-2e3", "NaN", "INF", "-INF", "0.1"), to=TensorProto.FLOAT)
    yield row("Cast", V(1.5, -2000.25, 0.0, 1e-3), to=TensorProto.STRING)
    yield row("Cast", V(np.nan, np.inf, -np.inf, 1e30, 123456789.0, 0.1), to=TensorProto.STRING)
    yield row("Cast", V(0.1, 1.0, 1e300, dtype=np.float64), to=TensorProto.STRING)
    yield row("Cast", V(-5, 7, dtype=np.int64), to=TensorProto.STRING)
    yield row("Cast", V(True, False, dtype=np.bool_), to=TensorProto.STRING)
    yield row("Cast", V(1.0, 0.3, 70000.0, -70000.0, 1e-9), to=TensorProto.FLOAT16)


def choice() -> Iterator[Case]:
    for shapes in [((3, 4), (3, 4), (3, 4)), ((4,), (3, 1), ()), ((2, 1, 1), (3, 1), (4,)), ((0, 3), (3,), (1, 3))]:
        condition, left, right = shapes
        yield row("Where", B(*condition), F(*left), F(*right))
    for dtype in (*INTEGERS, np.bool_):
        yield row("Where", B(3, 4), N(0, 2, 3, 4, dtype=dtype), N(0, 2, 4, dtype=dtype))
    yield row("Where", B(3), S("a", "b", "c"), S("d"))
    yield row("Where", V(True, False, True, dtype=np.bool_), V(np.nan, 1, np.inf), V(1, np.nan, 0))
