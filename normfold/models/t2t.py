"""T2T-ViT (Yuan et al., ICCV 2021, arXiv:2101.11986): a vision transformer over tokens of overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.models.attention import Attention
from normfold.models.blocks import Mlp, NormArgs, NormLayer, PreNormBlock, classifier, init_weights, norm_layer
from normfold.nn.layout import to_picture

# As published: keeps the division of the attention from overflowing.
_PERFORMER_EPS = 1e-8


def sinusoids(length: int, dim: int) -> Tensor:
    """The fixed positions of arXiv:1706.03762, (1, length, dim): sines in the even channels, cosines in the odd."""
    even = torch.arange(dim, dtype=torch.float64) // 2 * 2
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10000.0 ** (even / dim)
    table = torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())
    return table.to(torch.get_default_dtype())[None]


class TokenPerformer(nn.Module):
    """Attention by random features (Performer, arXiv:2009.14794) from (N, L, channels) to (N, L, dim), then an MLP.

    v + proj(phi(q) phi(k)^T v / row sums) with phi(x) = exp(w x - |x|^2 / 2) / sqrt(features); no skip around the
    attention, whose width changes, but around the MLP. w, the features' directions, is drawn once and not trained.
    """

    def __init__(self, channels: int, dim: int, *, norm: NormLayer) -> None:
        super().__init__()
        self.features = dim // 2
        directions = nn.init.orthogonal_(torch.empty(self.features, dim)) * math.sqrt(self.features)
        self.w = nn.Parameter(directions, requires_grad=False)
        self.kqv = nn.Linear(channels, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm1 = norm(channels)
        self.norm2 = norm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, channels) to (N, L, dim)."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        k, q = self._features(k), self._features(q)
        total = k.sum(1, keepdim=True)
        mixed = q @ (k.transpose(1, 2) @ v) / (q @ total.transpose(1, 2) + _PERFORMER_EPS)
        x = v + self.proj(mixed)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def _features(self, x: Tensor) -> Tensor:
        half_square = x.square().sum(-1, keepdim=True) / 2
        return torch.exp(x @ self.w.t() - half_square) / math.sqrt(self.features)


class _TokenAttention(nn.Module):
    """Self-attention in one head from (N, L, channels) to (N, L, dim), around which the values are added.

    Scores are scaled by the root of `channels`, not of `dim`, as published.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.scale = channels**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, channels) to (N, L, dim)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mixed = torch.softmax((q * self.scale) @ k.transpose(-2, -1), -1) @ v
        y: Tensor = v + self.proj(mixed)
        return y


class TokenTransformer(nn.Module):
    """Softmax attention in one head, then an MLP, from (N, L, channels) to (N, L, dim); a skip around the MLP alone."""

    def __init__(self, channels: int, dim: int, *, norm: NormLayer) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.attn = _TokenAttention(channels, dim)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, channels) to (N, L, dim)."""
        x = self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


_TOKENS: dict[str, Callable[..., nn.Module]] = {"performer": TokenPerformer, "transformer": TokenTransformer}


class TokensToToken(nn.Module):
    """Three overlapping splits (7, 3 and 3 wide, strides 4, 2 and 2), attention after each but the last.

    tokens: the attention, "performer" or "transformer".
    """

    def __init__(self, image_size: int, dim: int, *, token_dim: int, tokens: str, norm: NormLayer) -> None:
        super().__init__()
        if tokens not in _TOKENS:
            raise ValueError(f"tokens are mixed by {' or '.join(_TOKENS)}, not by {tokens!r}")
        if image_size % 16:
            raise ValueError(f"an image of {image_size} cannot be shrunk 16 times")
        self.attention1 = _TOKENS[tokens](3 * 7 * 7, token_dim, norm=norm)
        self.attention2 = _TOKENS[tokens](token_dim * 3 * 3, token_dim, norm=norm)
        self.project = nn.Linear(token_dim * 3 * 3, dim)
        self.side = image_size // 4

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) to (N, (image_size / 16)^2, dim)."""
        x = self.attention1(F.unfold(x, 7, stride=4, padding=2).transpose(1, 2))
        x = F.unfold(to_picture(x, self.side, self.side), 3, stride=2, padding=1).transpose(1, 2)
        x = self.attention2(x)
        x = F.unfold(to_picture(x, self.side // 2, self.side // 2), 3, stride=2, padding=1).transpose(1, 2)
        y: Tensor = self.project(x)
        return y


class T2TViT(nn.Module):
    """Pictures (N, 3, image_size, image_size) to logits (N, classes), read from a class token.

    tokens: what mixes them while they are split, see `TokensToToken`.
    norm: any name `blocks.norm` knows, for every norm of the network; norm_args: its options.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        classes: int = 1000,
        dim: int = 384,
        depth: int = 14,
        heads: int = 6,
        mlp_ratio: float = 3.0,
        token_dim: int = 64,
        tokens: str = "performer",
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer = norm_layer(norm, norm_args)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.tokens_to_token = TokensToToken(image_size, dim, token_dim=token_dim, tokens=tokens, norm=layer)
        self.pos_embed = nn.Parameter(sinusoids((image_size // 16) ** 2 + 1, dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, Attention(dim, heads, qkv_bias=False), norm=layer, mlp_ratio=mlp_ratio)
            for _ in range(depth)
        )
        self.norm = layer(dim)
        self.head = classifier(dim, classes)
        init_weights(self)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) to (N, classes)."""
        x = self.tokens_to_token(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits
