"""Evaluation of every norm against its equation in float64 numpy, with statistics that are not fresh."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from normfold.nn.batchnorm import TokenBatchNorm
from normfold.nn.mabn import CenConv2d, MABN2d
from normfold.nn.powernorm import MaskPowerNorm, PowerNorm
from normfold.nn.repbn import LinearNorm, PRepBN, RepBN
from normfold.nn.un import UN1d

# float64 rounding of a handful of operations on values of order 1; a wrong eps or axis is off by 1e-6 or more.
TOLERANCE = 1e-13
CHANNELS = 6
# (N, C), (N, L, C), (N, H, W, C), and the square one where a wrong axis would go unnoticed by shape checks.
SHAPES = [(5, CHANNELS), (4, 3, CHANNELS), (CHANNELS, CHANNELS, CHANNELS), (2, 3, 4, CHANNELS)]


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Draw every parameter and statistic; weights of both signs, one of them zero, variances positive."""
    rng = np.random.default_rng(seed)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not tensor.is_floating_point():
            continue
        positive = name.endswith(("running_var", "running_phi"))
        drawn = rng.uniform(0.05, 3.0, tensor.shape) if positive else rng.normal(0.0, 1.0, tensor.shape)
        if name.endswith("weight"):
            drawn[0] = 0.0
        tensor.data = torch.from_numpy(drawn)


