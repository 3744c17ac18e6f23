"""A post-norm transformer encoder that classifies a sequence of vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfold.models.attention import Attention
from normfold.models.blocks import NormArgs, PostNormBlock, norm_layer


class PostNormEncoder(nn.Module):
    """Pictures (N, 1, length, features), whose rows are the tokens, to logits (N, classes) by averaging the tokens.

    A norm follows the embedding and every residual addition, as in the original transformer (arXiv:1706.03762).
    norm: any name `blocks.norm` knows; norm_args: its options.
    """

    def __init__(
        self,
        *,
        length: int = 28,
        features: int = 28,
        classes: int = 10,
        dim: int = 48,
        depth: int = 3,
        heads: int = 3,
        mlp_ratio: float = 2.0,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer = norm_layer(norm, norm_args)
        self.embed = nn.Linear(features, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, length, dim))
        self.norm = layer(dim)
        self.blocks = nn.ModuleList(
            PostNormBlock(dim, Attention(dim, heads), norm=layer, mlp_ratio=mlp_ratio) for _ in range(depth)
        )
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, length, features) to (N, classes)."""
        x = self.norm(self.embed(x.squeeze(1)) + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(1))
        return logits
