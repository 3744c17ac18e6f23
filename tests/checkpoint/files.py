"""Files and calls that the tests of checkpoints share."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.source import Source

ARGS = {"dim": 12, "depth": 1, "heads": 2, "norm": "un"}


SPEC = "x:float32[B,1,8,8]"


def settled(model: nn.Module) -> nn.Module:
    """Statistics that no fresh module has, and schedules that have ended."""
    for name, buffer in model.named_buffers():
        if "running_" in name:
            nn.init.uniform_(buffer, 0.5, 2.0)
        if name.endswith((".iter", ".warm")):
            buffer.zero_()
    return model


def load(path: Path, **options: Any) -> Source:
    """With the architecture and inputs that a bare state dict of `vit` needs."""
    return load_checkpoint(path, **{"arch": "vit", "model_args": ARGS, "inputs": [SPEC], **options})


def same_state(model: nn.Module | None, state: Mapping[str, torch.Tensor]) -> bool:
    assert model is not None
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def rewritten(path: Path, member: str, content: bytes) -> None:
    """Replace the member of a zip whose name ends so."""
    with zipfile.ZipFile(path) as archive:
        parts = [(info, archive.read(info)) for info in archive.infolist()]
    assert any(info.filename.endswith(member) for info, _ in parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for info, data in parts:
            archive.writestr(info.filename, content if info.filename.endswith(member) else data)


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)