def values(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def batch_norm(x: np.ndarray, v: dict[str, np.ndarray], prefix: str = "", eps: float = 1e-5) -> np.ndarray:
    scale = v[prefix + "weight"] / np.sqrt(v[prefix + "running_var"] + eps)
    return (x - v[prefix + "running_mean"]) * scale + v[prefix + "bias"]


def repbn(x: np.ndarray, v: dict[str, np.ndarray], prefix: str = "") -> np.ndarray:
    return batch_norm(x, v, prefix + "bn.") + v[prefix + "alpha"] * x


def unified(x: np.ndarray, v: dict[str, np.ndarray], eps: float = 1e-5) -> np.ndarray:
    return v["weight"] * x / np.sqrt(v["running_var"] + eps) + v["bias"]


def power(x: np.ndarray, v: dict[str, np.ndarray], groups: int) -> np.ndarray:
    if groups:
        parts = np.split(x, groups, axis=-1)
        x = np.concatenate([p / np.sqrt((p**2).mean(-1, keepdims=True) + 1e-5) for p in parts], axis=-1)
    return v["weight"] * x / np.sqrt(v["running_phi"].reshape(-1) + 1e-5) + v["bias"]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., np.ndarray]]] = {
    "bn": (lambda: TokenBatchNorm(CHANNELS), batch_norm),
    "repbn": (lambda: RepBN(CHANNELS), repbn),
    "repbn-flat": (lambda: RepBN(CHANNELS, flatten=True), repbn),
    "prepbn-ln": (
        lambda: PRepBN(CHANNELS, nn.LayerNorm, RepBN),
        lambda x, v: repbn(x, v, "norm2."),
    ),
    "prepbn-rms": (
        lambda: PRepBN(CHANNELS, nn.RMSNorm, RepBN(CHANNELS, flatten=True)),
        lambda x, v: repbn(x, v, "norm2."),
    ),
    "un": (lambda: UN1d(CHANNELS), unified),
    "un-eps": (lambda: UN1d(CHANNELS, eps=0.1), lambda x, v: unified(x, v, 0.1)),
    "powernorm": (lambda: PowerNorm(CHANNELS), lambda x, v: power(x, v, 0)),
    "powernorm-1": (lambda: MaskPowerNorm(CHANNELS), lambda x, v: power(x, v, 1)),
    "powernorm-3": (lambda: MaskPowerNorm(CHANNELS, group_num=3), lambda x, v: power(x, v, 3)),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_evaluation_is_its_equation(case: str, shape: tuple[int, ...]) -> None:
    build, equation = CASES[case]
    module = build().double().eval()
    randomise(module)
    x = np.random.default_rng(1).normal(0.3, 1.5, shape)
    before = {name: value.copy() for name, value in values(module).items()}
    with torch.no_grad():
        y = module(torch.from_numpy(x))
    assert y.dtype == torch.float64
    np.testing.assert_allclose(y.numpy(), equation(x, values(module)), rtol=TOLERANCE, atol=TOLERANCE)
    for name, value in values(module).items():
        np.testing.assert_array_equal(value, before[name], err_msg=f"evaluation changed {name}")


def test_published_names_shapes_and_dtypes() -> None:
    """As the published checkpoints hold them, so that they load strictly."""
    c = CHANNELS
    un = {
        "weight": (c,), "bias": (c,), "running_var": (c,), "ema_gz": (c,), "iters": (1,),
        "buffer_x2": (4, c), "buffer_gz": (4, c), "skip_counter": (1,),
    }  # fmt: skip
    bn = {"weight": (c,), "bias": (c,), "running_mean": (c,), "running_var": (c,), "num_batches_tracked": ()}
    rep = {"alpha": (1,), **{f"bn.{name}": shape for name, shape in bn.items()}}
    counters = {"warm": (), "iter": (), "total_step": ()}
    prep = {**counters, "norm1.weight": (c,), **{f"norm2.{name}": shape for name, shape in rep.items()}}
    phi = {"weight": (c,), "bias": (c,), "running_phi": (1, c, 1, 1), "ema_gz": (1, c, 1, 1), "iters": (1,)}
    mabn = {
        "weight": (c,), "bias": (c,), "running_var": (1, c, 1, 1), "iters": (1,), "buffer_x2": (4, c),
        "buffer_gz": (4, c),
    }  # fmt: skip
    rms = nn.RMSNorm(c)
    expected: list[tuple[nn.Module, dict[str, tuple[int, ...]]]] = [
        (UN1d(c), un),
        (MABN2d(c, B=2, real_B=8), mabn),
        (RepBN(c), rep),
        (PRepBN(c, rms, RepBN), prep),
        (PRepBN(c, rms, RepBN, accumulation=2), {"num_step": (), **prep}),
        (PowerNorm(c, group_num=2), phi),
    ]
    for module, shapes in expected:
        entries = module.state_dict()
        assert list(entries) == list(shapes), type(module).__name__
        assert {name: tuple(tensor.shape) for name, tensor in entries.items()} == shapes
        whole = {"iters", "skip_counter", "warm", "iter", "total_step", "num_step", "num_batches_tracked"}
        for name, tensor in entries.items():
            assert tensor.dtype == (torch.int64 if name.rsplit(".", 1)[-1] in whole else torch.float32), name


@pytest.mark.parametrize(
    "build",
    [
        lambda: UN1d(4, window_size=0),
        lambda: UN1d(4, window_size=(4, 0)),
        lambda: UN1d(4, warmup_iters=-1),
        lambda: MABN2d(4, B=3, real_B=8),
        lambda: MaskPowerNorm(4, group_num=3),
        lambda: MaskPowerNorm(4, group_num=-1),
        lambda: LinearNorm(4, nn.LayerNorm, RepBN, step=0),
        lambda: LinearNorm(4, nn.LayerNorm, RepBN, warm=-1),
        lambda: LinearNorm(4, nn.LayerNorm, RepBN, accumulation=0),
        lambda: LinearNorm(4, nn.LayerNorm, nn.LayerNorm),
    ],
)
def test_options_that_do_not_fit_are_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"needs|takes a whole number|multiple of B"):
        build()


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 2), (4, 3, 2, 2, 2)], ids=str)
def test_mabn_is_its_equation_over_axis_1(shape: tuple[int, ...]) -> None:
    module = MABN2d(3).double().eval()
    randomise(module)
    x = np.random.default_rng(1).normal(0.3, 1.5, shape)
    v = {name: value.reshape(-1) for name, value in values(module).items()}
    expected = np.moveaxis(unified(np.moveaxis(x, 1, -1), v), -1, 1)
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_centred_convolution_is_one_with_centred_kernels() -> None:
    torch.manual_seed(0)
    conv = CenConv2d(4, 6, padding=1, groups=2)
    # As published: no bias, which MABN has, and 3 x 3.
    plain = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 5, 5)
    assert not torch.allclose(conv(x), plain(x))
    plain.weight.data -= conv.weight.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(conv(x), plain(x))
