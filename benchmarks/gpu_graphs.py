"""The ONNX graphs of the GPU study, without their weights: writes benchmarks/gpu_graphs/NAME.zip.

    python -m benchmarks.gpu_graphs [--only NAME ...]

Each network is exported and folded as the product does it, at every opset of `STORED`, and so are its
baseline and its limit. Of a weight only type and shape are kept; gpu_ort.fill draws it when it is needed. An
archive holds FORMAT/OPSET/VARIANT.onnx, and notes.json: what could not be made, and why.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from benchmarks.gpu_models import FOLDED, LAYERNORM, LIMIT, PUBLISHED, TINY, UNFOLDED, Model
from benchmarks.gpu_ort import CACHED, DEFAULT, DRAWN, GRAPHS, STORED
from benchmarks.gpu_record import trained
from normfold.analysis.analyse import analyse
from normfold.checkpoint.source import Source
from normfold.errors import NormfoldError
from normfold.export import to_onnx as exporting
from normfold.export.opset import newest_opset
from normfold.export.parts import split
from normfold.export.to_onnx import export
from normfold.graph.prepare import prepare
from normfold.inputs.spec import InputSpec
from normfold.models import create
from normfold.norms.detect import find_norms
from normfold.rewrite.graph import rewrite

FORMATS = ("float32", "float16")

# Constants up to this many elements are the graph's own numbers; integers are indices, and stay as they are.
_SMALL = 8


def bare(model: ir.Model) -> ir.Model:
    """The graph without weights, names of modules and shapes of activations; `model` stays as it is."""
    copy = model.clone()
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    copy.metadata_props.clear()
    for node in copy.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*copy.graph.inputs, *copy.graph.initializers.values()):
        value.metadata_props.clear()
    for name, value in copy.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype == ir.DataType.FLOAT and tensor.size > _SMALL:
            value.const_value = ir.ExternalTensor(DRAWN, None, None, tensor.dtype, shape=tensor.shape, name=name)
    return copy


def single(model: ir.Model) -> onnx.ModelProto:
    """A bare graph, written."""
    proto: onnx.ModelProto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto


def half(model: ir.Model) -> onnx.ModelProto:
    """A bare graph in float16, as `to_half` has it: onnxruntime's converter decides, and needs no weight for that."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto: onnx.ModelProto = ir.to_proto(model)
    inputs, left_out = len(proto.graph.input), [each for each in proto.graph.initializer if _is_left_out(each)]
    # It would read them; of an input it changes the type alone.
    for tensor in left_out:
        proto.graph.initializer.remove(tensor)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    converted = convert_float_to_float16(proto, keep_io_types=False, disable_shape_infer=True)
    types = {value.name: value.type.tensor_type.elem_type for value in converted.graph.input}
    for tensor in left_out:
        tensor.data_type = types[tensor.name]
    del converted.graph.input[inputs:]
    converted.graph.initializer.extend(left_out)
    ordered: ir.Model = ir.from_proto(converted)
    # The converter appends the Casts that it makes.
    ordered.graph.sort()
    return single(ordered)


def _is_left_out(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def make(model: Model, *, cached: bool) -> bytes:
    """The archive of one network."""
    graphs: dict[str, bytes] = {}
    missing: dict[str, str] = {}
    for member, made in _made(model, cached=cached):
        if isinstance(made, str):
            missing[member] = made
        else:
            graphs[member] = made.SerializeToString(deterministic=True)
    told = json.dumps({"default": newest_opset(), "missing": missing}, indent=1)
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for member, content in sorted(({"notes.json": told.encode()} | graphs).items()):
            # A fixed date: the same graphs give the same bytes.
            archive.writestr(zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED, 9)
    return memory.getvalue()


def _made(model: Model, *, cached: bool) -> Iterator[tuple[str, onnx.ModelProto | str]]:
    """Every graph, or why there is none."""
    builds = {
        LAYERNORM: lambda: create(model.twin_arch, **model.arguments("ln" if model.norm else None)),
        UNFOLDED: lambda: trained(model),
        LIMIT: lambda: create(model.arch, **model.arguments("identity")),
    }
    # One network at a time: the largest has 1.8 GB.
    for variant, build in builds.items():
        module = build().eval()
        inputs = (InputSpec.parse(model.inputs),)
        source = Source(Path(model.name), "", "torch", module, None, inputs, norms=find_norms(module))
        part = split(source, "decoder-with-cache" if cached else "forward")[""]
        for opset in STORED:
            try:
                graph = prepare(export(part, opset=None if opset == DEFAULT else int(opset)))
                graphs = {variant: graph}
                if variant == UNFOLDED:
                    graphs[FOLDED] = rewrite(graph, analyse(graph, norms=part.norms))
            except NormfoldError as error:
                missing = (variant, FOLDED) if variant == UNFOLDED else (variant,)
                yield from ((f"{each}/{opset}/{name}.onnx", str(error)) for each in FORMATS for name in missing)
                continue
            for name, each in graphs.items():
                stripped = bare(each)
                for format_, write in zip(FORMATS, (single, half), strict=True):
                    yield f"{format_}/{opset}/{name}.onnx", write(stripped)


def main() -> None:
    """Export what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names, as in benchmarks/gpu_models.py")
    options = parser.parse_args()
    # Every opset of a network is translated from one program.
    exporting._capture = cache(exporting._capture)
    GRAPHS.mkdir(exist_ok=True)
    for model in (*TINY, *PUBLISHED):
        if options.only and model.name not in options.only:
            continue
        for cached in (False, True) if model.generates else (False,):
            name = f"{model.name}{CACHED if cached else ''}"
            content = make(model, cached=cached)
            (GRAPHS / f"{name}.zip").write_bytes(content)
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                left = json.loads(archive.read("notes.json"))["missing"]
            print(f"{name}: {len(content):,} bytes; not made: {left or 'none'}", flush=True)


if __name__ == "__main__":
    main()
