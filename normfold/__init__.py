"""Folds norms with stored statistics into the weights around them: a trained checkpoint in, verified ONNX out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from normfold._version import __version__ as __version__

if TYPE_CHECKING:
    from normfold import errors as errors
    from normfold.checkpoint.load import load_checkpoint as load_checkpoint
    from normfold.checkpoint.save import save_checkpoint as save_checkpoint
    from normfold.pipeline.look import inspect as inspect
    from normfold.pipeline.run import fold as fold

__all__ = ["__version__", "errors", "fold", "inspect", "load_checkpoint", "save_checkpoint"]

# Resolved on first use: `normfold --help` must not wait for torch.
_HOME = {
    "fold": "normfold.pipeline.run",
    "inspect": "normfold.pipeline.look",
    "load_checkpoint": "normfold.checkpoint.load",
    "save_checkpoint": "normfold.checkpoint.save",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("normfold.errors")
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
