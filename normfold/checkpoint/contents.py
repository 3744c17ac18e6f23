"""What a checkpoint holds once it is read. No torch here: an ONNX file is one too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.checkpoint.stated import Said
from normfold.errors import CheckpointError
from normfold.system.plain import is_plain

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

    from normfold.inputs.spec import InputSpec


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint holds, and what it says of itself.

    One of: state, a state dict; module (trusted files only); program and the module that it is; graph, its external
    data mapped but not read. takes: the inputs of a program or a graph.
    arch, arch_args, inputs, factory: as `save_checkpoint` writes them; arch may be a name of the authors' own, factory
    names code of its author (`pkg.module:function`). said: what it
    states of its architecture, in the words of its author. averaged: where it holds averaged weights that were
    not taken.
    """

    state: Mapping[str, torch.Tensor] | None = None
    module: nn.Module | None = None
    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    said: Said = field(default_factory=Said)
    averaged: str | None = None
    program: torch.export.ExportedProgram | None = None
    graph: ir.Model | None = None
    takes: tuple[InputSpec, ...] = ()
    factory: str | None = None


def arguments(found: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """The options that a file gives its architecture. Raises CheckpointError for what no option can be."""
    if not is_plain(found):
        raise CheckpointError(f"{path}: its arch_args are not numbers, short strings, lists and dicts alone.")
    return dict(found)
