"""Training: losses fall, statistics move, gradients are finite and, where the batch alone decides, exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.nn import PowerNorm, PRepBN, RepBN, UN1d
from normfold.nn.un import fluctuation

CHANNELS = 8

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "un": lambda: UN1d(CHANNELS, warmup=5),
    "un-warm": lambda: UN1d(CHANNELS),
    "repbn": lambda: RepBN(CHANNELS),
    "prepbn": lambda: PRepBN(nn.LayerNorm(CHANNELS), RepBN(CHANNELS), steps=20, warm=5),
    "powernorm": lambda: PowerNorm(CHANNELS, warmup=5),
    "powernorm-groups": lambda: PowerNorm(CHANNELS, group_scaling=2, warmup=5),
}


def run(name: str, steps: int = 80) -> tuple[list[float], nn.Module, Tensor]:
    torch.manual_seed(0)
    norm = BUILDERS[name]()
    model = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), norm, nn.GELU(), nn.Linear(CHANNELS, 1))
    x = torch.randn(16, 4, CHANNELS) * torch.linspace(0.2, 3.0, CHANNELS) + 0.5
    target = x[..., :1] * x[..., 1:2]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        loss = F.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        inner = model[0](x)
    return losses, model, inner


@pytest.mark.parametrize("name", BUILDERS)
def test_training_lowers_the_loss_and_moves_the_statistics(name: str) -> None:
    losses, model, inner = run(name)
    assert losses[-1] < 0.6 * losses[0]
    norm = model[1]
    tracked = {key: value for key, value in norm.state_dict().items() if key.endswith(("running_var", "running_phi"))}
    assert tracked
    for key, value in tracked.items():
        assert bool(torch.isfinite(value).all())
        assert not torch.allclose(value, torch.ones_like(value)), f"{key} is fresh"
    if name == "un":
        # The batch is always the same, so the smoothed statistic ends near the current one.
        moment = inner.square().mean((0, 1))
        torch.testing.assert_close(norm.running_var, moment, rtol=0.2, atol=0.01)


@pytest.mark.parametrize("name", BUILDERS)
def test_training_is_deterministic(name: str) -> None:
    first, again = run(name, 15), run(name, 15)
    assert first[0] == again[0]
    for key, value in first[1].state_dict().items():
        assert torch.equal(value, again[1].state_dict()[key]), key


@pytest.mark.parametrize("build", [lambda: UN1d(CHANNELS), lambda: PowerNorm(CHANNELS)])
def test_warm_up_gradient_is_the_exact_one(build: Callable[[], nn.Module]) -> None:
    """While the batch alone sets the divisor, the estimate must agree with autograd through the equation."""
    torch.manual_seed(1)
    norm = build().double()
    norm.weight.data.normal_()
    x = torch.randn(5, 3, CHANNELS, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(5, 3, CHANNELS, dtype=torch.float64)
    (norm(x) * upstream).sum().backward()
    got = x.grad
    twin = x.detach().clone().requires_grad_()
    divisor = torch.sqrt(twin.square().mean((0, 1)) + 1e-300)
    ((twin / divisor * norm.weight + norm.bias) * upstream).sum().backward()
    # eps differs by design: it is in the divisor and not in its derivative.
    torch.testing.assert_close(got, twin.grad, rtol=1e-4, atol=1e-4)


def test_un_divides_by_the_geometric_mean_of_the_window() -> None:
    norm = UN1d(2, window=3, warmup=2, eps=0.0).double()
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    for factor in (1.0, 1.5):
        torch.testing.assert_close(norm(factor * x), x)
    y = norm(2.0 * x)
    # Second moments 1, 2.25, 4: their geometric mean is 9 ** (1 / 3), in the divisor under a root.
    torch.testing.assert_close(y, 2.0 * x / 9 ** (1 / 6))
    assert int(norm.skip_counter) == 0
    assert int(norm.iters) == 3
    # Warm-up leaves the cumulative mean, 1.625; then 0.9 of that and 0.1 of the smoothed one.
    torch.testing.assert_close(norm.running_var, torch.full((2,), 0.9 * 1.625 + 0.1 * 9 ** (1 / 3)).double())


def test_un_gradient_uses_the_window_mean_of_gz() -> None:
    norm = UN1d(1, window=2, warmup=1, eps=0.0).double()
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    norm(x).backward(upstream)
    x.grad = None
    norm(x).backward(torch.zeros_like(upstream))
    # E[g z] was 0.5 and is 0 now: the window's mean 0.25 times z is what the zero gradient is corrected by.
    torch.testing.assert_close(x.grad, -0.25 * x.detach())


def test_un_filters_outliers() -> None:
    torch.manual_seed(0)
    norm = UN1d(4, warmup=4)
    x = torch.randn(64, 4)
    for _ in range(6):
        norm(x)
    before, skipped = norm.running_var.clone(), int(norm.skip_counter)
    y = norm(1000.0 * x)
    assert skipped == 0
    assert int(norm.skip_counter) == 1
    assert torch.equal(norm.running_var, before)
    # Its own statistics, not the window's: the output is of order 1.
    assert y.square().mean().item() == pytest.approx(1.0, rel=1e-3)
    for _ in range(4):
        norm(x)
    assert int(norm.skip_counter) == 4, "the outlier stays in the window of 4 for three more iterations"


def test_un_survives_a_dead_channel() -> None:
    norm = UN1d(3, warmup=1)
    x = torch.randn(8, 3)
    x[:, 1] = 0.0
    for _ in range(4):
        x = x.detach().requires_grad_()
        y = norm(x)
        y.sum().backward()
        assert bool(torch.isfinite(y).all())
        assert bool(torch.isfinite(x.grad).all())


def test_fluctuation_is_zero_for_equal_rows_and_near_one_for_an_outlier() -> None:
    assert fluctuation(torch.full((4, 3), 2.5)) == pytest.approx(0.0, abs=1e-6)
    assert fluctuation(torch.tensor([[1.0], [1.0], [1.0], [1e12]])) > 0.99


def test_powernorm_uses_the_running_statistic_after_warm_up() -> None:
    norm = PowerNorm(2, warmup=1, eps=0.0).double()
    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0]], dtype=torch.float64)
    norm(x)
    torch.testing.assert_close(norm.running_phi.flatten(), torch.tensor([1.0, 4.0]).double())
    torch.testing.assert_close(norm(3.0 * x), 3.0 * x / torch.tensor([1.0, 2.0]).double())
    torch.testing.assert_close(norm.running_phi.flatten(), torch.tensor([1.8, 7.2]).double())


def test_prepbn_schedule_arithmetic() -> None:
    """Warm-up, then weights 1, 3/4, 1/2, 1/4 of norm1, then norm2 alone."""
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4)
    norm = PRepBN(nn.LayerNorm(4), RepBN(4), steps=4, warm=2)
    for weight in (1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        assert not norm.finished or weight == 0.0
        assert norm.norm1_weight() == weight
        with torch.no_grad():
            expected = weight * norm.norm1(x) + (1.0 - weight) * RepBN(4)(x)
            torch.testing.assert_close(norm(x), expected)
    assert norm.finished
    assert (int(norm.warm), int(norm.iter), int(norm.total_step)) == (0, 0, 4)


def test_prepbn_warm_up_leaves_norm2_alone() -> None:
    norm = PRepBN(nn.RMSNorm(4), RepBN(4), steps=2, warm=1)
    norm(torch.randn(8, 4))
    assert int(norm.norm2.bn.num_batches_tracked) == 0
    assert int(norm.iter) == 2
    norm(torch.randn(8, 4))
    assert int(norm.norm2.bn.num_batches_tracked) == 1
    assert int(norm.iter) == 1


def test_prepbn_counts_accumulated_forwards_as_one_step() -> None:
    norm = PRepBN(nn.RMSNorm(4), RepBN(4), steps=3, accumulation=2)
    for expected in (3, 2, 2, 1, 1, 0, 0):
        norm(torch.randn(8, 4))
        assert int(norm.iter) == expected
    assert int(norm.num_step) == 7


def test_prepbn_r0_scales_the_fade() -> None:
    norm = PRepBN(nn.RMSNorm(4), RepBN(4), steps=4, r0=0.5)
    assert norm.norm1_weight() == 0.5
    norm(torch.randn(8, 4))
    assert norm.norm1_weight() == 0.375
