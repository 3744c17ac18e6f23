"""The norms as torch modules, with parameters and buffers named as their papers' published code names them.

Evaluation is exact and exports to plain operators; training updates the stored statistics as the published code does
(docs/training.md).
"""

from __future__ import annotations

from normfold.nn.attention import LinearAttention
from normfold.nn.batchnorm import TokenBatchNorm
from normfold.nn.calibrate import recalibrate
from normfold.nn.deepnorm import deepnorm_
from normfold.nn.ffn import FFNBN
from normfold.nn.mabn import CenConv2d, MABN2d
from normfold.nn.normality import pnac
from normfold.nn.powernorm import MaskPowerNorm, PowerNorm
from normfold.nn.repbn import LinearNorm, PRepBN, RepBN
from normfold.nn.replace import replace_layernorm
from normfold.nn.schedules import finish, progress
from normfold.nn.un import UN1d

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
