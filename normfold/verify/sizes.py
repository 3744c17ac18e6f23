"""Which sizes of its dynamic axes a graph can take: found by running it, where the declared ones do not all work.

A graph says that an axis is dynamic and not what that means: a U-Net takes multiples of 32, a convolution without
padding a least size, a position table ends, a speech detector takes 512 samples and nothing else, and two axes with
two names may have to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice, product
from pathlib import Path
from typing import Any

import onnx_ir as ir

from normfold.errors import CannotJudgeError, InputSpecError
from normfold.graph.evaluator.call import NotCoveredError
from normfold.graph.evaluator.evaluator import Evaluator
from normfold.graph.float64 import SizeError, evaluator_of, read_again, run_evaluator
from normfold.inputs.cases import Case, draw_case
from normfold.inputs.spec import Axis, InputSpec, axis_sizes, common_axes, traced_sizes, with_letters
from normfold.system.failures import check_memory, one_line
from normfold.verify.demand import live_elements
from normfold.verify.runtime import Runtime, open_session, run_session

Sizes = Mapping[str, int]

# What networks are made for, tried on all axes but the batch at once; and the steps between sizes that may work.
# 64 and 96 first: a network that halves its maps five times may run on two pixels too, and on nothing between.
_COMMON = (64, 96, 2, 3, 4, 5, 8, 16, 32, 128, 160, 224, 256, 320, 384, 512, 640, 1024, 2048, 4096, 16000)
# Tried behind them: what takes steps without padding in front may have sizes like 4 * n + 3.
_OTHERS = tuple(size for size in range(6, 41) if size not in _COMMON)
_STEPS = (1, 2, 4, 8, 16, 32, 64)
# An axis that goes this far has no limit that a verification would meet.
_FAR = 513
# Numbers that decide between branches, and axes that may turn out to count samples, of which all choices are tried.
_MOST_NUMBERS = 8
_MOST_INSIDE = 4
# With more of them nobody looks for an axis that is the sum of two others.
_MOST_LETTERS = 6
# Sizes that work from which ranges are looked for, where those around the first do not hold together.
_MOST_BASES = 3
# Elements of the inputs that are still tried to find sizes that work; from there on, more than a verification draws.
_MOST_ELEMENTS = 1 << 23
# From this size on, what a run holds at once is estimated first, and half a gigabyte of float32 is too much.
_MAY_BE_DEAR, _MOST_LIVE = 1024, 1 << 27
_ROOM, _CHEAP_ELEMENTS = 3, 1 << 17


def fitting(specs: Sequence[InputSpec], path: Path, *, parameters: int = 0) -> tuple[InputSpec, ...]:
    """The specifications, narrowed to sizes that the graph at `path` takes, as they are where it takes them all.

    parameters: how many numbers the graph holds; sizes that would be dear are not drawn, and so not tried either. Axes
    that have to be equal become one, an axis that takes a single size is fixed; an input that decides between
    branches keeps its first number if no size fits all of them. Raises InputSpecError where no size is found at which
    the graph runs.
    """
    graph = read_again(path)
    try:
        evaluator = evaluator_of(graph, path)
    except NotCoveredError:
        evaluator = None
    probe = _Probe(tuple(specs), open_session(path, Runtime()), path, graph, parameters, first=evaluator)
    found = _in_branches(probe)
    if evaluator is None:  # the truth will say so
        return found
    try:
        strict = replace(probe, evaluator=evaluator, first=None, known={})
        smallest = {letter: axis.smallest for letter, axis in common_axes(found).items()}
        return found if strict.evaluates(draw_case(found, smallest, seed=0)) else _in_branches(strict)
    except InputSpecError:  # the truth will say why there is none
        return found


def _in_branches(probe: _Probe) -> tuple[InputSpec, ...]:
    try:
        return _fitting(probe)
    except InputSpecError:
        first = tuple(replace(spec, values=spec.values[:1]) for spec in probe.specs)
        if first == probe.specs:
            raise
        return _fitting(replace(probe, specs=first, known={}))


def _fitting(probe: _Probe) -> tuple[InputSpec, ...]:
    specs = probe.specs
    if all(probe.runs(sizes) for sizes in axis_sizes(specs, parameters=probe.parameters)):
        return tuple(specs)
    if summed := probe.sums():
        return _fitting(replace(probe, specs=tuple(_renamed(spec, summed) for spec in specs), known={}))
    first: dict[str, int] = {}
    for base in islice(probe.bases(), _MOST_BASES):
        first = first or base
        found = {letter: probe.around(base, letter) for letter in base}
        least = probe.smaller(base, found)
        stuck = [letter for letter, axis in found.items() if axis is None or axis.high == least[letter]]
        same = probe.equal_axes(least, stuck)
        if same:
            renamed = tuple(_renamed(spec, same) for spec in specs)
            return _fitting(replace(probe, specs=renamed, known={}))
        narrowed = _narrowed(specs, least, found)
        if all(probe.runs({**least, **sizes}) for sizes in axis_sizes(narrowed, parameters=probe.parameters)):
            return narrowed
    # Together they do not do what each does alone: what is left is the first size that was found.
    return _narrowed(specs, first, dict.fromkeys(first))


@dataclass(slots=True)
class _Probe:
    """Runs a graph at sizes, and remembers what came of it.

    evaluator: runs it too; onnxruntime computes something where a window is larger than what it pools, for example.
    first: runs it before onnxruntime does, until sizes are found that work: it ends what allocates without end.
    """

    specs: tuple[InputSpec, ...]
    session: Any
    path: Path
    graph: ir.Model
    parameters: int
    evaluator: Evaluator | None = None
    first: Evaluator | None = None
    known: dict[tuple[tuple[str, int], ...], bool] = field(default_factory=dict)
    said: str = ""

    def runs(self, sizes: Sizes) -> bool:
        """Whether the graph runs at these sizes."""
        key = tuple(sorted(sizes.items()))
        if key not in self.known:
            self.known[key] = self._runs(sizes)
        return self.known[key]

    def _runs(self, sizes: Sizes) -> bool:
        """With every number that decides between branches: each may need sizes of its own."""
        names = [feed.name for feed in self.session.get_inputs()]
        numbers: list[list[tuple[int, ...]]] = [
            [(number,) for number in spec.values[:_MOST_NUMBERS]] or [()] for spec in self.specs
        ]
        for chosen in islice(product(*numbers), _MOST_NUMBERS):
            specs = [replace(spec, values=values) for spec, values in zip(self.specs, chosen, strict=True)]
            case = draw_case(specs, sizes, seed=0)
            if not self._is_bounded(case):
                return False
            try:
                run_session(self.session, None, case.fed_to(names))
            except Exception as error:  # onnxruntime's own classes share no base but this
                check_memory(error, f"{self.path} at {case}")
                self.said = f"at {case.axes}: {one_line(error)}"
                return False
            if not self.evaluates(case):
                return False
        self.first = None
        return True

    def _is_bounded(self, case: Case) -> bool:
        """Whether onnxruntime can be let loose on these inputs. Raises CannotJudgeError for a graph that is a bomb."""
        if self.first is None:
            return True
        try:
            run_evaluator(self.first, case, self.path)
        except SizeError:  # onnxruntime says it better
            return True
        except CannotJudgeError as error:
            if max(case.sizes.values(), default=0) < _MAY_BE_DEAR:
                raise
            self.said = f"at {case.axes}: {error}"
            return False
        return True

    def evaluates(self, case: Case) -> bool:
        """Whether the evaluator, if there is one, takes these inputs."""
        if self.evaluator is not None:
            try:
                run_evaluator(self.evaluator, case, self.path)
            except SizeError as error:
                self.said = f"at {case.axes}: {error}"
                return False
        return True

    def sums(self) -> dict[str, str]:
        """An axis that is as long as two others together (a cache, and what comes to it), with these; {} if none is."""
        traced = traced_sizes(self.specs)
        if not 3 <= len(traced) <= _MOST_LETTERS:
            return {}
        axes = common_axes(self.specs)
        for letter, (one, other) in product(traced, combinations(traced, 2)):
            sizes = {**traced, letter: traced[one] + traced[other]}
            longer = {**sizes, letter: sizes[letter] + 1}
            both = {**longer, one: traced[one] + 1}
            if letter in (one, other) or not all(axes[name].allows(both[name]) for name in (letter, one)):
                continue
            if self.runs(sizes) and not self.runs(longer) and self.runs(both):
                return {letter: f"{one}+{other}"}
        return {}

    def bases(self) -> Iterator[dict[str, int]]:
        """Sizes that work, those first that a graph most likely means. Raises InputSpecError where none do."""
        some = False
        traced, axes = traced_sizes(self.specs), common_axes(self.specs)
        counts = (traced, dict.fromkeys(traced, 2), dict.fromkeys(traced, 1))
        for batch, count, size in product(self._batches(), counts, (None, *_COMMON, *_OTHERS)):
            sizes = {
                letter: count[letter] if letter in batch or size is None else axes[letter].nearest(size)
                for letter in traced
            }
            allowed = all(axes[letter].allows(size) for letter, size in sizes.items())
            if allowed and self._is_bearable(sizes) and self.runs(sizes):
                some = True
                yield sizes
        if some:
            return
        shown = ", ".join(map(str, self.specs))
        raise InputSpecError(
            f"{self.path} does not run on {shown} at any size that was tried ({traced}, 2 to {max(_OTHERS)} and "
            f"{', '.join(str(size) for size in sorted(_COMMON) if size > max(_OTHERS))}), last {self.said}. "
            'Say what it takes: --input "x:float32[1,3,H=32*h,W=32*w]" for multiples, '
            '"x:float32[N>=512]" for a least size, a number for a fixed one'
        )

    def _batches(self) -> list[frozenset[str]]:
        """Sets of axes that may count samples: the leading ones, and those with axes inside (a recurrent state's)."""
        letters = list(traced_sizes(self.specs))
        leading = frozenset(str(spec.dims[0]) for spec in self.specs if spec.dims and spec.dims[0] in letters)
        inside = [letter for letter in letters if letter not in leading][:_MOST_INSIDE]
        more = (some for count in range(1, len(inside) + 1) for some in combinations(inside, count))
        return [leading, *(leading | set(some) for some in more)]

    def _is_bearable(self, sizes: Sizes) -> bool:
        """Whether a run is worth its memory: of attention, 16,000 positions are gigabytes."""
        if self._elements(sizes) > _MOST_ELEMENTS:
            return False
        if max(sizes.values(), default=0) < _MAY_BE_DEAR:
            return True
        shapes = {spec.name: spec.shape(sizes) for spec in self.specs}
        return live_elements(self.graph, shapes) <= _MOST_LIVE

    def _elements(self, sizes: Sizes) -> int:
        return sum(math.prod(spec.shape(sizes)) for spec in self.specs)

    def around(self, base: Sizes, letter: str) -> Axis | None:
        """What this axis may be while the others stay at `base`; None where it may be nothing else."""
        allowed, size = common_axes(self.specs)[letter], base[letter]
        most = max(_ROOM * self._elements(base), _CHEAP_ELEMENTS)

        def small(other: int) -> bool:
            return self._elements({**base, letter: other}) <= most

        def works(other: int) -> bool:
            return allowed.allows(other) and small(other) and self.runs({**base, letter: other})

        def goes(step: int) -> int:
            return works(size + step) + (size > step and works(size - step))

        # One below a multiple may work as well, where halves are rounded up; one above does not. At a limit none does.
        steps = {s: goes(s) for s in _STEPS if size % s == 0}
        step = next((s for number in (2, 1) for s, ways in steps.items() if ways == number), None)
        if step is None:
            return None
        low = allowed.low if works(step) else _edge(step, size, step, works)
        high = size
        while high < _FAR and works(2 * high):
            high *= 2
        limit = _edge(2 * high, high, step, works) if high < _FAR and small(2 * high) else None
        return replace(
            allowed, low=max(low, allowed.low), high=limit if allowed.high is None else allowed.high, step=step
        )

    def smaller(self, base: dict[str, int], found: Mapping[str, Axis | None]) -> dict[str, int]:
        """The least sizes that axes of these ranges have together, where they are found to work; 2 at least."""
        least = {
            letter: base[letter] if axis is None else min(base[letter], axis.nearest(max(axis.smallest, 2)))
            for letter, axis in found.items()
        }
        letters = [letter for letter in base if base[letter] in _COMMON[:2]]
        sizes = {**base, **{letter: least[letter] for letter in letters}}
        return sizes if self.runs(sizes) else base

    def equal_axes(self, base: Sizes, alone: Sequence[str]) -> dict[str, str]:
        """Axes that cannot change alone and can together: each but the first, with the first."""
        same: dict[str, str] = {}
        for one, other in combinations(alone, 2):
            if other in same:
                continue
            head = same.get(one, one)
            group = {head, other, *(letter for letter, first in same.items() if first == head)}
            if any(self.runs({**base, **{letter: base[letter] + step for letter in group}}) for step in _STEPS[:4]):
                same[other] = head
        return same


def _edge(bad: int, good: int, step: int, works: Callable[[int], bool]) -> int:
    """The last size towards `bad` that works, in steps; both ends are known, or taken for known."""
    while abs(good - bad) > step:
        middle = bad + (good - bad) // (2 * step) * step if good > bad else good + (bad - good) // (2 * step) * step
        if middle in (good, bad):
            break
        good, bad = (middle, bad) if works(middle) else (good, middle)
    return good


def _renamed(spec: InputSpec, same: Mapping[str, str]) -> InputSpec:
    """The specification with one letter for axes that are equal, and sums for those that are sums."""
    return replace(spec, dims=tuple(with_letters(dim, same) for dim in spec.dims))


def _narrowed(specs: Sequence[InputSpec], base: Sizes, found: Mapping[str, Axis | None]) -> tuple[InputSpec, ...]:
    """The specifications with these ranges; an axis without one is fixed."""
    fixed = {letter: base[letter] for letter, axis in found.items() if axis is None}

    def narrowed(spec: InputSpec) -> InputSpec:
        dims = tuple(with_letters(dim, fixed) for dim in spec.dims)
        axes = {letter: axis for letter in spec.letters if (axis := found[letter]) is not None}
        return replace(
            spec,
            dims=dims,
            sizes={letter: base[letter] for letter in axes if base[letter] > 1},
            limits={letter: axis.high for letter, axis in axes.items() if axis.high is not None},
            lows={letter: axis.low for letter, axis in axes.items() if axis.low != 1},
            steps={letter: axis.step for letter, axis in axes.items() if axis.step > 1},
        )

    return tuple(narrowed(spec) for spec in specs)
