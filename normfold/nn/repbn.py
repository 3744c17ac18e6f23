"""BatchNorm over tokens, RepBN and PRepBN (Guo et al., ICML 2024, arXiv:2405.11582)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d for channels-last input: (N, C) or (N, L, C), normalised over everything but the last axis."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C) or (N, L, C) to the same shape; updates the statistics when training."""
        if input.dim() == 2:
            return super().forward(input)
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class RepBN(nn.Module):
    """y = BN(x) + alpha * x over the last axis, alpha one learned scalar.

    Input (N, C) or (N, L, C), any float dtype. `flatten` runs BatchNorm on (N * L, C), the papers' language-model
    form, where the default transposes to (N, C, L), their vision form: the same function, other operators on export.
    Source: arXiv:2405.11582, eq. 4.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, flatten: bool = False) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.bn = nn.BatchNorm1d(channels, eps=eps, momentum=momentum)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) or (N, L, C) to the same shape; updates the statistics when training."""
        if x.dim() == 2:
            return self._mix(x)
        if self.flatten:
            return self._mix(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return self._mix(x.transpose(1, 2)).transpose(1, 2)

    def _mix(self, x: Tensor) -> Tensor:
        # Annotated because nn.Module.__call__ is typed Any.
        mixed: Tensor = self.bn(x) + self.alpha * x
        return mixed


class PRepBN(nn.Module):
    """The papers' LinearNorm: `norm1` (LayerNorm or RMSNorm) fading linearly into `norm2` (RepBN) during training.

    Each training step: while warm > 0, y = norm1(x) and warm falls by one; after that, with
    w = r0 * iter / total_step, y = w * norm1(x) + (1 - w) * norm2(x), and iter falls by one until it is 0.
    In evaluation y = norm2(x), which is what the trained network computes only once iter has reached 0 (`finished`).
    `accumulation` counts that many training forwards as one step (buffer `num_step`, as the published LLaMA
    code has it; without it the buffer does not exist).
    Source: arXiv:2405.11582, eq. 2 and 3.
    """

    warm: Tensor
    iter: Tensor
    total_step: Tensor
    num_step: Tensor

    def __init__(
        self,
        norm1: nn.Module,
        norm2: nn.Module,
        *,
        steps: int,
        warm: int = 0,
        r0: float = 1.0,
        accumulation: int | None = None,
    ) -> None:
        super().__init__()
        if steps < 1 or warm < 0:
            raise ValueError(f"PRepBN needs steps >= 1 and warm >= 0, got steps={steps}, warm={warm}")
        if accumulation is not None:
            if accumulation < 1:
                raise ValueError(f"PRepBN needs accumulation >= 1, got {accumulation}")
            self.register_buffer("num_step", torch.tensor(0))
        self.register_buffer("warm", torch.tensor(warm))
        self.register_buffer("iter", torch.tensor(steps))
        self.register_buffer("total_step", torch.tensor(steps))
        self.norm1 = norm1
        self.norm2 = norm2
        self.r0 = r0
        self.accumulation = accumulation

    @property
    def finished(self) -> bool:
        """Whether the schedule has ended, so that evaluation computes what training last computed."""
        return int(self.warm) == 0 and int(self.iter) == 0

    def norm1_weight(self) -> float:
        """What norm1 counts for in the next training forward, between 0 and max(1, r0)."""
        if int(self.warm) > 0:
            return 1.0
        return self.r0 * int(self.iter) / int(self.total_step)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) or (N, L, C) to the same shape; moves the schedule when training."""
        y: Tensor
        if not self.training:
            y = self.norm2(x)
            return y
        weight, warming = self.norm1_weight(), int(self.warm) > 0
        self._advance()
        if warming:
            y = self.norm1(x)
        elif weight == 0.0:
            y = self.norm2(x)
        else:
            y = weight * self.norm1(x) + (1.0 - weight) * self.norm2(x)
        return y

    def _advance(self) -> None:
        if self.accumulation is not None:
            self.num_step += 1
            if int(self.num_step) % self.accumulation:
                return
        if int(self.warm) > 0:
            self.warm -= 1
        elif int(self.iter) > 0:
            self.iter -= 1
