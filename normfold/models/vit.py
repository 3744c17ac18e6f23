"""The pre-norm vision transformer, in the layout and with the names of DeiT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfold.models.attention import Attention
from normfold.models.blocks import NormArgs, PatchEmbed, PreNormBlock, classifier, norm_layer


class VisionTransformer(nn.Module):
    """Pictures (N, channels, image_size, image_size) to logits (N, classes), read from a class token.

    distilled: from a second token with a head of its own as well; the logits are the mean of both.
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
        distilled: bool = False,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer = norm_layer(norm, norm_args)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if distilled else None
        self.patch_embed = PatchEmbed(image_size, patch_size, channels, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.patches + 1 + distilled, dim))
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, Attention(dim, heads, qkv_bias=qkv_bias), norm=layer, mlp_ratio=mlp_ratio)
            for _ in range(depth)
        )
        self.norm = layer(dim)
        self.head = classifier(dim, classes)
        self.head_dist = classifier(dim, classes) if distilled else None
        for table in (self.cls_token, self.pos_embed, *([] if self.dist_token is None else [self.dist_token])):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, image_size, image_size) to (N, classes)."""
        x = self.patch_embed(x)
        tokens = [self.cls_token] if self.dist_token is None else [self.cls_token, self.dist_token]
        x = torch.cat([*(token.expand(x.shape[0], -1, -1) for token in tokens), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits: Tensor = self.head(x[:, 0])
        return logits if self.head_dist is None else (logits + self.head_dist(x[:, 1])) / 2
