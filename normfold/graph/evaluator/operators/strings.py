"""Operators on strings, and TfIdfVectorizer, which counts n-grams of strings or integers."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import Array, Tensor, Value

# Bytes of a number here: what Meter counts in.
_WIDTH = 8
# Letters that Python's matcher may look at: a few seconds.
_MOST_STEPS = 1e8
# Of a pattern: escapes, classes, the beginnings of groups, repeats, single letters.
_REPEAT = re.compile(r"(?:[*+?]|\{(?:(?P<exact>\d+)|\d*,(?P<most>\d*))\})[?+]?")
_GROUP = re.compile(r"\(\?(?:P?<\w+>|[ims]*:)")
_TOKENS = re.compile(rf"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|{_GROUP.pattern}|\(\??|{_REPEAT.pattern}|.", re.DOTALL)


def string_array(items: list[str], shape: tuple[int, ...]) -> Array:
    """Strings in a shape."""
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found.reshape(shape)


def concatenate(call: Call, x: Array, y: Array) -> Array:
    """X and Y written one behind the other."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    call.reserve(*shape)
    pairs = list(zip(np.broadcast_to(x, shape).reshape(-1), np.broadcast_to(y, shape).reshape(-1), strict=True))
    call.reserve(sum(len(one) + len(other) for one, other in pairs) // _WIDTH)
    return string_array([one + other for one, other in pairs], shape)


def normalize(call: Call, x: Array) -> Array:
    """Strings without stop words, in upper or lower case; of none that is left an empty string stays."""
    ascii_only = call.text("locale", "en_US") in ("C", "POSIX")
    case, stop = call.text("case_change_action", "NONE"), call.texts("stopwords") or []
    folded = "NONE" if call.integer("is_case_sensitive", 0) else "LOWER"
    unwanted = {_in_case(item, folded, ascii_only) for item in stop}
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1) or not x.size:
        raise ValueError(f"it takes [C] and [1, C], not {list(x.shape)}")
    kept = [item for item in x.reshape(-1) if _in_case(item, folded, ascii_only) not in unwanted]
    kept = [_in_case(item, case, ascii_only) for item in kept or [""]]
    return string_array(kept, (*x.shape[:-1], len(kept)))


def _in_case(text: str, case: str, ascii_only: bool) -> str:
    """Letter by letter, as C does it: what would become two letters stays."""
    if case == "NONE":
        return text
    changed = [letter.lower() if case == "LOWER" else letter.upper() for letter in text]
    return "".join(
        letter if len(new) != 1 or (ascii_only and not letter.isascii()) else new
        for letter, new in zip(text, changed, strict=True)
    )


def split(call: Call, x: Array) -> tuple[Array, Tensor]:
    """Strings in pieces along a new last axis, filled up with empty ones; and how many there are of each.

    Against the schema's text, and as in onnxruntime: without a delimiter only spaces separate, no other white space,
    and an empty string has no pieces.
    """
    delimiter, most = call.text("delimiter", ""), call.integer("maxsplit", -1)
    pieces = [_pieces(item, delimiter, most) for item in x.reshape(-1)]
    counts = [len(found) for found in pieces]
    width = max(counts, default=0)
    call.reserve(len(pieces), width)
    filled = [piece for found in pieces for piece in (*found, *[""] * (width - len(found)))]
    return string_array(filled, (*x.shape, width)), torch.tensor(counts, dtype=torch.int64).reshape(x.shape)


def _pieces(text: str, delimiter: str, most: int) -> list[str]:
    if delimiter:
        return text.split(delimiter, most) if text else []
    text = text.strip(" ")
    if not text or most == 0:
        return [text] if text else []
    return re.split(" +", text, maxsplit=max(most, 0))


