"""The norms as torch modules, with parameters and buffers named as their papers' published code names them.

Evaluation is exact and exports to plain operators; training updates the stored statistics as the published code does
(docs/training.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from normfold.nn.batchnorm import TokenBatchNorm
from normfold.nn.calibrate import recalibrate
from normfold.nn.deepnorm import deepnorm_
from normfold.nn.ffn import FFNBN
from normfold.nn.mabn import CenConv2d, MABN2d
from normfold.nn.normality import pnac
from normfold.nn.powernorm import MaskPowerNorm, PowerNorm
from normfold.nn.progress import finish, progress
from normfold.nn.repbn import LinearNorm, PRepBN, RepBN
from normfold.nn.replace import replace_layernorm
from normfold.nn.un import UN1d

if TYPE_CHECKING:
    from normfold.models.attention import LinearAttention

__all__ = [
    "FFNBN",
    "CenConv2d",
    "LinearAttention",
    "LinearNorm",
    "MABN2d",
    "MaskPowerNorm",
    "PRepBN",
    "PowerNorm",
    "RepBN",
    "TokenBatchNorm",
    "UN1d",
    "deepnorm_",
    "finish",
    "pnac",
    "progress",
    "recalibrate",
    "replace_layernorm",
]


def __getattr__(name: str) -> Any:
    """LinearAttention stands among the models, which are built of what is here: imported when it is asked for."""
    if name == "LinearAttention":
        from normfold.models.attention import LinearAttention

        return LinearAttention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
