"""PowerNorm (Shen et al., ICML 2020, arXiv:2003.07845)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from normfold.nn.recall import (
    Stateful,
    across_ranks,
    matching_mask,
    mean_square_parts,
    precise,
    recall,
    reject,
    remember,
    require_channels,
    require_tokens,
    store,
    whole,
)
from normfold.nn.second_moment import Passed, in_type, mean_of, scaled


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
        # Squares of float16 overflow at 256; in evaluation the graph stays as small as it is.
        work = grouped.to(precise(x)) if self.training else grouped
        return (work / torch.sqrt(work.square().mean(-1, keepdim=True) + self.eps)).flatten(-2).to(x.dtype)


@torch.library.custom_op("normfold::power_observe", mutates_args=("running_phi", "iters"))
def _observe(
    squares: Tensor,
    count: Tensor,
    running_phi: Tensor,
    iters: Tensor,
    key: Tensor,
    warmup: int,
    eps: float,
    alpha: float,
    sync: bool,
) -> tuple[Tensor, Tensor]:
    """One iteration: the divisor of the output and the divisor of the gradient, (C,) each."""
    known = recall(key, squares)
    if known is not None:
        return known[0], known[1]
    mark = squares
    if sync:
        squares, count = across_ranks(squares, count)
    x2 = squares / count
    sound = torch.isfinite(x2).all() & (count >= 2).all()
    reject(sound, "PowerNorm")
    n = iters.to(torch.int64)[0] + 1
    before = running_phi.to(x2.dtype).flatten()
    own = (x2 + eps).sqrt()
    divisor = torch.where(n <= warmup, own, (before + eps).sqrt())
    count_so_far = n.to(x2.dtype)
    cumulative = before * ((count_so_far - 1) / count_so_far) + x2 / count_so_far
    phi = alpha * torch.where(n < warmup, cumulative, before) + (1 - alpha) * x2
    store(running_phi, phi.view_as(running_phi), sound)
    store(iters, iters + 1, sound)
    remember(key, mark, (divisor, own))
    return divisor, own


@_observe.register_fake
def _(squares: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(squares), torch.empty_like(squares)


@torch.library.custom_op("normfold::power_estimate", mutates_args=("ema_gz",))
def _estimate(sums: Tensor, ema_gz: Tensor, alpha: float, sync: bool) -> Tensor:
    """What multiplies z in the gradient of one iteration, (C,); updates the statistics of gradients."""
    (gz, zz), finite = mean_of(sums, sync)
    before = ema_gz.to(gz.dtype).flatten()
    estimate = (1 - alpha) * before
    # mean(a z) for a = g - estimate * z.
    store(ema_gz, (before + gz - estimate * zz).view_as(ema_gz), finite)
    return estimate


@_estimate.register_fake
def _(sums: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(sums[0])


class _Power(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, divisor: Tensor, own: Tensor, ema_gz: Tensor,
        alpha: float, sync: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, divisor, own)
        # Not through save_for_backward: the backward pass writes it.
        ctx.ema_gz, ctx.alpha, ctx.sync = ema_gz, alpha, sync
        return scaled(x, weight, bias, divisor, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, divisor, own = ctx.saved_tensors
        passed = Passed(gradients[0], x, weight, divisor, None)
        estimate = _estimate(passed.means(squares=True), ctx.ema_gz, ctx.alpha, ctx.sync)
        return (*passed.gradients(estimate, own), None, None, None, None, None)


class MaskPowerNorm(Stateful):
    """y = weight * s(x) / sqrt(running_phi + eps) + bias over the last axis, s = GroupScaling of `group_num` groups.

    group_num: 0 leaves the scaling out (PN*, `PowerNorm`), which makes inference a fixed map per channel; the published
    class always scales, with an eps of 1e-5 whatever `eps` is. running_phi tracks E[s(x)^2] per channel; no mean is
    subtracted. Input (..., C).

    Training, iteration n = 1, 2, ... as the published class counts, x2 the batch's E[s(x)^2]:

    - The divisor is sqrt(x2 + eps) while n <= warmup_iters, then the root of running_phi before this iteration.
    - While n < warmup_iters running_phi becomes its cumulative mean with x2; then, at every iteration, also
      alpha_fwd * running_phi + (1 - alpha_fwd) * x2.
    - The gradient is a / sqrt(x2 + eps), a = g - (1 - alpha_bkw) * ema_gz * z, g = dout * weight; ema_gz grows by
      E[a z]. It is divided by this batch's x2 after warm-up too, as in the code and not in the paper.

    Where paper and code differ, the code is followed: docs/training.md.

    sync: take statistics over all ranks of torch.distributed; without it every rank has its own, as BatchNorm has.
    Buffers as published: running_phi and ema_gz (1, C, 1, 1), iters (1,) int64.
    """

    running_phi: Tensor
    ema_gz: Tensor
    iters: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        alpha_fwd: float = 0.9,
        alpha_bkw: float = 0.9,
        warmup_iters: int = 10000,
        group_num: int = 1,
        *,
        sync: bool = False,
    ) -> None:
        super().__init__()
        if group_num < 0 or (group_num and num_features % group_num):
            raise ValueError(
                f"{type(self).__name__} needs group_num >= 0 dividing its {num_features} channels, got {group_num}"
            )
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_phi", torch.ones(1, num_features, 1, 1))
        self.register_buffer("ema_gz", torch.zeros(1, num_features, 1, 1))
        self.register_buffer("iters", torch.zeros(1, dtype=torch.int64))
        # With its own eps whatever this one's is, as published.
        self.gp = GroupScaling(group_num) if group_num else nn.Identity()
        self.num_features, self.eps, self.group_num = num_features, eps, group_num
        self.alpha_fwd, self.alpha_bkw, self.sync = alpha_fwd, alpha_bkw, sync
        self.warmup_iters = whole(warmup_iters, f"warmup_iters of {type(self).__name__}")

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """(..., C) to (..., C); updates the statistics when training.

        pad_mask: (B, T), True for padding, where x is (T, B, C), as published; for other ranks x's shape without
        channels. Padding is normalised like the rest; the statistics of x leave it out, those of gradients do not.
        """
        require_channels(x, self.num_features, axis=-1, what=type(self).__name__)
        x = self.gp(x)
        if not self.training:
            y = x / torch.sqrt(self.running_phi.reshape(-1) + self.eps) * self.weight + self.bias
            return in_type(y, x, self.weight)
        require_tokens(x.numel() // max(1, x.shape[-1]), sync=self.sync)
        squares, count = mean_square_parts(x, self._padding(x, pad_mask))
        divisor, own = _observe(
            squares, count, self.running_phi, self.iters, self._key,
            self.warmup_iters, self.eps, self.alpha_fwd, self.sync,
        )  # fmt: skip
        normalise = cast(Callable[..., Tensor], _Power.apply)
        y = normalise(x, self.weight, self.bias, divisor, own, self.ema_gz, self.alpha_bkw, self.sync)
        return y

    def _padding(self, x: Tensor, pad_mask: Tensor | None) -> Tensor | None:
        if pad_mask is None:
            return None
        if x.dim() == 3:
            return matching_mask(pad_mask, (x.shape[1], x.shape[0]), what="MaskPowerNorm over (T, B, C)").T
        return matching_mask(pad_mask, x.shape[:-1], what="MaskPowerNorm")

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, group_num={self.group_num}, warmup_iters={self.warmup_iters}"


class PowerNorm(MaskPowerNorm):
    """`MaskPowerNorm` without group scaling unless `group_num` asks for it: a fixed map per channel in evaluation."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        alpha_fwd: float = 0.9,
        alpha_bkw: float = 0.9,
        warmup_iters: int = 10000,
        group_num: int = 0,
        *,
        sync: bool = False,
    ) -> None:
        super().__init__(num_features, eps, alpha_fwd, alpha_bkw, warmup_iters, group_num, sync=sync)
