"""The ONNX project's own tests as cases: at every opset with other schemas, and in float64 and float16."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import TensorProto

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.variants import OLDEST, carried, opset_of, opsets, retyped
from tests.random import onnx_backend

# Networks of the light kind: the smallest that has each operator.
LIGHT = ("squeezenet", "shufflenet", "densenet121", "inception_v2")
# float16 rounds every intermediate tensor: only where there are few.
MOST_NODES_FLOAT16 = 3


def cases(kinds: tuple[str, ...] = onnx_backend.KINDS) -> Iterator[Case]:
    """Every case of these kinds that has recorded inputs, as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for test in onnx_backend.cases():
            if test.kind in kinds and (test.kind != "light" or any(name in test.name for name in LIGHT)):
                yield from _own(test)


def variants(case: Case, *, convert: bool = True) -> Iterator[Case]:
    """The case at every opset that means something else, each in float32, float64 and float16."""
    for found in opsets(case, convert=convert):
        yield found
        for target in (TensorProto.DOUBLE, TensorProto.FLOAT16):
            if target == TensorProto.DOUBLE or len(found.model.graph.node) <= MOST_NODES_FLOAT16:
                other = retyped(found, target)
                if other is not None:
                    yield other


def _own(test: Any) -> Iterator[Case]:
    model = onnx_backend.model_of(test)
    stored = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in stored]
    if (opset_of(model) or OLDEST) < OLDEST:
        model = onnx.version_converter.convert_version(model, OLDEST)
    for number, (inputs, outputs) in enumerate(onnx_backend._data(test, onnx_backend.model_of(test))):
        feeds = dict(zip(names, inputs, strict=False))
        name = f"{test.kind}/{test.name}" + (f" {number}" if number else "")
        yield carried(Case(name, model, feeds, outputs, test.rtol, test.atol))