def full_match(call: Call, x: Array) -> Tensor:
    """Whether a string is matched as a whole. The syntax is RE2's, whose classes hold ASCII only.

    RE2 takes time in proportion to the string; Python tries one way after the other, and may never end.
    """
    text = call.text("pattern", "")
    try:
        pattern = re.compile(text, re.ASCII)
    except re.error as error:
        raise ValueError(f"the pattern cannot be read: {error}") from error
    longest = max((len(item) for item in x.reshape(-1)), default=0)
    if _ways(text, longest) * max(longest, 1) * max(x.size, 1) > _MOST_STEPS:
        raise call.refuse(f"a pattern that {x.size} strings of up to {longest} letters may match in too many ways")
    found = [pattern.fullmatch(item) is not None for item in x.reshape(-1)]
    return torch.tensor(found, dtype=torch.bool).reshape(x.shape)


def _ways(pattern: str, length: int) -> float:
    """At most so many ways to match a string of this length are tried; inf where repeats are nested or no limit known.

    Every repeat can end in as many places as the string has, and every `|` goes two ways.
    """
    groups, last = [(1.0, True)], True  # of every open group: its ways, and whether there is but one; the last atom's
    for token in (match[0] for match in _TOKENS.finditer(pattern)):
        ways, single = groups[-1]
        if token == "(" or _GROUP.fullmatch(token):
            groups.append((1.0, True))
            continue
        if token == ")" and len(groups) > 1:
            groups.pop()
            outer, outer_single = groups[-1]
            groups[-1], last = (outer * ways, outer_single and single), single
            continue
        repeat = _REPEAT.fullmatch(token)
        if token.startswith("(?") or re.fullmatch(r"\\[1-9]", token) or (repeat and not (last or token[0] == "?")):
            return math.inf
        if repeat:
            places = 2 if token[0] == "?" else 1 if repeat["exact"] else 1 + int(repeat["most"] or length)
            groups[-1] = (ways * places, single and places == 1)
            last = places == 1
        else:
            last = True
            if token == "|":
                groups[-1] = (ways * 2, False)
    return groups[0][0] if len(groups) == 1 else math.inf


def tf_idf(call: Call, x: Value) -> Tensor:
    """How often n-grams of the pool stand in each row, items left out in between or not; counts, or weights."""
    mode, most_skips = call.text("mode", ""), call.integer("max_skip_count", 0)
    shortest, longest = call.integer("min_gram_length", 1), call.integer("max_gram_length", 1)
    places = call.integers("ngram_indexes") or []
    grams = _grams(call)
    weights = call.numbers("weights") or [1.0] * len(grams)
    rows = (x if x.ndim == 2 else x.reshape(1, -1)).tolist()
    found = np.zeros((len(rows), max(places) + 1))
    for row, items in enumerate(rows):
        counts = _counted(items, shortest, longest, most_skips)
        for gram, place, weight in zip(grams, places, weights, strict=True):
            count = counts[gram]
            found[row, place] += {"TF": count, "IDF": weight * (count > 0), "TFIDF": weight * count}[mode]
    return torch.from_numpy(found if x.ndim == 2 else found[0])


def _grams(call: Call) -> list[tuple[int | str, ...]]:
    """The pool in n-grams: first those of one item, then those of two, and so on."""
    pool: list[int | str] = [*(call.integers("pool_int64s") or ()), *(call.texts("pool_strings") or ())]
    starts = [*(call.integers("ngram_counts") or ()), len(pool)]
    return [
        tuple(pool[place : place + size])
        for size, (start, end) in enumerate(pairwise(starts), start=1)
        for place in range(start, end, size)
    ]


def _counted(items: list[int | str], shortest: int, longest: int, most_skips: int) -> Counter[tuple[int | str, ...]]:
    counts: Counter[tuple[int | str, ...]] = Counter()
    for size in range(shortest, longest + 1):
        for step in range(1, (most_skips if size > 1 else 0) + 2):
            reach = (size - 1) * step
            counts.update(tuple(items[at : at + reach + 1 : step]) for at in range(len(items) - reach))
    return counts


ROWS: Rows = {
    "RegexFullMatch": {(20,): full_match},
    "StringConcat": {(20,): concatenate},
    "StringNormalizer": {(10,): normalize},
    "StringSplit": {(20,): split},
    "TfIdfVectorizer": {(9,): tf_idf},
}
