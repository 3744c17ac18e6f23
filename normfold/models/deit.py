"""DeiT, and DeiT with SLAB's linear attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normfold.models.attention import LinearAttention
from normfold.models.blocks import NormArgs, PatchEmbed, PreNormBlock, init_weights, norm_layer
from normfold.models.variants import norm_variants
from normfold.models.vit import VisionTransformer


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
        norm: str = "prepbn",
        norm_args: NormArgs | None = None,
    ) -> None:
        super().__init__()
        layer, side = norm_layer(norm, norm_args), image_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(image_size, patch_size, 3, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.patches, dim))
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, LinearAttention(dim, heads, side), norm=layer, mlp_ratio=mlp_ratio) for _ in range(depth)
        )
        self.norm = layer(dim)
        self.head = nn.Linear(dim, classes)
        init_weights(self)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) to (N, classes)."""
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


_DEIT = partial(VisionTransformer, image_size=224, patch_size=16, channels=3, classes=1000, depth=12, mlp_ratio=4.0)
_SMALL: dict[str, Any] = {"dim": 384, "heads": 6}
_TINY: dict[str, Any] = {"dim": 192, "heads": 3}

# The published deit_tiny_prepbn holds bare RepBN, deit_small_prepbn the schedule as well.
DEIT = {
    **norm_variants("deit_tiny", partial(_DEIT, **_TINY), ln_eps=1e-6, prepbn="repbn"),
    **norm_variants("deit_small", partial(_DEIT, **_SMALL), ln_eps=1e-6),
    **norm_variants("slab_deit_tiny", partial(SlabDeiT, **_TINY), ln_eps=1e-6, steps=60000, plain="prepbn"),
    **norm_variants("slab_deit_small", partial(SlabDeiT, **_SMALL), ln_eps=1e-6, steps=60000, plain="prepbn"),
}
