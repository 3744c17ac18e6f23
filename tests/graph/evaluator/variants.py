"""The same case at other opsets, in other floating types, and with types that numpy lacks behind Casts.

A model is set to every other opset whose schemas accept its nodes; where they do not, the ONNX project's converter is
asked to lower or raise it. Opsets with the same schemas for all operators of the model are the same case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from tests.graph.evaluator.agreement import Case, Operator, operators_of, since

OLDEST = 7
NEWEST = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": onnx.defs.onnx_ml_opset_version()}
# What onnxruntime adds to the standard's domain, some of it before the standard has it.
RUNTIME_ONLY = frozenset(
    {s.name for s in runtime.get_all_operator_schema() if s.domain == "" and s.since_version == 1}
    - {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == "" and s.since_version == 1}
)
FLOATS = {TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16}
# Types that onnxruntime's Python cannot be fed: they go in and come out as a type that holds all their values.
CARRIERS = {
    TensorProto.BFLOAT16: TensorProto.FLOAT,
    TensorProto.FLOAT8E4M3FN: TensorProto.FLOAT,
    TensorProto.FLOAT8E4M3FNUZ: TensorProto.FLOAT,
    TensorProto.FLOAT8E5M2: TensorProto.FLOAT,
    TensorProto.FLOAT8E5M2FNUZ: TensorProto.FLOAT,
    TensorProto.FLOAT4E2M1: TensorProto.FLOAT,
    TensorProto.INT4: TensorProto.INT8,
    TensorProto.UINT4: TensorProto.UINT8,
}


def opsets(case: Case, *, convert: bool = True) -> Iterator[Case]:
    """The case as it is, then at every opset that means something else for it."""
    yield case
    seen = {schemas_of(case.model)}
    for domain, newest in NEWEST.items():
        if opset_of(case.model, domain) is None:
            continue
        for version in range(OLDEST if domain == "" else 1, newest + 1):
            schemas = schemas_of(case.model, {domain: version})
            if schemas in seen:
                continue
            seen.add(schemas)
            model = _stamped(case.model, domain, version)
            if not accepted(model):
                converted = _converted(case.model, version) if convert and domain == "" else None
                if converted is None or not accepted(converted) or schemas_of(converted) in seen - {schemas}:
                    continue
                seen.add(schemas_of(converted))
                model = converted
            yield replace(case, name=f"{case.name}, opset {version}", model=model, recorded=None)


def schemas_of(model: onnx.ModelProto, instead: Mapping[str, int] = MappingProxyType({})) -> frozenset[Operator]:
    """The schemas in force for the operators of a model, with these opsets in the place of its own."""
    opsets = {domain: opset_of(model, domain) or 1 for domain in NEWEST} | dict(instead)
    return frozenset(
        (domain, name, since(domain, name, opsets[domain]) if domain in opsets else version)
        for domain, name, version in operators_of(model)
    )


def opset_of(model: onnx.ModelProto, domain: str = "") -> int | None:
    """The opset that a model imports; None where it does not."""
    names = ("", "ai.onnx") if domain == "" else (domain,)
    return next((entry.version for entry in model.opset_import if entry.domain in names), None)


def accepted(model: onnx.ModelProto, *, deprecated: bool = True) -> bool:
    """Whether the schemas in force know every attribute and number of inputs of the model's nodes.

    deprecated: whether an operator that the standard has done away with will do; onnxruntime may run it all the same.
    """
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in model.opset_import}
    try:
        for node in model.graph.node:
            if node.op_type not in RUNTIME_ONLY or onnx.defs.has(node.op_type, context.opset_imports.get("", 1), ""):
                onnx.checker.check_node(node, context)
    except onnx.checker.ValidationError as error:
        return deprecated and "deprecated" in str(error)
    return True


def retyped(case: Case, target: int) -> Case | None:
    """The case with float64 (or float16) where it has float32; None where there is nothing to exchange."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    types = {value.type.tensor_type.elem_type for value in model.graph.input}
    if not types & {TensorProto.FLOAT} or types & (set(FLOATS) | set(CARRIERS)):
        return None
    fixed = _fixed(model, target)
    for graph in _graphs(model):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.name not in fixed:
                _retype(value.type, target)
        for tensor in graph.initializer:
            if tensor.name not in fixed:
                _recast(tensor, target)
        for sparse in graph.sparse_initializer:
            _recast(sparse.values, target)
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _recast(attribute.t, target)
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = target
    dtype = FLOATS[target]
    feeds = {name: value if name in fixed else _cast(value, dtype) for name, value in case.feeds.items()}
    return replace(case, name=f"{case.name}, {np.dtype(FLOATS[target]).name}", model=model, feeds=feeds, recorded=None)


