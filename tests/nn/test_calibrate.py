"""recalibrate and pnac."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normfold.errors import BatchError, UsageError
from normfold.nn.batchnorm import TokenBatchNorm
from normfold.nn.calibrate import Moments, recalibrate
from normfold.nn.mabn import MABN2d
from normfold.nn.normality import kurtosis_statistic, normality, pnac, skew_statistic
from normfold.nn.powernorm import MaskPowerNorm
from normfold.nn.un import UN1d
from normfold.norms import kinds
from normfold.norms.base import Moment, NormKind, Statistic, own_names
from normfold.norms.closed_form import unified
from tests.nn.norms import CHANNELS, NORMS, batch, network

# float64 sums of a few hundred numbers.
EXACT = 1e-12


def moments(values: list[Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and mean square per channel of all tokens."""
    x = torch.cat([value.reshape(-1, value.shape[-1]) for value in values]).double().numpy()
    return x.mean(0), x.var(0), (x**2).mean(0)


def statistics(norm: nn.Module) -> dict[str, np.ndarray]:
    return {
        key.rsplit("_", 1)[-1]: value.double().numpy().reshape(-1)
        for key, value in norm.state_dict().items()
        if "running" in key
    }


@pytest.mark.parametrize("name", NORMS)
def test_statistics_are_exact(name: str) -> None:
    """Batches of unlike sizes, far from zero, count by their tokens."""
    model = network(name, dtype=torch.float64)
    norm = model[1][0]
    batches = [batch(step, tokens=3 + step, dtype=torch.float64) + 100.0 for step in range(4)]
    before = copy.deepcopy(dict(model.named_parameters()))
    counters = {key: value.clone() for key, value in model.named_buffers() if not value.is_floating_point()}
    report = recalibrate(model, batches)
    assert report.tokens == {next(iter(report.tokens)): 4 * (3 + 4 + 5 + 6)}
    assert not report.unseen
    with torch.no_grad():
        inner = [model[0](x) for x in batches]
        if name == "powernorm-groups":
            inner = [norm.gp(x) for x in inner]
    mean, var, square = moments(inner)
    found = statistics(norm)
    np.testing.assert_allclose(found.get("mean", mean), mean, rtol=EXACT)
    np.testing.assert_allclose(found.get("phi", square), square, rtol=EXACT)
    if "var" in found:
        np.testing.assert_allclose(found["var"], var if "mean" in found else square, rtol=EXACT)
    assert found
    assert all(module.training for module in model.modules())
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key])
    for key, value in counters.items():
        assert torch.equal(dict(model.named_buffers())[key], value), key


def test_evaluation_becomes_training_on_the_batch_itself() -> None:
    model = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), TokenBatchNorm(CHANNELS), nn.BatchNorm1d(5))
    x = batch(0)
    recalibrate(model, [x], layerwise=True)
    expected = copy.deepcopy(model).train()(x)
    torch.testing.assert_close(model.eval()(x), expected)


def test_layer_by_layer_uses_what_was_done_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(TokenBatchNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS), UN1d(CHANNELS)).double()
    at_once = copy.deepcopy(model)
    batches = [batch(step, dtype=torch.float64) for step in range(3)]
    with torch.no_grad():
        old = [at_once.eval()[:2](x) for x in batches]
    assert not recalibrate(at_once, iter(batches), layerwise=False).layerwise
    # The default where statistics are fresh.
    report = recalibrate(model, iter(batches))
    assert list(report.tokens) == ["0", "2"] and report.layerwise
    np.testing.assert_allclose(at_once[2].running_var, moments(old)[2], rtol=EXACT)
    with torch.no_grad():
        new = [model.eval()[:2](x) for x in batches]
    np.testing.assert_allclose(model[2].running_var, moments(new)[2], rtol=EXACT)
    assert not torch.allclose(model[2].running_var, at_once[2].running_var)


