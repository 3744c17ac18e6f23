"""Files that torch.save wrote: a state dict, a dict with one in it or, for trusted files, a whole module."""

from __future__ import annotations

from pathlib import Path

from normfold.checkpoint.contents import Contents
from normfold.checkpoint.formats.base import Format


def read(path: Path, *, trust: bool, ema: bool) -> Contents:
    """Read a pickle: weights only, unless it is trusted. Raises CheckpointError; it names a refused global."""
    from normfold.checkpoint.unpickle import unpickle
    from normfold.checkpoint.weights import contents_of

    return contents_of(unpickle(path, trust=trust), path, ema=ema)


TORCH = Format("torch", read, suffixes=(".pt", ".pth", ".pth.tar", ".bin", ".ckpt"), holds_code=True)
