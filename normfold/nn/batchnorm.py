"""BatchNorm over tokens: with padding left out, over several ranks, and with statistics that nothing damages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.nn.recall import across_ranks, matching_mask, precise, recomputing, reject, require_tokens, store


class Statistics(Protocol):
    """What is read of a BatchNorm module."""

    running_mean: Any
    running_var: Any
    num_batches_tracked: Any
    weight: Any
    bias: Any
    momentum: float | None
    eps: float


@torch.library.custom_op("normfold::commit", mutates_args=("buffers",))
def _commit(buffers: Sequence[Tensor], values: Sequence[Tensor], active: Tensor) -> None:
    """Write what a training call made of `buffers`, unless checkpointing computes the call again."""
    if recomputing():
        return
    sound = torch.ones_like(active)
    for value in values:
        if value.is_floating_point():
            sound = sound & torch.isfinite(value).all()
    reject(sound, "BatchNorm")
    for buffer, value in zip(buffers, values, strict=True):
        store(buffer, value, sound & active)


@_commit.register_fake
def _(buffers: Sequence[Tensor], values: Sequence[Tensor], active: Tensor) -> None:
    return None


@torch.library.custom_op("normfold::sum_over_ranks", mutates_args=())
def _sum_over_ranks(values: Tensor) -> Tensor:
    (total,) = across_ranks(values)
    return total.clone() if total is values else total


@_sum_over_ranks.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


def _share(ctx: Any, gradient: Tensor) -> Tensor:
    total: Tensor = _sum_over_ranks(gradient)
    return total


_sum_over_ranks.register_autograd(_share)


def _affine(bn: Statistics) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias in the type of the statistics, which F.batch_norm wants: half precision may keep these wide."""
    kind = bn.running_var.dtype
    weight, bias = (each if each is None or each.dtype == kind else each.to(kind) for each in (bn.weight, bn.bias))
    return weight, bias


def of_one_type(bn: Statistics) -> bool:
    """Whether weight and statistics have one type, as BatchNorm modules want it."""
    return bn.weight is None or bool(bn.weight.dtype == bn.running_var.dtype)


def evaluate_batch_norm(bn: Statistics, x: Tensor) -> Tensor:
    """BatchNorm of `bn` over axis 1 of x with its stored statistics."""
    return F.batch_norm(x, bn.running_mean, bn.running_var, *_affine(bn), False, 0.0, bn.eps)


def _apart(
    bn: Statistics, x: Tensor, stored: tuple[Tensor, Tensor], rate: float | Tensor, padding: Tensor | None, sync: bool
) -> Tensor:
    """What F.batch_norm does with tokens x (P, C), spelled out: without padding (P,), over ranks; updates `stored`."""
    work = x.to(precise(x))
    keep = torch.ones(x.shape[:1], dtype=torch.bool, device=x.device) if padding is None else ~padding.flatten()
    kept = keep[:, None]
    nothing = torch.zeros((), dtype=work.dtype, device=x.device)
    total = torch.where(kept, work, nothing).sum(0)
    count = keep.sum().to(work.dtype)[None]
    if sync:
        total, count = _sum_over_ranks(torch.cat([total, count])).split([total.numel(), 1])
    centred = work - total / count
    spread = torch.where(kept, centred, nothing).square().sum(0)
    if sync:
        spread = _sum_over_ranks(spread)
    y = centred * torch.rsqrt(spread / count + bn.eps)
    if bn.weight is not None:
        y = y * bn.weight + bn.bias
    with torch.no_grad():
        # Of a single token there is no unbiased variance: not finite, which `_commit` reports.
        for statistic, value in zip(stored, (total / count, spread / (count - 1)), strict=True):
            statistic.copy_((1 - rate) * statistic + rate * value.to(statistic.dtype))
    return torch.where(kept, y, work).to(x.dtype)


def train_batch_norm(
    bn: Statistics,
    x: Tensor,
    *,
    padding: Tensor | None = None,
    sync: bool = False,
    active: Tensor | None = None,
) -> Tensor:
    """BatchNorm of `bn` over the last axis of x (..., C) in training; updates the statistics of `bn`.

    They stay as they are where checkpointing computes a call again, where `active` (one bool) is False, and where they
    would not be finite, which is an error. padding: x's shape without channels; such tokens are left out of the
    statistics and come out as they went in. sync: statistics over all ranks; a SyncBatchNorm always takes these.
    """
    sync = sync or isinstance(bn, nn.SyncBatchNorm)
    require_tokens(x.numel() // max(1, x.shape[-1]), sync=sync)
    # Tokens in rows: the same function for every rank, and torch's compiler cannot differentiate it transposed.
    tokens = x.reshape(-1, x.shape[-1])
    # Copies, because the backward pass wants the statistics that it was given untouched.
    stored = bn.running_mean.clone(), bn.running_var.clone()
    batches = bn.num_batches_tracked + 1
    rate = 1.0 / batches if bn.momentum is None else bn.momentum
    if padding is None and not sync and isinstance(rate, float):
        y = F.batch_norm(tokens, *stored, *_affine(bn), True, rate, bn.eps)
    else:
        y = _apart(bn, tokens, stored, rate, padding, sync)
    if active is None:
        active = torch.ones((), dtype=torch.bool, device=x.device)
    _commit([bn.running_mean, bn.running_var, bn.num_batches_tracked], [*stored, batches], active)
    return y.reshape(x.shape)


class TokenBatchNorm(nn.Module):
    """BatchNorm for channels-last input (..., C), normalised over everything but the last axis.

    Parameters and buffers are named as BatchNorm1d's, which it is not: `SyncBatchNorm.convert_sync_batchnorm` would put
    a norm over another axis in its place. sync: take statistics over all ranks of torch.distributed instead.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float | None

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, *, sync: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.num_features, self.eps, self.sync = num_features, eps, sync
        self.momentum = momentum

    def forward(self, x: Tensor, pad_mask: Tensor | None = None, *, active: Tensor | None = None) -> Tensor:
        """(..., C) to the same shape; updates the statistics when training.

        pad_mask: x's shape without channels, 1 for a real token and 0 for padding, as `RepBN` has it; the statistics
        leave padding out, and it stays as it is. In evaluation the mask is not read.
        active: one bool; False leaves the statistics as they are.
        """
        if not self.training:
            return over_last_axis(x, self._normalise)
        padding = None if pad_mask is None else ~matching_mask(pad_mask, x.shape[:-1], what="TokenBatchNorm")
        return train_batch_norm(self, x, padding=padding, sync=self.sync, active=active)

    def _normalise(self, x: Tensor) -> Tensor:
        return evaluate_batch_norm(self, x)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


def over_last_axis(x: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a norm over axis 1 to the last axis of x (..., C): to tokens in rows (P, C).

    Exported, (N, L, C) is transposed instead, the papers' vision form. Not elsewhere: what reads a LayerNorm may ask
    for a view of it, and torch.compile (2.13) is wrong about the strides of a transposed BatchNorm.
    """
    if x.dim() == 2:
        return norm(x)
    if x.dim() == 3 and torch.compiler.is_exporting():
        return norm(x.transpose(1, 2)).transpose(1, 2)
    return norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)
