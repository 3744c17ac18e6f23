"""The inference-time map of every norm that stores its statistics: parameters in, one frame out.

All arrays are float64 (C,); the scale and shift of the frame are (C,). Equations and sources: docs/math.md.
"""

from __future__ import annotations

import numpy as np

from normfold.graph.affine import Array, Frame


def batchnorm(gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float) -> Frame:
    """y = gamma * (x - mean) / sqrt(var + eps) + beta.

    Source: Ioffe and Szegedy, ICML 2015, arXiv:1502.03167, algorithm 2.
    """
    scale = gamma / np.sqrt(var + eps)
    return Frame(scale, beta - mean * scale)


def repbn(gamma: Array, beta: Array, mean: Array, var: Array, alpha: float, *, eps: float) -> Frame:
    """y = BN(x) + alpha * x: scale = gamma / sqrt(var + eps) + alpha, shift = beta - mean * gamma / sqrt(var + eps).

    alpha: a scalar. The scale may be zero or negative. PRepBN at the end of its schedule is this map too.
    Source: Guo et al., ICML 2024, arXiv:2405.11582, equation 4.
    """
    plain = batchnorm(gamma, beta, mean, var, eps=eps)
    return Frame(plain.scale + alpha, plain.shift)


def unified(weight: Array, bias: Array, mean_square: Array, *, eps: float) -> Frame:
    """y = weight * x / sqrt(mean_square + eps) + bias; the stored statistic tracks E[x^2], there is no mean.

    UN and MABN keep it as `running_var`, PowerNorm without group scaling as `running_phi`.
    Source: Yang et al., ACM MM 2022, arXiv:2208.01313; Yan et al., ICLR 2020, arXiv:2001.06838; Shen et al., ICML 2020,
    arXiv:2003.07845.
    """
    return Frame(weight / np.sqrt(mean_square + eps), bias)
