"""The outputs of a model in a few numbers, so that a file can be checked when nothing but the file is at hand.

An output is cut into `WIDTH` interleaved parts; each is summed with random signs and divided by the root of its
length. The rows of that map are orthonormal: rounding errors come out as large as they went in, a wrong entry shows in
its part, and the bound of the outputs is the bound of the sketch. What is recorded is the sketch of the float64 truth.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normfold._version import __version__
from normfold.errors import CannotJudgeError, GraphError
from normfold.inputs.cases import Array, Case, draw_case
from normfold.inputs.spec import InputSpec
from normfold.system.clock import Tick, nothing
from normfold.system.failures import check_memory, one_line
from normfold.system.numbers import MASK
from normfold.verify.judge import PLAIN, Edge, Judged, judge
from normfold.verify.metrics import FAILED, Figures, blocks
from normfold.verify.runtime import Runtime, open_session, run_session

if TYPE_CHECKING:
    from normfold.verify.yardstick import Yardstick

RECORD_EDGE = "recorded -> model"

# Numbers per output and case, and cases: a kilobyte or two in the model's metadata.
WIDTH = 8
CASES = 4
# A sum with random signs is off by so many times the RMS error of an entry at most.
_SIGMAS = 4.0
# Recorded digits: far below the rounding of float32, far above what float64 loses on another machine.
_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Recorded:
    """One case: how its inputs were drawn, their SHA-256, and per output its shape and sketch."""

    sizes: Mapping[str, int]
    seed: int
    scale: float
    inputs: str
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Sketch:
    """What a model is to compute.

    names: its float outputs. scales: their RMS. bounds: the largest relative error that passes.
    """

    names: tuple[str, ...]
    scales: tuple[float, ...]
    bounds: tuple[float, ...]
    cases: tuple[Recorded, ...]

    @classmethod
    def record(cls, yardstick: Yardstick) -> Sketch:
        """The first cases of the truth. Raises CheckpointError where the original is not finite."""
        truth, own = yardstick.truth, yardstick.own()
        numbers = [number for number, case in enumerate(truth.cases) if not case.origin][:CASES]
        # A sum over entries that rounding decides says nothing.
        masks = [truth.masks(number) for number in numbers]
        floating = [index for index, value in enumerate(truth.outputs[0]) if value.dtype.kind == "f"]
        kept = [index for index in floating if all(row[index] is None for row in masks)]
        # Of the recorded cases alone, and of sums: the largest error of a long sample elsewhere says nothing of them.
        sums = [max((_SIGMAS * own.samples[n][i] for n in numbers), default=0.0) for i in range(len(own.worst))]
        bounds = yardstick.bounds(replace(own, worst=tuple(map(min, own.worst, sums))))
        return cls(
            tuple(yardstick.original.names[i] for i in kept),
            tuple(_rounded(yardstick.scales[i], 3) for i in kept),
            # Upwards, so that the digits dropped forbid nothing.
            tuple(_rounded(bounds[i] * 1.05, 2) for i in kept),
            tuple(_record(truth.cases[n], [truth.outputs[n][i] for i in kept]) for n in numbers),
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Sketch:
        """What `to_json` made. Raises KeyError, TypeError or ValueError for anything else."""
        cases = tuple(
            Recorded(
                {str(letter): int(size) for letter, size in case["sizes"].items()},
                int(case["seed"]),
                float(case["scale"]),
                str(case["inputs"]),
                tuple(tuple(int(size) for size in shape) for shape in case["shapes"]),
                tuple(tuple(float(number) for number in output) for output in case["outputs"]),
            )
            for case in content["cases"]
        )
        scales, bounds = (tuple(float(number) for number in content[key]) for key in ("scales", "bounds"))
        return cls(tuple(str(name) for name in content["names"]), scales, bounds, cases)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the manifest."""
        return {
            "names": list(self.names),
            "scales": list(self.scales),
            "bounds": list(self.bounds),
            "cases": [
                {
                    "sizes": dict(case.sizes),
                    "seed": case.seed,
                    "scale": case.scale,
                    "inputs": case.inputs,
                    "shapes": [list(shape) for shape in case.shapes],
                    "outputs": [list(output) for output in case.outputs],
                }
                for case in self.cases
            ],
        }

    def draw(self, specs: Sequence[InputSpec]) -> tuple[Case, ...]:
        """The recorded inputs. Raises CannotJudgeError when others are drawn from the recorded seeds today.

        specs: those that they were drawn to.
        """
        cases = tuple(draw_case(specs, case.sizes, seed=case.seed, scale=case.scale) for case in self.cases)
        if [_sha256(case) for case in cases] != [case.inputs for case in self.cases]:
            raise CannotJudgeError(
                f"normfold {__version__} with numpy {np.__version__} draws other inputs from the recorded seeds than "
                "those that recorded the outputs, so these say nothing; name the source with --against"
            )
        return cases

    def compare(self, model: Path, specs: Sequence[InputSpec], runtime: Runtime, tick: Tick = nothing) -> Edge:
        """Hold a model against the record. Raises GraphError when onnxruntime does not accept it."""
        session = open_session(model, runtime)
        feeds = [feed.name for feed in session.get_inputs()]
        missing = set(self.names) - {output.name for output in session.get_outputs()}
        if missing:
            raise GraphError(f"{model} has no output {missing.pop()!r}, which its own manifest says it has")
        samples, failures, cases = [], {}, self.draw(specs)
        for number, (case, recorded) in enumerate(zip(cases, self.cases, strict=True)):
            try:
                values: Sequence[Array | None] = run_session(session, list(self.names), case.fed_to(feeds))
            except Exception as error:  # onnxruntime's own classes share no base but this
                check_memory(error, f"{model} at {case} on {runtime}")
                failures[number] = one_line(error)
                values = [None] * len(self.names)
            samples.append(tuple(_figures(value, recorded, i) for i, value in enumerate(values)))
            tick()
        outputs = tuple(
            Judged(name, tuple(row[i] for row in samples), self.scales[i], 0.0, self.bounds[i])
            for i, name in enumerate(self.names)
        )
        name = RECORD_EDGE if runtime == PLAIN else f"{RECORD_EDGE} ({runtime})"
        said = "against the float64 outputs that were recorded when it was folded"
        return judge(name, cases, outputs, said, failures)


