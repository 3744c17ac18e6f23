"""The ONNX project's own tests, folded and run: what tests/test_onnx_backend.py and benchmarks/onnx_backend.py share.

A case counts when onnxruntime itself reproduces its recorded outputs within its recorded tolerances (it lacks some
operators and types, and outputs drawn at random are nobody's to reproduce); models from before opset 7 after the ONNX
project's own converter has raised them. It is then folded, and the folded graph has to reproduce them too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.backend.test
import onnx.version_converter
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from normfold.analysis.analyse import analyse
from normfold.errors import NormfoldError
from normfold.graph.prepare import prepare
from normfold.graph.types import OLDEST_OPSET
from normfold.rewrite.graph import rewrite

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")

Verdict = Literal["not run", "refused", "right", "wrong", "crashed"]
DataSet = tuple[list[Any], list[Any]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case. norms, folded: how many were found, and folded whole or in part. why: what was said."""

    case: TestCase
    verdict: Verdict
    changed: bool = False
    norms: int = 0
    folded: int = 0
    why: str = ""


@cache
def cases() -> tuple[TestCase, ...]:
    """Every case with a model of its own, in the order of `KINDS`, then by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they compute their outputs on loading, with overflows that are meant
        found = [case for kind in KINDS[:-1] for case in sorted(load_model_tests(kind=kind), key=lambda c: c.name)]
        real = sorted(load_model_tests(kind="real"), key=lambda c: c.name)
    return (*found, *(replace(case, kind="light") for case in real))


def folder_of(case: TestCase) -> Path | None:
    """Where the files of a case are; None where it is in memory."""
    if case.model is not None:
        return None
    if case.model_dir is not None:
        return Path(case.model_dir)
    return Path(onnx.__file__).parent.parent / str(case.url)


def model_of(case: TestCase) -> onnx.ModelProto:
    place = folder_of(case)
    if place is None:
        return case.model
    return onnx.load(place if place.suffix == ".onnx" else place / "model.onnx")


def check(case: TestCase) -> Outcome:
    """Fold one case and hold it against its recorded outputs."""
    original = model_of(case)
    try:
        data = list(_data(case, original))
        problem = _compare(case, _raised(original), data) if data else "no recorded outputs"
    except Exception as error:  # onnxruntime's classes share no base; whatever it says, it does not run this
        return Outcome(case, "not run", why=_line(error))
    if problem:
        return Outcome(case, "not run", why=problem)
    try:
        graph = prepare(ir.from_proto(original))
        plan = analyse(graph)
        folded = ir.to_proto(rewrite(graph, plan))
    except NormfoldError as error:
        return Outcome(case, "refused", why=_line(error))
    except Exception as error:
        return Outcome(case, "crashed", why=_line(error))
    counts = len(plan.sites), sum(site.status != "kept" for site in plan.sites)
    try:
        problem = _compare(case, folded, data)
    except Exception as error:  # as above, of a graph that was run before it was folded
        problem = _line(error)
    return Outcome(case, "wrong" if problem else "right", not plan.is_empty, *counts, problem)


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """onnxruntime lacks half of the operators from before opset 7; the ONNX project's converter raises them."""
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OLDEST_OPSET)
    return model if version >= OLDEST_OPSET else onnx.version_converter.convert_version(model, OLDEST_OPSET)


def _compare(case: TestCase, model: onnx.ModelProto, data: Sequence[DataSet]) -> str:
    """What is wrong with the outputs of `model`; empty where they are the recorded ones."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for inputs, expected in data:
        found = session.run(None, dict(zip(names, inputs, strict=False)))
        try:
            Runner.assert_similar_outputs(expected, found, rtol=case.rtol, atol=case.atol)
        except (AssertionError, TypeError, AttributeError) as error:
            return _line(error)
    return ""


def _data(case: TestCase, model: onnx.ModelProto) -> Iterator[DataSet]:
    place = folder_of(case)
    if place is None:
        for inputs, outputs in case.data_sets or ():
            yield [_array(value) for value in inputs], [_array(value) for value in outputs]
    elif place.suffix == ".onnx":
        yield _dummy_inputs(model), _recorded(place, model)
    else:
        for folder in sorted(place.glob("test_data_set*")):
            yield _read(folder, "input", model.graph.input), _read(folder, "output", model.graph.output)


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _dummy_inputs(model: onnx.ModelProto) -> list[Any]:
    """What the ONNX project's runner feeds the light models."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [Runner.generate_dummy_data(value) for value in model.graph.input if value.name not in stored]


def _recorded(place: Path, model: onnx.ModelProto) -> list[Any]:
    stem = place.with_suffix("")
    return [_tensor(Path(f"{stem}_output_{number}.pb")) for number in range(len(model.graph.output))]


def _read(folder: Path, stem: str, values: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    count = len(list(folder.glob(f"{stem}_*.pb")))
    return [_proto(folder / f"{stem}_{number}.pb", values[number].type) for number in range(count)]


def _proto(file: Path, kind: onnx.TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(file.read_bytes()))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(file.read_bytes()))
    return _tensor(file)


def _tensor(file: Path) -> Any:
    return np.asarray(numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
