"""Files of tensors without any code; their metadata may hold `arch`, `arch_args` (JSON) and `inputs` (a JSON list)."""

from __future__ import annotations

from pathlib import Path

from normfold.checkpoint import stated
from normfold.checkpoint.contents import Contents, arguments
from normfold.checkpoint.formats.base import Format
from normfold.errors import CheckpointError
from normfold.system.plain import parse_json


def read(path: Path, *, trust: bool, ema: bool) -> Contents:
    """Read every tensor and the metadata. Raises CheckpointError."""
    if ema:
        raise CheckpointError(f"{path}: a .safetensors file holds one set of weights, so --ema has nothing to choose.")
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError) as e:
        raise CheckpointError(f"{path} is not a whole .safetensors file ({e}); fetch or save it again.") from e
    if not state:
        raise CheckpointError(f"{path} is an empty state dict; there are no weights in it.")
    try:
        arch_args = arguments(dict(parse_json(metadata.get("arch_args", "{}"))), path)
        inputs = tuple(str(spec) for spec in parse_json(metadata.get("inputs", "[]")))
    except (TypeError, ValueError) as e:
        raise CheckpointError(f"{path}: arch_args and inputs in its metadata must be JSON ({e}).") from e
    arch = metadata.get("arch")
    return Contents(state, None, arch, arch_args, inputs, stated.read({"arch": arch}))


SAFETENSORS = Format("safetensors", read, suffixes=(".safetensors",))
