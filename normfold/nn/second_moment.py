"""What UN, PowerNorm and MABN share: x over a root of second moments, and a gradient whose statistic is an estimate."""

from __future__ import annotations

import torch
from torch import Tensor

from normfold.nn.recall import across_ranks, reject


def scaled(x: Tensor, weight: Tensor, bias: Tensor, divisor: Tensor, ratio: Tensor | None) -> Tensor:
    """weight * ratio * x / divisor + bias over the last axis, in the wider type of x and weight."""
    scale = weight if ratio is None else weight * ratio
    z = x.to(divisor.dtype) / divisor
    return (z * scale.to(divisor.dtype) + bias.to(divisor.dtype)).to(torch.promote_types(x.dtype, weight.dtype))


def in_type(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """y in the wider type of x and weight, for statistics may be wider still. Exports no cast without need."""
    kind = torch.promote_types(x.dtype, weight.dtype)
    return y if y.dtype == kind else y.to(kind)


def slot(window: Tensor, n: Tensor) -> Tensor:
    """Which row of a window (M, C) iteration n writes, (M, 1) of bool."""
    return torch.arange(window.shape[0], device=n.device)[:, None] == n % window.shape[0]


def observe(
    squares: Tensor, count: Tensor, window: Tensor, iters: Tensor, sync: bool, what: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One more batch: its second moment (C,), whether it is sound, its number n, and the window (M, C) with it.

    squares, count: sums over its positions, of all ranks if `sync`. what: the norm, for the BatchError (see `reject`).
    """
    if sync:
        squares, count = across_ranks(squares, count)
    x2 = squares / count
    sound = torch.isfinite(x2).all() & (count >= 2).all()
    reject(sound, what)
    n = iters.to(torch.int64)[0] + 1
    return x2, sound, n, torch.where(slot(window, n), x2, window.to(x2.dtype))


class Passed:
    """What one backward pass starts from: upstream = dout, z = x / divisor, g = dout * weight * ratio, gz = mean(g z).

    z and the gradients are in the type of the statistics. gz is over every position, of all ranks if `sync`.
    """

    def __init__(self, out: Tensor, x: Tensor, weight: Tensor, divisor: Tensor, ratio: Tensor | None) -> None:
        self.out, self.divisor = out.to(divisor.dtype), divisor
        self.z = x.to(divisor.dtype) / divisor
        self.scale = (weight if ratio is None else weight * ratio).to(divisor.dtype)
        self.ratio = ratio
        self.dots = (self.out * self.z).flatten(0, -2).sum(0)
        self.types = x.dtype, weight.dtype

    def means(self, *, squares: bool = False) -> Tensor:
        """Sums over positions of g z (and z^2 with `squares`) and the count, (3, C) or (2, C): to be divided later."""
        count = torch.full_like(self.dots, self.z.numel() // self.z.shape[-1])
        rows = [self.scale * self.dots, count]
        if squares:
            rows.append(self.z.square().flatten(0, -2).sum(0))
        return torch.stack(rows)

    def gradients(self, estimate: Tensor, divisor: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """dx = (g - estimate * z) / divisor, dweight = sum(dout * ratio * z), dbias = sum(dout)."""
        dx = (self.out * self.scale - estimate * self.z) / (self.divisor if divisor is None else divisor)
        dweight = self.dots if self.ratio is None else self.dots * self.ratio
        kind, parameter = self.types
        return dx.to(kind), dweight.to(parameter), self.out.flatten(0, -2).sum(0).to(parameter)


def mean_of(sums: Tensor, sync: bool) -> tuple[Tensor, Tensor]:
    """The mean over positions of what `Passed.means` summed, (1 or 2, C), and whether all of it is finite."""
    if sync:
        (sums,) = across_ranks(sums)
    means = torch.cat([sums[:1], sums[2:]]) / sums[1]
    return means, torch.isfinite(means).all()
