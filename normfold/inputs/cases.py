"""The inputs a model is judged on: drawn ones, at several sizes and scales, and real ones out of npz files."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from normfold.errors import InputSpecError
from normfold.inputs.spec import (
    INTEGERS,
    InputSpec,
    axis_sizes,
    common_axes,
    draw,
    is_dear,
    large_size,
    letters_of,
    size_of,
    traced_sizes,
)
from normfold.system.failures import one_line
from normfold.system.plain import MISSING, irregular
from normfold.system.spill import Feeds

Array = npt.NDArray[Any]

# Statistics are trained on inputs of about unit scale; smaller and larger ones reach other parts of the activations.
SCALES = (1.0, 0.5, 2.0)
# Drawn inputs that show what tensors hold, where a graph is looked at and not judged.
SEEN = 8
# Long samples that are drawn so that every row of a table is read.
_MOST_LONG = 8
# How a failure is described that has nothing to do with shapes.
BY_VALUES = "depends on the size of the inputs and not on their shape"
# One in so many random samples has so many rows, where so many of these are cheap.
_OFTEN, _MANY = 4, 129
# Of one input: in float64 this is 2 GiB.
MOST_ELEMENTS = 1 << 28

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LISTED = 20


@dataclass(frozen=True, slots=True)
class Case:
    """One set of inputs: drawn at these sizes of the dynamic axes, from this seed, times this scale, or read.

    origin: the file and row of inputs that were read; empty for drawn ones.
    """

    sizes: Mapping[str, int]
    seed: int
    scale: float
    feeds: Mapping[str, Array]
    origin: str = ""

    @property
    def axes(self) -> str:
        """The sizes of the dynamic axes, for people: `B=3, L=16`."""
        return ", ".join(f"{letter}={size}" for letter, size in self.sizes.items()) or "static sizes"

    @property
    def elements(self) -> int:
        """How many numbers the inputs are."""
        return sum(array.size for array in self.feeds.values())

    @property
    def integers(self) -> str:
        """For people, behind what went wrong: the integers that were drawn, and how to say others."""
        found = [(name, value) for name, value in self.feeds.items() if value.dtype.kind in "iu" and value.size]
        if self.origin or not found:
            return ""
        drawn = ", ".join(f"{name} from {value.min()} to {value.max()}" for name, value in found)
        name, value = found[0]
        how = f'--input "{name}:{value.dtype}[...]{{1,2,3}}", its dimensions for the dots'
        return f" Its integers were drawn, {drawn}; where it takes others, say which: {how}"

    def fed_to(self, names: Sequence[str]) -> dict[str, Array]:
        """The inputs under a graph's own names for them: by name where the names agree, otherwise in order."""
        if set(names) <= set(self.feeds):
            return {name: self.feeds[name] for name in names}
        return dict(zip(names, self.feeds.values(), strict=False))

    def typed(self, specs: Sequence[InputSpec]) -> Case:
        """The same inputs, floats in the types that these specifications name."""
        types = {spec.name: np.dtype(spec.dtype) for spec in specs}
        floats = {name: value.astype(types[name]) for name, value in self.feeds.items() if value.dtype.kind == "f"}
        return replace(self, feeds=Feeds({**self.feeds, **floats}))

    def moved(self, number: int, *, eps: float = 0.0, mirrored: bool = False) -> Case:
        """The same inputs, every float moved to one of its two neighbours; 0 leaves them as they are.

        eps: the distance from 1 to the next number of a type that is coarser than theirs, in which the model computes:
        then each moves to its neighbour in that. mirrored: each moves the other way.
        """
        if number == 0:
            return self
        rng = np.random.default_rng((self.seed, number))

        def neighbour(value: Array) -> Array:
            toward = rng.choice(np.array([-np.inf, np.inf], value.dtype), value.shape) * (-1 if mirrored else 1)
            if eps <= np.finfo(value.dtype).eps:
                return np.asarray(np.nextafter(value, toward))
            return np.asarray(value * (1.0 + eps * np.sign(toward)), dtype=value.dtype)

        feeds = {name: neighbour(value) if value.dtype.kind == "f" else value for name, value in self.feeds.items()}
        return replace(self, feeds=feeds)

    def __str__(self) -> str:
        return self.origin or f"{self.axes} (seed {self.seed}, inputs x{self.scale:g})"


