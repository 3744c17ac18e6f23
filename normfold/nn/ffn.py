"""A feed-forward network with BatchNorm in it (Yao et al., ICCV workshops 2021)."""

from __future__ import annotations

from torch import Tensor, nn

from normfold.nn.batchnorm import TokenBatchNorm


class FFNBN(nn.Module):
    """fc2(act(bn(fc1(x)))) over the last axis of (..., dim): an FFN that trains with BatchNorm where it would diverge.

    The paper puts a BatchNorm between the two linear layers of each feed-forward network of a vision transformer whose
    LayerNorms were replaced by BatchNorm; our reading: behind the first, in front of the activation, where it folds
    into the first. Source: Yao et al., "Leveraging Batch Normalization for Vision Transformers", ICCVW 2021.
    """

    def __init__(
        self, dim: int, hidden: int, *, act: nn.Module | None = None, eps: float = 1e-5, sync: bool = False
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.bn = TokenBatchNorm(hidden, eps=eps, sync=sync)
        self.act = nn.GELU() if act is None else act
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        y: Tensor = self.fc2(self.act(self.bn(self.fc1(x))))
        return y