def carried(case: Case) -> Case:
    """The case with Casts around inputs and outputs of types that numpy and onnxruntime's Python do not share."""
    graph = case.model.graph
    touched = [value for value in (*graph.input, *graph.output) if value.type.tensor_type.elem_type in CARRIERS]
    if not touched or (opset_of(case.model) or 0) < 13:
        return case
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    before, after = [], []
    feeds = dict(case.feeds)
    for value in model.graph.input:
        kind = value.type.tensor_type.elem_type
        if kind in CARRIERS:
            value.type.tensor_type.elem_type = CARRIERS[kind]
            before.append(helper.make_node("Cast", [value.name], [f"{value.name}_narrow"], to=kind))
            model.graph.value_info.append(helper.make_tensor_value_info(f"{value.name}_narrow", kind, None))
            dtype = helper.tensor_dtype_to_np_dtype(CARRIERS[kind])
            feeds[value.name] = np.asarray(feeds[value.name]).astype(dtype)
    for value in model.graph.output:
        kind = value.type.tensor_type.elem_type
        if kind in CARRIERS:
            value.type.tensor_type.elem_type = CARRIERS[kind]
            after.append(helper.make_node("Cast", [f"{value.name}_narrow"], [value.name], to=CARRIERS[kind]))
            model.graph.value_info.append(helper.make_tensor_value_info(f"{value.name}_narrow", kind, None))
    renamed = {node.input[0]: node.output[0] for node in before}
    written = {node.output[0]: node.input[0] for node in after}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [written.get(name, name) for name in node.output]
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return replace(case, model=model, feeds=feeds)


def _stamped(model: onnx.ModelProto, domain: str, version: int) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for imports in (found.opset_import, *(function.opset_import for function in found.functions)):
        for entry in imports:
            if entry.domain == domain or (domain == "" and entry.domain == "ai.onnx"):
                entry.version = version
    return found


def _converted(model: onnx.ModelProto, version: int) -> onnx.ModelProto | None:
    if model.functions or any(entry.domain not in ("", "ai.onnx") for entry in model.opset_import):
        return None
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception:  # it has no base class for "no adapter", and breaks on what it does not know
        return None


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield model.graph
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    todo = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while todo:
        node = todo.pop()
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                todo.extend(attribute.g.node)
            for graph in attribute.graphs:
                todo.extend(graph.node)


def _fixed(model: onnx.ModelProto, target: int) -> set[str]:
    """Operands that have to stay float32, as the scales of Resize: their schemas know no other type."""
    wanted = f"tensor({TensorProto.DataType.Name(target).lower()})"
    found = set()
    for node in model.graph.node:
        opset = opset_of(model, node.domain)
        if opset is None or not onnx.defs.has(node.op_type, opset, node.domain):
            continue
        formal = onnx.defs.get_schema(node.op_type, opset, node.domain).inputs
        for number, name in enumerate(node.input):
            types = formal[min(number, len(formal) - 1)].types
            if "tensor(float)" in types and wanted not in types:
                found.add(name)
    return found


def _retype(kind: onnx.TypeProto, target: int) -> None:
    if kind.HasField("tensor_type") and kind.tensor_type.elem_type == TensorProto.FLOAT:
        kind.tensor_type.elem_type = target
    elif kind.HasField("sequence_type"):
        _retype(kind.sequence_type.elem_type, target)
    elif kind.HasField("optional_type"):
        _retype(kind.optional_type.elem_type, target)


def _recast(tensor: onnx.TensorProto, target: int) -> None:
    if tensor.data_type == TensorProto.FLOAT and tensor.data_location != TensorProto.EXTERNAL:
        array = numpy_helper.to_array(tensor).astype(FLOATS[target])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _cast(value: Any, dtype: Any) -> Any:
    if isinstance(value, list):
        return [_cast(item, dtype) for item in value]
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        with np.errstate(over="ignore"):
            return value.astype(dtype)
    return value