def draw_cases(
    specs: Sequence[InputSpec], *, seed: int = 0, count: int | None = None, parameters: int = 0
) -> tuple[Case, ...]:
    """Inputs at every size that `spec.axis_sizes` names, at the traced sizes at several scales, then at random ones.

    count: how many; by default those that the sizes and scales ask for. With a count, integers are dealt from a deck of
    the vocabulary, for a row of a table that no sample reads cannot be judged; so are, without, a few samples more.
    parameters: how many numbers the model holds, to tell which sizes are cheap. Every case has a seed of its own; the
    same arguments give the same cases.
    """
    plan = [(sizes, 1.0) for sizes in axis_sizes(specs, parameters=parameters)]
    plan += [({**traced_sizes(specs), **_few_rows(specs, parameters=parameters)}, scale) for scale in SCALES]
    long = [(sizes, 1.0) for sizes in _vocabulary_sizes(specs, parameters=parameters)]
    if count is not None:
        plan = (plan + long)[:count]
        plan += _random_sizes(specs, count - len(plan), seed=seed, parameters=parameters)
        return _dealt(_drawn(plan, specs, seed=seed), specs, seed=seed)
    return (
        *_drawn(plan, specs, seed=seed),
        *_dealt(_drawn(long, specs, seed=seed + len(plan)), specs, seed=seed),
    )


def _drawn(plan: Sequence[tuple[dict[str, int], float]], specs: Sequence[InputSpec], *, seed: int) -> tuple[Case, ...]:
    return tuple(draw_case(specs, sizes, seed=seed + i, scale=scale) for i, (sizes, scale) in enumerate(plan))


