"""Writing an ONNX graph: one file up to 1.5 GB, else its weights beside it under a name made of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx.external_data_helper
import onnx_ir as ir

from normfold.errors import OutputError
from normfold.system.collector import uncollected
from normfold.system.files import reason_of, remove, writing

# Under this key the `meta` of a constant that was computed in float64 holds the function that computes it.
EXACT = "normfold.exact"

# A protobuf message cannot be larger than 2 GiB; the rest of the file needs room too, and so do those who rewrite it.
_INSIDE_BYTES = 1_500_000_000
# What onnx-ir leaves inside in any case.
_SMALL_BYTES = 256
_DIGITS = 16


@uncollected()
def save(model: ir.Model, path: Path, *, external: bool = False, name: Path | None = None) -> tuple[Path, ...]:
    """Write `model` to `path`, whole or not at all; the files that were written, the graph first.

    external: put the weights into a file beside it, as happens anyway beyond 1.5 GB. name: what the user calls `path`.
    Raises OutputError, of a full disk for example.
    """
    tensors = [value.const_value for part in model.graphs() for value in part.initializers.values()]
    sizes = [tensor.nbytes for tensor in tensors if tensor is not None]
    apart = sum(sizes) > _INSIDE_BYTES or (external and max(sizes, default=0) > _SMALL_BYTES)
    data = path.with_name(f"{path.name}.data") if apart else None
    try:
        with _inside(model, nothing=apart):
            ir.save(model, path, external_data=None if data is None else data.name)
        return (path,) if data is None else (path, _named_by_content(path, data, (name or path).name))
    except OSError as error:
        remove(path, *([] if data is None else [data]))
        raise OutputError(f"{name or path} cannot be written: {reason_of(error)}") from error
    except BaseException:
        remove(path, *([] if data is None else [data]))
        raise


@contextmanager
def _inside(model: ir.Model, *, nothing: bool) -> Iterator[None]:
    """While this runs, weights that lie in other files are as if they lay in this one; nothing: none of them."""
    changed: dict[ir.Value, ir.ExternalTensor] = {}
    try:
        for part in () if nothing else model.graphs():
            for value in part.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    changed[value] = value.const_value
                    value.const_value = in_memory(value.const_value)
        yield
    finally:
        for value, tensor in changed.items():
            value.const_value = tensor


def in_memory(tensor: ir.ExternalTensor) -> ir.Tensor[Any]:
    """The same content as a tensor of its own; mapped, not copied."""
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


def _named_by_content(path: Path, data: Path, name: str) -> Path:
    """Rename the data of the graph at `path` after what it holds, in the graph too; where it is then."""
    with data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
    place = path.with_name(f"{name}.{digest}.data")
    proto = onnx.load(path, load_external_data=False)
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place.name
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return data.rename(place)


def stored_beside(model: ir.Model) -> frozenset[Path]:
    """The files that hold weights of a model that was read."""
    tensors = (value.const_value for part in model.graphs() for value in part.initializers.values())
    return frozenset(Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor))


def data_of(path: Path) -> tuple[Path, ...]:
    """The files beside the graph at `path` that hold its weights; none where there is no graph that can be read."""
    try:
        proto = onnx.load(path, load_external_data=False)
        tensors = list(onnx.external_data_helper._get_all_tensors(proto))
    # onnx and protobuf raise what they like for bytes that are no model.
    except Exception:
        return ()
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return tuple(path.parent / name for name in sorted(names) if name == Path(name).name)


def save_unchanged(source: Path, model: ir.Model, path: Path, *, name: Path | None = None) -> tuple[Path, ...]:
    """Write `model`, which is the file `source` but for its metadata, to `path`: its graph byte for byte as it was.

    A graph that was read and written again has the same meaning in other bytes: attributes in another order, types of
    initializers said twice. A comparison of the files is to show no difference.
    """
    if stored_beside(model):
        return save(model, path, name=name)
    proto = onnx.load(source, load_external_data=False)
    onnx.helper.set_model_props(proto, dict(model.metadata_props))
    with writing(name or path):
        path.write_bytes(proto.SerializeToString(deterministic=True))
    return (path,)
