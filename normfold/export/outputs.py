"""What a module returns, as torch.export can say it: dataclasses become mappings of their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


def plain(value: Any) -> Any:
    """`value` with every dataclass that torch does not know, in containers too, as a dict of its fields.

    Fields that hold no tensor are left out: a graph has no place for a flag or a name. Mappings that are dataclasses as
    well (a ModelOutput of transformers) are known to torch.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and pytree.tree_is_leaf(value):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {name: found for name, found in fields.items() if _holds_tensor(found)}
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    return value


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """The tensors among what a module returned, in the order in which an exported graph has them."""
    return (leaf for leaf in pytree.tree_leaves(plain(value)) if isinstance(leaf, torch.Tensor))


@contextmanager
def plain_outputs(module: nn.Module) -> Iterator[None]:
    """While this runs, `module` returns what torch.export can say."""
    forward: Callable[..., Any] = module.forward
    own: Mapping[str, Any] = dict(vars(module))

    @wraps(forward)
    def spoken(*args: Any, **kwargs: Any) -> Any:
        return plain(forward(*args, **kwargs))

    module.forward = spoken
    try:
        yield
    finally:
        if "forward" in own:
            module.forward = own["forward"]
        else:
            del module.forward
