"""A module of the user's, left as it was whatever runs it: what it caches while it is traced stands for no tensor.

A trace runs `forward` on tensors without values. A module that keeps something for the next call (anchors for the last
picture, a table of positions) keeps those, and would fail ever after.
"""

from __future__ import annotations

import collections
import functools
import gc
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Restore = Callable[[], None]

# Their state is their own affair; `nn.Module`s are looked into wherever they come from.
_FOREIGN = ("torch", "numpy", "onnx", "builtins", "sympy")
_LEAVES = (str, bytes, int, float, complex, bool, type(None), types.FunctionType, types.BuiltinFunctionType)
_NO_CONTENT = object()
# Of a cache; what is larger is data.
_MOST = 100_000


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Put back afterwards what `module` holds in Python: attributes, containers, buffers, flags, caches of functions.

    Tensors are not copied: what is written into one in place stays.
    """
    restores = list(_snapshot(module))
    before = {id(cache): cache.cache_info().misses for cache in _function_caches()}
    try:
        yield
    finally:
        for restore in restores:
            restore()
        for cache in _function_caches():
            if cache.cache_info().misses > before.get(id(cache), 0):
                cache.cache_clear()


def _function_caches() -> list[Any]:
    """Every `functools.cache` of code that is no library of ours. Emptying one changes no result."""
    kind = type(functools.lru_cache(int))
    found = [thing for thing in gc.get_objects() if type(thing) is kind]
    return [cache for cache in found if not _is_foreign(getattr(cache, "__module__", None))]


def _is_foreign(name: str | None) -> bool:
    root = (name or "builtins").partition(".")[0]
    return root in _FOREIGN or root in sys.stdlib_module_names or root == __name__.partition(".")[0]


def _snapshot(module: nn.Module) -> Iterator[Restore]:
    """What puts back each object that can be reached from the module, its classes and the files that define them."""
    todo: list[Any] = [module]
    seen: dict[int, Any] = {}
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, _LEAVES):
            continue
        seen[id(thing)] = thing  # held, so that its number is not given to another
        if isinstance(thing, type):
            if not _is_foreign(thing.__module__):
                yield _attributes_as_now(thing)
                todo += [value for value in vars(thing).values() if isinstance(value, (dict, list, set))]
                todo.append(sys.modules.get(thing.__module__))
        elif isinstance(thing, types.ModuleType):
            yield _items_as_now(vars(thing))
            todo += [value for value in vars(thing).values() if isinstance(value, (dict, list, set))]
        elif isinstance(thing, (dict, list, set, collections.deque)):
            if len(thing) <= _MOST:
                yield _items_as_now(thing)
                todo += thing.values() if isinstance(thing, dict) else thing
        elif isinstance(thing, tuple):
            todo += thing
        elif isinstance(thing, types.MethodType):
            todo.append(thing.__self__)
        elif isinstance(thing, nn.Module) or not _is_foreign(type(thing).__module__):
            todo += type(thing).__mro__
            todo += [own for own in [getattr(thing, "__dict__", None)] if own is not None]
            yield _slots_as_now(thing)


def _items_as_now(container: Any) -> Restore:
    if isinstance(container, dict):
        return _entries_as_now(container)
    was = list(container)

    def restore() -> None:
        if len(container) != len(was) or any(a is not b for a, b in zip(container, was, strict=True)):
            container.clear()
            (container.update if isinstance(container, set) else container.extend)(was)

    return restore


def _entries_as_now(mapping: Any) -> Restore:
    """Of a dict as it is stored: a subclass may make something new whenever it is asked for an entry."""
    kind: Any = collections.OrderedDict if isinstance(mapping, collections.OrderedDict) else dict
    was = list(kind.items(mapping))

    def restore() -> None:
        now = list(kind.items(mapping))
        if len(now) == len(was) and all(a is b and x is y for (a, x), (b, y) in zip(now, was, strict=True)):
            return
        kind.clear(mapping)
        for key, value in was:
            kind.__setitem__(mapping, key, value)

    return restore


def _attributes_as_now(kind: type) -> Restore:
    was = dict(vars(kind))

    def restore() -> None:
        for name in [name for name, value in vars(kind).items() if was.get(name, _NO_CONTENT) is not value]:
            if name in was:
                setattr(kind, name, was[name])
            else:
                delattr(kind, name)

    return restore


def _slots_as_now(thing: Any) -> Restore:
    names = [name for kind in type(thing).__mro__ for name in _slots(kind)]
    was = {name: getattr(thing, name, _NO_CONTENT) for name in names}

    def restore() -> None:
        for name, value in was.items():
            if value is not _NO_CONTENT and getattr(thing, name, _NO_CONTENT) is not value:
                object.__setattr__(thing, name, value)

    return restore


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    return [name for name in ([slots] if isinstance(slots, str) else slots) if not name.startswith("__")]
