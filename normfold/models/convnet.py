"""A small convolutional network with BatchNorm wherever networks have it."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from normfold.errors import ArchitectureError


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    if kind == "identity":
        return nn.Identity()
    raise ArchitectureError(f"convnet normalises with bn or identity, not with {kind!r}")


class ConvNet(nn.Module):
    """Pictures (N, channels, H, W), H and W multiples of 4, to logits (N, classes).

    In order: Conv, BN, ReLU, MaxPool (norm before the ReLU); depthwise Conv, ReLU, BN, 1x1 Conv (norm after the ReLU,
    read by an unpadded Conv); ReLU, BN, strided zero-padded Conv (a norm whose shift meets the padding); ReLU, BN,
    global average pool, Linear (a norm read through a pool).
    norm: "bn", or "identity" for the same network without norms.
    """

    def __init__(
        self, *, channels: int = 1, classes: int = 10, width: int = 16, norm: Literal["bn", "identity"] = "bn"
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.stem_norm = _norm(norm, width)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.depthwise_norm = _norm(norm, width)
        self.pointwise = nn.Conv2d(width, 2 * width, 1)
        self.padded_norm = _norm(norm, 2 * width)
        self.padded = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1, bias=False)
        self.last_norm = _norm(norm, 4 * width)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, classes)."""
        x = self.pool(self.act(self.stem_norm(self.stem(x))))
        x = self.pointwise(self.depthwise_norm(self.act(self.depthwise(x))))
        x = self.last_norm(self.act(self.padded(self.padded_norm(self.act(x)))))
        logits: Tensor = self.head(self.average(x).flatten(1))
        return logits
