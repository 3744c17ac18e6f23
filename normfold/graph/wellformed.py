"""Whether an ONNX file is a graph at all: checked once, before anything is made of it.

What comes after may then rely on it: every name is written once and before it is read, the operators of the standard
have the operands and attributes that their schema asks for, functions end, tensors hold what they say they hold, and
external data lies in the model's folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from normfold.errors import GraphError
from normfold.graph.types import STANDARD

# A function that calls another twice, and so on, makes 2^n operators of n functions.
MOST_OPERATORS = 2_000_000

# What fits into the integer in which schemas are looked up.
MOST_OPSET = 2**31 - 1

_Option = onnx.defs.OpSchema.FormalParameterOption
_SCHEMA_TYPES = {number: name for name, number in AttributeProto.AttributeType.items()}
# Types whose elements are not whole bytes, or are no numbers: their length is not checked.
_ODD_TYPES = frozenset({TensorProto.STRING, TensorProto.UNDEFINED})


def check_model(model: ModelProto, path: Path) -> None:
    """Raise GraphError for a file that is no well-formed graph: one sentence with what and where."""
    try:
        _check(model, path)
    except RecursionError as error:
        raise GraphError(f"{path}: its subgraphs are nested too deeply to be read.") from error


def _check(model: ModelProto, path: Path) -> None:
    if not model.graph.output or not model.graph.node:
        raise GraphError(f"{path} holds no graph: it has no operators or no outputs; is it a truncated ONNX file?")
    opsets = {entry.domain or "": entry.version for entry in model.opset_import}
    _check_functions(model, path)
    for name, version in opsets.items():
        if not 0 < version <= MOST_OPSET:
            raise GraphError(f"{path}: opset {version} of {name or 'the standard'} does not exist.")
    for function in model.functions:
        own = {entry.domain or "": entry.version for entry in function.opset_import}
        _check_nodes(function.node, set(function.input), own, path)
        _check_contents(function.node, path)
    _check_graph(model.graph, frozenset(), opsets, path)


def _check_graph(graph: GraphProto, outer: frozenset[str], opsets: dict[str, int], path: Path) -> None:
    inputs = [value.name for value in graph.input]
    stored = [tensor.name for tensor in graph.initializer] + [tensor.values.name for tensor in graph.sparse_initializer]
    for what, names in (("input", inputs), ("initializer", stored)):
        if twice := _repeated(names):
            raise GraphError(f"{path}: the graph has two {what}s named {twice!r}; the file is malformed.")
    if twice := _repeated([value.name for value in graph.output]):
        raise GraphError(f"{path}: the graph lists its output {twice!r} twice; the file is malformed.")
    for tensor in graph.initializer:
        _check_tensor(tensor, path)
    stored_dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        _check_parameters(node, stored_dims, path)
    known = _check_nodes(graph.node, set(outer) | set(inputs) | set(stored), opsets, path)
    _check_contents(graph.node, path)
    for value in (*graph.input, *graph.value_info, *graph.output):
        if (kind := _foreign_type(value.type)) is not None:
            raise GraphError(
                f"{path}: {value.name!r} holds a {kind} (as ZipMap of ai.onnx.ml makes them), and normfold reads "
                "tensors and sequences of them; export the model without it (skl2onnx: zipmap=False)."
            )
    for value in graph.output:
        if value.name not in known:
            raise GraphError(f"{path}: nothing writes the output {value.name!r} of the graph.")


def _check_nodes(nodes: Sequence[NodeProto], known: set[str], opsets: dict[str, int], path: Path) -> set[str]:
    """Every operand is there when it is read. Returns all the names that are known behind the last operator."""
    written = {name for node in nodes for name in node.output if name}
    for node in nodes:
        if any(isinstance(text, bytes) for text in (node.op_type, node.domain, *node.input, *node.output)):
            raise GraphError(f"{path}: a name in it is not UTF-8; the file is damaged.")
        for name in node.input:
            if name and name not in known:
                why = "before it is written: the graph has a cycle" if name in written else _NOWHERE
                raise GraphError(f"{path}: {_label(node)} reads {name!r} {why}.")
        for name in node.output:
            if name and name in known:
                raise GraphError(
                    f"{path}: {_label(node)} writes {name!r}, a name that is taken; the file is malformed."
                )
            known.add(name)
        _check_schema(node, opsets, path)
        for graph in subgraphs(node):
            _check_graph(graph, frozenset(known), opsets, path)
    return known


_NOWHERE = "and nothing writes it; is an initializer missing?"


def _check_schema(node: NodeProto, opsets: dict[str, int], path: Path) -> None:
    """Operands and attributes as the standard has them; operators that it does not know pass."""
    if twice := _repeated([attribute.name for attribute in node.attribute]):
        raise GraphError(f"{path}: {_label(node)} has two attributes {twice!r}.")
    if node.domain not in STANDARD:
        return
    schema = _schema(node.op_type, opsets.get("", opsets.get("ai.onnx", 1)))
    if schema is None:
        return
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise GraphError(f"{path}: {_label(node)} has {len(node.input)} operands, which is no number that it takes.")
    if not max(1, schema.min_output) <= len(node.output) <= schema.max_output:
        raise GraphError(f"{path}: {_label(node)} has {len(node.output)} outputs, which is no number that it has.")
    given = {attribute.name for attribute in node.attribute}
    for name, wanted in schema.attributes.items():
        if wanted.required and name not in given:
            raise GraphError(f"{path}: {_label(node)} lacks its attribute {name!r}.")
    for number, formal in enumerate(schema.inputs):
        several = formal.option == _Option.Variadic
        optional = formal.option == _Option.Optional
        if not optional and not all(node.input[number : None if several else number + 1]):
            raise GraphError(f"{path}: {_label(node)} lacks its operand {formal.name!r}.")
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None:
            raise GraphError(
                f"{path}: {_label(node)} has an attribute {attribute.name!r}, which this opset does not have."
            )
        if known.type != attribute.type:
            kind = _SCHEMA_TYPES.get(attribute.type, str(attribute.type))
            raise GraphError(f"{path}: attribute {attribute.name!r} of {_label(node)} is of type {kind}.")


@cache
def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None


def _check_parameters(node: NodeProto, dims: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Stored biases and statistics have one number a channel; ONNX's shape inference does not look at them."""
    if node.domain not in STANDARD or len(node.input) < 2:
        return
    found = [dims.get(name) for name in node.input]
    weight, bias = found[1], found[2] if len(found) > 2 else None
    fits = node.op_type not in ("Conv", "ConvTranspose") or weight is None or len(weight) > 2
    if node.op_type == "BatchNormalization":
        known = [shape for shape in found[1:] if shape is not None]
        # Before opset 9, with spatial = 0, they have one for each position of a channel.
        by_position = any(attribute.name == "spatial" and not attribute.i for attribute in node.attribute)
        fits = all((len(shape) == 1 or by_position) and shape == known[0] for shape in known)
    elif bias is not None and weight is not None and node.op_type == "Gemm" and len(weight) == 2:
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        fits = not bias or (len(bias) <= 2 and bias[-1] in (1, weight[0 if turned else 1]))
    elif bias is not None and weight is not None and node.op_type == "Conv":
        fits = fits and bias == weight[:1]
    if not fits:
        raise GraphError(f"{path}: the parameters of {_label(node)} do not fit each other: {found[1:]}.")