def project(value: Array) -> Array:
    """The sketch of one output, float64 (WIDTH,); masks and infinities count as zero."""
    size = int(np.asarray(value).size)
    rng, sums = np.random.default_rng(size), np.zeros(WIDTH)
    for (block,) in blocks(value):
        numbers = block.astype(np.float64)
        padded = np.zeros(math.ceil(numbers.size / WIDTH) * WIDTH)
        padded[: numbers.size] = np.where(np.abs(numbers) < MASK, numbers, 0.0)
        padded[: numbers.size] *= rng.choice(np.array([-1.0, 1.0]), numbers.size)
        sums += padded.reshape(-1, WIDTH).sum(0)
    return np.asarray(sums / math.sqrt(max(math.ceil(size / WIDTH), 1)))


def _record(case: Case, outputs: Sequence[Array]) -> Recorded:
    return Recorded(
        dict(case.sizes),
        case.seed,
        case.scale,
        _sha256(case),
        tuple(value.shape for value in outputs),
        tuple(tuple(_rounded(float(number), _DIGITS) for number in project(value)) for value in outputs),
    )


def _figures(value: Array | None, recorded: Recorded, output: int) -> Figures:
    if value is None or value.shape != recorded.shapes[output] or np.isnan(value).any():
        return FAILED
    errors = np.abs(project(value) - np.array(recorded.outputs[output]))
    return Figures(float(errors.max()), float(np.sqrt(np.mean(np.square(errors)))), float(errors.max()))


def _sha256(case: Case) -> str:
    digest = hashlib.sha256()
    for value in case.feeds.values():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits - 1}e}")
