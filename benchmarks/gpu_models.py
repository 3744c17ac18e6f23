"""The networks of the GPU study and their variants, built with random weights where they are to run.

Nothing is exported or analysed here: what a fold changes in each module was recorded beforehand
(`python -m benchmarks.gpu_record`) and is applied to random weights, on which speed does not depend.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normfold.models import create
from normfold.rewrite.module import ChannelMap

FOLDS = Path(__file__).resolve().parent / "gpu_folds"

# The baseline: a norm that computes its statistics for every token, in one kernel where torch has one.
LAYERNORM, UNFOLDED, FOLDED, LIMIT = "layernorm", "unfolded", "folded", "limit"
# The same for LLaMA: RMSNorm in the several kernels of the published code, and torch's fused one.
RMS_KERNELS, RMS_FUSED = "rmsnorm, multi-kernel", "rmsnorm, fused"
BASELINES = (LAYERNORM, RMS_KERNELS, RMS_FUSED)

PROMPT, GENERATED = 32, 100


@dataclass(frozen=True)
class Model:
    """A network. norm, twin: the kinds of its own norm and of its baseline's. args: options of both architectures.

    arch, twin_arch: their names. inputs: its specification. batches: sizes to measure. compiling: a guess of the
    seconds that torch.compile takes for all variants. generates: a decoder, which makes `tokens` tokens after a prompt
    of `prompt`.
    """

    name: str
    title: str
    arch: str
    twin_arch: str
    inputs: str
    args: Mapping[str, Any] = field(default_factory=dict)
    norm: str | None = None
    batches: tuple[int, ...] = (1, 64)
    compiling: float = 2.0
    generates: bool = False
    prompt: int = PROMPT
    tokens: int = GENERATED

    @property
    def variants(self) -> tuple[str, ...]:
        """What is measured side by side, the baseline first."""
        return (*((RMS_KERNELS, RMS_FUSED) if self.generates else (LAYERNORM,)), UNFOLDED, FOLDED, LIMIT)

    def arguments(self, kind: str | None = None) -> dict[str, Any]:
        """Options of the architecture with its own norm, or with another kind."""
        chosen = kind or self.norm
        return {**self.args, **({} if chosen is None else {"norm": chosen})}


_PICTURE = "x:float32[B,3,224,224]"
# SLAB's throughput is taken at 128.
_SLAB = (1, 64, 128)
_ENCODER = {"length": 64, "features": 512, "dim": 512, "depth": 6, "heads": 8, "mlp_ratio": 4.0}

# In the order in which they tell most: the networks of the papers' own figures first.
PUBLISHED = (
    Model("swin_t", "Swin-T, PRepBN", "swin_tiny_prepbn", "swin_tiny_ln", _PICTURE, batches=_SLAB, compiling=110),
    Model(
        "llama_350m",
        "LLaMA-350M, PRepBN",
        "llama_350m_prepbn",
        "llama_350m_rms",
        "ids:int64[B,L=32]<32000",
        compiling=100,
        generates=True,
    ),
    Model("t2t_vit_14", "T2T-ViT-14, UN", "t2t_vit_14_un", "t2t_vit_14_ln", _PICTURE, compiling=70),
    Model("deit_t", "DeiT-T, PRepBN", "deit_tiny_prepbn", "deit_tiny_ln", _PICTURE, batches=_SLAB, compiling=50),
    Model(
        "encoder",
        "post-norm encoder (6 x 512, 64 tokens), UN",
        "postnorm_encoder",
        "postnorm_encoder",
        "x:float32[B,1,64,512]",
        _ENCODER,
        norm="un",
        compiling=40,
    ),
    Model("deit_s", "DeiT-S, PRepBN", "deit_small_prepbn", "deit_small_ln", _PICTURE, batches=_SLAB, compiling=50),
)

_SMALL_PICTURE = "x:float32[B,3,32,32]"
_VIT = {"image_size": 32, "patch_size": 8, "classes": 10, "dim": 48, "depth": 2, "heads": 3}
_SWIN = {"image_size": 32, "classes": 10, "dim": 24, "depths": (2, 2), "heads": (2, 4), "window": 4}

# For rehearsals and tests; their figures mean nothing.
TINY = (
    Model("tiny_swin", "tiny Swin", "swin_tiny_prepbn", "swin_tiny_ln", _SMALL_PICTURE, _SWIN, batches=(1, 8)),
    Model(
        "tiny_llama",
        "tiny LLaMA",
        "llama_350m_prepbn",
        "llama_350m_rms",
        "ids:int64[B,L=8]<128",
        {"vocab": 128, "dim": 64, "depth": 2, "heads": 4, "hidden": 160},
        batches=(1, 8),
        generates=True,
        prompt=8,
        tokens=10,
    ),
    Model(
        "tiny_t2t",
        "tiny T2T-ViT",
        "t2t_vit_14_un",
        "t2t_vit_14_ln",
        _SMALL_PICTURE,
        {"image_size": 32, "classes": 10, "dim": 48, "depth": 2, "heads": 3, "token_dim": 16},
        batches=(1, 8),
    ),
    Model("tiny_deit", "tiny DeiT", "deit_small_prepbn", "deit_small_ln", _SMALL_PICTURE, _VIT, batches=(1, 8)),
    Model(
        "tiny_encoder",
        "tiny post-norm encoder",
        "postnorm_encoder",
        "postnorm_encoder",
        "x:float32[B,1,28,28]",
        norm="un",
        batches=(1, 8),
    ),
)


class LlamaRMSNorm(nn.Module):
    """RMSNorm as SLAB's LLaMA code has it, which is that of Hugging Face: several kernels, statistics in float32."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + self.variance_epsilon)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            x = x.to(self.weight.dtype)
        return self.weight * x


