"""The cells of the GPU study, the most telling first, and how one of them is measured.

A cell is one network at one batch size, in one mode of torch and one number format; its variants are measured side by
side in one process, in turns.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_budget import explain
from benchmarks.gpu_device import Call, Device
from benchmarks.gpu_figures import CALL, NORM, ratios, shares, summary
from benchmarks.gpu_models import BASELINES, UNFOLDED, Model, build
from normfold.inputs.spec import InputSpec, draw
from normfold.norms.detect import find_norms

FORWARD, GENERATE, GENERATE_CACHED = "forward", "generate", "generate, cached"
EAGER, GRAPH, COMPILE = "eager", "graph", "compile"
# TF32 is a column of its own: float32 in memory, 10 bits of mantissa in products.
COLUMNS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

MEASURED_AT_128 = ("swin_t", "deit_t", "deit_s")
COMPILED_EARLY = ("deit_t", "tiny_deit")

FEWEST_ROUNDS, MOST_ROUNDS = 50, 300
# A cell goes on for so long where more rounds than the fewest fit, and warms up for so long before.
CELL_SECONDS, WARM_UP_SECONDS, WARM_UP_ROUNDS = 1.0, 0.3, 5
TRACED_CALLS = 3


@dataclass(frozen=True)
class Cell:
    """What is measured. workload: one forward, or the tokens after a prompt, without or with a key-value cache."""

    model: str
    workload: str
    mode: str
    column: str
    batch: int

    @property
    def key(self) -> str:
        """Its name in lines and records."""
        return f"{self.model}, {self.workload}, {self.mode}, {self.column}, batch {self.batch}"


def seconds(cell: Cell, model: Model) -> float:
    """A first guess of what a cell costs; gpu_budget.py corrects it by what cells of its mode really cost."""
    cost = {EAGER: 5.0, GRAPH: 4.0, COMPILE: model.compiling}[cell.mode]
    if cell.workload != FORWARD:
        return cost + (20.0 if cell.batch == 1 else 80.0)
    return cost if cell.batch == 1 or cell.mode == COMPILE else 2 * cost


def cells(models: Sequence[Model]) -> list[Cell]:
    """All cells, the most telling first: the papers' own conditions, then what differs from them in one way, in two."""
    found = [
        Cell(model.name, workload, mode, column, batch)
        for model in models
        for mode in (EAGER, GRAPH, COMPILE)
        for workload in _workloads(model, mode)
        for column in COLUMNS
        for batch in model.batches
    ]
    order = {model.name: place for place, model in enumerate(models)}
    return sorted(found, key=lambda cell: (distance(cell), cell.mode == COMPILE, order[cell.model], cell.batch))


def _workloads(model: Model, mode: str) -> tuple[str, ...]:
    if not model.generates:
        return (FORWARD,)
    # A compiler would compile every length anew: it gets the prompt alone.
    return (FORWARD,) if mode == COMPILE else (GENERATE, GENERATE_CACHED)


def distance(cell: Cell) -> int:
    """How far from the papers' conditions: eager float32 at batch 1 (SLAB's throughput: 128), no cache."""
    of_batch = {1: 0, 128: 0, 64: 2 if cell.model in MEASURED_AT_128 else 1}.get(cell.batch, 1)
    # Batches of generations take minutes, and so does compiling: that of one small network comes early.
    if cell.workload != FORWARD:
        of_batch *= 3
    of_workload = 1 if cell.workload == GENERATE_CACHED else 0
    of_column = {"float32": 0, "float16": 1, "tf32": 2, "bfloat16": 3}[cell.column]
    of_compiling = (1 if cell.model in COMPILED_EARLY else 2) + (cell.batch != 1)
    return of_batch + of_workload + of_column + {EAGER: 0, GRAPH: 1, COMPILE: of_compiling}[cell.mode]


