"""What a model is fed: input specifications, random inputs drawn from them, and the sizes to check an export at.

A specification is one string per input, such as

    x:float32[B,3,224,224]            a dynamic batch
    ids:int64[B,L=16<=64]<256         two dynamic axes, L traced at 16 and at most 64; token numbers below 256
    past:float32[B,8,P>=0,64]         P may be 0 too: a cache in which nothing is yet

An identifier in the brackets is a dynamic axis; the same identifier is the same size everywhere. numpy only: no torch.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from normfold.errors import InputSpecError

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, *INTEGERS, "bool")

# Nothing says how large the numbers of an integer input may be: 0 and 1 are valid in any vocabulary of two.
UNKNOWN_HIGH = 2

# Traced sizes: never 0 or 1 (torch.export bakes those in), primes so that no product of two of them is a third.
_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)

_SPEC = re.compile(
    r"\s*(?P<name>[^\s\[\]<>]+)\s*:\s*(?P<dtype>\w+)\s*\[(?P<dims>[^\[\]]*)\]\s*(?:<\s*(?P<high>\d+)\s*)?", re.ASCII
)
_DIM = re.compile(
    r"(?P<letter>[A-Za-z_]\w*)\s*(?:=\s*(?P<size>\d+)\s*)?(?P<empty>>=\s*0\s*)?(?:<=\s*(?P<limit>\d+)\s*)?",
    re.ASCII,
)
_EXAMPLE = 'for example "x:float32[B,3,224,224]" or "ids:int64[B,L=16]<256" (letters are dynamic axes)'

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input: its name, dtype and dimensions (an int is static, an identifier is a dynamic axis).

    sizes: the size to trace a dynamic axis at, where one was asked for; see `traced_sizes` for the rest.
    limits: the largest size of a dynamic axis, inclusive, where one is known (a position table has an end).
    high: exclusive upper bound of an integer input (the vocabulary), None where unknown.
    empty: the dynamic axes that may have the size 0.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)
    high: int | None = None
    limits: Mapping[str, int] = field(default_factory=dict, hash=False)
    empty: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read `name:dtype[dim,...]`, optionally followed by `<high`. Raises InputSpecError saying what is wrong."""
        match = _SPEC.fullmatch(text)
        if match is None:
            raise InputSpecError(f"input {text!r}: expected name:dtype[dimensions], {_EXAMPLE}")
        dtype = match["dtype"]
        if dtype not in DTYPES:
            raise InputSpecError(f"input {text!r}: unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
        high = int(match["high"]) if match["high"] else None
        if high is not None and dtype not in INTEGERS:
            raise InputSpecError(f"input {text!r}: an upper bound is for integers, and this input is {dtype}")
        if high == 0:
            raise InputSpecError(f"input {text!r}: no integer is in [0, 0); the bound is exclusive and at least 1")
        dims: list[int | str] = []
        sizes: dict[str, int] = {}
        limits: dict[str, int] = {}
        empty: set[str] = set()
        for token in match["dims"].split(",") if match["dims"].strip() else []:
            dims.append(_parse_dim(token.strip(), text, sizes, limits, empty))
        return cls(match["name"], dtype, tuple(dims), sizes, high, limits, frozenset(empty))

    @property
    def letters(self) -> tuple[str, ...]:
        """The dynamic axes, each once, in order."""
        return tuple(dict.fromkeys(dim for dim in self.dims if isinstance(dim, str)))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape at these sizes of the dynamic axes."""
        missing = [letter for letter in self.letters if letter not in sizes]
        if missing:
            raise InputSpecError(f"input {self.name}: no size given for dynamic axis {', '.join(missing)}")
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)

    def __str__(self) -> str:
        dims, seen = [], set()
        for dim in self.dims:
            text = str(dim)
            if isinstance(dim, str) and dim not in seen:
                seen.add(dim)
                text += f"={self.sizes[dim]}" if dim in self.sizes else ""
                text += ">=0" if dim in self.empty else ""
                text += f"<={self.limits[dim]}" if dim in self.limits else ""
            dims.append(text)
        high = "" if self.high is None else f"<{self.high}"
        return f"{self.name}:{self.dtype}[{','.join(dims)}]{high}"


def _parse_dim(token: str, text: str, sizes: dict[str, int], limits: dict[str, int], empty: set[str]) -> int | str:
    """A dimension; what it says of its axis goes into `sizes`, `limits` and `empty`."""
    if token.isascii() and token.isdigit():
        if int(token) == 0:
            raise InputSpecError(f"input {text!r}: a dimension of 0 holds nothing; give its size or a letter")
        return int(token)
    match = _DIM.fullmatch(token)
    if match is None:
        raise InputSpecError(f"input {text!r}: dimension {token!r} is neither a number nor a letter, {_EXAMPLE}")
    letter = match["letter"]
    for found, table in ((match["size"], sizes), (match["limit"], limits)):
        if found is None:
            continue
        if int(found) < 2:
            raise InputSpecError(
                f"input {text!r}: tracing bakes the sizes 0 and 1 in; give axis {letter} 2 or more, or make it static"
            )
        if table.setdefault(letter, int(found)) != int(found):
            raise InputSpecError(f"input {text!r}: axis {letter} is given two sizes")
    if letter in sizes and sizes[letter] > limits.get(letter, sizes[letter]):
        raise InputSpecError(f"input {text!r}: axis {letter} is traced at {sizes[letter]}, past its own limit")
    if match["empty"]:
        empty.add(letter)
    return letter


def parse_specs(texts: Iterable[str]) -> tuple[InputSpec, ...]:
    """Parse several specifications and check that they agree: distinct names, one traced size for each axis."""
    specs = tuple(InputSpec.parse(text) for text in texts)
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputSpecError(f"input {twice!r} is specified twice")
    traced_sizes(specs)
    return specs


def axis_limits(specs: Sequence[InputSpec]) -> dict[str, int]:
    """The smallest limit given for each limited axis."""
    limits: dict[str, int] = {}
    for spec in specs:
        for letter, limit in spec.limits.items():
            limits[letter] = min(limit, limits.get(letter, limit))
    return limits


def traced_sizes(specs: Sequence[InputSpec]) -> dict[str, int]:
    """The size of every dynamic axis while the model is traced.

    Sizes that were asked for are kept; the others are small primes that differ from each other and from the static
    dimensions, so that the exporter does not take one axis for another. Raises InputSpecError on contradictions.
    """
    limits = axis_limits(specs)
    sizes: dict[str, int] = {}
    for spec in specs:
        for letter, size in spec.sizes.items():
            if sizes.setdefault(letter, size) != size:
                first = sizes[letter]
                raise InputSpecError(f"axis {letter} is traced at {first} in one input and at {size} in {spec.name}")
            if size > limits.get(letter, size):
                raise InputSpecError(f"axis {letter} is traced at {size}, past its limit of {limits[letter]}")
    static = {dim for spec in specs for dim in spec.dims if isinstance(dim, int)}
    for letter in dict.fromkeys(letter for spec in specs for letter in spec.letters):
        if letter not in sizes:
            sizes[letter] = _free_size(limits.get(letter), {*sizes.values(), *static})
    return sizes


def _free_size(limit: int | None, taken: set[int]) -> int:
    candidates = [size for size in (*_PRIMES, 2, 4) if limit is None or size <= limit]
    return next((size for size in candidates if size not in taken), candidates[0])


def axis_sizes(specs: Sequence[InputSpec]) -> list[dict[str, int]]:
    """The sizes at which an export is compared with its source: the traced ones first, then each axis on its own.

    Each dynamic axis is tried at the smallest size it may have, at 1, at one less and one more than its traced size and
    at about twice that, within its limit, while the others keep their traced size; last, all of them at their smallest.
    """
    traced = traced_sizes(specs)
    limits = axis_limits(specs)
    may_be_empty = {letter for spec in specs for letter in spec.empty}
    smallest = {letter: 0 if letter in may_be_empty else 1 for letter in traced}
    found = [traced]
    for letter, size in traced.items():
        for other in (smallest[letter], 1, size - 1, size + 1, 2 * size + 1):
            if smallest[letter] <= other <= limits.get(letter, other):
                found.append({**traced, letter: other})
    found.append(smallest)
    return [sizes for index, sizes in enumerate(found) if sizes not in found[:index]]


def draw(
    specs: Sequence[InputSpec], sizes: Mapping[str, int], *, seed: int, scale: float = 1.0
) -> dict[str, npt.NDArray[Any]]:
    """Random inputs: standard normal floats times `scale`, integers in [0, high), booleans with the first one True.

    sizes: the size of each dynamic axis. The same seed, specifications and sizes give the same arrays.
    """
    rng = np.random.default_rng(seed)
    return {spec.name: _draw_one(rng, spec, spec.shape(sizes), scale) for spec in specs}


def _draw_one(rng: np.random.Generator, spec: InputSpec, shape: tuple[int, ...], scale: float) -> npt.NDArray[Any]:
    if spec.dtype == "bool":
        mask = np.asarray(rng.random(shape) < 0.75)
        # A mask that hides a whole row makes a softmax NaN, which would say nothing about the fold.
        np.atleast_1d(mask)[..., 0] = True
        return mask
    if spec.dtype in INTEGERS:
        high = UNKNOWN_HIGH if spec.high is None else min(spec.high, int(np.iinfo(spec.dtype).max) + 1)
        return rng.integers(0, high, size=shape, dtype=spec.dtype)
    return np.asarray(rng.standard_normal(shape) * scale).astype(spec.dtype)


def call_arguments(forward: Callable[..., Any], feed: Mapping[str, T]) -> tuple[tuple[T, ...], dict[str, T]]:
    """How `forward` takes these inputs: (positional, keyword) arguments.

    Inputs named like the parameters of `forward` go to those; otherwise all of them are positional, in their order.
    Every stage that calls a model must call it this way, or the inputs change places. Keywords only appear when an
    optional parameter is skipped.
    """
    parameters = [
        parameter.name
        for parameter in inspect.signature(forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if not set(feed) <= set(parameters):
        return tuple(feed.values()), {}
    ordered = [name for name in parameters if name in feed]
    first_skip = next((i for i, name in enumerate(parameters) if i >= len(ordered) or ordered[i] != name), len(ordered))
    keyword_only = {
        p.name for p in inspect.signature(forward).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    positional = [name for name in ordered[:first_skip] if name not in keyword_only]
    return tuple(feed[name] for name in positional), {name: feed[name] for name in ordered if name not in positional}
