"""Training against the published equations, step by step in numpy, in the settings that no trace has."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from normfold.nn.mabn import MABN2d
from normfold.nn.powernorm import MaskPowerNorm
from normfold.nn.un import UN1d

# float64 rounding over the steps; a wrong eps or a statistic updated once too often is off by 1e-4 or more.
TOLERANCE = 1e-10
CHANNELS, STEPS = 4, 14
Array = np.ndarray
# x (P, C), its upstream gradient and which tokens are real, to output and gradients of x, weight and bias.
Step = Callable[[Array, Array, Array], tuple[Array, Array, Array, Array]]


@dataclass
class Unified:
    """UN: `equations` of traces/un_*.json."""

    weight: Array
    bias: Array
    windows: tuple[int, int]
    warmup: int
    filtration: bool
    eps: float
    momentum: float
    iters: int
    state: dict[str, Array] = field(default_factory=dict)

    def __call__(self, x: Array, out: Array, real: Array) -> tuple[Array, Array, Array, Array]:
        s, eps = self.state, self.eps
        forward, backward = self.windows
        self.iters += 1
        n, before = self.iters, s["running_var"].copy()
        x2 = np.mean(x[real] ** 2, 0)
        limit = np.sqrt(s["buffer_x2"]).var(ddof=1)
        s["buffer_x2"][n % forward] = x2
        skipped = forward == 1
        with np.errstate(divide="ignore"):
            geometric = np.exp(np.log(s["buffer_x2"]).mean(0))
            if self.filtration and n >= self.warmup and forward > 1:
                skipped = bool((s["buffer_x2"].mean(0) - geometric > limit * forward).any())
                if skipped:
                    s["buffer_x2"][n % forward] = before
                    s["skip_counter"] += 1
        var = x2 if n <= forward or n < self.warmup or skipped else geometric
        z = x / np.sqrt(var + eps)
        r = np.clip(np.sqrt(var + eps) / np.sqrt(before + eps), 1 / 5, 5)
        r = np.ones_like(r) if n <= max(1000, self.warmup) or skipped else r
        s["running_var"] = self.momentum * before + (1 - self.momentum) * var
        g = out * self.weight * r
        gz = (g * z).mean(0)
        s["buffer_gz"][n % backward] = s["ema_gz"] if skipped else gz
        m = gz if n <= backward or n < self.warmup or skipped else s["buffer_gz"].mean(0)
        s["ema_gz"] = self.momentum * s["ema_gz"] + (1 - self.momentum) * m
        dx = (g - (m if skipped else s["ema_gz"]) * z) / np.sqrt(var + eps)
        return self.weight * z + self.bias, dx, (out * r * z).sum(0), out.sum(0)


@dataclass
class Power:
    """PowerNorm: `equations` of traces/powernorm_*.json; the scaling's eps is 1e-5."""

    weight: Array
    bias: Array
    groups: int
    warmup: int
    eps: float
    alpha_fwd: float
    alpha_bkw: float
    iters: int = 0
    state: dict[str, Array] = field(default_factory=dict)

    def __call__(self, x: Array, out: Array, real: Array) -> tuple[Array, Array, Array, Array]:
        s, eps = self.state, self.eps
        self.iters += 1
        n, phi = self.iters, s["running_phi"]
        parts = x.reshape(len(x), self.groups, -1)
        root = np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-5)
        scaled = (parts / root).reshape(x.shape)
        x2 = np.mean(scaled[real] ** 2, 0)
        z = scaled / np.sqrt((x2 if n <= self.warmup else phi) + eps)
        if n < self.warmup:
            phi = phi * (n - 1) / n + x2 / n
        s["running_phi"] = self.alpha_fwd * phi + (1 - self.alpha_fwd) * x2
        a = out * self.weight - (1 - self.alpha_bkw) * s["ema_gz"] * z
        s["ema_gz"] = s["ema_gz"] + (a * z).mean(0)
        # Through the scaling: d(x / root) = (d - scaled * mean(scaled * d)) / root, group by group.
        d, y = (each.reshape(parts.shape) for each in (a / np.sqrt(x2 + eps), scaled))
        dx = (d - y * (y * d).mean(-1, keepdims=True)) / root
        return self.weight * z + self.bias, dx.reshape(x.shape), (out * z).sum(0), out.sum(0)


@dataclass
class Moving:
    """MABN: `equations` of traces/mabn*.json."""

    weight: Array
    bias: Array
    window: int
    warmup: int
    eps: float
    momentum: float
    iters: int
    state: dict[str, Array] = field(default_factory=dict)

    def __call__(self, x: Array, out: Array, real: Array) -> tuple[Array, Array, Array, Array]:
        s, eps = self.state, self.eps
        self.iters += 1
        n, before = self.iters, s["running_var"]
        x2 = np.mean(x**2, 0)
        s["buffer_x2"][n % self.window] = x2
        early = n <= self.window or n < self.warmup
        var = x2 if early else s["buffer_x2"].mean(0)
        z = x / np.sqrt(var + eps)
        r = np.clip(np.sqrt(var + eps) / np.sqrt(before + eps), 1 / 5, 5)
        r = np.ones_like(r) if n <= max(1000, self.warmup) else r
        s["running_var"] = self.momentum * before + (1 - self.momentum) * var
        g = out * self.weight * r
        gz = (g * z).mean(0)
        s["buffer_gz"][n % self.window] = gz
        dx = (g - (gz if early else s["buffer_gz"].mean(0)) * z) / np.sqrt(var + eps)
        return self.weight * r * z + self.bias, dx, (out * r * z).sum(0), out.sum(0)


