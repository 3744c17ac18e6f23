"""What one process is asked to run, and what it says when it cannot. Light: every worker starts with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Job:
    """One model under one runtime at one size of its inputs.

    model: an ONNX file, or a pickled module of our own writing (`Runner.runs_modules`). inputs: specifications
    (inputs/spec.py). sizes: of their dynamic axes. runtime: the name of its `Runner`. mode: one of the runner's; or
    prompt or generate (decoders with a cache, decode.py).
    dtype: in which it computes. data: npz files of real inputs, which int8 is calibrated on.
    threads: within one operator, CPU. seed: of the inputs, the same for all variants. scratch: a file that
    `Runner.prepare` writes and `Runner.inspect` may write; empty: none. import_from: folders that the module's classes
    come from.
    delay: seconds slept in every call, with which the harness is tested.
    """

    model: str
    inputs: tuple[str, ...]
    sizes: Mapping[str, int]
    runtime: str = "ort"
    device: str = "cpu"
    mode: str = "plain"
    dtype: str = "float32"
    data: tuple[str, ...] = ()
    threads: int = 1
    seed: int = 0
    scratch: str = ""
    import_from: tuple[str, ...] = ()
    delay: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the pipe."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        """What `to_json` made."""
        lists = {key: tuple(data[key]) for key in ("inputs", "data", "import_from")}
        return cls(**{**data, **lists})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no figure. code: out-of-memory, rejected (the runtime does not take the model), crashed."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes; None: not measured.

    weights: of the constants in the graph that really runs. arena: what the first runs added, activations and
    workspace. reserved: what the allocator holds of it (torch on CUDA). peak: the most that the process ever held,
    above what it held before it read the model (CPU: resident set; CUDA: memory of the device, above the context).
    load: the most until the model was open. run: the most while it ran.
    """

    weights: int | None = None
    arena: int | None = None
    peak: int | None = None
    reserved: int | None = None
    load: int | None = None
    run: int | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """What one process, which is not timed, found of a job. operators: how often each is in the graph that runs.

    state: clocks and temperature of the device, where it tells.
    """

    memory: Memory = field(default_factory=Memory)
    operators: Mapping[str, int] = field(default_factory=dict)
    state: Mapping[str, float] = field(default_factory=dict)
