"""What can be exported of a model, by name. parts.py says what becomes of the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from normfold.errors import UsageError

Task = Literal["forward", "decoder-with-cache", "encoder-decoder"]

# The graphs of a task. A name goes into the name of the file; where there is only one, it needs none.
GRAPHS: Mapping[Task, tuple[str, ...]] = {
    "forward": ("",),
    "decoder-with-cache": ("",),
    "encoder-decoder": ("encoder", "decoder"),
}


def check_task(task: str) -> None:
    """Raise UsageError for a task that does not exist."""
    if task not in GRAPHS:
        raise UsageError(f"there is no task {task!r}; there are {', '.join(GRAPHS)}")


def places(output: Path, task: Task) -> tuple[Path, ...]:
    """Where the graphs of `task` go: OUT.onnx itself, or OUT.encoder.onnx and so on beside each other."""
    return tuple(output.with_name(f"{output.stem}.{name}{output.suffix}") if name else output for name in GRAPHS[task])