def follow(norm: nn.Module, expected: Step, *, mask: Callable[[Array], tuple[torch.Tensor, ...]], axis: int) -> None:
    """Train both; outputs, gradients and buffers agree at every step. mask: what the module is given."""
    rng = np.random.default_rng(7)
    for step in range(STEPS):
        shape = (2, 3, CHANNELS)
        x = rng.normal(0.3, 1.0, shape) * np.linspace(0.5, 2.0, CHANNELS) * (9 if step in (4, 11) else 1)
        out = rng.normal(0, 0.1, shape)
        real = (
            np.array([[True, True, True], [True, False, step % 2 == 0]])
            if mask(np.ones((2, 3)))
            else np.ones((2, 3), bool)
        )
        given = torch.from_numpy(np.moveaxis(x, -1, axis).copy()).requires_grad_()
        norm.zero_grad()
        y = norm(given, *mask(real))
        y.backward(torch.from_numpy(np.moveaxis(out, -1, axis).copy()))
        wanted = expected(x.reshape(-1, CHANNELS), out.reshape(-1, CHANNELS), real.reshape(-1))
        found = [np.moveaxis(each.detach().numpy(), axis, -1).reshape(-1, CHANNELS) for each in (y, given.grad)]
        found += [norm.weight.grad.numpy(), norm.bias.grad.numpy()]
        for name, ours, theirs in zip(("output", "dx", "dweight", "dbias"), found, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"step {step}: {name}")
        for name, value in expected.state.items():
            ours = norm.get_buffer(name).numpy().reshape(value.shape)
            np.testing.assert_allclose(ours, value, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"step {step}: {name}")


def ready(norm: nn.Module, iters: int = 0) -> nn.Module:
    """In float64 and training, with a weight and a bias that are not fresh, `iters` iterations old."""
    torch.manual_seed(0)
    norm.double().train()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
        norm.iters += iters
        if iters:
            norm.running_var.uniform_(0.5, 2.0)
            norm.buffer_x2.uniform_(0.5, 2.0)
    return norm


def arrays(norm: nn.Module) -> tuple[Array, Array, dict[str, Array]]:
    """Weight, bias, and its buffers but the counter, one row a channel vector."""
    state = {name: value.numpy().copy() for name, value in norm.named_buffers() if name != "iters"}
    flat = {
        name: value.reshape(-1) if name.startswith("running") or name == "ema_gz" else value
        for name, value in state.items()
    }
    return norm.weight.detach().numpy(), norm.bias.detach().numpy(), flat


@pytest.mark.parametrize("windows", [(1, 1), (1, 3), (2, 1), (3, 2), (5, 5)])
@pytest.mark.parametrize("filtration", [False, True])
def test_un(windows: tuple[int, int], filtration: bool) -> None:
    for warmup, iters, masked in itertools.product((0, 6), (0, 995), (False, True)):
        norm = ready(UN1d(CHANNELS, windows, warmup, filtration, 1e-2, 0.7), iters)
        weight, bias, state = arrays(norm)
        expected = Unified(weight, bias, windows, warmup, filtration, 1e-2, 0.7, iters, state)
        follow(
            norm,
            expected,
            mask=(lambda real: (torch.from_numpy(~real.astype(bool)),)) if masked else lambda _: (),
            axis=-1,
        )


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("eps", [1e-5, 1e-1])
def test_powernorm(groups: int, eps: float) -> None:
    for warmup, masked in itertools.product((0, 6), (False, True)):
        norm = ready(MaskPowerNorm(CHANNELS, eps, 0.8, 0.6, warmup, groups))
        weight, bias, state = arrays(norm)
        expected = Power(weight, bias, groups, warmup, eps, 0.8, 0.6, 0, state)
        # (T, B, C) with a mask of (B, T).
        follow(
            norm,
            expected,
            mask=(lambda real: (torch.from_numpy(~real.astype(bool)).T,)) if masked else lambda _: (),
            axis=-1,
        )


@pytest.mark.parametrize("window", [1, 2, 4])
def test_mabn(window: int) -> None:
    for warmup, iters in itertools.product((0, 6), (0, 995)):
        norm = ready(MABN2d(CHANNELS, 2, 2 * window, 1e-2, 0.7, warmup), iters)
        weight, bias, state = arrays(norm)
        follow(norm, Moving(weight, bias, window, warmup, 1e-2, 0.7, iters, state), mask=lambda _: (), axis=1)
