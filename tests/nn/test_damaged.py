"""Batches, inputs and options that a norm cannot use: an error that says so, and statistics as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import BatchError
from normfold.nn.batchnorm import TokenBatchNorm
from normfold.nn.mabn import MABN2d
from normfold.nn.powernorm import MaskPowerNorm, PowerNorm
from normfold.nn.repbn import LinearNorm, RepBN
from normfold.nn.un import UN1d
from tests.nn.norms import CHANNELS, COMPILED, NORMS, STEPS, assert_same, batch, fit, network

DAMAGED = {
    "nan": lambda x: x.index_fill(1, torch.tensor([2]), torch.nan),
    "inf": lambda x: x.index_fill(1, torch.tensor([2]), torch.inf),
    "one token": lambda x: x[:1, :1],
    "one row": lambda x: x[0, :1],
    "nothing": lambda x: x[:0],
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", NORMS)
def test_a_damaged_batch_is_an_error_and_damages_nothing(name: str, damage: str) -> None:
    model = network(name)
    for step in range(STEPS):
        fit(model, steps=range(step, step + 1))
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(BatchError, match="statistics"):
            model(DAMAGED[damage](batch(step)))
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", COMPILED)
def test_a_damaged_batch_is_an_error_in_compiled_code_too(name: str) -> None:
    torch._dynamo.reset()
    model = network(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(batch(0))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BatchError, match="NaN"):
        compiled(DAMAGED["nan"](batch(1)))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", NORMS)
def test_on_an_accelerator_a_damaged_batch_changes_no_statistic(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There nothing waits for the check: the update is masked and the output NaN."""
    for module in ("batchnorm", "powernorm", "second_moment"):
        monkeypatch.setattr(f"normfold.nn.{module}.reject", lambda *_: None)
    model = network(name)
    fit(model, steps=range(3))
    before = copy.deepcopy({key: value for key, value in model.named_buffers() if value.is_floating_point()})
    assert bool(torch.isnan(model(DAMAGED["nan"](batch(3)))).any())
    for key, value in model.named_buffers():
        assert key not in before or torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_an_input_of_other_channels_is_an_error(name: str, training: bool) -> None:
    """One channel would broadcast."""
    norm = NORMS[name](False).train(training)
    before = copy.deepcopy(norm.state_dict())
    for channels in (1, CHANNELS - 1):
        with pytest.raises((ValueError, RuntimeError), match=f"{channels}"):
            norm(torch.randn(4, 5, channels))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_steps_are_whole_numbers() -> None:
    """A share of all steps is often none: half a step would make PRepBN's weight negative."""
    for build in (
        lambda steps: LinearNorm(CHANNELS, nn.LayerNorm, RepBN, warm=steps),
        lambda steps: LinearNorm(CHANNELS, nn.LayerNorm, RepBN, step=steps),
        lambda steps: UN1d(CHANNELS, warmup_iters=steps),
        lambda steps: UN1d(CHANNELS, window_size=(4, steps)),
        lambda steps: MaskPowerNorm(CHANNELS, warmup_iters=steps),
        lambda steps: MABN2d(CHANNELS, B=2, real_B=4, warmup_iters=steps),
    ):
        with pytest.raises(ValueError, match=r"whole number of \d or more, not 2\.5"):
            build(2.5)
        with pytest.raises(ValueError, match="not -1"):
            build(-1)
        for buffer in build(2.0).buffers():
            assert buffer.is_floating_point() == (buffer.numel() > 1)


def test_padding_alone_is_an_error() -> None:
    x = torch.randn(4, 3, CHANNELS)
    everything = torch.ones(4, 3)
    for norm, mask in (
        (UN1d(CHANNELS), everything.bool()),
        (MaskPowerNorm(CHANNELS), everything.T.bool()),
        (RepBN(CHANNELS), 1 - everything),
        (TokenBatchNorm(CHANNELS), 1 - everything),
    ):
        before = copy.deepcopy(norm.state_dict())
        with pytest.raises(BatchError, match="no padding"):
            norm(x, mask)
        assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
        with pytest.raises(ValueError, match="pad_mask of shape"):
            norm(x, torch.ones(2, 2))


def test_padding_is_left_out_of_the_statistics() -> None:
    """NaN in padding reaches no statistic; the real tokens are normalised as if it were not there."""
    x = torch.randn(4, 6, CHANNELS)
    real = torch.arange(6) < torch.tensor([6, 4, 2, 3])[:, None]
    dirty = torch.where(real[..., None], x, torch.nan)
    turned = dirty.transpose(0, 1)
    cases: list[tuple[Callable[[], nn.Module], Tensor, Tensor]] = [
        (lambda: UN1d(CHANNELS), dirty, ~real),
        (lambda: PowerNorm(CHANNELS), turned, ~real),
        (lambda: RepBN(CHANNELS), dirty, real.long()),
        (lambda: TokenBatchNorm(CHANNELS), dirty, real),
    ]
    for build, shaped, mask in cases:
        norm, twin = build(), build()
        y = norm(shaped, mask)
        expected = twin(x[real])
        y = y.transpose(0, 1) if shaped is turned else y
        torch.testing.assert_close(y[real], expected)
        assert_same(norm, twin, 1e-6)
