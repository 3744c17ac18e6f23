"""Folders as the Hugging Face hub has them: config.json, and weights in one file or in shards with an index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normfold.errors import CheckpointError

CONFIG = "config.json"
# The first that is there: its index, when it is cut into shards, comes before the whole file.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# What a configuration says of options that shapes do not show, by the names that it gives them.
_OPTIONS = {"num_attention_heads": "heads", "rms_norm_eps": "eps"}


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
        # A folder may only read its own files, else opening one from a stranger would read any file of yours.
        if not isinstance(place, str) or Path(place).name != place or "\\" in place:
            raise CheckpointError(f"{index} places {name} in {place!r}, which is not a file of its folder.")
        if not (folder / place).is_file():
            raise CheckpointError(f"{folder / place} is missing; {index.name} places {name} in it.")
    return places


def configuration(folder: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What config.json says: names of the architecture, and options that shapes do not show. Raises CheckpointError."""
    path = folder / CONFIG
    if not path.is_file():
        return (), {}
    config = _object(path)
    names = [config.get("model_type"), *_list(config.get("architectures"))]
    options = {own: config[key] for key, own in _OPTIONS.items() if isinstance(config.get(key), (int, float))}
    return tuple(name for name in names if isinstance(name, str)), options


def sha256_of(folder: Path) -> str:
    """SHA-256 of what `sha256sum` prints for the configuration, the index and the weights, sorted by file name."""
    parts = {*weight_files(folder), folder / CONFIG, *(folder / f"{name}.index.json" for name in _WEIGHTS)}
    listing = hashlib.sha256()
    for path in sorted(part for part in parts if part.is_file()):
        with path.open("rb") as file:
            listing.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode())
    return listing.hexdigest()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} is not JSON ({e}); fetch it again.") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object; fetch it again.")
    return value
