"""Plain data out of untrusted files: JSON and configurations within bounds, and whether a path is a file at all."""

from __future__ import annotations

import json
import math
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from normfold.errors import CheckpointError

# No configuration goes deeper or holds larger numbers; what does is made to break its reader.
_DEEPEST = 50
_DIGITS = 20
_LONGEST = 1000
# Of a configuration or an index: those of the largest models have a few megabytes.
MOST_BYTES = 64 << 20

MISSING = "no such file"
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def irregular(path: Path) -> str | None:
    """Why `path` cannot be read as a file or a folder, to follow its name in a message; None where it can.

    Pipes, sockets and devices may never end, so that nothing opens them.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return MISSING
    except (OSError, ValueError) as error:
        return f"it cannot be read ({getattr(error, 'strerror', None) or error})"
    return next((f"it is {kind}, not a file" for is_kind, kind in _KINDS if is_kind(mode)), None)


def check_source(path: Path) -> None:
    """Raise CheckpointError for what cannot be read as a file or a folder, or whose name is not UTF-8.

    Nothing is opened.
    """
    if (why := irregular(path)) is not None:
        raise CheckpointError(f"{path}: {why}.")
    if not is_utf8(path):
        raise CheckpointError(f"{path}: its name is not UTF-8, and neither onnxruntime nor ONNX takes it; rename it.")


def is_utf8(path: Path) -> bool:
    """Whether the name is UTF-8: onnxruntime opens no other, and ONNX holds no other in its metadata.

    Where Python takes the names of files for another encoding (LC_ALL=C with PYTHONUTF8=0), only ASCII is.
    """
    try:
        str(path).encode("utf-8" if sys.getfilesystemencoding() == "utf-8" else "ascii")
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, saying in a line what is wrong, for whatever cannot be used."""
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        _too_deep()
    todo = [(value, 0)]
    while todo:
        item, depth = todo.pop()
        if depth > _DEEPEST:
            _too_deep()
        todo += [(inner, depth + 1) for inner in _inside(item)]
    return value


def _too_deep() -> NoReturn:
    raise ValueError(f"it is nested more than {_DEEPEST} deep") from None


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"it holds an integer of {len(digits)} digits")
    return int(digits)


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises ValueError as `parse_json` does, and OSError."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has {path.stat().st_size} bytes")
    return parse_json(path.read_text(encoding="utf-8"))


def as_text(value: Any) -> str:
    """A string as it is. Raises TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a string belongs")
    return value


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is numbers, short strings, None, and lists and dicts of them: what an option can be."""
    if isinstance(value, (str, bool)) or value is None:
        return value is None or isinstance(value, bool) or len(value) <= _LONGEST
    if isinstance(value, (int, float)):
        return abs(value) < 10**_DIGITS and (isinstance(value, int) or math.isfinite(value))
    if depth >= _DEEPEST:
        return False
    if isinstance(value, Mapping):
        return len(value) <= _LONGEST and all(
            isinstance(key, str) and is_plain(inner, depth + 1) for key, inner in value.items()
        )
    return (
        isinstance(value, (list, tuple))
        and len(value) <= _LONGEST
        and all(is_plain(inner, depth + 1) for inner in value)
    )
