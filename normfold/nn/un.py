"""Unified Normalization (Yang et al., ACM MM 2022, arXiv:2208.01313)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from normfold.nn.recall import (
    Stateful,
    matching_mask,
    mean_square_parts,
    recall,
    remember,
    require_channels,
    require_tokens,
    store,
    whole,
)
from normfold.nn.second_moment import Passed, in_type, mean_of, observe, scaled, slot

# How far the root of a batch's statistic may be from the stored one's before the ratio of the two is cut off.
_RATIO = 5.0
# No ratio acts before this iteration, whatever the warm-up.
_SETTLED = 1000


@torch.library.custom_op("normfold::un_observe", mutates_args=("running_var", "buffer_x2", "iters", "skip_counter"))
def _observe(
    squares: Tensor,
    count: Tensor,
    running_var: Tensor,
    buffer_x2: Tensor,
    iters: Tensor,
    skip_counter: Tensor,
    key: Tensor,
    warmup: int,
    backward_window: int,
    filtration: bool,
    eps: float,
    momentum: float,
    sync: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One iteration: the divisor (C,), the ratio r (C,), and (skipped, early for the gradient, slot) as int64."""
    known = recall(key, squares)
    if known is not None:
        return known[0], known[1], known[2]
    x2, sound, n, filled = observe(squares, count, buffer_x2, iters, sync, "UN")
    window = buffer_x2.shape[0]
    stored = running_var.to(x2.dtype)
    arithmetic, geometric = filled.mean(0), filled.log().mean(0).exp()
    skipped = torch.full((), window == 1, dtype=torch.bool, device=n.device)
    outlier = torch.zeros_like(skipped)
    if filtration and window > 1:
        limit = buffer_x2.to(x2.dtype).sqrt().var()
        outlier = skipped = (n >= warmup) & (arithmetic - geometric > limit * window).any()
    own = (n <= window) | (n < warmup) | skipped
    var = torch.where(own, x2, geometric)
    ratio = (var + eps).sqrt() / (stored + eps).sqrt()
    settled = (n > max(_SETTLED, warmup)) & ~skipped
    ratio = torch.where(settled, ratio.clamp(1 / _RATIO, _RATIO), torch.ones_like(ratio))
    kept = torch.where(outlier & slot(buffer_x2, n), stored, filled)
    store(buffer_x2, kept, sound)
    store(running_var, momentum * stored + (1 - momentum) * var, sound)
    store(skip_counter, skip_counter + outlier.to(skip_counter.dtype), sound)
    store(iters, iters + 1, sound)
    facts = torch.stack([skipped.to(torch.int64), ((n <= backward_window) | (n < warmup)).to(torch.int64), n])
    results = ((var + eps).sqrt(), ratio, facts)
    remember(key, squares, results)
    return results