@dataclass
class Variant:
    """One variant, ready to run: its steps, in order (one, or a token each)."""

    steps: list[Call]
    module: nn.Module
    found: dict[str, Any]


def measure(cell: Cell, model: Model, device: Device, *, deadline: float, rehearsal: bool = False) -> dict[str, Any]:
    """Everything that is found of a cell, as plain data.

    deadline: a time.monotonic() after which it only finishes. rehearsal: the fewest rounds will do.
    """
    device.settle(tf32=cell.column == "tf32", dtype=COLUMNS[cell.column])
    variants: dict[str, Variant] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in model.variants:
        try:
            variants[name] = prepare(cell, model, name, device)
            found[name] = variants[name].found
        # Whatever a runtime raises means that there is no figure of this variant; the others go on.
        except Exception as error:
            found[name] = {"error": explain(error)}
            if not device.usable():
                raise
            gc.collect()
    samples = timed(variants, device, deadline=deadline, seconds=0.0 if rehearsal else CELL_SECONDS)
    for name, milliseconds in samples.items():
        found[name].update(summary(milliseconds, cell.batch, generates=cell.workload != FORWARD))
    if cell.mode == EAGER:
        for name, variant in variants.items():
            if (name in BASELINES or name == UNFOLDED) and time.monotonic() < deadline:
                found[name]["profile"] = profile(variant, device)
    rounds = min((len(each) for each in samples.values()), default=0)
    return {
        **asdict(cell),
        "rounds": rounds,
        "cut": rounds < FEWEST_ROUNDS,
        "variants": found,
        "ratios": ratios(samples),
        "state": device.state(),
    }


def prepare(cell: Cell, model: Model, name: str, device: Device) -> Variant:
    """Build one variant, measure its memory on its own, and make its steps."""
    device.release()
    before = device.held()
    with torch.device(device.place):
        module = build(model, name).to(COLUMNS[cell.column])
    weights = device.held()
    args = inputs(cell, model, device)
    run = device.compile(module) if cell.mode == COMPILE else module
    steps = _steps(cell, model, run, args)
    found: dict[str, Any] = {}
    start = time.monotonic()
    # The last step of a generation holds the most.
    peaks = device.peaks(lambda: [step() for step in steps])
    found["first_call_s"] = round(time.monotonic() - start, 3)
    if cell.mode == GRAPH:
        device.release()
        steps = device.capture(steps)
        device.release()
    reserved = device.held()[1] if cell.mode == GRAPH else peaks[1]
    found["memory"] = {
        "weights": _above(weights[0], before[0]),
        "peak": _above(peaks[0], before[0]),
        "reserved": _above(reserved, before[1]),
    }
    return Variant(steps, module, found)


def inputs(cell: Cell, model: Model, device: Device) -> Tensor:
    """Random inputs of the cell on the device, the same for all variants."""
    spec = InputSpec.parse(model.inputs)
    sizes = {"B": cell.batch, "L": model.prompt}
    array = draw([spec], {letter: sizes[letter] for letter in spec.letters}, seed=0)[spec.name]
    tensor = torch.from_numpy(array).to(device.place)
    return tensor.to(COLUMNS[cell.column]) if tensor.is_floating_point() else tensor


def _steps(cell: Cell, model: Model, run: Callable[..., Any], x: Tensor) -> list[Call]:
    if cell.workload == FORWARD:
        return [partial(_forward, run, x)]
    if cell.workload == GENERATE:
        return uncached(run, x, model.tokens)
    return cached(run, x, model.tokens)


def _forward(run: Callable[..., Any], x: Tensor) -> Any:
    with torch.inference_mode():
        return run(x)


def uncached(run: Callable[..., Any], prompt: Tensor, tokens: int) -> list[Call]:
    """A step a token, each of which runs the whole sequence again; the likeliest token is chosen on the device."""
    ids = torch.cat([prompt, prompt.new_zeros(prompt.shape[0], tokens)], dim=1)

    def step(end: int) -> None:
        with torch.inference_mode():
            ids[:, end] = run(ids[:, :end])[:, -1].argmax(-1)

    return [partial(step, prompt.shape[1] + i) for i in range(tokens)]


