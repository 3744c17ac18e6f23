"""Checkpoint files: from bytes on disk to tensors, a program or a graph, without running anything they contain.

Pickles are read by torch's weights-only unpickler, with stand-ins for what authors keep beside their weights. `.pt2`
programs cannot be read safely at all (see `read_program`). Only `trust=True` unpickles; nothing falls back to it.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import nn

from normfold.checkpoint import hub, stated
from normfold.checkpoint.stand_ins import named_globals, registered
from normfold.checkpoint.stated import Said
from normfold.errors import CheckpointError, GraphError
from normfold.graph.inference import check_shapes
from normfold.graph.sparse import densify
from normfold.graph.wellformed import check_model, subgraphs
from normfold.system.clock import uncollected
from normfold.system.plain import irregular, is_plain, is_utf8, parse_json
from normfold.system.text import one_line

SUFFIXES: Mapping[str, str] = {
    ".pt": "torch",
    ".pth": "torch",
    ".pth.tar": "torch",
    ".bin": "torch",
    ".ckpt": "torch",
    ".safetensors": "safetensors",
    ".pt2": "pt2",
    ".onnx": "onnx",
}
STATE_KEYS = ("state_dict", "model", "model_state_dict", "net", "network")
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")

# Elements that a tensor may repeat without holding them: a table of positions of an expanded row.
_REPEATED = 1 << 20

_TRUST = (
    "Pass --trust-checkpoint if, and only if, you trust whoever made this file: reading it can then run any code in "
    "it. There is no other way to read it"
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint file holds: a state dict or (trusted files only) a module, and what it says of itself.

    arch, arch_args, inputs: as `save_checkpoint` writes them; arch may be a name of the authors' own. said: what it
    states of its architecture in whatever words its authors have. averaged: where it holds averaged weights that were
    not taken.
    """

    state: Mapping[str, torch.Tensor] | None
    module: nn.Module | None = None
    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    said: Said = field(default_factory=Said)
    averaged: str | None = None


