"""RepBN and PRepBN, the papers' LinearNorm (Guo et al., ICML 2024, arXiv:2405.11582)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normfold.nn.batchnorm import TokenBatchNorm, evaluate_batch_norm, of_one_type, over_last_axis, train_batch_norm
from normfold.nn.recall import Stateful, matching_mask, recall, remember, sample, whole

# Makes a norm from the number of channels, and `eps=` where one is given; or the norm itself.
NormFactory = Callable[..., nn.Module] | nn.Module


class RepBN(nn.Module):
    """y = BN(x) + alpha * x over the last axis, alpha one learned scalar. Input (..., C), any float dtype.

    flatten: run BatchNorm on (N * L, C), the papers' language-model form, where the default transposes to (N, C, L),
    their vision form: the same function, other operators on export. As published, the vision form starts at alpha 1 and
    weight 1, the language-model form at alpha 0 and weight 0.
    sync: take statistics over all ranks of torch.distributed; converting the model to SyncBatchNorm does so too.
    Source: arXiv:2405.11582, eq. 4.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        flatten: bool = False,
        sync: bool = False,
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1) if flatten else torch.ones(1))
        self.bn = nn.BatchNorm1d(channels, eps=eps, momentum=momentum)
        if flatten:
            nn.init.zeros_(self.bn.weight)
        self.flatten, self.sync = flatten, sync

    @property
    def weight(self) -> Tensor:
        """BatchNorm's: models ask a norm for `norm.weight.dtype` before they call it."""
        weight: Tensor = self.bn.weight
        return weight

    def forward(self, x: Tensor, pad_mask: Tensor | None = None, *, active: Tensor | None = None) -> Tensor:
        """(..., C) to the same shape; updates the statistics when training.

        pad_mask: x's shape without channels, 1 for a real token and 0 for padding, as published. In training BatchNorm
        sees the real tokens only and padding becomes x + alpha * x; in evaluation the mask is not read.
        active: one bool; False leaves the statistics as they are.
        """
        if self.training:
            padding = None if pad_mask is None else ~matching_mask(pad_mask, x.shape[:-1], what="RepBN")
            y: Tensor = train_batch_norm(self.bn, x, padding=padding, sync=self.sync, active=active) + self.alpha * x
            return y
        if self.flatten and x.dim() > 2:
            return self._mix(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return over_last_axis(x, self._mix)

    def _mix(self, x: Tensor) -> Tensor:
        bn = self.bn
        # The module itself wherever it can, for its name in an exported graph.
        y: Tensor = bn(x) if of_one_type(bn) else evaluate_batch_norm(bn, x)
        return y + self.alpha * x


@torch.library.custom_op("normfold::prepbn_advance", mutates_args=("warm", "iter", "num_step"))
def _advance(
    mark: Tensor,
    warm: Tensor,
    iter: Tensor,
    num_step: Tensor,
    total_step: Tensor,
    key: Tensor,
    r0: float,
    accumulation: int,
) -> Tensor:
    """What norm1 counts for in this call, a float32 scalar; moves the schedule."""
    known = recall(key, mark)
    if known is not None:
        return known[0]
    warming, tick = warm > 0, num_step == 0
    share = (r0 * iter.to(torch.float32)) / total_step.to(torch.float32)
    share = torch.where(warming, torch.ones_like(share), share)
    iter.sub_((~warming & tick & (iter > 0)).to(iter.dtype))
    warm.sub_((warming & tick).to(warm.dtype))
    num_step.copy_((num_step + 1) % accumulation)
    remember(key, mark, (share,))
    return share


@_advance.register_fake
def _(mark: Tensor, warm: Tensor, *_: Any, **__: Any) -> Tensor:
    return warm.new_empty((), dtype=torch.float32)


class LinearNorm(Stateful):
    """PRepBN: `norm1` (LayerNorm or RMSNorm) fading linearly into `norm2` (RepBN) during training.

    Each training call, as the published class counts: while warm > 0, y = norm1(x) and warm falls by one; after that,
    with w = r0 * iter / total_step, y = w * norm1(x) + (1 - w) * norm2(x), and iter falls by one until it is 0. With
    r0 < 1 the blend starts at r0. w is a float32 number, as published.
    In evaluation y = norm2(x), which is what the trained network computes only once iter has reached 0 (`finished`).

    Two things differ from the published class, and not in what is computed: in warm-up norm2 is computed too, without
    any effect but gradients of 0 instead of none, because DistributedDataParallel ends a run in which a parameter takes
    no part; and nothing reads a counter on the host.

    dim, norm1, norm2, eps: norm1(dim) and norm2(dim) make the two, with eps=eps where it is given; or they are modules.
    warm, step: training calls of each phase. accumulation: the published LLaMA class counts micro-steps (buffer
    `num_step`) and moves warm and iter in every 16th call, the first one included; give it 16 for that.
    Source: arXiv:2405.11582, eq. 2 and 3; where paper and code differ, docs/training.md.
    """

    warm: Tensor
    iter: Tensor
    total_step: Tensor
    num_step: Tensor

    def __init__(
        self,
        dim: int,
        norm1: NormFactory,
        norm2: NormFactory,
        eps: float | None = None,
        warm: int = 0,
        step: int = 300000,
        r0: float = 1.0,
        accumulation: int | None = None,
    ) -> None:
        super().__init__()
        warm, step = whole(warm, "warm of LinearNorm"), whole(step, "step of LinearNorm", least=1)
        if accumulation is not None:
            accumulation = whole(accumulation, "accumulation of LinearNorm", least=1)
            self.register_buffer("num_step", torch.tensor(0))
        self.register_buffer("warm", torch.tensor(warm))
        self.register_buffer("iter", torch.tensor(step))
        self.register_buffer("total_step", torch.tensor(step))
        options = {} if eps is None else {"eps": eps}
        self.norm1, self.norm2 = (
            norm if isinstance(norm, nn.Module) else norm(dim, **options) for norm in (norm1, norm2)
        )
        if not isinstance(self.norm2, RepBN | TokenBatchNorm):
            raise ValueError(f"LinearNorm needs a RepBN or TokenBatchNorm as norm2, got {type(self.norm2).__name__}")
        self.r0 = r0
        self.accumulation = accumulation

    @property
    def weight(self) -> Tensor:
        """norm2's, as RepBN has it."""
        weight = self.norm2.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def finished(self) -> bool:
        """Whether the schedule has ended, so that evaluation computes what training last computed."""
        return int(self.warm) == 0 and int(self.iter) == 0

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """(..., C) to the same shape; moves the schedule when training. pad_mask: RepBN's, in training alone."""
        y: Tensor
        if not self.training:
            y = self.norm2(x)
            return y
        first = self.norm1(x)
        second = self.norm2(x, pad_mask, active=self.warm == 0)
        num_step = torch.zeros_like(self.warm) if self.accumulation is None else self.num_step
        share = _advance(
            sample(x), self.warm, self.iter, num_step, self.total_step, self._key, self.r0, self.accumulation or 1
        )
        y = share * first + (1.0 - share) * second
        return y

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # The published detection class has the schedule without a warm-up.
        if f"{prefix}iter" in state_dict and "warm" not in self._non_persistent_buffers_set:
            state_dict.setdefault(f"{prefix}warm", torch.zeros_like(self.warm))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"r0={self.r0}, accumulation={self.accumulation}"


PRepBN = LinearNorm