def cached(run: Any, prompt: Tensor, tokens: int) -> list[Call]:
    """A step a token with a key-value cache; the first step runs the prompt."""
    layers, heads, size = run.cache_shape
    dtype = next(run.parameters()).dtype
    empty = torch.zeros(layers, prompt.shape[0], heads, 0, size, dtype=dtype, device=prompt.device)
    state = {"ids": prompt, "keys": empty, "values": empty}

    def step(*, first: bool) -> None:
        if first:
            state.update(ids=prompt, keys=empty, values=empty)
        with torch.inference_mode():
            logits, state["keys"], state["values"] = run(state["ids"], state["keys"], state["values"])
            state["ids"] = logits[:, -1:].argmax(-1)

    return [partial(step, first=i == 0) for i in range(tokens)]


def timed(
    variants: Mapping[str, Variant], device: Device, *, deadline: float, seconds: float = CELL_SECONDS
) -> dict[str, list[float]]:
    """Milliseconds of every round of every variant, in turns A B C D, B C D A, ...; a round is one step of each.

    Generations are gone through whole, so that every length counts alike, unless the deadline cuts one off.
    seconds: how long to go on where that is longer than the fewest rounds take.
    """
    names = list(variants)
    samples: dict[str, list[float]] = {name: [] for name in names}
    if not names:
        return samples
    length = min(len(variant.steps) for variant in variants.values())

    def turn(number: int) -> None:
        start = number % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(device.milliseconds(variants[name].steps[number % length]))

    start, number = time.monotonic(), 0
    # A generation was warmed up when its memory was measured: the beginning of one is enough.
    while number < WARM_UP_ROUNDS or (length == 1 and seconds and time.monotonic() - start < WARM_UP_SECONDS):
        turn(number)
        number += 1
    for kept in samples.values():
        kept.clear()
    start, number = time.monotonic(), 0
    while number < FEWEST_ROUNDS or number % length or (number < MOST_ROUNDS and time.monotonic() - start < seconds):
        if time.monotonic() > deadline:
            break
        turn(number)
        number += 1
    return samples


def profile(variant: Variant, device: Device) -> dict[str, Any]:
    """What torch.profiler tells of a few steps, those in the middle of a generation: see `shares`."""
    middle = len(variant.steps) // 2
    steps = variant.steps * TRACED_CALLS if middle == 0 else variant.steps[middle : middle + TRACED_CALLS]

    def call() -> None:
        for step in steps:
            with torch.profiler.record_function(CALL):
                step()

    try:
        # A generation has a state: what comes before has to be run.
        for step in variant.steps[:middle]:
            step()
        with _marked(variant.module):
            return shares(device.trace(call), len(steps))
    # The profiler needs rights that a container may not have.
    except Exception as error:
        return {"error": explain(error)}


@contextmanager
def _marked(module: nn.Module) -> Iterator[None]:
    """While it lasts, every norm of the module shows in a profile under the name `NORM`."""
    open_ranges: list[Any] = []

    def enter(*_: Any) -> None:
        mark = torch.profiler.record_function(NORM)
        mark.__enter__()
        open_ranges.append(mark)

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    with ExitStack() as stack:
        for norm in find_norms(module):
            part = module.get_submodule(norm.name)
            stack.callback(part.register_forward_pre_hook(enter).remove)
            stack.callback(part.register_forward_hook(leave).remove)
        yield


def _above(later: int | None, earlier: int | None) -> int | None:
    return None if later is None or earlier is None else later - earlier


def forget(device: Device) -> None:
    """Leave nothing of a cell behind for the next."""
    torch._dynamo.reset()
    gc.collect()
    device.release()