@_observe.register_fake
def _(squares: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(squares), torch.empty_like(squares), squares.new_empty((3,), dtype=torch.int64)


@torch.library.custom_op("normfold::un_estimate", mutates_args=("ema_gz", "buffer_gz"))
def _estimate(sums: Tensor, facts: Tensor, ema_gz: Tensor, buffer_gz: Tensor, momentum: float, sync: bool) -> Tensor:
    """What multiplies z in the gradient of one iteration, (C,); updates the statistics of gradients."""
    (gz,), finite = mean_of(sums, sync)
    skipped, early = facts[0] == 1, facts[1] == 1
    before = ema_gz.to(gz.dtype)
    filled = torch.where(slot(buffer_gz, facts[2]), torch.where(skipped, before, gz), buffer_gz.to(gz.dtype))
    mean = torch.where(early | skipped, gz, filled.mean(0))
    after = momentum * before + (1 - momentum) * mean
    store(buffer_gz, filled, finite)
    store(ema_gz, after, finite)
    return torch.where(skipped, mean, after)


@_estimate.register_fake
def _(sums: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(sums[0])


class _Unified(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, divisor: Tensor, ratio: Tensor, facts: Tensor,
        ema_gz: Tensor, buffer_gz: Tensor, momentum: float, sync: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, divisor, ratio, facts)
        # Not through save_for_backward: the backward pass writes them.
        ctx.ema_gz, ctx.buffer_gz, ctx.momentum, ctx.sync = ema_gz, buffer_gz, momentum, sync
        return scaled(x, weight, bias, divisor, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, divisor, ratio, facts = ctx.saved_tensors
        passed = Passed(gradients[0], x, weight, divisor, ratio)
        estimate = _estimate(passed.means(), facts, ctx.ema_gz, ctx.buffer_gz, ctx.momentum, ctx.sync)
        return (*passed.gradients(estimate), None, None, None, None, None, None, None)


class UN1d(Stateful):
    """Unified Normalization over the last axis: y = weight * x / sqrt(running_var + eps) + bias in evaluation.

    `running_var` (C,) tracks the second moment E[x^2] of every channel; no mean is subtracted. Input (..., C) with
    any leading axes: (N, C), (N, L, C), (L, N, C), (N, H, W, C).

    Training, iteration n = 1, 2, ... as the published class counts:

    - The divisor is the root of the batch's second moment x2 while n <= window or n < warmup_iters; then of the
      geometric mean of the last `window` of them, this one included (fluctuation smoothing).
    - With `outlier_filtration` and n >= warmup_iters the batch is an outlier if in any channel the window's arithmetic
      mean exceeds its geometric mean by more than window * variance of the roots of all stored second moments. It uses
      its own x2, running_var takes its place in the window, and skip_counter counts it.
    - running_var is an exponential mean (momentum) of the divisor squared, from the first iteration on.
    - The gradient is (g - m z) / divisor with g = dout * weight * r. m is an exponential mean, `ema_gz`, of the mean
      of E[g z] over the last backward window, in warm-up of E[g z] itself; an outlier's own E[g z].
    - r = divisor / sqrt(running_var + eps) before this iteration, cut off at 1/5 and 5, acts after 1000 iterations.
    - With a forward window of 1 every batch is treated as an outlier is, filtration or not, and none is counted.

    Where paper and code differ, the code is followed: docs/training.md.

    window_size: one number, or (forward, backward). sync: take statistics over all ranks of torch.distributed; without
    it every rank has its own, as BatchNorm has.
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
        num_features: int,
        window_size: int | tuple[int, int] = 4,
        warmup_iters: int = 4000,
        outlier_filtration: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.9,
        *,
        sync: bool = False,
    ) -> None:
        super().__init__()
        given = window_size if isinstance(window_size, Sequence) else (window_size, window_size)
        windows = tuple(whole(window, "window_size of UN1d", least=1) for window in given)
        if len(windows) != 2:
            raise ValueError(f"window_size of UN1d is one number or (forward, backward), got {window_size}")
        warmup_iters = whole(warmup_iters, "warmup_iters of UN1d")
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("ema_gz", torch.zeros(num_features))
        self.register_buffer("iters", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("buffer_x2", torch.zeros(windows[0], num_features))
        self.register_buffer("buffer_gz", torch.zeros(windows[1], num_features))
        self.register_buffer("skip_counter", torch.zeros(1, dtype=torch.int64))
        self.num_features, self.window_size, self.warmup_iters = num_features, windows, warmup_iters
        self.outlier_filtration, self.eps, self.momentum, self.sync = outlier_filtration, eps, momentum, sync

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """(..., C) to (..., C); updates the statistics when training.

        pad_mask: x's shape without channels, True for padding. Padding is normalised like the rest; the statistics of x
        leave it out, those of gradients do not.
        """
        require_channels(x, self.num_features, axis=-1, what="UN1d")
        if not self.training:
            y = x / torch.sqrt(self.running_var + self.eps) * self.weight + self.bias
            return in_type(y, x, self.weight)
        require_tokens(x.numel() // max(1, x.shape[-1]), sync=self.sync)
        padding = None if pad_mask is None else matching_mask(pad_mask, x.shape[:-1], what="UN1d")
        squares, count = mean_square_parts(x, padding)
        divisor, ratio, facts = _observe(
            squares, count, self.running_var, self.buffer_x2, self.iters, self.skip_counter, self._key,
            self.warmup_iters, self.window_size[1], self.outlier_filtration, self.eps, self.momentum, self.sync,
        )  # fmt: skip
        normalise = cast(Callable[..., Tensor], _Unified.apply)
        y = normalise(
            x, self.weight, self.bias, divisor, ratio, facts, self.ema_gz, self.buffer_gz, self.momentum, self.sync
        )
        return y

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, window_size={self.window_size}, warmup_iters={self.warmup_iters}, "
            f"outlier_filtration={self.outlier_filtration}, eps={self.eps}, momentum={self.momentum}"
        )
