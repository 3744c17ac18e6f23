"""Nothing in a file runs unless the user says so."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normfold.checkpoint.load import load_checkpoint
from normfold.errors import CheckpointError, InputSpecError, NormStateError
from tests.checkpoint.files import SPEC, Bomb, load, rewritten, same_state, settled


def test_plain_containers_and_numbers_are_read(tmp_path: Path, vit: nn.Module) -> None:
    beside = {
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.99), tags={"a"}),
        "history": collections.defaultdict(list, loss=[1.0]),
        "queue": collections.deque([1, 2]),
        "count": collections.Counter("aab"),
        "best": np.float64(0.5),
        "step": np.int64(3),
    }
    torch.save({**beside, "state_dict": collections.OrderedDict(vit.state_dict())}, tmp_path / "c.pt")
    assert same_state(load(tmp_path / "c.pt").module, vit.state_dict())


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_a_pickle_that_runs_code_does_not_run_it(tmp_path: Path, vit: nn.Module, options: dict[str, Any]) -> None:
    trap, path = tmp_path / "ran", tmp_path / "c.pt"
    torch.save({"state_dict": vit.state_dict(), "extra": Bomb(trap)}, path, **options)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert not trap.exists()
    message = str(caught.value)
    assert "mkdir" in message
    assert "--trust-checkpoint" in message
    assert "\n" not in message
    assert load(path, trust=True).trusted
    assert trap.exists()


def test_a_bare_pickle_does_not_run_either(tmp_path: Path) -> None:
    trap, path = tmp_path / "ran", tmp_path / "c.bin"
    path.write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(CheckpointError, match="--trust-checkpoint"):
        load(path)
    assert not trap.exists()


def test_a_whole_module_needs_trust(tmp_path: Path, vit: nn.Module) -> None:
    path = tmp_path / "c.pt"
    torch.save(vit.train(), path)
    with pytest.raises(CheckpointError, match=r"normfold\.models\.vit\.VisionTransformer.*--trust-checkpoint"):
        load_checkpoint(path, inputs=[SPEC])
    source = load_checkpoint(path, inputs=[SPEC], trust=True)
    assert source.trusted
    assert same_state(source.module, vit.state_dict())
    assert source.module is not None
    assert not source.module.training
    assert len(source.norms) == 3


def test_code_beside_a_trusted_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code_of_mine.py").write_text("from torch import nn\nclass Mine(nn.Linear):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    make = "import torch, code_of_mine; torch.save(code_of_mine.Mine(2, 3), 'c.pt')"
    subprocess.run([sys.executable, "-c", make], check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    before = list(sys.path)
    assert type(load_checkpoint("c.pt", inputs=["x:float32[B,2]"], trust=True).module).__name__ == "Mine"
    assert sys.path == before
    # The module without the class, then no module.
    monkeypatch.setitem(sys.modules, "code_of_mine", types.ModuleType("code_of_mine"))
    with pytest.raises(CheckpointError, match=r"objects of code_of_mine\.Mine, which cannot be imported: run where"):
        load_checkpoint("c.pt", inputs=["x:float32[B,2]"], trust=True)
    monkeypatch.delitem(sys.modules, "code_of_mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="holds objects of the module code_of_mine, which cannot be imported"):
        load_checkpoint("../c.pt", inputs=["x:float32[B,2]"], trust=True)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.layer(x))
        return y


@pytest.fixture(scope="module")
def program_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "small.pt2"
    model = settled(Small()).eval()
    batch = torch.export.Dim("B", max=64)
    torch.export.save(torch.export.export(model, (torch.zeros(3, 4),), dynamic_shapes=({0: batch},)), path)
    return path


def test_a_program_needs_trust(program_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\.pt2 program unpickles.*--trust-checkpoint"):
        load_checkpoint(program_file)
    source = load_checkpoint(program_file, trust=True)
    assert source.trusted
    assert source.program is not None
    assert [(norm.name, norm.kind) for norm in source.norms] == [("norm", "BatchNorm")]
    (spec,) = source.inputs
    assert (spec.name, spec.dtype, len(spec.letters), spec.dims[1]) == ("x", "float32", 1, 4)
    assert list(spec.limits.values()) == [64]
    with pytest.raises(InputSpecError, match="contradicts the model's own"):
        load_checkpoint(program_file, trust=True, inputs=["x:float32[B,5]"])


def test_a_program_that_runs_code_does_not_run_it(tmp_path: Path, program_file: Path) -> None:
    """Proof that the refusal is needed: with trust, torch.export.load does unpickle the example inputs."""
    trap, path = tmp_path / "ran", tmp_path / "c.pt2"
    path.write_bytes(program_file.read_bytes())
    torch.save(Bomb(trap), tmp_path / "bomb.pt")
    rewritten(path, "sample_inputs/model.pt", (tmp_path / "bomb.pt").read_bytes())
    with pytest.raises(CheckpointError, match="--trust-checkpoint"):
        load_checkpoint(path)
    assert not trap.exists()
    with pytest.raises(CheckpointError):
        load_checkpoint(path, trust=True)
    assert trap.exists()


def test_a_program_that_was_captured_in_training_mode_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Small().train(), (torch.zeros(3, 4),)), tmp_path / "c.pt2")
    with pytest.raises(NormStateError, match="captured in training mode"):
        load_checkpoint(tmp_path / "c.pt2", trust=True)
