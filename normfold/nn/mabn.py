"""Moving Average Batch Normalization (Yan et al., ICLR 2020, arXiv:2001.06838) and its centred convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from normfold.nn.recall import (
    Stateful,
    mean_square_parts,
    recall,
    remember,
    require_channels,
    require_tokens,
    store,
    whole,
)
from normfold.nn.second_moment import Passed, in_type, mean_of, observe, scaled, slot

_RATIO = 5.0
_SETTLED = 1000


@torch.library.custom_op("normfold::mabn_observe", mutates_args=("running_var", "buffer_x2", "iters"))
def _observe(
    squares: Tensor,
    count: Tensor,
    running_var: Tensor,
    buffer_x2: Tensor,
    iters: Tensor,
    key: Tensor,
    warmup: int,
    eps: float,
    momentum: float,
    sync: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One iteration: the divisor (C,), the ratio r (C,), and (early, n) as int64."""
    known = recall(key, squares)
    if known is not None:
        return known[0], known[1], known[2]
    x2, sound, n, filled = observe(squares, count, buffer_x2, iters, sync, "MABN2d")
    window = buffer_x2.shape[0]
    stored = running_var.to(x2.dtype).flatten()
    early = (n <= window) | (n < warmup)
    var = torch.where(early, x2, filled.mean(0))
    ratio = ((var + eps).sqrt() / (stored + eps).sqrt()).clamp(1 / _RATIO, _RATIO)
    ratio = torch.where(n > max(_SETTLED, warmup), ratio, torch.ones_like(ratio))
    store(buffer_x2, filled, sound)
    store(running_var, (momentum * stored + (1 - momentum) * var).view_as(running_var), sound)
    store(iters, iters + 1, sound)
    results = ((var + eps).sqrt(), ratio, torch.stack([early.to(torch.int64), n]))
    remember(key, squares, results)
    return results


@_observe.register_fake
def _(squares: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(squares), torch.empty_like(squares), squares.new_empty((2,), dtype=torch.int64)


@torch.library.custom_op("normfold::mabn_estimate", mutates_args=("buffer_gz",))
def _estimate(sums: Tensor, facts: Tensor, buffer_gz: Tensor, sync: bool) -> Tensor:
    """What multiplies z in the gradient of one iteration, (C,); updates the statistics of gradients."""
    (gz,), finite = mean_of(sums, sync)
    filled = torch.where(slot(buffer_gz, facts[1]), gz, buffer_gz.to(gz.dtype))
    store(buffer_gz, filled, finite)
    return torch.where(facts[0] == 1, gz, filled.mean(0))


@_estimate.register_fake
def _(sums: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(sums[0])


class _Moving(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, divisor: Tensor, ratio: Tensor, facts: Tensor,
        buffer_gz: Tensor, sync: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, divisor, ratio, facts)
        # Not through save_for_backward: the backward pass writes it.
        ctx.buffer_gz, ctx.sync = buffer_gz, sync
        return scaled(x, weight, bias, divisor, ratio)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, divisor, ratio, facts = ctx.saved_tensors
        passed = Passed(gradients[0], x, weight, divisor, ratio)
        estimate = _estimate(passed.means(), facts, ctx.buffer_gz, ctx.sync)
        return (*passed.gradients(estimate), None, None, None, None, None)


class MABN2d(Stateful):
    """Moving Average Batch Normalization over axis 1 of (N, C, H, W), or of any (N, C, ...).

    In evaluation y = weight * x / sqrt(running_var + eps) + bias: running_var (1, C, 1, 1) tracks the second moment
    E[x^2]; no mean is subtracted, which is what `CenConv2d` in front of it is for.

    Training, iteration n = 1, 2, ... as the published class counts, x2 the batch's E[x^2], window = real_B / B:

    - The divisor squared, var, is x2 while n <= window or n < warmup_iters, then the mean of the last `window` of them.
    - y = weight * r * x / sqrt(var + eps) + bias, r = sqrt(var + eps) / sqrt(running_var + eps) before this iteration,
      cut off at 1/5 and 5, 1 until n > max(1000, warmup_iters).
    - running_var is an exponential mean (momentum) of var from the first iteration on.
    - The gradient is (g - m z) / sqrt(var + eps), g = dout * weight * r, m the batch's E[g z] at first, then the mean
      of the last `window` of them.

    B: batch size of one step. real_B: batch size whose statistics are imitated, a multiple of B.
    sync: take statistics over all ranks of torch.distributed; without it every rank has its own, as BatchNorm has.
    Buffers as published: running_var (1, C, 1, 1), iters (1,) int64, buffer_x2 and buffer_gz (real_B / B, C).
    """

    running_var: Tensor
    iters: Tensor
    buffer_x2: Tensor
    buffer_gz: Tensor

    def __init__(
        self,
        num_features: int,
        B: int = 2,
        real_B: int = 32,
        eps: float = 1e-5,
        momentum: float = 0.98,
        warmup_iters: int = 100,
        *,
        sync: bool = False,
    ) -> None:
        super().__init__()
        B, real_B = whole(B, "B of MABN2d", least=1), whole(real_B, "real_B of MABN2d", least=1)
        if real_B % B:
            raise ValueError(f"real_B of MABN2d is a multiple of B, got B={B}, real_B={real_B}")
        warmup_iters = whole(warmup_iters, "warmup_iters of MABN2d")
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(1, num_features, 1, 1))
        self.register_buffer("iters", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("buffer_x2", torch.zeros(real_B // B, num_features))
        self.register_buffer("buffer_gz", torch.zeros(real_B // B, num_features))
        self.num_features, self.buffer_size = num_features, real_B // B
        self.eps, self.momentum, self.warmup_iters, self.sync = eps, momentum, warmup_iters, sync

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape; updates the statistics when training."""
        require_channels(x, self.num_features, axis=1, what="MABN2d")
        if not self.training:
            shape = (1, -1, *(1 for _ in range(x.dim() - 2)))
            scale = self.weight.reshape(shape)
            y = x / torch.sqrt(self.running_var.reshape(shape) + self.eps) * scale + self.bias.reshape(shape)
            return in_type(y, x, self.weight)
        require_tokens(x.numel() // max(1, x.shape[1]), sync=self.sync)
        last = x.movedim(1, -1)
        squares, count = mean_square_parts(last, None)
        divisor, ratio, facts = _observe(
            squares, count, self.running_var, self.buffer_x2, self.iters, self._key,
            self.warmup_iters, self.eps, self.momentum, self.sync,
        )  # fmt: skip
        normalise = cast(Callable[..., Tensor], _Moving.apply)
        y = normalise(last, self.weight, self.bias, divisor, ratio, facts, self.buffer_gz, self.sync)
        return y.movedim(-1, 1)

    def extra_repr(self) -> str:
        return f"{self.num_features}, window={self.buffer_size}, eps={self.eps}, momentum={self.momentum}"


class CenConv2d(nn.Conv2d):
    """A convolution whose kernel has mean zero for every output channel, so that MABN can do without means.

    W' = W - mean of W over input channels and taps. As published, kernels are 3 x 3 and there is no bias (MABN has one)
    unless it is said; otherwise arguments and state are those of `nn.Conv2d`. Source: arXiv:2001.06838, section 4.3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        y: Tensor = self._conv_forward(input, weight, self.bias)
        return y
