"""PowerNorm (Shen et al., ICML 2020, arXiv:2003.07845)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


class GroupScaling(nn.Module):
    """Divide each token's channels (..., C) by the root mean square of their group, C split into `groups` runs.

    A statistic of the token, so it stays at inference; only what follows it is a fixed map per channel.
    """

    def __init__(self, groups: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        grouped = x.reshape(*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
        return (grouped / torch.sqrt(grouped.square().mean(-1, keepdim=True) + self.eps)).flatten(-2)


class _Power(torch.autograd.Function):
    """z = x / psi, and the approximate gradient of algorithm 2: dx = (g - nu * z) / psi.

    During warm-up nu is this batch's E[g z], which makes the gradient exact; afterwards it is the running estimate nu
    (`ema_gz`), updated as nu <- nu * (1 - (1 - a) E[z^2]) + (1 - a) E[g z].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, psi: Tensor, nu: Tensor, momentum: float, warming: bool) -> Tensor:
        z = x / psi
        ctx.save_for_backward(z, psi)
        # Not through save_for_backward: nu is a buffer that this very backward writes.
        ctx.nu, ctx.momentum, ctx.warming = nu, momentum, warming
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = gradients
        z, psi = ctx.saved_tensors
        current = (gradient * z).flatten(0, -2).mean(0)
        estimate = current if ctx.warming else ctx.nu.clone()
        rate = 1.0 - ctx.momentum
        ctx.nu.mul_(1.0 - rate * z.square().flatten(0, -2).mean(0)).add_(rate * current)
        return (gradient - estimate * z) / psi, None, None, None, None


class PowerNorm(nn.Module):
    """y = weight * s(x) / sqrt(running_phi + eps) + bias over the last axis, s = GroupScaling or the identity.

    group_scaling: number of channel groups of the published MaskPowerNorm; 0 leaves the scaling out, which makes
    inference a fixed map per channel.
    running_phi tracks E[s(x)^2] per channel; no mean is subtracted. Input (..., C).
    Training: `warmup` iterations normalise by the current batch, later ones by the running statistic.
    Buffers as published: running_phi and ema_gz (1, C, 1, 1), iters (1,) int64.
    """

    running_phi: Tensor
    ema_gz: Tensor
    iters: Tensor

    def __init__(
        self,
        channels: int,
        *,
        group_scaling: int = 0,
        warmup: int = 10000,
        momentum: float = 0.9,
        backward_momentum: float = 0.9,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if group_scaling < 0 or (group_scaling and channels % group_scaling):
            raise ValueError(
                f"PowerNorm needs group_scaling >= 0 dividing its {channels} channels, got {group_scaling}"
            )
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_phi", torch.ones(1, channels, 1, 1))
        self.register_buffer("ema_gz", torch.zeros(1, channels, 1, 1))
        self.register_buffer("iters", torch.zeros(1, dtype=torch.int64))
        self.gp = GroupScaling(group_scaling, eps=eps) if group_scaling else nn.Identity()
        self.warmup, self.eps = warmup, eps
        self.momentum, self.backward_momentum = momentum, backward_momentum

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C); updates the statistics when training."""
        x = self.gp(x)
        if self.training:
            return self._normalise_batch(x) * self.weight + self.bias
        return x / torch.sqrt(self.running_phi.reshape(-1) + self.eps) * self.weight + self.bias

    def _normalise_batch(self, x: Tensor) -> Tensor:
        moment = x.detach().square().flatten(0, -2).mean(0)
        phi, nu = self.running_phi.view(-1), self.ema_gz.view(-1)
        iteration = int(self.iters)
        warming = iteration < self.warmup
        divisor = moment if warming else phi.clone()
        # A cumulative mean while warming: an exponential one would still hold its initial 1.
        phi.lerp_(moment, 1.0 / (iteration + 1) if warming else 1.0 - self.momentum)
        self.iters += 1
        power = cast(Callable[..., Tensor], _Power.apply)
        return power(x, torch.sqrt(divisor + self.eps), nu, self.backward_momentum, warming)
