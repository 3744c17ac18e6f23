"""Which part of what torch.load gave the weights are, and what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfold.checkpoint import stated
from normfold.checkpoint.contents import Contents, arguments
from normfold.errors import CheckpointError

STATE_KEYS = ("state_dict", "model", "model_state_dict", "net", "network")
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")

# Elements that a tensor may repeat without holding them: a table of positions of an expanded row.
_REPEATED = 1 << 20
_LONGEST_WORD = 200


def contents_of(loaded: Any, path: Path, *, ema: bool) -> Contents:
    """The weights in what was loaded from `path`, and what stands beside them. Raises CheckpointError.

    loaded: a module, a state dict, or a dict with one of them in it. ema: the averaged weights.
    """
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
        "factory": _short(said.get("factory")),
        "arch_args": arguments(arch_args, path) if isinstance(arch_args, Mapping) else {},
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


def _short(value: object) -> str | None:
    """A word of the file, if it is one."""
    return value if isinstance(value, str) and len(value) < _LONGEST_WORD else None
