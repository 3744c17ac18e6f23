"""onnxruntime as the judge runs it: on a provider, at an optimisation level, in full float32."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from normfold.checkpoint.formats import format_of
from normfold.errors import CannotJudgeError, GraphError, UsageError
from normfold.system.failures import check_memory, one_line
from normfold.system.ort import FOR_CUDA, onnxruntime

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

UNOPTIMISED = "disabled"
# In the order in which onnxruntime adds to its rewriting.
LEVELS = ("basic", "extended", "layout", "all")

_LEVEL_NAMES = {UNOPTIMISED: "ORT_DISABLE_ALL"} | {level: f"ORT_ENABLE_{level.upper()}" for level in LEVELS}
# TF32 multiplies with 10 bits of mantissa: its errors would hide those of the model.
_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}
_THREADS = 4
# Seconds that one run may take: what does not end by then is a loop without one.
LONGEST_RUN = 900.0


@dataclass(frozen=True, slots=True)
class Runtime:
    """A way to run a graph. provider: cpu or cuda. level: `UNOPTIMISED` or one of `LEVELS`."""

    provider: str = "cpu"
    level: str = UNOPTIMISED

    def __str__(self) -> str:
        return self.level if self.provider == "cpu" else f"{self.provider}, {self.level}"


def check_model(path: Path) -> None:
    """Raise UsageError for a file that is no ONNX file by its name, CheckpointError for none at all."""
    if not format_of(path).is_graph:
        raise UsageError(f"{path} is no .onnx file: verify judges one, against a checkpoint (--against)")


def provider_names(text: str) -> tuple[str, ...]:
    """`cpu,cuda` as names of providers, installed or not. Raises UsageError."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in _PROVIDERS:
            raise UsageError(f"--providers: {name!r} is not known; choose from {', '.join(_PROVIDERS)}")
    if not names:
        raise UsageError(f"--providers names none; choose from {', '.join(_PROVIDERS)}")
    return names


def parse_providers(text: str) -> tuple[str, ...]:
    """`cpu,cuda` as names of providers that this onnxruntime has. Raises UsageError, CannotJudgeError."""
    names, ort = provider_names(text), onnxruntime()
    for name in names:
        if _PROVIDERS[name][0] not in ort.get_available_providers():
            raise CannotJudgeError(
                f"--providers: this onnxruntime ({ort.__version__}) has no {_PROVIDERS[name][0]}, only "
                f"{', '.join(ort.get_available_providers())}; {FOR_CUDA}"
            )
    return names


def levels() -> tuple[str, ...]:
    """Those of `LEVELS` that the installed onnxruntime has."""
    ort = onnxruntime()
    return tuple(level for level in LEVELS if hasattr(ort.GraphOptimizationLevel, _LEVEL_NAMES[level]))


def version() -> str:
    """The version of onnxruntime that runs the graphs."""
    ort = onnxruntime()
    return str(ort.__version__)


def ort_values(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Arrays as onnxruntime holds them, copied."""
    ort = onnxruntime()
    return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


def open_session(path: Path, runtime: Runtime, initializers: Mapping[str, Any] | None = None) -> Any:
    """A quiet session. Raises GraphError when the graph is refused, CannotJudgeError when the provider is not there.

    initializers: `ort_values` to take the place of the graph's own; the session reads them as long as it lives, and
    does not keep them alive.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    for name, value in (initializers or {}).items():
        options.add_initializer(name, value)
    # What it has to say it says in its exceptions too.
    options.log_severity_level = 4
    # What is not needed any more is given back: a verification is to fit where the model fits. And tensors are asked
    # for one by one: as one block for all, which no allocator keeps, their pages are made anew for every run.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Threads that wait for work sleep: a CI machine has others to serve.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = min(_THREADS, os.cpu_count() or 1)
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVEL_NAMES[runtime.level])
    provider = _PROVIDERS[runtime.provider]
    _log.debug("%s on %s", path, runtime)
    try:
        session = ort.InferenceSession(os.fspath(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's own classes share no base but this
        check_memory(error, f"{path} on {runtime}")
        raise GraphError(f"{path}: onnxruntime does not accept this graph: {one_line(error)}") from error
    if session.get_providers()[0] != provider[0]:
        raise CannotJudgeError(
            f"onnxruntime fell back to {session.get_providers()[0]} where {provider[0]} was asked for: is there a "
            "device, and do its CUDA libraries match?"
        )
    return session


def run_session(session: Any, outputs: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Any]:
    """Run a session, `LONGEST_RUN` seconds at most. Raises CannotJudgeError past that, or what onnxruntime raises."""
    ort = onnxruntime()
    options = ort.RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(LONGEST_RUN, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        found: list[Any] = session.run(outputs, dict(feeds), options)
    except Exception as error:  # onnxruntime's own classes share no base but this
        if timer.finished.is_set():
            raise CannotJudgeError(
                f"onnxruntime was still running the graph after {LONGEST_RUN:.0f} seconds and was stopped; give "
                "smaller inputs (--input)"
            ) from error
        raise
    finally:
        timer.cancel()
    return found
