"""A checkpoint written so that it needs no options: weights, architecture and inputs in one file."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfold.checkpoint.formats.torch import TORCH
from normfold.errors import InputSpecError, UsageError
from normfold.inputs.of_module import with_vocabulary
from normfold.inputs.spec import DTYPES, InputSpec, parse_specs
from normfold.system.files import replacing

FORMAT = "normfold/1"


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    arch: str | None = None,
    factory: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    example_input: torch.Tensor | Mapping[str, torch.Tensor],
    inputs: Sequence[str] = (),
) -> None:
    """Write a checkpoint that `load_checkpoint` reads without any flag.

    arch, arch_args: name in the built-in registry and its (JSON-like) arguments. factory: for a network of your own,
    the function that builds it, "mynet:build"; arch_args are its arguments. It is written down, and imported again only
    where the loading side says so (--trust-code, or --model); without it such a file needs --model.
    example_input: one tensor, or one for each input by name; its first axis is taken for a dynamic batch. inputs:
    specifications, where that is not so.
    The file appears whole or not at all. Raises UsageError, InputSpecError and OutputError.
    """
    path = Path(path)
    if not TORCH.fits(path):
        raise UsageError(f"{path}: save_checkpoint writes torch files; end the name in {', '.join(TORCH.suffixes)}.")
    if arch is not None and factory is not None:
        raise UsageError("arch and factory both say how the module is built; give one of them")
    if factory is not None and not re.fullmatch(r"[\w.]+:[\w.]+", factory):
        raise UsageError(f"factory={factory!r}: write pkg.module:function, such as mynet:build")
    args = dict(arch_args or {})
    try:
        json.dumps(args)
    except (TypeError, ValueError) as e:
        raise UsageError(f"arch_args must hold nothing but numbers, strings, lists and dicts ({e}).") from e
    examples = dict(example_input) if isinstance(example_input, Mapping) else {_first_input(model): example_input}
    batched = tuple(_batched(name, tensor) for name, tensor in examples.items())
    specs = parse_specs(inputs) if inputs else with_vocabulary(batched, model)
    _check_examples(specs, examples)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    texts = [str(spec) for spec in specs]
    content: dict[str, Any] = {"format": FORMAT, "state_dict": state, "arch_args": args, "inputs": texts}
    content |= {key: value for key, value in (("arch", arch), ("factory", factory)) if value is not None}
    with replacing(path) as draft, draft.open("wb") as file:
        torch.save(content, file)


def _first_input(model: nn.Module) -> str:
    return next(iter(inspect.signature(model.forward).parameters), "x")


def _batched(name: str, tensor: torch.Tensor) -> InputSpec:
    dims: tuple[int | str, ...] = ("B", *tensor.shape[1:]) if tensor.ndim else ()
    return InputSpec(name, str(tensor.dtype).removeprefix("torch."), dims)


def _check_examples(specs: tuple[InputSpec, ...], examples: Mapping[str, torch.Tensor]) -> None:
    if len(specs) != len(examples):
        raise InputSpecError(f"{len(specs)} inputs are specified and {len(examples)} given as examples.")
    for spec, (name, tensor) in zip(specs, examples.items(), strict=True):
        own = _batched(name, tensor)
        fits = len(spec.dims) == tensor.ndim and all(
            isinstance(dim, str) or dim == size for dim, size in zip(spec.dims, tensor.shape, strict=True)
        )
        if spec.dtype != own.dtype or spec.dtype not in DTYPES or not fits:
            raise InputSpecError(f"input {spec} does not fit its example of {own.dtype}{list(tensor.shape)}.")
