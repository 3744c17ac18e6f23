"""Unified Normalization (Yang et al., ACM MM 2022, arXiv:2208.01313)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


def window_means(window: Tensor) -> tuple[Tensor, Tensor]:
    """Arithmetic and geometric mean over the first axis of positive `window` (W, C), each (C,)."""
    return window.mean(0), window.log().mean(0).exp()


def fluctuation(window: Tensor) -> float:
    """How far the window's iterations disagree, 0 (equal) to 1: the mean over channels of 1 - GM / AM.

    The geometric mean never exceeds the arithmetic one, and the gap between them grows with the spread of the window,
    which is what the paper's adaptive filtration measures.
    """
    arithmetic, geometric = window_means(window)
    return float((1.0 - geometric / arithmetic).mean())


class _Unify(torch.autograd.Function):
    """z = x / sigma with sigma given, and the smoothed gradient of arXiv:2208.01313 section 3.2.

    Exactly, sigma depending on this batch alone, dx = (g - z * E[g z]) / sigma. The estimate replaces E[g z] by
    its mean over the window when `smooth` is set; `record` stores this iteration's E[g z] and returns that mean.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sigma: Tensor, record: Callable[[Tensor], Tensor], smooth: bool) -> Tensor:
        z = x / sigma
        ctx.save_for_backward(z, sigma)
        ctx.record, ctx.smooth = record, smooth
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        z, sigma = ctx.saved_tensors
        current = (gradient * z).flatten(0, -2).mean(0)
        smoothed = ctx.record(current)
        return (gradient - z * (smoothed if ctx.smooth else current)) / sigma, None, None, None


class UN1d(nn.Module):
    """Unified Normalization over the last axis: y = weight * x / sqrt(running_var + eps) + bias in evaluation.

    `running_var` (C,) tracks the second moment E[x^2] of every channel; no mean is subtracted. Input (..., C) with
    any leading axes: (N, C), (N, L, C), (L, N, C).

    Training. The first `warmup` iterations divide by the current batch's root second moment. After that the divisor is
    the geometric mean of the second moments of the last `window` iterations, and the gradient uses the window's mean of
    E[g z] (fluctuation smoothing). When the window fluctuates by more than `tolerance` the iteration is an outlier: it
    uses its own statistics for both, leaves running_var alone, and adds one to `skip_counter` (outlier filtration).
    The paper derives its threshold from the gap between arithmetic and geometric mean as well; the relative form of
    `fluctuation` is this implementation's.

    Buffers as published: running_var, ema_gz (C,); iters, skip_counter (1,) int64; buffer_x2, buffer_gz (window, C).
    """

    running_var: Tensor
    ema_gz: Tensor
    iters: Tensor
    buffer_x2: Tensor
    buffer_gz: Tensor
    skip_counter: Tensor

    def __init__(
        self,
        channels: int,
        *,
        window: int = 4,
        warmup: int = 4000,
        momentum: float = 0.9,
        tolerance: float = 0.5,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if window < 1 or warmup < 0:
            raise ValueError(f"UN1d needs window >= 1 and warmup >= 0, got window={window}, warmup={warmup}")
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("ema_gz", torch.zeros(channels))
        self.register_buffer("iters", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("buffer_x2", torch.zeros(window, channels))
        self.register_buffer("buffer_gz", torch.zeros(window, channels))
        self.register_buffer("skip_counter", torch.zeros(1, dtype=torch.int64))
        self.window, self.warmup, self.momentum = window, warmup, momentum
        self.tolerance, self.eps = tolerance, eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C); updates the statistics when training."""
        if self.training:
            return self._normalise_batch(x) * self.weight + self.bias
        return x / torch.sqrt(self.running_var + self.eps) * self.weight + self.bias

    def _normalise_batch(self, x: Tensor) -> Tensor:
        variance, smooth = self._observe(x.detach())
        iteration = int(self.iters)
        self.iters += 1
        unify = cast(Callable[..., Tensor], _Unify.apply)
        return unify(x, torch.sqrt(variance + self.eps), lambda gz: self._record(gz, iteration), smooth)

    def _observe(self, x: Tensor) -> tuple[Tensor, bool]:
        """The divisor squared of one iteration (C,), and whether it is smoothed; updates the window and running_var."""
        iteration = int(self.iters)
        # The floor keeps the logarithm finite for a channel that is zero in a whole batch.
        moment = x.square().flatten(0, -2).mean(0).clamp_min(self.eps**2)
        self.buffer_x2[iteration % self.window] = moment
        if iteration < self.warmup:
            # A cumulative mean first: an exponential one would still hold its initial 1.
            self.running_var.lerp_(moment, 1.0 / (iteration + 1))
            return moment, False
        window = self.buffer_x2[: iteration + 1]
        if fluctuation(window) > self.tolerance:
            self.skip_counter += 1
            return moment, False
        _, smoothed = window_means(window)
        self.running_var.lerp_(smoothed, 1.0 if iteration == 0 else 1.0 - self.momentum)
        return smoothed, True

    def _record(self, gz: Tensor, iteration: int) -> Tensor:
        """Store E[g z] (C,) of one iteration and return the window's mean of it."""
        self.buffer_gz[iteration % self.window] = gz
        self.ema_gz.lerp_(gz, 1.0 - self.momentum)
        return self.buffer_gz[: iteration + 1].mean(0)
