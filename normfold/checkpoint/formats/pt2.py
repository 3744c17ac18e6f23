"""Programs that torch.export.save wrote: architecture, weights and inputs in one file, which can hold code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from normfold.checkpoint.contents import Contents
from normfold.checkpoint.formats.base import Format
from normfold.checkpoint.unpickle import TRUST
from normfold.errors import CheckpointError, NormStateError
from normfold.system.failures import one_line

if TYPE_CHECKING:
    import torch


def read(path: Path, *, trust: bool, ema: bool) -> Contents:
    """Read a program, for trusted files only. Raises CheckpointError, and NormStateError for one in training mode."""
    from normfold.inputs.of_module import program_inputs

    program = _program(path, trust=trust)
    check_captured_in_eval(program, path)
    return Contents(module=program.module(), program=program, takes=program_inputs(program))


def _program(path: Path, *, trust: bool) -> torch.export.ExportedProgram:
    """The program.

    torch.export.load unpickles custom objects, example inputs and some weights with the full unpickler, and evaluates
    the shape expressions of the program as Python (sympify): there is no safe way to read one.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a torch.export program, or a truncated one (not a whole zip archive).")
    if not trust:
        raise CheckpointError(
            f"{path} was not loaded: reading a .pt2 program unpickles objects in it and evaluates its shape "
            f"expressions, which can run code. {TRUST}; or give the weights and their architecture, or an .onnx file."
        )
    import torch

    try:
        return torch.export.load(path)
    # As for pickles: a damaged program can fail in any way.
    except Exception as e:
        raise CheckpointError(f"{path} cannot be read as a torch.export program ({one_line(e)}).") from e


def check_captured_in_eval(program: torch.export.ExportedProgram, path: Path) -> None:
    """A program keeps the mode it was captured in; in training mode its batch norms ignore their running statistics."""
    import torch

    for node in program.graph.nodes:
        if node.target is torch.ops.aten.batch_norm.default and node.args[5]:
            raise NormStateError(
                f"{path} was captured in training mode ({node.name} normalises each batch by itself); call "
                "model.eval() before torch.export.export."
            )


PT2 = Format("pt2", read, suffixes=(".pt2",), holds_code=True, is_program=True)