@pytest.mark.parametrize("kind", NORMS)
def test_statistics_that_mean_something_are_taken_at_once(kind: str) -> None:
    """Layerwise where any norm's are fresh, and no norm's are after a step of training."""
    model = nn.Sequential(network(kind)[:2], network(kind))
    batches = [batch(step) for step in range(2)]
    assert recalibrate(copy.deepcopy(model), batches).layerwise
    for _ in range(4):
        model(batches[0])
    assert not recalibrate(copy.deepcopy(model), batches).layerwise
    model[1] = network(kind)
    assert recalibrate(model, batches).layerwise


class Masked(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(x, mask)


@pytest.mark.parametrize("norm", [UN1d(CHANNELS), TokenBatchNorm(CHANNELS), MaskPowerNorm(CHANNELS)], ids=repr)
def test_padding_is_left_out(norm: nn.Module) -> None:
    norm = norm.double()
    real = torch.arange(6) < torch.tensor([6, 2, 3, 1])[:, None]
    x = batch(0, tokens=6, dtype=torch.float64)
    scaled = norm.gp(x) if isinstance(norm, MaskPowerNorm) else x
    shaped = x.transpose(0, 1) if isinstance(norm, MaskPowerNorm) else x
    mask = real if isinstance(norm, TokenBatchNorm) else ~real
    model = Masked(norm)
    recalibrate(model, [(shaped, mask), {"x": shaped, "mask": mask}])
    mean, var, square = moments([scaled[real]])
    found = statistics(norm)
    np.testing.assert_allclose(found.get("phi", found.get("var")), var if "mean" in found else square, rtol=EXACT)
    np.testing.assert_allclose(found.get("mean", mean), mean, rtol=EXACT)


def test_pictures_shared_norms_and_foreign_classes() -> None:
    class Foreign(nn.Module):
        """A copy of the papers' RepBN under another name."""

        def __init__(self) -> None:
            super().__init__()
            self.alpha = nn.Parameter(torch.ones(1))
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return (self.bn(x.transpose(1, 2)) + self.alpha * x.transpose(1, 2)).transpose(1, 2)

    torch.manual_seed(0)
    shared = nn.BatchNorm2d(3)
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), shared, nn.Conv2d(3, 3, 1), shared, nn.Conv2d(3, 4, 1), MABN2d(4)
    ).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    report = recalibrate(model, [x])
    assert report.tokens == {"1": 2 * 40, "5": 40}
    foreign = nn.Sequential(Foreign()).double()
    tokens = torch.randn(3, 7, 4, dtype=torch.float64) + 3.0
    recalibrate(foreign, [tokens])
    np.testing.assert_allclose(foreign[0].bn.running_mean, tokens.mean((0, 1)), rtol=EXACT)


def test_what_cannot_be_done_says_so_and_changes_nothing() -> None:
    model = network("un")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BatchError, match=r"1\.0: the batches make NaN"):
        recalibrate(model, [batch(0), batch(1) * math.nan])
    with pytest.raises(UsageError, match="no batches"):
        recalibrate(model, [])
    with pytest.raises(UsageError, match="no norm with stored statistics"):
        recalibrate(nn.Sequential(nn.LayerNorm(4)), [torch.ones(2, 4)])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    both = nn.ModuleDict({"used": model, "spare": UN1d(4)})
    both.forward = lambda x: both["used"](x)  # type: ignore[method-assign]
    assert recalibrate(both, [batch(0)]).unseen == ("spare",)


def test_moments_of_pieces_are_moments_of_the_whole() -> None:
    x = torch.randn(50, 3, dtype=torch.float64) * 1e-3 + 1e6
    found = Moments()
    for piece in x.split([1, 0, 20, 29]):
        found.add(piece)
    np.testing.assert_allclose(found.variance, x.numpy().var(0), rtol=1e-6)


