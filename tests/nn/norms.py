"""Every norm with a short schedule, and a small network around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from normfold.nn.batchnorm import TokenBatchNorm
from normfold.nn.mabn import MABN2d
from normfold.nn.powernorm import MaskPowerNorm, PowerNorm
from normfold.nn.repbn import LinearNorm, RepBN
from normfold.nn.un import UN1d

CHANNELS = 6
STEPS = 8


class OverAxis1(nn.Module):
    """A norm over axis 1 for tokens (..., C)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(-1, 1)).movedim(1, -1)


def _mabn(sync: bool) -> nn.Module:
    return OverAxis1(MABN2d(CHANNELS, B=2, real_B=6, warmup_iters=5, sync=sync))


def _prepbn(sync: bool) -> nn.Module:
    return LinearNorm(CHANNELS, nn.LayerNorm, partial(RepBN, sync=sync), warm=2, step=3)


def _llama(sync: bool) -> nn.Module:
    norm2 = partial(RepBN, flatten=True, sync=sync)
    return LinearNorm(CHANNELS, nn.RMSNorm, norm2, eps=1e-6, warm=1, step=2, accumulation=2)


# Warm-ups, windows and fades all end within STEPS.
NORMS: dict[str, Callable[[bool], nn.Module]] = {
    "un": lambda sync: UN1d(CHANNELS, 3, 4, sync=sync),
    "un-filtered": lambda sync: UN1d(CHANNELS, (2, 3), 4, True, sync=sync),
    "powernorm": lambda sync: PowerNorm(CHANNELS, warmup_iters=4, sync=sync),
    "powernorm-groups": lambda sync: MaskPowerNorm(CHANNELS, warmup_iters=4, group_num=2, sync=sync),
    "mabn": _mabn,
    "repbn": lambda sync: RepBN(CHANNELS, sync=sync),
    "bn": lambda sync: TokenBatchNorm(CHANNELS, sync=sync),
    "prepbn": _prepbn,
    "prepbn-llama": _llama,
}
# Compiling takes seconds each: in the default run the norm with the most state.
COMPILED = [pytest.param(name, marks=() if name == "un-filtered" else pytest.mark.slow) for name in NORMS]


def network(name: str, *, sync: bool = False, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Linear, norm, GELU, Linear over tokens (..., CHANNELS)."""
    torch.manual_seed(0)
    block = nn.Sequential(NORMS[name](sync), nn.GELU(), nn.Linear(CHANNELS, CHANNELS))
    return nn.Sequential(nn.Linear(CHANNELS, CHANNELS), block, nn.Linear(CHANNELS, 1)).to(dtype)


def batch(step: int, *, tokens: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Tokens (4, tokens, CHANNELS), channels of unlike sizes; step 6 holds an outlier."""
    torch.manual_seed(100 + step)
    x = torch.randn(4, tokens, CHANNELS) * torch.linspace(0.3, 2.0, CHANNELS) + 0.3
    return (x * (8.0 if step == 6 else 1.0)).to(dtype)


def fit(
    model: nn.Module, *, steps: range = range(STEPS), run: Callable[[Tensor], Tensor] | None = None
) -> list[Tensor]:
    """Plain SGD over `steps`; the losses. run: calls the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = (run or model)(batch(step, dtype=next(model.parameters()).dtype)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def assert_same(first: nn.Module, second: nn.Module, tolerance: float = 0.0) -> None:
    """Parameters and buffers agree to `tolerance`, relative to their size."""
    ours, theirs = first.state_dict(), second.state_dict()
    assert len(ours) == len(theirs) > 0
    for (name, ours_value), theirs_value in zip(ours.items(), theirs.values(), strict=True):
        off = float((ours_value.double() - theirs_value.double()).abs().max())
        assert off <= tolerance * max(1.0, float(theirs_value.double().abs().max())), f"{name} is off by {off:.1e}"
