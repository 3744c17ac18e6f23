"""Untrusted strings: what a file calls its parts, and what libraries say of it.

A name may hold anything: escape sequences that move the cursor or set the clipboard, characters that reverse the text
behind them, lines that a CI system takes for commands (`::error::`, `##vso[...]`). Everything that leaves for a
terminal, a log or a report passes through `printable` or `json_text`; what is read from metadata through `listed`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

# Beyond this a message is a flood.
_LONGEST = 20_000

# Control and format characters, separators of lines, halves of surrogate pairs (Unicode: Cc, Cf, Zl, Zp, Cs).
_HIDDEN = (
    "\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f\ud800-\udfff"
)
# And the first character of what is a command to GitHub Actions at the start of a line (`::error::`), or to it and to
# others anywhere (`##[error]`, `##vso[...]`, `##teamcity[...]`).
_COMMAND = r"#(?=#[A-Za-z]*\[)"
_UNSAFE = re.compile(rf"[{_HIDDEN}]|(?<![^ ]):(?=:)|{_COMMAND}")
_UNSAFE_IN_JSON = re.compile(f"[{_HIDDEN}]|{_COMMAND}")
_LED = re.compile("^( *):(?=:)", re.MULTILINE)

_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_STRINGS = re.compile(_STRING, re.DOTALL)
_LIST = re.compile(rf"\s*[\[(]\s*(?:(?:{_STRING})\s*(?:,\s*(?:{_STRING})\s*)*,?\s*)?[\])]\s*", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}


def printable(text: object) -> str:
    r"""`text` on one line where every character shows: ESC as `\x1b`, a newline as `\n`, a leading `::` as `\x3a:`."""
    shown = _UNSAFE.sub(_escaped, str(text))
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}... ({len(shown) - _LONGEST} more characters)"


def wrapped(text: str) -> str:
    """Text of `printable` that was broken into lines, where a break may have put `::` first."""
    return _LED.sub(r"\1\\x3a", text)


def json_text(content: Any, *, indent: int | None = 2, default: Callable[[Any], Any] | None = None) -> str:
    """`content` as JSON in which every character shows, with a final newline; it reads back as it was."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False, default=default)
    # The newlines are those between the entries: inside strings JSON has escaped them.
    return _UNSAFE_IN_JSON.sub(lambda found: found[0] if found[0] == "\n" else _json_escaped(found[0]), text) + "\n"


def first_few(items: Sequence[str], *, most: int = 3, between: str = ", ") -> str:
    """The first items, and how many more there are: `a, b, c and 2 more`."""
    last = " and " if between == ", " else f"{between}and "
    return between.join(items[:most]) + (f"{last}{len(items) - most} more" if len(items) > most else "")


def listed(text: str | None) -> tuple[str, ...]:
    """The strings of a list of strings as Python writes it; none where `text` is anything else.

    Not `ast.literal_eval`: it raises what it likes, and deep nesting can end the process.
    """
    if not text or not _LIST.fullmatch(text):
        return ()
    return tuple(_ESCAPE.sub(_unescaped, string[1:-1]) for string in _STRINGS.findall(text))


def _escaped(found: re.Match[str]) -> str:
    letter = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(found[0])
    code = ord(found[0])
    return letter or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def _json_escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else json.dumps(character)[1:-1]


def _unescaped(found: re.Match[str]) -> str:
    digits = found[1] or found[2] or found[3]
    if digits is None:
        return _LETTERS.get(found[4], found[4])
    code = int(digits, 16)
    # Halves of pairs and numbers past the last character can be written nowhere.
    return "\ufffd" if 0xD800 <= code < 0xE000 or code > 0x10FFFF else chr(code)
