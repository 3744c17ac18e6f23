"""A grid of our own: operators over their attributes, shapes and opsets, one literal row a form.

The families are files; a row is written as rows.py says.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from tests.graph.evaluator import backend
from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid import (
    attention,
    control,
    convolution,
    layout,
    matrix,
    microsoft,
    ml,
    normalisation,
    optimised,
    pointwise,
    pooling,
    quantised,
    recurrent,
    reductions,
    resize,
    transforms,
    words,
)
from tests.graph.evaluator.grid.rows import numbered

FAMILIES: tuple[ModuleType, ...] = (
    attention,
    control,
    convolution,
    layout,
    matrix,
    microsoft,
    ml,
    normalisation,
    optimised,
    pointwise,
    pooling,
    quantised,
    recurrent,
    reductions,
    resize,
    transforms,
    words,
)


def cases() -> Iterator[Case]:
    """Every row, at the newest opset that accepts it."""
    for family in FAMILIES:
        yield from numbered(family.__name__.rpartition(".")[2], family.cases())


def variants(case: Case) -> Iterator[Case]:
    """A row at every opset that means something else, in float32, float64 and float16."""
    return backend.variants(case, convert=False)
