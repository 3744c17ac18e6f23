"""What a module keeps from one call for the next ones of the same size: out of the way while it is traced.

A trace has sizes without values. A table that was kept for another size fixes the axis at "not that one", and a dict by
sizes cannot look one up. What is such a cache shows when the module runs: it is what the call has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from normfold.export.outputs import tensors_of

_Kept = tuple[nn.Module, str]
_OF_TORCH = frozenset(vars(nn.Module()))


class _BySymbol(dict[Any, Any]):
    """A dict that sizes without values can be keys of: they are one if they are spelled alike."""

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_spelled(key))

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_spelled(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_spelled(key), value)

    def get(self, key: Any, default: Any = None) -> Any:
        """The entry of `key`, or `default`."""
        return super().get(_spelled(key), default)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The entry of `key`, which is `default` from now on where there was none."""
        return super().setdefault(_spelled(key), default)


def _spelled(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_spelled(part) for part in key)
    return f"size {key.node.expr}" if isinstance(key, torch.SymInt) else key


@contextmanager
def without_caches(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[bool]:
    """While this runs, nothing is kept of earlier calls; whether there was anything, and `module` does without it.

    To be used where `untouched` puts everything back. The module is run twice: its outputs have to be the same.
    """
    before = _state(module)
    with torch.no_grad():
        expected = list(tensors_of(module(*args, **kwargs)))
    changed = [key for key, value in _state(module).items() if _differs(before.get(key), value)]
    for one, name in changed:
        value = getattr(one, name)
        setattr(one, name, _BySymbol() if type(value) is dict else None)
    yield bool(changed) and _same(module, args, kwargs, expected, changed)


def _state(module: nn.Module) -> dict[_Kept, tuple[Any, Any]]:
    """Every attribute that is neither a parameter, a buffer nor a module; of a dict what it holds too."""
    return {
        (part, name): (value, list(value.values()) if type(value) is dict else None)
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in _OF_TORCH
    }


def _differs(before: tuple[Any, Any] | None, now: tuple[Any, Any]) -> bool:
    if before is None or before[0] is not now[0]:
        return True
    held, holds = before[1], now[1]
    return held is not None and (len(held) != len(holds) or any(a is not b for a, b in zip(held, holds, strict=True)))


def _same(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    expected: list[torch.Tensor],
    changed: list[_Kept],
) -> bool:
    """Whether the module gives the same without what it kept; afterwards it is without that again."""
    empty = {(part, name): getattr(part, name) for part, name in changed}
    try:
        with torch.no_grad():
            found = list(tensors_of(module(*args, **kwargs)))
    # The user's code, without something that it may have counted on.
    except Exception:
        return False
    for (part, name), value in empty.items():
        if type(value) is _BySymbol:
            value.clear()
        setattr(part, name, value)
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
