"""Reading an ONNX file: a graph that is well formed, with its external data mapped, or an error that says what is not.

The file is not trusted: only files beside it are read, and what native code might abort on is checked before, or in
another process.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from normfold.errors import GraphError
from normfold.graph.inference import check_shapes
from normfold.graph.order import sort
from normfold.graph.sparse import densify
from normfold.graph.wellformed import check_model, subgraphs
from normfold.system.collector import uncollected
from normfold.system.failures import one_line
from normfold.system.plain import irregular


@uncollected()
def read_graph(path: Path) -> ir.Model:
    """Read an .onnx file; external data is mapped, not read. Raises GraphError, also for data outside its folder."""
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    # The protobuf backends raise different classes for bytes that are not a model.
    except Exception as e:
        raise GraphError(
            f"{path} cannot be read as an ONNX model ({one_line(e)}); is the download whole, or was a web page saved "
            "under this name?"
        ) from e
    return graph_of(proto, path)


def graph_of(proto: onnx.ModelProto, path: Path) -> ir.Model:
    """The graph of a message, which is changed. path: where it was read from, or what to call it. Raises GraphError."""
    sort(proto)
    check_model(proto, path)
    _forget_negative_sizes(proto.graph)
    densify(proto, path)
    try:
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
        tensors = list(_external_tensors(model))
    # onnx-ir raises whatever comes up where a field of a message holds what it should not.
    except Exception as e:
        raise GraphError(f"{path} cannot be read as an ONNX graph ({one_line(e)}).") from e
    for tensor in tensors:
        _check_external(tensor, path)
    if contradiction := check_shapes(model):
        raise GraphError(f"{path}: its shapes contradict each other: {contradiction}.")
    _load_attributes(model)
    return model


def _forget_negative_sizes(graph: onnx.GraphProto) -> None:
    """Some exporters write -1 where a size is not known; ONNX's way is to write none."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.Clear()
    for node in graph.node:
        for inner in subgraphs(node):
            _forget_negative_sizes(inner)


def _load_attributes(model: ir.Model) -> None:
    """Bring the external tensors of attributes into memory: a graph is saved with those of its initializers alone."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for name, attribute in node.attributes.items():
            if not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor):
                content = ir.tensor(attribute.value.numpy().copy(), name=attribute.value.name)
                node.attributes[name] = ir.AttrTensor(name, content)


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            if not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor):
                yield attribute.value


def _check_external(tensor: ir.ExternalTensor, path: Path) -> None:
    """A model may only read files of its own folder, else an untrusted one could read any file of the user's."""
    location = str(tensor.location)
    folder = path.parent.resolve()
    file = folder / location
    leaves = not location or "\0" in location or Path(location).is_absolute()
    leaves = leaves or ".." in Path(location.replace("\\", "/")).parts
    if leaves or not file.resolve().is_relative_to(folder):
        raise GraphError(
            f"{path}: tensor {tensor.name} is stored in {location!r}, outside the model's folder; external data must "
            "lie beside the model (no absolute path, no '..', no link out of the folder)."
        )
    if irregular(file) is not None or not file.is_file():
        raise GraphError(f"{path}: its external data {location!r} is missing; keep it beside the model.")
    if file.stat().st_nlink > 1:
        raise GraphError(
            f"{path}: its external data {location!r} is a hard link, which may be any file of this disk; copy it."
        )
    offset, length = tensor.offset or 0, tensor.length if tensor.length is not None else tensor.nbytes
    if offset < 0 or length != tensor.nbytes:
        raise GraphError(
            f"{path}: tensor {tensor.name} needs {tensor.nbytes} bytes and has {length} from byte {offset} of "
            f"{location!r} on; the file is damaged."
        )
    if file.stat().st_size < offset + length:
        end = offset + length
        raise GraphError(f"{path}: its external data {location!r} is truncated: {tensor.name} ends at byte {end}.")
