"""What a model is fed: input specifications, random inputs drawn from them, and the sizes to check an export at.

A specification is one string per input, such as

    x:float32[B,3,224,224]            a dynamic batch
    ids:int64[B,L=16<=64]<256         two dynamic axes, L traced at 16 and at most 64; token numbers below 256
    past:float32[B,8,P>=0,64]         P may be 0 too: a cache in which nothing is yet
    x:float32[B,3,H=32*h,W=32*w]      heights and widths that are multiples of 32
    mask:int64[B,P+S]                 an axis that is as long as two others together
    rate:int64[]{8000,16000}          one of two numbers

An identifier in the brackets is a dynamic axis; the same identifier is the same size everywhere. numpy only: no torch.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

# Large sizes to try, no powers of two; what a sample of such a size may have of elements, and of products of positions
# and parameters (a second or two of a layer that is applied at every position).
_LARGE = (513, 257, 129, 65)
_LEAST_LARGE = 64
_CHEAP_ELEMENTS = 1 << 16
_CHEAP_WORK = 1e10
# Elements of the inputs beyond which a sample is not made twice as large: it shows no more than a step more does.
_DEAR = 1 << 20

_SPEC = re.compile(
    r"\s*(?P<name>[^\s\[\]<>]+)\s*:\s*(?P<dtype>\w+)\s*\[(?P<dims>[^\[\]]*)\]\s*"
    r"(?:<\s*(?P<high>\d+)\s*|\{(?P<values>[\d\s,]+)\}\s*)?",
    re.ASCII,
)
# What may stand behind the letter of an axis, in any order: a multiple, the size to trace at, the least and the most.
_DIM = re.compile(r"(?P<letter>[A-Za-z_]\w*)\s*(?P<rest>.*)", re.ASCII)
_LONG_NUMBER = re.compile("[0-9]{19}")
_SUM = re.compile(r"[A-Za-z_]\w*(?:\+(?:[A-Za-z_]\w*|\d{1,9}))+", re.ASCII)
_OF_DIM = re.compile(
    r"=\s*(?P<step>\d+)\s*\*\s*[A-Za-z_]\w*|=\s*(?P<size>\d+)|>=\s*(?P<low>\d+)|<=\s*(?P<limit>\d+)", re.ASCII
)
_EXAMPLE = 'for example "x:float32[B,3,224,224]" or "ids:int64[B,L=16]<256" (letters are dynamic axes)'

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Axis:
    """What the size of a dynamic axis may be: from low to high, both inclusive, and a multiple of step.

    size: what it is traced at, where that was asked for.
    """

    low: int = 1
    high: int | None = None
    step: int = 1
    size: int | None = None

    def allows(self, size: int) -> bool:
        """Whether the axis may have this size."""
        return self.low <= size and (self.high is None or size <= self.high) and size % self.step == 0

    def nearest(self, size: int) -> int:
        """The multiple at or above `size`."""
        return -(-size // self.step) * self.step

    @property
    def smallest(self) -> int:
        """The least size that it may have."""
        return self.nearest(self.low)

    def and_also(self, other: Axis) -> Axis:
        """What both allow."""
        highs = [high for high in (self.high, other.high) if high is not None]
        step = math.lcm(self.step, other.step)
        # 1 is the default; 0 was asked for.
        low = min(self.low, other.low) if 0 in (self.low, other.low) else max(self.low, other.low)
        return Axis(low, min(highs, default=None), step, self.size if other.size is None else other.size)

    def check(self, letter: str, where: str) -> None:
        """Raise InputSpecError where no size, or not the one it is traced at, is allowed."""
        if self.step < 1:
            raise InputSpecError(f"{where}: axis {letter} cannot be a multiple of {self.step}")
        for size in (self.size, self.high):
            if size is not None and size < 2:
                raise InputSpecError(
                    f"{where}: tracing bakes the sizes 0 and 1 in; give axis {letter} 2 or more, or make it static"
                )
        if self.high is not None and self.smallest > self.high:
            raise InputSpecError(f"{where}: axis {letter} has no size: nothing fits{self}")
        if self.size is not None and not self.allows(self.size):
            past = self.high is not None and self.size > self.high
            what = f"past its limit of {self.high}" if past else f"which{replace(self, size=None)} does not allow"
            raise InputSpecError(f"{where}: axis {letter} is traced at {self.size}, {what}")

    def __str__(self) -> str:
        text = f"={self.step}*n" if self.step > 1 else ""
        text += "" if self.size is None else f"={self.size}"
        text += "" if self.low == 1 else f">={self.low}"
        return text + ("" if self.high is None else f"<={self.high}")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input: its name, dtype and dimensions (an int is static, an identifier is a dynamic axis, `P+S` a sum).

    sizes: the size to trace a dynamic axis at, where one was asked for; see `traced_sizes` for the rest.
    limits: the largest size of a dynamic axis, inclusive, where one is known (a position table has an end).
    high: exclusive upper bound of an integer input (the vocabulary), None where unknown.
    lows: the smallest size of a dynamic axis where it is not 1; 0 where it may be empty.
    steps: what the size of a dynamic axis has to be a multiple of, where that is more than 1.
    values: what an integer input may hold, where only a few numbers make sense; empty otherwise.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)
    high: int | None = None
    limits: Mapping[str, int] = field(default_factory=dict, hash=False)
    lows: Mapping[str, int] = field(default_factory=dict, hash=False)
    steps: Mapping[str, int] = field(default_factory=dict, hash=False)
    values: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read `name:dtype[dim,...]`, optionally followed by `<high`. Raises InputSpecError saying what is wrong."""
        if _LONG_NUMBER.search(text):
            raise InputSpecError(f"input {text[:60]!r}...: a number in it has more than 18 digits")
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
        values = tuple(sorted({int(word) for word in (match["values"] or "").split(",") if word.strip()}))
        if values and dtype not in INTEGERS:
            raise InputSpecError(f"input {text!r}: a choice of numbers is for integers, and this input is {dtype}")
        said: dict[str, dict[str, int]] = {what: {} for what in ("size", "limit", "low", "step")}
        tokens = match["dims"].split(",") if match["dims"].strip() else []
        dims = tuple(_parse_dim(token.strip(), text, said) for token in tokens)
        spec = cls(match["name"], dtype, dims, said["size"], high, said["limit"], said["low"], said["step"], values)
        for letter, axis in spec.axes.items():
            axis.check(letter, f"input {text!r}")
        return spec

    @property
    def axes(self) -> dict[str, Axis]:
        """The dynamic axes and what their sizes may be."""
        return {
            letter: Axis(
                self.lows.get(letter, 1), self.limits.get(letter), self.steps.get(letter, 1), self.sizes.get(letter)
            )
            for letter in self.letters
        }

    @property
    def letters(self) -> tuple[str, ...]:
        """The dynamic axes, those that are only in sums too, each once, in order."""
        return tuple(dict.fromkeys(letter for dim in self.dims for letter in letters_of(dim)))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape at these sizes of the dynamic axes."""
        missing = [letter for letter in self.letters if letter not in sizes]
        if missing:
            raise InputSpecError(f"input {self.name}: no size given for dynamic axis {', '.join(missing)}")
        return tuple(size_of(dim, sizes) for dim in self.dims)

    def __str__(self) -> str:
        dims, seen, axes = [], set(), self.axes
        for dim in self.dims:
            text = str(dim)
            if isinstance(dim, str) and dim in axes and dim not in seen:
                seen.add(dim)
                text += str(axes[dim])
            dims.append(text)
        high = "" if self.high is None else f"<{self.high}"
        values = f"{{{','.join(map(str, self.values))}}}" if self.values else ""
        return f"{self.name}:{self.dtype}[{','.join(dims)}]{high}{values}"


def letters_of(dim: int | str) -> tuple[str, ...]:
    """The dynamic axes that a dimension is made of."""
    return () if isinstance(dim, int) else tuple(part for part in dim.split("+") if not part.isdigit())


def size_of(dim: int | str, sizes: Mapping[str, int]) -> int:
    """The size of a dimension at these sizes of the dynamic axes."""
    if isinstance(dim, int):
        return dim
    return sum(int(part) if part.isdigit() else sizes[part] for part in dim.split("+"))


def with_letters(dim: int | str, chosen: Mapping[str, int | str]) -> int | str:
    """The dimension with other letters, or sizes, or sums, for some of its letters."""
    if isinstance(dim, int):
        return dim
    parts = [part for old in dim.split("+") for part in str(chosen.get(old, old)).split("+")]
    letters, number = [part for part in parts if not part.isdigit()], sum(int(part) for part in parts if part.isdigit())
    return "+".join([*letters, *([str(number)] if number else [])]) if letters else number


def _parse_dim(token: str, text: str, said: dict[str, dict[str, int]]) -> int | str:
    """A dimension; what it says of its axis goes into `said`."""
    if token.isascii() and token.isdigit():
        if int(token) == 0:
            raise InputSpecError(f"input {text!r}: a dimension of 0 holds nothing; give its size or a letter")
        return int(token)
    if _SUM.fullmatch(plain := "".join(token.split())):
        return plain
    match = _DIM.fullmatch(token)
    parts = list(_OF_DIM.finditer(match["rest"])) if match is not None else []
    if match is None or _OF_DIM.sub("", match["rest"]).strip():
        raise InputSpecError(f"input {text!r}: dimension {token!r} is neither a number nor a letter, {_EXAMPLE}")
    letter = match["letter"]
    for what, number in ((what, number) for part in parts for what, number in part.groupdict().items() if number):
        if said[what].setdefault(letter, int(number)) != int(number):
            raise InputSpecError(f"input {text!r}: axis {letter} is given two sizes")
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


def common_axes(specs: Sequence[InputSpec]) -> dict[str, Axis]:
    """Every dynamic axis, with what all the inputs that have it allow together. Raises InputSpecError."""
    found: dict[str, Axis] = {}
    for spec in specs:
        for letter, axis in spec.axes.items():
            before = found.get(letter, Axis())
            if None not in (axis.size, before.size) and axis.size != before.size:
                raise InputSpecError(
                    f"axis {letter} is traced at {before.size} in one input and at {axis.size} in {spec.name}"
                )
            found[letter] = before.and_also(axis)
    for letter, axis in found.items():
        axis.check(letter, "inputs")
    return found


def traced_sizes(specs: Sequence[InputSpec]) -> dict[str, int]:
    """The size of every dynamic axis while the model is traced.

    Sizes that were asked for are kept; the others are small primes that differ from each other and from the static
    dimensions, so that the exporter does not take one axis for another. Raises InputSpecError on contradictions.
    """
    axes = common_axes(specs)
    sizes = {letter: axis.size for letter, axis in axes.items() if axis.size is not None}
    static = {dim for spec in specs for dim in spec.dims if isinstance(dim, int)}
    for letter in dict.fromkeys(letter for spec in specs for letter in spec.letters):
        if letter not in sizes:
            sizes[letter] = _free_size(axes[letter], {*sizes.values(), *static})
    return sizes


def _free_size(axis: Axis, taken: set[int]) -> int:
    # Beyond a least size, the primes count from there on.
    base = axis.smallest - axis.step if axis.low > 1 else 0
    counts = (*_PRIMES, 2, 4) if axis.step == 1 else (2, *_PRIMES)
    candidates = [base + axis.step * count for count in counts]
    candidates = [size for size in candidates if axis.allows(size)] or [axis.high or axis.smallest]
    return next((size for size in candidates if size not in taken), candidates[0])


def axis_sizes(specs: Sequence[InputSpec], *, parameters: int = 0) -> list[dict[str, int]]:
    """The sizes at which an export is compared with its source: the traced ones first, then each axis on its own.

    Each dynamic axis is tried at the smallest size it may have, at 1, at one step less and one more than its traced
    size, at about twice that where this is not dear and, where that is cheap, at a large size (what ends at 16 or 64
    shows there), within its limits, while the others keep their traced size; last, all of them at their smallest.
    parameters: how many numbers the model holds, to tell what is cheap.
    """
    traced, axes = traced_sizes(specs), common_axes(specs)
    smallest = {letter: axis.smallest for letter, axis in axes.items()}
    found = [traced]
    for letter, size in traced.items():
        axis = axes[letter]
        sizes = [smallest[letter], 1, size - axis.step, size + axis.step]
        twice = 2 * size + axis.step
        sizes += [twice] if sum(math.prod(spec.shape({**traced, letter: twice})) for spec in specs) <= _DEAR else []
        found += [{**traced, letter: other} for other in sizes if axis.allows(other)]
        large = large_size(specs, letter, parameters=parameters)
        found += [] if large is None else [{**traced, letter: large}]
    found.append(smallest)
    return [sizes for index, sizes in enumerate(found) if sizes not in found[:index]]


def large_size(specs: Sequence[InputSpec], letter: str, *, parameters: int) -> int | None:
    """A size of this axis from 64 on at which a sample is cheap, the others being traced; None where there is none."""
    axis, traced = common_axes(specs)[letter], traced_sizes(specs)
    for size in _LARGE:
        fitting = size - size % axis.step
        if axis.high is not None and axis.high < fitting:
            fitting = axis.high - axis.high % axis.step
        sizes = {**traced, letter: fitting}
        fits = _LEAST_LARGE <= fitting <= _LARGE[0] and axis.allows(fitting) and fitting > traced[letter]
        if fits and not is_dear(specs, sizes, parameters=parameters):
            return fitting
    return None


def is_dear(specs: Sequence[InputSpec], sizes: Mapping[str, int], *, parameters: int) -> bool:
    """Whether a sample of these sizes is of so many numbers, or read by so many weights, that its time is felt."""
    counts = [(spec, math.prod(spec.shape(sizes))) for spec in specs]
    # Tokens are positions, also on an axis that is not dynamic.
    positions = max(math.prod(sizes.values()), *(count for spec, count in counts if spec.dtype in INTEGERS), 0)
    return sum(count for _, count in counts) > _CHEAP_ELEMENTS or positions * parameters > _CHEAP_WORK


def draw(
    specs: Sequence[InputSpec], sizes: Mapping[str, int], *, seed: int, scale: float = 1.0
) -> dict[str, npt.NDArray[Any]]:
    """Random inputs: standard normal floats times `scale`, integers in [0, high), booleans with the first one True.

    Integers of which nobody says how large they may be are 0 and 1, the first one 1: most of them are masks.

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
    if spec.values:
        return np.asarray(rng.choice(np.array(spec.values), shape)).astype(spec.dtype)
    if spec.dtype in INTEGERS:
        high = UNKNOWN_HIGH if spec.high is None else min(spec.high, int(np.iinfo(spec.dtype).max) + 1)
        drawn = np.asarray(rng.integers(0, high, size=shape, dtype=spec.dtype))
        if spec.high is None and shape:
            # Most likely a mask: of a hidden row float32 keeps nothing, and the bound would be made of that.
            drawn[..., :1] = 1
        return drawn
    return np.asarray(rng.standard_normal(shape) * scale).astype(spec.dtype)


def call_arguments(forward: Callable[..., Any], feed: Mapping[str, T]) -> tuple[tuple[T, ...], dict[str, T]]:
    """How `forward` takes these inputs: (positional, keyword) arguments.

    Inputs named like the parameters of `forward` go to those; otherwise all of them are positional, in their order.
    Every stage that calls a model must call it this way, or the inputs change places. Keywords only appear when an
    optional parameter is skipped.
    """
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(forward).parameters
    kinds = {name: parameter.kind for name, parameter in parameters.items() if parameter.kind in by_name}
    if not set(feed) <= set(kinds):
        return tuple(feed.values()), {}
    ordered = [name for name in kinds if name in feed]
    first_skip = next((i for i, name in enumerate(kinds) if i >= len(ordered) or ordered[i] != name), len(ordered))
    positional = [name for name in ordered[:first_skip] if kinds[name] is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return tuple(feed[name] for name in positional), {name: feed[name] for name in ordered if name not in positional}
