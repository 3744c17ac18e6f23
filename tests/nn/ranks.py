"""What one of two gloo processes does in test_ranks.py."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normfold.errors import BatchError
from normfold.nn import recalibrate
from tests.nn.norms import NORMS, STEPS, batch, network

RANKS = 2
# What each rank recalibrates with: unlike numbers of batches of unlike sizes.
HALVES = (range(3), range(3, 4))
# Trained without sync too.
LOCAL = ("un", "repbn")


def two_norms() -> nn.Module:
    """Called in another order than they were registered in."""

    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = (network(name, dtype=torch.float64)[:2] for name in ("un", "repbn"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.last(self.first(x))
            return y

    return Crossed()


def work_beside(index: int, folder: str) -> None:
    """What `torch.multiprocessing.spawn` starts beside rank 0."""
    warnings.simplefilter("error")
    work(index + 1, folder)
    # DistributedDataParallel keeps gloo's threads past the group's end; one that frees a tensor
    # while the interpreter goes down aborts the process (pytorch/pytorch#179291).
    os._exit(0)


def work(rank: int, folder: str) -> None:
    """Train every norm three ways and leave the states of this rank in FOLDER."""
    # Of torch's own making, in the engine.
    warnings.filterwarnings("ignore", message=".*barrier.*")
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    found: dict[str, Any] = {}
    for name in NORMS:
        found[name, "sync"] = _train(network(name, sync=True, dtype=torch.float64), rank)
        found[name, "uneven"] = _uneven(network(name, sync=True, dtype=torch.float64), rank)
        if name in LOCAL:
            found[name, "local"] = _train(network(name, dtype=torch.float64), rank)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network("prepbn", dtype=torch.float64))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    found["prepbn", "converted"] = _train(model, rank)
    model = network("repbn", dtype=torch.float64)
    recalibrate(model, [batch(step, tokens=3 + step, dtype=torch.float64) for step in HALVES[rank]])
    found["repbn", "recalibrated"] = dict(model.state_dict())
    model = two_norms()
    # Rank 1 has no batches, and so no order of its own.
    recalibrate(model, [batch(0, dtype=torch.float64)] if rank == 0 else [])
    found["two", "recalibrated"] = dict(model.state_dict())
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _uneven(model: nn.Module, rank: int) -> dict[str, torch.Tensor]:
    """Statistics where rank 1 has a single token, and then none: the others wait for its share all the same."""
    tokens = batch(0, dtype=torch.float64).flatten(0, 1)
    for size in (1, 0):
        part = tokens[size:] if rank == 0 else tokens[:size]
        # (L, 1, C): every norm takes it.
        model(part[:, None])
    with pytest.raises(BatchError, match="fewer than two tokens"):
        model(tokens[: 1 - rank, None])
    return {key: value.clone() for key, value in model.state_dict().items()}


def _train(model: nn.Module, rank: int) -> dict[str, torch.Tensor]:
    """Every step through DistributedDataParallel with default arguments; it takes no SyncBatchNorm on a CPU."""
    converted = any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    ddp = model if converted else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        half = batch(step, dtype=torch.float64).chunk(RANKS)[rank]
        ddp(half).square().mean().backward()
        for parameter in model.parameters() if converted else ():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= RANKS
        optimizer.step()
    return {key: value.clone() for key, value in model.state_dict().items()}
