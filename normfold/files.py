"""What normfold writes: graphs, and text that appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

from normfold.clock import uncollected
from normfold.errors import OutputError

# Under this key the `meta` of a constant that was computed in float64 holds the function that computes it.
EXACT = "normfold.exact"

# A protobuf message cannot be larger than 2 GiB; the rest of the file needs room too.
_EXTERNAL_BYTES = 1_900_000_000


@uncollected()
def save(model: ir.Model, path: Path) -> None:
    """Write `model` to `path`, whole or not at all; weights go to `path` + ".data", one at a time, where they must.

    That is beyond 2 GB, and where those of the source lie outside its file: what refers to them would be lost when
    `path` is elsewhere. Raises OutputError when the disk is full.
    """
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    large = sum(tensor.nbytes for tensor in tensors) > _EXTERNAL_BYTES
    data = path.with_name(f"{path.name}.data")
    try:
        ir.save(model, path, external_data=data.name if large or _has_external_data(model) else None)
    except OSError as error:
        remove(path, data)
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    except BaseException:
        remove(path, data)
        raise


def remove(*paths: Path) -> None:
    """Remove files, of which some may not be there."""
    for path in paths:
        path.unlink(missing_ok=True)


def _has_external_data(model: ir.Model) -> bool:
    return any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())


def save_unchanged(source: Path, model: ir.Model, path: Path) -> None:
    """Write `model`, which is the file `source` but for its metadata, to `path`: its graph byte for byte as it was.

    A graph that was read and written again has the same meaning in other bytes: attributes in another order, types of
    initializers said twice. Whoever compares files should see that nothing happened.
    """
    if _has_external_data(model):
        save(model, path)
        return
    proto = onnx.load(source, load_external_data=False)
    onnx.helper.set_model_props(proto, dict(model.metadata_props))
    path.write_bytes(proto.SerializeToString(deterministic=True))


def check_place(place: Path) -> None:
    """Raise OutputError where nothing can be written: no folder, no permission, a directory of that name."""
    folder = place.parent
    if place.is_dir():
        raise OutputError(f"{place} is a directory; name the file to write in it")
    if not folder.is_dir():
        raise OutputError(f"{place}: there is no directory {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{place}: the directory {folder} is not writable")


def write_text(place: Path, text: str) -> None:
    """Write `text` as UTF-8 beside its place and move it there, so that nobody ever finds half of it."""
    handle, draft = tempfile.mkstemp(prefix=".normfold-", dir=place.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files that only their owner may read; a report is a file like any other.
        os.chmod(draft, 0o666 & ~_umask())
        os.replace(draft, place)
    except BaseException:
        os.unlink(draft)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