def _vocabulary_sizes(specs: Sequence[InputSpec], *, parameters: int) -> list[dict[str, int]]:
    """Sizes of a few long samples that have room for the whole vocabulary; none where that would take many, or cost."""
    traced = traced_sizes(specs)
    for spec in specs:
        if spec.high is None or not spec.letters:
            continue
        letter = spec.letters[-1]
        large = large_size(specs, letter, parameters=parameters)
        sizes = {**traced, letter: traced[letter] if large is None else large}
        room = math.prod(spec.shape(sizes))
        if large is not None and spec.high <= _MOST_LONG * room:
            return [sizes] * -(-spec.high // room)
    return []


def _dealt(cases: Sequence[Case], specs: Sequence[InputSpec], *, seed: int) -> tuple[Case, ...]:
    """The cases with every integer input dealt from a deck of all its values, shuffled anew when it runs out."""
    for spec in specs:
        if spec.high is None or spec.values or not cases:
            continue
        sizes = [case.feeds[spec.name].size for case in cases]
        rng = np.random.default_rng((seed, 1))
        decks = -(-sum(sizes) // spec.high)
        # Never longer than what is dealt: a vocabulary may be large.
        values = np.concatenate([rng.permutation(spec.high)[: sum(sizes)] for _ in range(decks)] or [np.zeros(0, int)])
        ends = np.cumsum(sizes)
        cases = [
            replace(
                case,
                feeds=Feeds({**case.feeds, spec.name: _like(case.feeds[spec.name], values[end - size : end])}),
            )
            for case, size, end in zip(cases, sizes, ends, strict=True)
        ]
    return tuple(cases)


def _like(array: Array, values: Array) -> Array:
    return values.astype(array.dtype).reshape(array.shape)


def draw_case(specs: Sequence[InputSpec], sizes: Mapping[str, int], *, seed: int, scale: float = 1.0) -> Case:
    """One set of random inputs; see `spec.draw`. Raises InputSpecError for more than a verification can hold."""
    for spec in specs:
        elements = math.prod(spec.shape(sizes))
        if elements > MOST_ELEMENTS:
            raise InputSpecError(
                f"input {spec} has {elements} elements, more than can be drawn ({MOST_ELEMENTS}); give smaller sizes "
                "with --input, or do without the verification (--no-verify)"
            )
    return Case(sizes, seed, scale, Feeds(draw(specs, sizes, seed=seed, scale=scale)))


def told_by_values(cases: Sequence[Case], agrees: Sequence[bool]) -> str:
    """A clause where at every shape that goes wrong other inputs of that very shape go right; else nothing."""
    wrong: dict[str, set[float]] = {}
    right: dict[str, set[float]] = {}
    for case, agree in zip(cases, agrees, strict=True):
        (right if agree else wrong).setdefault(case.axes, set()).add(case.scale)
    if not wrong or not wrong.keys() <= right.keys():
        return ""
    bad, good = set().union(*wrong.values()), set().union(*(right[axes] for axes in wrong))
    if good & bad:
        return f"{BY_VALUES}: inputs of one shape agree and disagree"
    texts = [", ".join(f"x{scale:g}" for scale in sorted(scales)) for scales in (bad, good)]
    return f"{BY_VALUES}: inputs {texts[0]} disagree, and inputs {texts[1]} of the same shape agree"


def _random_sizes(
    specs: Sequence[InputSpec], count: int, *, seed: int, parameters: int
) -> Iterator[tuple[dict[str, int], float]]:
    """Sizes up to the traced ones, small ones more often, each axis on its own, and a scale, `count` times.

    Where that costs next to nothing, every fourth has one axis at a large size: what one row in a hundred reaches is
    not reached by a few rows. Where a sample is dear, the axis that counts rows is at its least.
    """
    rng = np.random.default_rng((seed, 0))
    traced, axes = traced_sizes(specs), common_axes(specs)
    found = {letter: large_size(specs, letter, parameters=_OFTEN * parameters) for letter in traced}
    few = _few_rows(specs, parameters=parameters)
    large = [
        (letter, min(size, max(axes[letter].nearest(_MANY), axes[letter].smallest)))
        for letter, size in found.items()
        if size is not None
    ]
    for number in range(count):
        sizes = {}
        for letter, size in traced.items():
            axis = axes[letter]
            least = max(axis.smallest, axis.step)
            sizes[letter] = least + int(((size - least) // axis.step + 1) * rng.random() ** 3) * axis.step
        sizes = {letter: min(size, traced[letter]) for letter, size in sizes.items()} | few
        scale = float(rng.choice(SCALES))
        if large and number % _OFTEN == 0:
            letter, size = large[number // _OFTEN % len(large)]
            sizes[letter], scale = size, 1.0
        yield sizes, scale


def _few_rows(specs: Sequence[InputSpec], *, parameters: int) -> dict[str, int]:
    """Where a sample is dear, the least size of the axis that comes first in every input with more than one axis."""
    first = {spec.dims[0] for spec in specs if len(spec.dims) > 1}
    letter = first.pop() if len(first) == 1 else None
    axis = common_axes(specs).get(str(letter))
    if axis is None or not is_dear(specs, traced_sizes(specs), parameters=parameters):
        return {}
    return {str(letter): max(axis.smallest, axis.step)}


def read_cases(paths: Sequence[Path], specs: Sequence[InputSpec], *, count: int) -> tuple[Case, ...]:
    """Inputs out of npz files that hold one array per input, under its name; other arrays are left alone.

    The first axis is cut into samples where the model takes fewer rows than the file has (one row each where that axis
    is dynamic); of all samples, `count` are taken, evenly spread. Raises InputSpecError.
    """
    parts = [part for path in paths for part in _cut(path, read_arrays(path, specs), specs)]
    chosen = np.unique(np.linspace(0, len(parts) - 1, min(count, len(parts))).round().astype(int))
    cases = []
    for number, (origin, feeds) in enumerate(parts[i] for i in chosen):
        cases.append(Case(_sizes(specs, feeds, origin), number, 1.0, Feeds(feeds), origin))
    return tuple(cases)


def read_arrays(path: Path, specs: Sequence[InputSpec], *, option: str = "--data") -> dict[str, Array]:
    """The inputs in one npz file, by name. option: what the file was given with. Raises InputSpecError."""
    if (why := irregular(path)) not in (None, MISSING):
        raise InputSpecError(f"{path}: {why}; {option} takes npz files")
    found: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            for spec in specs:
                if spec.name in names:
                    found[spec.name] = _array(archive, f"{spec.name}.npy", path)
    except InputSpecError:
        raise
    except OSError as error:
        raise InputSpecError(f"{path} cannot be read: {error.strerror or error}; {option} takes npz files") from error
    # Encrypted, truncated, compressed in a way of its own, headers that are no headers: each has an error of its own.
    except Exception as error:
        raise InputSpecError(
            f"{path} is no npz file of plain arrays ({one_line(error)}); numpy.savez writes them"
        ) from error
    for spec in specs:
        if spec.name not in found:
            raise InputSpecError(
                f"{path} has no array {spec.name!r}, which the model takes as {spec}; it has "
                f"{', '.join(names[:_LISTED]) or 'none'}{', ...' if len(names) > _LISTED else ''}"
            )
        _check_values(path, spec, found[spec.name])
    return found


def _array(archive: zipfile.ZipFile, member: str, path: Path) -> Array:
    """One array of an npz file. What it claims to be is looked at before memory is taken for it."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{member} has a header of version {'.'.join(map(str, version))}")
        shape, _, dtype = _HEADERS[version](file)
    claimed, held = math.prod(shape) * dtype.itemsize, archive.getinfo(member).file_size
    if dtype.hasobject or any(size < 0 for size in shape):
        raise ValueError(f"{member} holds objects")
    if math.prod(shape) > MOST_ELEMENTS or claimed > held:
        raise InputSpecError(
            f"{path}: {member} claims {math.prod(shape)} elements, which are more than it holds ({held} bytes) or than "
            f"can be judged ({MOST_ELEMENTS})"
        )
    with archive.open(member) as file:
        read: Array = np.lib.format.read_array(file, allow_pickle=False)
    return read


def _check_values(path: Path, spec: InputSpec, value: Array) -> None:
    if value.dtype != np.dtype(spec.dtype):
        raise InputSpecError(
            f"{path}: {spec.name} is {value.dtype} and the model takes {spec.dtype}; convert it, for example with "
            f"{spec.name}.astype('{spec.dtype}')"
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise InputSpecError(f"{path}: {spec.name} holds NaN or infinities, which tell nothing about a model")
    if (
        spec.dtype in INTEGERS
        and spec.high is not None
        and value.size
        and not 0 <= value.min() <= value.max() < spec.high
    ):
        raise InputSpecError(
            f"{path}: {spec.name} has to lie in [0, {spec.high}) and goes from {value.min()} to {value.max()}"
        )
    if value.ndim != len(spec.dims) or (0 in value.shape and 0 not in spec.lows.values()):
        raise InputSpecError(f"{path}: {spec.name} has the shape {list(value.shape)} and the model takes {spec}")


def _cut(path: Path, arrays: dict[str, Array], specs: Sequence[InputSpec]) -> Iterator[tuple[str, dict[str, Array]]]:
    """The samples of one file: chunks of the first axis where all inputs share it, otherwise the file as it is."""
    firsts = {spec.dims[0] if spec.dims else None for spec in specs}
    lengths = {len(array) for array in arrays.values() if array.ndim}
    first = firsts.pop() if len(firsts) == len(lengths) == 1 else None
    step = first if isinstance(first, int) else 1
    rows = lengths.pop() if first is not None else 0
    if rows <= step or rows % step:
        yield path.name, arrays
        return
    for start in range(0, rows, step):
        name = f"{path.name} row {start}" if step == 1 else f"{path.name} rows {start} to {start + step - 1}"
        yield name, {key: array[start : start + step] for key, array in arrays.items()}


def _sizes(specs: Sequence[InputSpec], feeds: Mapping[str, Array], origin: str) -> dict[str, int]:
    """The sizes of the dynamic axes in these arrays. Raises InputSpecError where they contradict the model."""
    axes = common_axes(specs)
    sizes: dict[str, int] = {}
    found = [(spec, dim, size) for spec in specs for dim, size in zip(spec.dims, feeds[spec.name].shape, strict=True)]
    # Sums last: by then the letters in them have sizes, or all but one have.
    for spec, dim, size in sorted(found, key=lambda one: len(letters_of(one[1]))):
        unknown = [letter for letter in letters_of(dim) if letter not in sizes]
        if len(unknown) == 1:
            sizes[unknown[0]] = size - size_of(dim, {**sizes, unknown[0]: 0})
        fits = len(unknown) < 2 and size_of(dim, sizes) == size
        if not fits or not all(axes[letter].allows(sizes[letter]) for letter in letters_of(dim)):
            shape = list(feeds[spec.name].shape)
            raise InputSpecError(f"{origin}: {spec.name} has the shape {shape} and the model takes {spec}")
    return sizes
