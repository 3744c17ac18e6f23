"""The norms as torch modules, with parameters and buffers named as their papers' published code names them.

Evaluation is exact and exports to plain operators; training updates the stored statistics.
"""

from __future__ import annotations

from normfold.nn.powernorm import PowerNorm
from normfold.nn.repbn import PRepBN, RepBN, TokenBatchNorm
from normfold.nn.un import UN1d

__all__ = ["PRepBN", "PowerNorm", "RepBN", "TokenBatchNorm", "UN1d"]
