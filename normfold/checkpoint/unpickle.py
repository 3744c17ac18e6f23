"""Reading what torch.save wrote, without running anything in it.

torch's weights-only unpickler creates nothing that was not registered under its name. Here the names that the authors'
files hold beside their tensors are registered (configurations, numpy scalars, paths), and what they stand for is not
imported: a stand-in keeps what the file says, no more. Only `trust=True` unpickles all; nothing falls back to it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pickletools
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from normfold.errors import CheckpointError
from normfold.system.failures import one_line

TRUST = (
    "Pass --trust-checkpoint if, and only if, you trust whoever made this file: reading it can then run any code in it"
)

# Everything of these packages gets a stand-in. None of their code runs, so it does not matter what it is.
PACKAGES = ("numpy.", "omegaconf.", "pathlib.", "typing.")
# Their instances are filled item by item, which the unpickler does for plain dicts and lists alone.
DICTS = ("collections.defaultdict", "yacs.config.CfgNode")
LISTS = ("collections.deque",)

# torch's older file format has magic number, version and system before the object, and the names of storages after it.
_PICKLES_IN_A_FILE = 5

Registered = Callable[..., Any] | tuple[Callable[..., Any], str]


def unpickle(path: Path, *, trust: bool) -> Any:
    """What torch.save wrote to `path`. Raises CheckpointError; the message names a global that was refused."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:2] == b"PK":
        _check_zip(path, trust=trust)
    elif magic[:1] != b"\x80":
        start = magic.decode("latin-1")
        raise CheckpointError(
            f"{path} is not a torch checkpoint: it is neither a zip archive nor a pickle (it starts with {start!r}); "
            "was a text or web page saved under this name?"
        )
    # Here, for others want to know of the stand-ins alone.
    import torch

    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(registered(path)),
            current_directory_importable() if trust else contextlib.nullcontext(),
        ):
            # Pickle protocols other than 2 get a warning about instructions that, if met, are an error anyway.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=not trust)
    # A pickle is a program and a damaged one can fail in any way at all, so every Exception is bad input here.
    except Exception as e:
        raise CheckpointError(_load_failure(path, e, trust=trust)) from e


def _check_zip(path: Path, *, trust: bool) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as e:
        raise CheckpointError(f"{path} is a truncated or damaged zip archive ({e}); fetch or save it again.") from e
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript archive, which cannot be exported again; give the state dict it was made from, "
            "with the architecture, or an .onnx file."
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(f"{path} is a zip archive, but torch.save did not write it (it has no data.pkl).")


def _load_failure(path: Path, error: Exception, *, trust: bool) -> str:
    text = str(error)
    found = re.search(r"GLOBAL (\S+)", text)
    if found and not trust:
        return (
            f"{path} was not loaded: it holds {found[1].rstrip('.')}, which is not plain data (tensors, containers, "
            f"numbers, strings), and creating it means running code named by the file. {TRUST}; or save a plain state "
            "dict instead: torch.save(model.state_dict(), path)."
        )
    if "Unsupported operand" in text and not trust:
        named = ", ".join(named_globals(path)[:10]) or "no globals"
        return (
            f"{path} was not loaded: torch.save did not write this pickle, or it is damaged (it names {named}). "
            f"{TRUST}; or save a plain state dict instead: torch.save(model.state_dict(), path)."
        )
    missing = _missing_code(error) if trust else None
    if missing is not None:
        return (
            f"{path} holds objects of {missing}, which cannot be imported: run where that code is (the current "
            "directory counts, and PYTHONPATH); or save a plain state dict instead: torch.save(model.state_dict(), "
            "path), and name your code with --model pkg.module:factory."
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{path} cannot be read ({lines[-1] if lines else one_line(error)}); it may be damaged."


def _missing_code(error: Exception) -> str | None:
    """The module or class that a trusted pickle names and Python does not find; None where that is not what failed."""
    if isinstance(error, ModuleNotFoundError):
        return f"the module {error.name}"
    found = re.match(r"Can't get attribute '(.+?)' on <module '(.+?)'", str(error))
    return f"{found[2]}.{found[1]}" if isinstance(error, AttributeError) and found else None


@contextlib.contextmanager
def current_directory_importable() -> Iterator[None]:
    """The current directory comes first while the user's code is imported and called, and is gone again afterwards."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


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