def _check_contents(nodes: Iterable[NodeProto], path: Path) -> None:
    for node in nodes:
        for attribute in node.attribute:
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                _check_tensor(tensor, path)
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    if any(size < 0 for size in sparse.dims):
                        raise GraphError(f"{path}: {_label(node)} holds a tensor of negative size.")


def _check_tensor(tensor: TensorProto, path: Path) -> None:
    """A tensor has a type of the standard and, where the bytes are in the file, as many as its shape asks for."""
    if any(size < 0 for size in tensor.dims):
        raise GraphError(f"{path}: tensor {tensor.name!r} has a negative size, {list(tensor.dims)}.")
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise GraphError(f"{path}: tensor {tensor.name!r} is of type {tensor.data_type}, which ONNX does not have.")
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type in _ODD_TYPES:
        return
    elements = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        stored, needed = len(tensor.raw_data), math.ceil(elements * _bytes(tensor.data_type))
    else:
        fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        stored = max(len(field) for field in fields)
        needed = _entries(tensor.data_type, elements)
    if stored != needed:
        raise GraphError(
            f"{path}: tensor {tensor.name!r} has {stored} entries or bytes and its shape {list(tensor.dims)} asks for "
            f"{needed}; the file is damaged."
        )


def _bytes(data_type: int) -> float:
    """Bytes of one element, a half or a quarter for the packed types."""
    return float(ir.DataType(data_type).itemsize)


def _entries(data_type: int, elements: int) -> int:
    """How many numbers of its own field a tensor takes: packed types share one, complex ones take two."""
    if data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * elements
    packed = _bytes(data_type)
    return math.ceil(elements * packed) if packed < 1 else elements


def _check_functions(model: ModelProto, path: Path) -> None:
    """Functions that call each other end, and do not grow beyond measure when they are written out."""
    functions = {(function.domain, function.name): function for function in model.functions}
    if len(functions) != len(model.functions):
        raise GraphError(f"{path}: two functions of the model have one name; the file is malformed.")
    sizes: dict[tuple[str, str], int] = {}
    for key in functions:
        _expand(key, functions, sizes, path)
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in _all_nodes(model.graph.node))
    if total > MOST_OPERATORS:
        raise GraphError(f"{path}: written out, its functions make {total} operators; that is more than can be read.")


def _expand(
    key: tuple[str, str],
    functions: dict[tuple[str, str], FunctionProto],
    sizes: dict[tuple[str, str], int],
    path: Path,
) -> None:
    """Operators that one call of a function makes, into `sizes`; without recursion, for the file may be deep."""
    open_calls: dict[tuple[str, str], None] = {}
    stack = [key]
    while stack:
        here = stack[-1]
        if here in sizes:
            open_calls.pop(here, None)
            stack.pop()
            continue
        open_calls[here] = None
        calls = [(node.domain, node.op_type) for node in _all_nodes(functions[here].node)]
        missing = [call for call in calls if call in functions and call not in sizes]
        if looped := next((call for call in missing if call in open_calls), None):
            raise GraphError(f"{path}: its function {looped[1]!r} calls itself.")
        if missing:
            stack += dict.fromkeys(missing)
        else:
            sizes[here] = sum(sizes.get(call, 1) for call in calls)


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from _all_nodes(graph.node)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies of an If or a Loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _foreign_type(kind: onnx.TypeProto) -> str | None:
    """What a value is, where it is neither tensors nor sequences of them."""
    while (which := kind.WhichOneof("value")) in ("sequence_type", "optional_type"):
        kind = getattr(kind, which).elem_type
    return {"map_type": "map", "opaque_type": "type of its own"}.get(which or "")


def _repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name and name in seen:
            return name
        seen.add(name)
    return None


def _label(node: NodeProto) -> str:
    return f"{node.name or (node.output[0] if node.output else '?')} ({node.op_type})"
