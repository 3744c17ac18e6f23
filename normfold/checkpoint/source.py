"""A loaded checkpoint, in evaluation mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.inputs.spec import InputSpec
from normfold.norms.base import NormModule

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Source:
    """A loaded checkpoint.

    sha256: of the file; of a folder as formats/hub.py has it. format: the name of its `Format`. module: in eval mode on
    the CPU, None for a graph. program: where the file is one. graph: the same; its external data is mapped but not
    read. arch: the built-in name or `pkg.module:factory` that the module was built from. trusted: reading the file
    could run code in it, as the user allowed. in_memory: it was no file; path is what to call it.
    """

    path: Path
    sha256: str
    format: str
    module: nn.Module | None
    graph: ir.Model | None
    inputs: tuple[InputSpec, ...]
    arch: str | None = None
    arch_args: dict[str, Any] = field(default_factory=dict)
    norms: tuple[NormModule, ...] = ()
    warnings: tuple[str, ...] = ()
    trusted: bool = False
    program: torch.export.ExportedProgram | None = None
    in_memory: bool = False