def format_of(path: Path) -> str:
    """torch, safetensors, pt2 or onnx, by suffix, for a file that exists and is not empty. Raises CheckpointError.

    For a folder of the Hugging Face hub: the format of its weights. Pipes, devices and sockets are not opened.
    """
    if (why := irregular(path)) is not None:
        raise CheckpointError(f"{path}: {why}.")
    if not is_utf8(path):
        raise CheckpointError(f"{path}: its name is not UTF-8, and neither onnxruntime nor ONNX takes it; rename it.")
    if path.is_dir():
        return format_of(hub.weight_files(path)[0])
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise CheckpointError(f"{path}: unknown suffix; a checkpoint ends in {', '.join(SUFFIXES)}.")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror or e}.") from e
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes); was the download or the training interrupted?")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`.")
    return SUFFIXES[suffix]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the file; for a folder see `hub.sha256_of`."""
    if path.is_dir():
        return hub.sha256_of(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_torch(path: Path, *, trust: bool, ema: bool) -> Contents:
    """Read a file written by torch.save. Raises CheckpointError; the message names a refused global."""
    return _contents(_unpickle(path, trust=trust), path, ema=ema)


def _unpickle(path: Path, *, trust: bool) -> Any:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:2] == b"PK":
        _check_zip(path, trust=trust)
    elif magic[:1] != b"\x80":
        raise CheckpointError(
            f"{path} is not a torch checkpoint: it is neither a zip archive nor a pickle (it starts with {magic!r}); "
            "was a text or web page saved under this name?"
        )
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(registered(path)):
            # Pickle protocols other than 2 get a warning about instructions that, if met, are an error anyway.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=not trust)
    # A pickle is a program and a damaged one can fail in any way at all, so every Exception is bad input here.
    except Exception as e:
        raise CheckpointError(_load_failure(path, e, trust=trust)) from e


def _check_zip(path: Path, *, trust: bool) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as e:
        raise CheckpointError(f"{path} is a truncated or damaged zip archive ({e}); fetch or save it again.") from e
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript archive, which cannot be exported again; give the state dict it was made from, "
            "with the architecture, or an .onnx file."
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(f"{path} is a zip archive, but torch.save did not write it (it has no data.pkl).")


def _load_failure(path: Path, error: Exception, *, trust: bool) -> str:
    text = str(error)
    found = re.search(r"GLOBAL (\S+)", text)
    if found and not trust:
        return (
            f"{path} was not loaded: it holds {found[1].rstrip('.')}, which is not plain data (tensors, containers, "
            f"numbers, strings), and creating it means running code named by the file. {_TRUST}; or save a plain state "
            "dict instead: torch.save(model.state_dict(), path)."
        )
    if "Unsupported operand" in text and not trust:
        named = ", ".join(named_globals(path)[:10]) or "no globals"
        return (
            f"{path} was not loaded: torch.save did not write this pickle, or it is damaged (it names {named}). "
            f"{_TRUST}; or save a plain state dict instead: torch.save(model.state_dict(), path)."
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{path} cannot be read ({lines[-1] if lines else one_line(error)}); it may be damaged."


def _contents(loaded: Any, path: Path, *, ema: bool) -> Contents:
    """Find the state dict in what was loaded."""
    if isinstance(loaded, nn.Module) and not ema:
        return Contents(None, loaded)
    if not isinstance(loaded, Mapping):
        kind = type(loaded).__name__
        raise CheckpointError(f"{path} holds a {kind}; expected a state dict, or a dict with one in it.")
    found, key = _find_state(loaded, path, ema=ema)
    said = {} if key is None else loaded
    arch = said.get("arch")
    arch_args = said.get("arch_args")
    inputs = said.get("inputs")
    notes: dict[str, Any] = {
        "arch": arch if isinstance(arch, str) else None,
        "arch_args": _arguments(arch_args, path) if isinstance(arch_args, Mapping) else {},
        "inputs": tuple(spec for spec in inputs if isinstance(spec, str)) if isinstance(inputs, list) else (),
        "said": stated.read(said),
        "averaged": next((name for name in EMA_KEYS if not ema and name != key and _is_state(said.get(name))), None),
    }
    if isinstance(found, nn.Module):
        return Contents(None, found, **notes)
    where = f"{path}[{key!r}]" if key else str(path)
    if not found:
        raise CheckpointError(f"{where} is an empty state dict; there are no weights in it.")
    odd = [name for name, value in found.items() if not isinstance(value, torch.Tensor) or not isinstance(name, str)]
    if odd:
        kind = type(found[odd[0]]).__name__
        raise CheckpointError(f"{where} is not a state dict: {odd[0]!r} is a {kind}, not a tensor.")
    for name, tensor in found.items():
        _check_tensor(tensor, f"{where}: {name}")
    return Contents(found, **notes)


def _check_tensor(tensor: torch.Tensor, what: str) -> None:
    """A tensor may claim more elements than the file holds, and a network of that size would fill the memory."""
    if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.is_quantized:
        kind = "without values" if tensor.device.type == "meta" else "sparse or quantized"
        raise CheckpointError(f"{what} is a tensor {kind}, and weights are plain ones; convert it before saving.")
    held = tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1)
    if tensor.numel() > max(held, _REPEATED):
        raise CheckpointError(f"{what} claims {tensor.numel()} elements and the file holds {held}; it is damaged.")


def _arguments(found: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """The options that a file gives its architecture. Raises CheckpointError for what no option can be."""
    if not is_plain(found):
        raise CheckpointError(f"{path}: its arch_args are not numbers, short strings, lists and dicts alone.")
    return dict(found)


def _is_state(value: Any) -> bool:
    return isinstance(value, nn.Module) or (
        isinstance(value, Mapping) and any(isinstance(tensor, torch.Tensor) for tensor in value.values())
    )


def _find_state(loaded: Mapping[Any, Any], path: Path, *, ema: bool) -> tuple[Any, str | None]:
    keys = ", ".join(repr(key) for key in list(loaded)[:10]) or "nothing"
    for key in EMA_KEYS if ema else STATE_KEYS:
        if isinstance(loaded.get(key), (Mapping, nn.Module)):
            return loaded[key], key
    if ema:
        raise CheckpointError(f"{path} has no averaged weights ({' or '.join(EMA_KEYS)}) for --ema; it holds {keys}.")
    averaged = next((key for key in EMA_KEYS if isinstance(loaded.get(key), Mapping)), None)
    if averaged is not None:
        # The only weights there are: nothing to choose, so nothing to ask for.
        return loaded[averaged], averaged
    if not loaded or any(isinstance(value, torch.Tensor) for value in loaded.values()):
        return loaded, None
    raise CheckpointError(f"{path} has no state dict under {', '.join(STATE_KEYS)}; it holds {keys}.")


def read_safetensors(path: Path, *, ema: bool) -> Contents:
    """Read a .safetensors file; its metadata may hold `arch`, `arch_args` (JSON) and `inputs` (a JSON list)."""
    import safetensors

    if ema:
        raise CheckpointError(f"{path}: a .safetensors file holds one set of weights, so --ema has nothing to choose.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError) as e:
        raise CheckpointError(f"{path} is not a whole .safetensors file ({e}); fetch or save it again.") from e
    if not state:
        raise CheckpointError(f"{path} is an empty state dict; there are no weights in it.")
    try:
        arch_args = _arguments(dict(parse_json(metadata.get("arch_args", "{}"))), path)
        inputs = tuple(str(spec) for spec in parse_json(metadata.get("inputs", "[]")))
    except (TypeError, ValueError) as e:
        raise CheckpointError(f"{path}: arch_args and inputs in its metadata must be JSON ({e}).") from e
    arch = metadata.get("arch")
    return Contents(state, None, arch, arch_args, inputs, stated.read({"arch": arch}))


def read_folder(path: Path, *, trust: bool, ema: bool) -> Contents:
    """Read a folder of the Hugging Face hub: every shard, and what config.json says. Raises CheckpointError."""
    state: dict[str, torch.Tensor] = {}
    for file in hub.weight_files(path):
        is_torch = format_of(file) == "torch"
        contents = read_torch(file, trust=trust, ema=ema) if is_torch else read_safetensors(file, ema=ema)
        for name, tensor in (contents.state or {}).items():
            if name in state and (state[name].dtype != tensor.dtype or not torch.equal(state[name], tensor)):
                raise CheckpointError(f"{path}: {file.name} and another shard hold different values of {name}.")
            state[name] = tensor
    missing = [name for name in hub.shards(path) if name not in state]
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} tensors of its index ({', '.join(missing[:3])}).")
    return Contents(state, said=hub.configuration(path))


def read_program(path: Path, *, trust: bool) -> torch.export.ExportedProgram:
    """Read a .pt2 file, for trusted files only.

    torch.export.load unpickles custom objects, example inputs and some weights with the full unpickler, and evaluates
    the shape expressions of the program as Python (sympify): there is no safe way to read one.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a torch.export program, or a truncated one (not a whole zip archive).")
    if not trust:
        raise CheckpointError(
            f"{path} was not loaded: reading a .pt2 program unpickles objects in it and evaluates its shape "
            f"expressions, which can run code. {_TRUST}; or give the weights and their architecture, or an .onnx file."
        )
    try:
        return torch.export.load(path)
    # As for pickles: a damaged program can fail in any way.
    except Exception as e:
        raise CheckpointError(f"{path} cannot be read as a torch.export program ({one_line(e)}).") from e


@uncollected()
def read_graph(path: Path) -> ir.Model:
    """Read an .onnx file; external data is mapped, not read. Raises GraphError, also for data outside its folder."""
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    # The protobuf backends raise different classes for bytes that are not a model.
    except Exception as e:
        raise GraphError(f"{path} cannot be read as an ONNX model ({one_line(e)}).") from e
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
    """A model may only read files of its own folder, else opening one from a stranger would read any file of yours."""
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
