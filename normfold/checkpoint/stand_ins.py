"""Inert stand-ins for what checkpoint files hold beside their tensors: configurations, numpy scalars, paths.

torch's weights-only unpickler creates nothing that was not registered under its name. Here the names that the authors'
files hold are registered, and what they stand for is not imported: a stand-in keeps what the file says, no more.
"""

from __future__ import annotations

import argparse
import contextlib
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# Everything of these packages gets a stand-in. None of their code runs, so it does not matter what it is.
PACKAGES = ("numpy.", "omegaconf.", "pathlib.", "typing.")
# Their instances are filled item by item, which the unpickler does for plain dicts and lists alone.
DICTS = ("collections.defaultdict", "yacs.config.CfgNode")
LISTS = ("collections.deque",)

# torch's older file format has magic number, version and system before the object, and the names of storages after it.
_PICKLES_IN_A_FILE = 5

Registered = Callable[..., Any] | tuple[Callable[..., Any], str]


class StandIn:
    """An object of a class that is not imported: `arguments` it was to be made from and `state` it was to have."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dict:
    """Creates an OrderedDict, the one mapping that takes attributes (CfgNode has some) besides items."""

    def __new__(cls, *arguments: Any) -> Any:
        return OrderedDict()


class _List:
    def __new__(cls, items: Iterable[Any] = (), *limit: Any) -> Any:
        return list(items)


def registered(path: Path) -> list[Registered]:
    """What the weights-only unpickler may create for this file, besides tensors: plain values and stand-ins."""
    plain: list[Registered] = [argparse.Namespace, dict, list, set, frozenset, tuple, int, float, bool, str]
    wanted = [name for name in named_globals(path) if name.startswith(PACKAGES)]
    # A class of its own for each, so that a message about one says what the file calls it.
    objects = [(type(name.rpartition(".")[2], (StandIn,), {}), name) for name in wanted]
    return [*plain, *((_Dict, name) for name in DICTS), *((_List, name) for name in LISTS), *objects]


def named_globals(path: Path) -> list[str]:
    """The globals that a file's pickles name, read from their opcodes without executing any of them."""
    names: list[str] = []
    # The listing stops where the file is damaged; loading it will say so.
    with contextlib.suppress(ValueError, IndexError, UnicodeDecodeError, EOFError, OSError, zipfile.BadZipFile):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                member = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
                if member is not None:
                    with archive.open(member) as file:
                        _list_globals(file, names)
        else:
            with path.open("rb") as file:
                for _ in range(_PICKLES_IN_A_FILE):
                    _list_globals(file, names)
    return list(dict.fromkeys(names))


def _list_globals(file: Any, names: list[str]) -> None:
    strings = [""]
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            names.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.append(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
