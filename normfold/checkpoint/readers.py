"""How one option is read from the names and shapes of weights: the pieces that the families' rows are made of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from normfold.norms.base import Shapes

# Reads one option; None where the weights do not show it.
Reader = Callable[[Shapes], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """How a family's weights are read.

    present, absent: names that all of its weights have, and that none has; `*` stands for any part. read: options by
    what shows them. hidden: options that change the function and that nothing shows, unless `read` has them too. sized:
    options that the hidden ones depend on: a name settles the hidden ones only where these are its own. free: options
    that nothing shows and that change no output, only which inputs are taken. facts: what is so of this family whatever
    its options, or follows from them, in the words of stated.py, for a file may say otherwise (`Said.against`). part:
    it is a part of larger networks, whose files hold other weights beside it.
    """

    present: tuple[str, ...]
    absent: tuple[str, ...] = ()
    read: Mapping[str, Reader] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    sized: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    facts: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=lambda options: {})
    part: bool = False


def size(name: str, axis: int = 0, *, less: int = 0) -> Reader:
    """Of one axis."""
    return lambda shapes: shapes[name][axis] - less


def count(prefix: str) -> Reader:
    """How many numbers follow the prefix, as in `blocks.0.`, `blocks.1.`"""
    return lambda shapes: len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)}) or None


def has(name: str) -> Reader:
    """Whether there is such a name."""
    return lambda shapes: name in shapes


def lacks(name: str) -> Reader:
    """True where the name is missing; where it is there, it may still be tied to another."""
    return lambda shapes: True if name not in shapes else None


def ratio(name: str) -> Reader:
    """Of a Linear's output to its input."""
    return lambda shapes: shapes[name][0] / shapes[name][1]


def heads(width: str, axis: int, head: str, factor: int = 1) -> Reader:
    """The channels of `width` over those of one head."""
    return lambda shapes: shapes[width][axis] // (shapes[head][0] * factor)


def side(name: str, axis: int = 1, *, extra: int = 0, patch: str | int = 1) -> Reader:
    """The side of a square picture of which `name` has an entry for every patch."""

    def read(shapes: Shapes) -> int | None:
        patches = shapes[name][axis] - extra
        side = math.isqrt(max(patches, 0))
        return side * (patch if isinstance(patch, int) else shapes[patch][2]) if side * side == patches else None

    return read


def stages(pattern: str, first: int, read: Callable[[str], Reader]) -> Reader:
    """What `read` reads in every stage; `pattern` is the stage's prefix, with {} for its number."""

    def read_all(shapes: Shapes) -> tuple[Any, ...] | None:
        prefixes = itertools.takewhile(
            lambda prefix: any(name.startswith(prefix) for name in shapes), map(pattern.format, itertools.count(first))
        )
        found = tuple(value_of(read(prefix), shapes) for prefix in prefixes)
        return None if None in found or not found else found

    return read_all


def first(*readers: Reader) -> Reader:
    """The first that the weights show."""
    return lambda shapes: next((value for read in readers if (value := value_of(read, shapes)) is not None), None)


def value_of(read: Reader, shapes: Shapes) -> Any:
    """What a reader finds, None where the weights lack what it looks at."""
    try:
        return read(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError):  # names and shapes are untrusted
        return None


def letters(pattern: str, start: int, linear: str) -> Reader:
    """The attention of every stage, L where it has the name `linear` and S where not; one letter where all agree."""
    read_all = stages(pattern, start, lambda at: lambda shapes: "L" if f"{at}{linear}" in shapes else "S")

    def read(shapes: Shapes) -> str | None:
        found = read_all(shapes)
        return found and (found[0] if len(set(found)) == 1 else "".join(found))

    return read


def each(encoder: Reader, decoder: Reader) -> Reader:
    """What encoder and decoder have: one value where they agree, two where not."""

    def read(shapes: Shapes) -> Any:
        one, other = encoder(shapes), decoder(shapes)
        return one if one == other else (one, other)

    return read
