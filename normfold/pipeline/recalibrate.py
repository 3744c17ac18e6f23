"""`normfold recalibrate`: a checkpoint whose norms have the statistics of real inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfold.checkpoint.formats.torch import TORCH
from normfold.checkpoint.load import load
from normfold.checkpoint.options import LoadOptions
from normfold.checkpoint.save import FORMAT
from normfold.checkpoint.source import Source
from normfold.errors import BatchError, InputSpecError, OutputError, UsageError
from normfold.inputs.cases import read_arrays
from normfold.inputs.spec import InputSpec, call_arguments
from normfold.models import names
from normfold.nn.calibrate import Recalibrated, recalibrate
from normfold.system.failures import one_line
from normfold.system.files import check_place, replacing


@dataclass(frozen=True, slots=True)
class Result:
    """What a run did. rows: how many the data had."""

    output: Path
    rows: int
    norms: Recalibrated
    warnings: tuple[str, ...]


def recalibrate_file(
    path: Path,
    data: Sequence[Path],
    output: Path,
    *,
    options: LoadOptions,
    batch: int = 64,
    layerwise: bool | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Load a checkpoint, give its norms the statistics of `data` in evaluation mode, write it as a torch file.

    data: npz files with an array per input. batch: how many rows are run at once; the statistics do not depend on it.
    layerwise: as `recalibrate` has it.
    The output holds a state dict, the inputs and, where the architecture is built in, its name and arguments.
    Raises what `load_checkpoint` raises, UsageError, InputSpecError and OutputError; nothing is left half written.
    """
    if not TORCH.fits(output):
        raise UsageError(f"{output}: recalibrate writes torch files; end the name in {', '.join(TORCH.suffixes)}.")
    if batch < 1:
        raise UsageError(f"--batch takes a number of rows of 1 or more, not {batch}")
    check_place(output)
    if output.exists() and not force:
        raise OutputError(f"{output} exists; --force replaces it.")
    progress("loading")
    source = load(path, options)
    module = source.module
    if module is None or source.program is not None:
        raise UsageError(f"{path} holds a graph, not a module; recalibrate the checkpoint it was made from.")
    progress("reading the data")
    arrays = [read_arrays(file, source.inputs, option="--data") for file in data]
    progress("taking statistics")
    found = _run(source, module, [part for each in arrays for part in _batches(each, source.inputs, batch)], layerwise)
    progress("writing")
    with replacing(output) as draft, draft.open("wb") as file:
        torch.save(_content(source, module), file)
    return Result(output, sum(_rows(each) for each in arrays), found, source.warnings)


def _run(source: Source, module: nn.Module, feeds: list[dict[str, Any]], layerwise: bool | None) -> Recalibrated:
    called = _Called(module)
    try:
        return recalibrate(called, feeds, layerwise=layerwise)
    except (UsageError, BatchError) as error:
        raise InputSpecError(f"{source.path}: {str(error).removeprefix('module.')}") from error
    # The module is the user's program: anything can come out of it.
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputSpecError(f"{source.path}: the module does not run on the data: {one_line(error)}") from error


class _Called(nn.Module):
    """The module, called with its inputs by name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **feed: torch.Tensor) -> Any:
        args, kwargs = call_arguments(self.module.forward, feed)
        return self.module(*args, **kwargs)


def _rows(arrays: dict[str, Any]) -> int:
    return max((len(array) for array in arrays.values() if array.ndim), default=1)


def _batches(arrays: dict[str, Any], specs: Sequence[InputSpec], size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Rows of all inputs, `size` at a time where they share a first axis that is dynamic; else everything at once."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    firsts = {spec.dims[0] if spec.dims else None for spec in specs}
    lengths = {len(tensor) for tensor in tensors.values() if tensor.ndim}
    if len(firsts) != 1 or len(lengths) != 1 or not isinstance(next(iter(firsts)), str):
        yield tensors
        return
    rows = lengths.pop()
    for start in range(0, rows, size):
        yield {name: tensor[start : start + size] for name, tensor in tensors.items()}


def _content(source: Source, module: nn.Module) -> dict[str, Any]:
    """What `load_checkpoint` reads: without flags where the architecture is built in, with --model otherwise."""
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    content: dict[str, Any] = {"format": FORMAT, "state_dict": state, "inputs": [str(spec) for spec in source.inputs]}
    if source.arch in names():
        # As plain as in a file that was written by save_checkpoint.
        args = json.loads(json.dumps(source.arch_args))
        content |= {"arch": source.arch, "arch_args": args}
    return content
