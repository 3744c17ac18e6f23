"""DeiT with SLAB's linear attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfold.models.blocks import NormArgs, PatchEmbed, PreNormBlock, classifier, init_weights, norm_layer
from normfold.nn.attention import LinearAttention


class SlabDeiT(nn.Module):
    """DeiT with linear attention: pictures (N, 3, image_size, image_size) to logits (N, classes), tokens averaged.

    `cls_token` is in the published files and takes no part in the result.
    Source: Guo et al., arXiv:2405.11582.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        classes: int = 1000,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        kernel: int = 5,
        norm: str = "prepbn",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer, side = norm_layer(norm, norm_args), image_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(image_size, patch_size, 3, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.patches, dim))
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, LinearAttention(dim, heads, side, kernel=kernel), norm=layer, mlp_ratio=mlp_ratio)
            for _ in range(depth)
        )
        self.norm = layer(dim)
        self.head = classifier(dim, classes)
        init_weights(self)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) to (N, classes)."""
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits
