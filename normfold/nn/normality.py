"""How much the statistics in front of norms fluctuate from batch to batch: UN's PNAC."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.nn.calibrate import Batch, channel_axis, evaluating, run, watched
from normfold.norms.kinds import name_of

# D'Agostino and Pearson's test is for samples of this size and more.
_FEWEST = 20


@dataclass(frozen=True, slots=True)
class Pnac:
    """share: of all statistics, 0 to 1. norms: the share of each norm by name. batches: the size of each sample."""

    share: float
    norms: dict[str, float]
    batches: int

    def __float__(self) -> float:
        return self.share


def pnac(model: nn.Module, batches: Iterable[Batch], *, significance: float = 0.05) -> Pnac:
    """The share of activation statistics that pass a test for being normally distributed over batches.

    UN averages a statistic over iterations and rests on these averages being near normal; a share near
    1 - significance says that they are, a small one that they fluctuate by more (outliers, drift), where BatchNorm's
    stored statistics are poor. Works for any model, LayerNorm's too, and changes nothing in it.

    Our reading of the paper's measure: a statistic is E[x^2] of one channel in front of one norm over one batch; its
    sample is one value a batch, in evaluation mode; the test is D'Agostino and Pearson's K^2 (skewness and kurtosis),
    passed where p >= significance. A statistic that never varies passes.
    batches: as for `recalibrate`, at least 20 of equal size. Raises UsageError for fewer, or without norms.
    Source: arXiv:2208.01313.
    """
    found = dict(_norms(model, ""))
    if not found:
        raise UsageError("pnac: the model has no norms")
    values: dict[str, list[Tensor]] = {name: [] for name in found}

    def watch(name: str, axis: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = (args[0] if args else next(iter(kwargs.values()))).detach().double().movedim(axis, -1)
            values[name].append(x.square().reshape(-1, x.shape[-1]).mean(0))

        return hook

    hooks = [(module, watch(name, channel_axis(module))) for name, module in found.items()]
    with evaluating(model), watched(hooks):
        number = run(model, batches)
    if number < _FEWEST:
        raise UsageError(f"pnac: {number} batches are too few for a test of normality; give it {_FEWEST} or more")
    passed = {
        name: normality(torch.stack(sample)) >= significance
        for name, sample in values.items()
        if len(sample) >= _FEWEST
    }
    shares = {name: float(flags.double().mean()) for name, flags in passed.items()}
    whole = float(torch.cat(list(passed.values())).double().mean()) if passed else math.nan
    return Pnac(whole, shares, number)


def _norms(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if name_of(module) is not None:
        yield name or "(the model itself)", module
        return
    for child, inner in module.named_children():
        yield from _norms(inner, f"{name}.{child}" if name else child)


def normality(sample: Tensor) -> Tensor:
    """p of D'Agostino and Pearson's K^2 test for every column of sample (n, C), n >= 20; 1 for one that is constant.

    K^2 = Z(skewness)^2 + Z(kurtosis)^2 has a chi-squared distribution with two degrees of freedom.
    Source: D'Agostino, Belanger and D'Agostino, The American Statistician 44(4), 1990.
    """
    centred = sample - sample.mean(0)
    second = centred.square().mean(0)
    # Rounding makes a constant column vary a little.
    constant = second <= (1e-12 * sample.abs().amax(0).clamp_min(1e-300)).square()
    second = torch.where(constant, torch.ones_like(second), second)
    statistic = skew_statistic(centred, second).square() + kurtosis_statistic(centred, second).square()
    return torch.where(constant, torch.ones_like(second), torch.exp(-statistic / 2))


def skew_statistic(centred: Tensor, second: Tensor) -> Tensor:
    """Skewness as a standard normal number."""
    n = len(centred)
    skewness = centred.pow(3).mean(0) / second.pow(1.5)
    y = skewness * math.sqrt((n + 1) * (n + 3) / (6 * (n - 2)))
    beta = 3 * (n * n + 27 * n - 70) * (n + 1) * (n + 3) / ((n - 2) * (n + 5) * (n + 7) * (n + 9))
    w2 = math.sqrt(2 * (beta - 1)) - 1
    return torch.asinh(y / math.sqrt(2 / (w2 - 1))) / math.sqrt(0.5 * math.log(w2))


def kurtosis_statistic(centred: Tensor, second: Tensor) -> Tensor:
    """Kurtosis as a standard normal number (Anscombe and Glynn)."""
    n = len(centred)
    kurtosis = centred.pow(4).mean(0) / second.square()
    mean = 3 * (n - 1) / (n + 1)
    variance = 24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5))
    x = (kurtosis - mean) / math.sqrt(variance)
    root = 6 * (n * n - 5 * n + 2) / ((n + 7) * (n + 9)) * math.sqrt(6 * (n + 3) * (n + 5) / (n * (n - 2) * (n - 3)))
    a = 6 + 8 / root * (2 / root + math.sqrt(1 + 4 / root**2))
    denominator = 1 + x * math.sqrt(2 / (a - 4))
    term = denominator.sign() * ((1 - 2 / a) / denominator.abs()).pow(1 / 3)
    return (1 - 2 / (9 * a) - term) / math.sqrt(2 / (9 * a))