def build(model: Model, variant: str) -> nn.Module:
    """One variant in eval mode on torch's default device, its weights random and its statistics not fresh."""
    if variant == LIMIT:
        module = create(model.arch, **model.arguments("identity"))
    elif variant in BASELINES:
        module = create(model.twin_arch, **model.arguments("ln" if model.norm else None))
    else:
        module = create(model.arch, **model.arguments())
    _scatter(module)
    if variant == RMS_KERNELS:
        for name, part in list(module.named_modules()):
            if isinstance(part, nn.RMSNorm):
                assert part.eps is not None
                module.set_submodule(name, LlamaRMSNorm(part.weight, part.eps))
    if variant == FOLDED:
        apply_fold(module, read_fold(model.name))
    return module.eval().requires_grad_(False)


def _scatter(module: nn.Module) -> None:
    """Norms as they are after training: no statistic and no weight of a norm is 0 or 1."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            leaf = name.rsplit(".", 1)[-1]
            if leaf in ("running_var", "running_phi"):
                tensor.uniform_(0.5, 2.0)
            elif leaf in ("running_mean", "bias"):
                tensor.normal_(0.0, 0.2)
            elif leaf == "alpha":
                tensor.uniform_(0.05, 0.3)
            elif leaf in ("iter", "warm"):
                tensor.zero_()
            elif leaf == "weight" and tensor.ndim == 1:
                tensor.normal_(1.0, 0.2)


def read_fold(name: str) -> dict[str, Any]:
    """What folding changes in the modules of a network; gpu_record.py made it and says what the keys are."""
    found: dict[str, Any] = json.loads((FOLDS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def apply_fold(module: nn.Module, fold: Mapping[str, Any]) -> None:
    """Change an unfolded module as `fold` says; what is new in it is random."""
    for name in fold["identity"]:
        module.set_submodule(name, nn.Identity())
    for name, shapes in fold["maps"].items():
        module.set_submodule(name, _map(shapes))
    for name, size in fold["biases"].items():
        layer = module.get_submodule(name)
        layer.bias = nn.Parameter(torch.randn(size) * 0.2)
    for name, shapes in fold["behind"].items():
        module.set_submodule(name, nn.Sequential(module.get_submodule(name), _map(shapes)))


def _map(shapes: Mapping[str, list[int] | None]) -> ChannelMap:
    scale, shift = (None if shapes[half] is None else torch.randn(shapes[half]) * 0.2 for half in ("scale", "shift"))
    return ChannelMap(scale if scale is None else scale + 1.0, shift)