def test_the_normality_test_is_dagostinos() -> None:
    """Figures of scipy.stats.skewtest and kurtosistest, and the share of normal samples that pass at 5 %."""

    def parts(values: list[int]) -> tuple[Tensor, Tensor]:
        x = torch.tensor(values, dtype=torch.float64)[:, None]
        x = x - x.mean(0)
        return x, x.square().mean(0)

    assert float(skew_statistic(*parts([1, 2, 3, 4, 5, 6, 7, 8]))) == pytest.approx(0.0, abs=1e-12)
    assert float(skew_statistic(*parts([2, 8, 0, 4, 1, 9, 9, 0]))) == pytest.approx(0.44626385374196975)
    assert float(skew_statistic(*parts([1, 2, 3, 4, 5, 6, 7, 8000]))) == pytest.approx(3.571773510360407)
    assert float(kurtosis_statistic(*parts(list(range(20))))) == pytest.approx(-1.7058104152122062)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(50, 4000, generator=generator, dtype=torch.float64)
    assert float((normality(normal) >= 0.05).double().mean()) == pytest.approx(0.95, abs=0.02)
    assert float((normality(normal.exp()) >= 0.05).double().mean()) < 0.05
    assert bool((normality(torch.full((30, 2), 0.1, dtype=torch.float64)) == 1.0).all())


def test_pnac_tells_outliers_from_calm_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), UN1d(16), nn.RMSNorm(16))
    calm = [torch.randn(64, 4, 16) for _ in range(40)]
    before = copy.deepcopy(model.state_dict())
    found = pnac(model, calm)
    assert found.norms.keys() == {"0", "2", "3"}
    assert float(found) == found.share > 0.8
    assert found.batches == 40
    wild = [x * (30.0 if step in (7, 20) else 1.0) for step, x in enumerate(calm)]
    assert pnac(model, wild).norms["0"] < 0.1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(UsageError, match="19 batches are too few"):
        pnac(model, calm[:19])
    with pytest.raises(UsageError, match="no norms"):
        pnac(nn.Linear(2, 2), [])


def test_a_statistic_that_is_no_moment_is_refused_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm of one's own: what its record does not say how to compute is not left beside statistics that are new."""

    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(4))
            self.register_buffer("running_l1", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.running_mean) / self.running_l1

    def kind(of: Moment | None) -> NormKind:
        statistics = (Statistic("running_mean", "mean", signed=True), Statistic("running_l1", of))
        return NormKind("L1", "l1", lambda m: "running_l1" in own_names(m), lambda _: False, statistics=statistics)

    model, tokens = nn.Sequential(Spread()), torch.randn(64, 4) + 3.0
    monkeypatch.setattr(kinds, "KINDS", (replace(kind(None), closed_form=unified), *kinds.KINDS))
    with pytest.raises(UsageError, match="0: recalibrate cannot compute the running_l1 of L1"):
        recalibrate(model, [tokens])
    assert not model[0].running_mean.any()
    # The twin, whose record says so.
    monkeypatch.setattr(kinds, "KINDS", (replace(kind("variance"), closed_form=unified), *kinds.KINDS))
    assert recalibrate(model, [tokens]).tokens == {"0": 64}
    torch.testing.assert_close(model[0].running_mean, tokens.mean(0))
    torch.testing.assert_close(model[0].running_l1, tokens.var(0, unbiased=False))


@pytest.mark.parametrize("measure", [recalibrate, pnac])
def test_what_is_no_batch_says_so(measure: Callable[..., object]) -> None:
    """A loader's labels, one batch in the place of a list, an array."""
    model = network("repbn")
    x = batch(0)
    loader = [(x, torch.zeros(4))] * 20
    for batches, message in (
        (x, r"the batches are one Tensor; give a list of batches, such as \[x\]"),
        ({"input": x}, "one dict"),
        ([x.numpy()], "not ndarray"),
        (loader, "Sequential does not take this one: too many positional arguments. Leave labels out"),
        ([{"y": x}], "does not take this one"),
    ):
        with pytest.raises(UsageError, match=message):
            measure(model, batches)
    measure(model, [each for each, _ in loader])
