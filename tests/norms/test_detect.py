from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from normfold.errors import NormStateError
from normfold.nn.mabn import MABN2d
from normfold.nn.powernorm import MaskPowerNorm, PowerNorm
from normfold.nn.repbn import PRepBN, RepBN
from normfold.nn.un import UN1d
from normfold.norms.detect import check_norms, find_norms


def prepbn(channels: int) -> PRepBN:
    return PRepBN(channels, nn.LayerNorm, RepBN, step=10)


class LinearNorm(nn.Module):
    """The papers' own class, copied by a user: other class name, same names inside."""

    def __init__(self, channels: int, total: int = 100) -> None:
        super().__init__()
        for name, value in (("warm", 0), ("iter", total), ("total_step", total)):
            self.register_buffer(name, torch.tensor(value))
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = Rep(channels)


class Rep(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.bn = nn.BatchNorm1d(channels)


class FrozenBatchNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))


class LlamaRMSNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))


def finished(norm: nn.Module) -> nn.Module:
    for part in norm.modules():
        if isinstance(getattr(part, "iter", None), torch.Tensor):
            part.iter.zero_()
            part.warm.zero_()
    return norm


@pytest.mark.parametrize(
    ("norm", "kind", "channels"),
    [
        (UN1d(6), "UN", 6),
        (RepBN(6), "RepBN", 6),
        (prepbn(6), "PRepBN", 6),
        (PowerNorm(6), "PowerNorm", 6),
        (MABN2d(6), "MABN", 6),
        (LinearNorm(6), "PRepBN", 6),
        (Rep(6), "RepBN", 6),
        (FrozenBatchNorm(6), "BatchNorm", 6),
        (nn.BatchNorm2d(6), "BatchNorm", 6),
        (nn.SyncBatchNorm(6), "BatchNorm", 6),
        (nn.BatchNorm1d(6, affine=False), "BatchNorm", 6),
        (nn.LayerNorm(6), "LayerNorm", 6),
        (nn.LayerNorm((2, 3), elementwise_affine=False), "LayerNorm", 6),
        (nn.RMSNorm(6), "RMSNorm", 6),
        (LlamaRMSNorm(6), "RMSNorm", 6),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_norms_are_known_by_the_names_inside(norm: nn.Module, kind: str, channels: int) -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(3, 3), norm])})
    (found,) = find_norms(model)
    assert (found.name, found.kind, found.channels, found.keeps_statistic) == ("blocks.1", kind, channels, False)
    (alone,) = find_norms(norm)
    assert alone.name == ""


def test_layers_that_only_look_alike_are_not_norms() -> None:
    assert find_norms(nn.Sequential(nn.PReLU(6), nn.Linear(6, 6), nn.GroupNorm(2, 6), nn.Embedding(3, 6))) == ()


def test_group_scaling_is_noticed() -> None:
    assert [norm.keeps_statistic for norm in find_norms(nn.Sequential(MaskPowerNorm(6), PowerNorm(6)))] == [
        True,
        False,
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e-3])
@pytest.mark.parametrize(
    ("norm", "buffer"),
    [
        (UN1d(6), "running_var"),
        (RepBN(6), "bn.running_var"),
        (prepbn(6), "norm2.bn.running_var"),
        (nn.BatchNorm1d(6), "running_var"),
        (PowerNorm(6), "running_phi"),
        (MABN2d(6), "running_var"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_statistics_that_cannot_be_used_name_their_layer(norm: nn.Module, buffer: str, value: float) -> None:
    model = nn.ModuleDict({"head": finished(norm)})
    statistics = dict(model.named_buffers())[f"head.{buffer}"].flatten()
    before = statistics.clone()
    check_norms(model, source="c.pt")
    try:
        statistics[4] = value
        with pytest.raises(NormStateError, match=rf"c\.pt: head\.{buffer} is .* in 1 of 6 channels \(channel 4"):
            check_norms(model, source="c.pt")
    finally:
        statistics.copy_(before)


def test_a_mean_may_be_negative_but_not_nan() -> None:
    model = nn.BatchNorm1d(3)
    assert model.running_mean is not None
    model.running_mean.fill_(-1.0)
    assert check_norms(model, source="c.pt") == ()
    model.running_mean[0] = math.nan
    with pytest.raises(NormStateError, match="running_mean is not finite"):
        check_norms(model, source="c.pt")


def test_batch_norm_without_running_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    assert [norm.kind for norm in find_norms(model)] == ["BatchNorm"]
    with pytest.raises(NormStateError, match=r"c\.pt: 1 \(BatchNorm1d\) has no running_mean"):
        check_norms(model, source="c.pt")


def test_an_unfinished_schedule_says_how_far_it_is() -> None:
    model = nn.Sequential(LinearNorm(4), LinearNorm(4))
    model[0].iter.fill_(25)
    with pytest.raises(NormStateError, match=r"0 \(25 of 100 steps left, 75 % done\) and 1 more.*--allow-unfinished"):
        check_norms(model, source="c.pt")
    (warning,) = check_norms(model, source="c.pt", allow_unfinished=True)
    assert "25 of 100 steps left" in warning
    assert check_norms(finished(model), source="c.pt") == ()
    model[1].warm.fill_(7)
    with pytest.raises(NormStateError, match="7 warm-up steps"):
        check_norms(model, source="c.pt")


def test_the_norm_that_is_faded_out_may_be_in_any_state() -> None:
    model = finished(LinearNorm(4))
    with torch.no_grad():
        model.norm1.weight.fill_(math.nan)
    assert check_norms(model, source="c.pt") == ()
