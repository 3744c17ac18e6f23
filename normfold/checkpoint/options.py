"""How to load a checkpoint: one value, from the command line to the loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a user may say of a checkpoint.

    arch: name in the built-in registry (default: the checkpoint's own, or the one recognised from its names and
    shapes). model: "pkg.module:factory" of the user's own code, or the
    function itself. model_args: arguments of either. inputs: specifications
    such as "x:float32[B,3,32,32]" (default: those in the checkpoint or the graph, or of the built-in architecture).
    trust_code: import and call the function that the checkpoint names, as `save_checkpoint(factory=...)` wrote it.
    ema: take the averaged weights. trust: unpickle the file, which can run code in it. allow_unfinished: accept a
    PRepBN whose schedule has not ended.
    """

    arch: str | None = None
    model: str | Callable[..., Any] | None = None
    model_args: Mapping[str, Any] | None = field(default=None, hash=False)
    inputs: tuple[str, ...] = ()
    ema: bool = field(default=False, kw_only=True)
    trust: bool = field(default=False, kw_only=True)
    allow_unfinished: bool = field(default=False, kw_only=True)
    trust_code: bool = field(default=False, kw_only=True)
