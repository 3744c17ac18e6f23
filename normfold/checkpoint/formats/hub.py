"""Folders as the Hugging Face hub has them: config.json, and weights in one file or in shards with an index."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.checkpoint.contents import Contents
from normfold.checkpoint.formats.base import Format, sha256_of_file
from normfold.checkpoint.stated import Said, of_configuration
from normfold.errors import CheckpointError
from normfold.system.plain import irregular, read_json

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
# The first that is there: its index, when it is cut into shards, comes before the whole file.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def read(path: Path, *, trust: bool, ema: bool) -> Contents:
    """Read every shard, and what config.json says. Raises CheckpointError."""
    import torch

    state: dict[str, torch.Tensor] = {}
    for file in weight_files(path):
        contents = _format_of(file).read(file, trust=trust, ema=ema)
        for name, tensor in (contents.state or {}).items():
            if name in state and (state[name].dtype != tensor.dtype or not torch.equal(state[name], tensor)):
                raise CheckpointError(f"{path}: {file.name} and another shard hold different values of {name}.")
            state[name] = tensor
    missing = [name for name in shards(path) if name not in state]
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} tensors of its index ({', '.join(missing[:3])}).")
    return Contents(state, said=configuration(path))


def weights_format(path: Path) -> Format:
    """The format of the weights in a folder, as its first file has it. Raises CheckpointError."""
    return _format_of(weight_files(path)[0])


def _format_of(file: Path) -> Format:
    # Shards have formats of their own, and the table of them holds this one.
    from normfold.checkpoint.formats import format_of

    return format_of(file)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold the weights of `folder`, in the order of their names. Raises CheckpointError."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return tuple(folder / shard for shard in sorted(set(shards(folder).values())))
        if (folder / name).is_file():
            return (folder / name,)
    raise CheckpointError(
        f"{folder} is a directory without {' or '.join(_WEIGHTS)} (or their .index.json); give a checkpoint file, or a "
        "folder as the Hugging Face hub has it."
    )


def shards(folder: Path) -> dict[str, str]:
    """The file of every tensor, from the index; empty where the weights are one file. Raises CheckpointError."""
    index = next((path for name in _WEIGHTS if (path := folder / f"{name}.index.json").is_file()), None)
    if index is None:
        return {}
    places = _object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map that names the file of every tensor.")
    for name, place in places.items():
        # A folder may only read its own files, else an untrusted one could read any file of the user's.
        if not isinstance(place, str) or Path(place).name != place or "\\" in place:
            raise CheckpointError(f"{index} places {name} in {place!r}, which is not a file of its folder.")
        if irregular(folder / place) is not None or not (folder / place).is_file():
            raise CheckpointError(f"{folder / place} is missing; {index.name} places {name} in it.")
    return places


def configuration(folder: Path) -> Said:
    """What config.json says of the architecture. Raises CheckpointError."""
    path = folder / CONFIG
    return of_configuration(_object(path), CONFIG) if path.is_file() else Said()


def digest(folder: Path) -> str:
    """SHA-256 of what `sha256sum` prints for the configuration, the index and the weights, sorted by file name."""
    parts = {*weight_files(folder), folder / CONFIG, *(folder / f"{name}.index.json" for name in _WEIGHTS)}
    listing = hashlib.sha256()
    for path in sorted(part for part in parts if part.is_file()):
        listing.update(f"{sha256_of_file(path)}  {path.name}\n".encode())
    return listing.hexdigest()


def _object(path: Path) -> Mapping[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} is not JSON ({e}); fetch it again.") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object; fetch it again.")
    return value


HUB = Format("hub", read, is_folder=True, digest=digest, check=weights_format, weights=weights_format)
