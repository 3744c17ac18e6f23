"""Built-in architectures without values: their names and shapes, for no memory and little time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from normfold.errors import ArchitectureError
from normfold.models import catalogue
from normfold.models.families import Family
from normfold.norms.base import Shapes

# What initialisation comes down to.
_FILLING = frozenset(("normal_", "uniform_", "kaiming_uniform_"))


def misfit(name: str, options: Mapping[str, Any], shapes: Shapes) -> nn.Module | None:
    """The architecture without values where it does not fit these weights; None where it does.

    Options may come from an untrusted file: what they ask for is compared with the file before memory is taken for it.
    Raises ArchitectureError when it cannot be built.
    """
    with _Few(len(shapes)):
        module = without_values(name, options)
    return module if difference(module, shapes, catalogue.family_of(name))[0] else None


class _Few:
    """Ends the building of a module that has many times the parts that the weights have."""

    def __init__(self, tensors: int) -> None:
        self.left = 20 * tensors + 1000

    def __enter__(self) -> None:
        self.hook = torch.nn.modules.module.register_module_module_registration_hook(self.count)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def count(self, *_: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise ArchitectureError("these options make a network of many times the layers that the weights are of")


def without_values(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The architecture on the meta device, where parameters have shapes and no values."""
    from normfold import models

    with torch.device("meta"), _Unfilled():
        return models.create(name, **options)


class _Unfilled(TorchFunctionMode):
    """Spares the meta device what it has no kernel for, and imports torch's compiler for: seconds, the first time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _FILLING:
            return args[0] if args else given["tensor"]
        if name == "mul" and isinstance(args[1], (int, float)):
            return args[0]
        if name == "arange":
            given["device"] = "cpu"
        return func(*args, **given)


def difference(module: nn.Module, shapes: Shapes, family: Family | None) -> tuple[int, str]:
    """How many entries differ, and a phrase that says which."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    computed = family.computed if family is not None else ()
    absent = [name for name in wanted if name not in shapes and not name.endswith(computed)]
    missing = untied(module, absent)
    unexpected = [name for name in shapes if name not in wanted]
    changed = [name for name, shape in wanted.items() if shapes.get(name, shape) != shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing, such as {missing[0]}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected, such as {unexpected[0]}")
    if changed:
        own, other = list(shapes[changed[0]]), list(wanted[changed[0]])
        parts.append(f"{len(changed)} of another shape, such as {changed[0]}, {own} for {other}")
    return len(missing) + len(unexpected) + len(changed), "; ".join(parts)


def untied(module: nn.Module, missing: Sequence[str]) -> list[str]:
    """Those of the missing names whose parameter has no other name that is there."""
    tensors = module.state_dict(keep_vars=True)
    absent = set(missing)
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in absent}
    return [name for name in missing if id(tensors.get(name)) not in loaded]
