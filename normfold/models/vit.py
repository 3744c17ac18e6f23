"""The pre-norm vision transformer, in the layout and with the names of DeiT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfold.models.attention import Attention
from normfold.models.blocks import NormArgs, PatchEmbed, PreNormBlock, norm_layer


class VisionTransformer(nn.Module):
    """Pictures (N, channels, image_size, image_size) to logits (N, classes), read from a class token.

    norm: any name `blocks.norm` knows, for every norm of the network; norm_args: its options. The defaults are tiny.
    Source of layout and names: Touvron et al., arXiv:2012.12877.
    """

    def __init__(
        self,
        *,
        image_size: int = 8,
        patch_size: int = 2,
        channels: int = 1,
        classes: int = 10,
        dim: int = 48,
        depth: int = 3,
        heads: int = 3,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer = norm_layer(norm, norm_args)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(image_size, patch_size, channels, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.patches + 1, dim))
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, Attention(dim, heads, qkv_bias=qkv_bias), norm=layer, mlp_ratio=mlp_ratio)
            for _ in range(depth)
        )
        self.norm = layer(dim)
        self.head = nn.Linear(dim, classes)
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, image_size, image_size) to (N, classes)."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits
