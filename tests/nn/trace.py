"""The published classes' training, step by step, as traces/*.json describe it: inputs, modules and what to compare."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normfold.nn.mabn import MABN2d
from normfold.nn.powernorm import MaskPowerNorm, PowerNorm
from normfold.nn.repbn import LinearNorm, RepBN
from normfold.nn.un import UN1d

FOLDER = Path(__file__).parent / "traces"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
SEED = 0

_layer_norm = partial(nn.LayerNorm, eps=1e-6)
_llama = partial(LinearNorm, 8, nn.RMSNorm, partial(RepBN, flatten=True), accumulation=16)
# As `constructor` of each record has it.
BUILD: dict[str, Callable[[], nn.Module]] = {
    "mabn": lambda: MABN2d(8, B=2, real_B=8, eps=1e-5, momentum=0.98, warmup_iters=10),
    "powernorm_groups1": lambda: MaskPowerNorm(8, eps=1e-5, alpha_fwd=0.9, alpha_bkw=0.9, warmup_iters=10, group_num=1),
    "powernorm_groups4": lambda: MaskPowerNorm(8, 1e-5, 0.9, 0.9, 10, 4),
    "powernorm_masked": lambda: MaskPowerNorm(8, warmup_iters=10, group_num=4),
    "powernorm_plain": lambda: PowerNorm(8, warmup_iters=10),
    "prepbn_llama": lambda: _llama(eps=1e-5, warm=1, step=2, r0=1.0),
    "prepbn_llama_masked": lambda: _llama(eps=1e-5, warm=0, step=2, r0=1.0),
    "prepbn_llama_warm2": lambda: _llama(eps=1e-6, warm=2, step=3, r0=0.9),
    "prepbn_r0": lambda: LinearNorm(8, norm1=_layer_norm, norm2=RepBN, warm=0, step=30, r0=0.7),
    "prepbn_warm": lambda: LinearNorm(8, _layer_norm, RepBN, warm=5, step=20),
    "repbn": lambda: RepBN(8),
    "un_filtered": lambda: UN1d(8, 4, 10, True, 1e-5, 0.9),
    "un_nmt_masked": lambda: UN1d(8, window_size=4, warmup_iters=10),
    "un_nmt_time_first": lambda: UN1d(8, window_size=4, warmup_iters=10),
    "un_no_warmup": lambda: UN1d(8, window_size=4, warmup_iters=0, outlier_filtration=True),
    "un_two_windows": lambda: UN1d(8, window_size=(4, 8), warmup_iters=6, outlier_filtration=True),
    "un_unfiltered": lambda: UN1d(8, window_size=4, warmup_iters=10, outlier_filtration=False),
}
BUILD.update(mabn_resumed=BUILD["mabn"], un_resumed=BUILD["un_filtered"], un_threshold=BUILD["un_filtered"])


def _rng(label: str, *seeds: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(f"trace:{label}".encode()), *seeds])


def _parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng([zlib.crc32(name.encode()), SEED])
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "alpha":
        drawn = rng.uniform(0.05, 0.3, shape)
    else:
        drawn = rng.normal(0.0, 0.1, shape) if leaf == "bias" else rng.uniform(0.5, 1.5, shape)
    return drawn.astype(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Trace:
    """One record. steps: how many trained steps it has."""

    name: str
    record: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def steps(self) -> int:
        return int(self.record["steps"])

    @property
    def learns(self) -> bool:
        return self.name.endswith("_sgd")

    def build(self) -> nn.Module:
        module = BUILD[self.name.removesuffix("_sgd")]().double().train()
        assert {name: list(p.shape) for name, p in module.named_parameters()} == self.record["parameters"]
        state = module.state_dict()
        for name, (shape, _) in self.record["buffers"].items():
            assert list(state[name].shape) == shape, name
        assert state.keys() == {*self.record["parameters"], *self.record["buffers"]}
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(_parameter(name, tuple(parameter.shape))))
            for name, value in self._start():
                state[name].copy_(torch.as_tensor(value))
        return module

    def _start(self) -> Iterator[tuple[str, Any]]:
        if "start" not in self.record:
            return
        found = re.match(r"iters = (\d+);", self.record["start"])
        assert found
        yield "iters", int(found[1])
        for name, (shape, _) in self.record["buffers"].items():
            rng = _rng(f"start:{name}", SEED)
            if name in ("running_var", "buffer_x2"):
                yield name, rng.uniform(0.5, 2, shape)
            elif name in ("ema_gz", "buffer_gz"):
                yield name, rng.normal(0, 0.01, shape)

    def input(self, step: int) -> Tensor:
        shape, axis = self.record["input_shape"], self.record["channel_axis"]
        along = [1] * len(shape)
        along[axis] = 8
        mu = _rng("mu", SEED).normal(0, 0.5, 8).reshape(along)
        sd = _rng("sd", SEED).uniform(0.5, 2, 8).reshape(along)
        x = mu + sd * _rng("x", SEED, step).normal(0, 1, shape)
        x = x * (20 if step in self.record["outlier_steps"] else 1)
        factors = self.record.get("factors", {}).get(str(SEED), {})
        return torch.from_numpy(x * factors.get(str(step), 1.0))

    def upstream(self, step: int) -> Tensor:
        return torch.from_numpy(_rng("g", SEED, step).normal(0, 0.1, self.record["input_shape"]))

    def mask(self) -> tuple[Tensor, ...]:
        """What is passed after x."""
        if "mask" not in self.record:
            return ()
        rows, columns = self.record["mask"]["shape"]
        lengths = torch.tensor(self.record["mask"]["lengths"])
        real = torch.arange(columns)[None] < lengths[:, None]
        assert real.shape == (rows, columns)
        return (real.long() if self.record["mask"]["meaning"].startswith("1 = real") else ~real,)

    def row(self, value: Tensor) -> np.ndarray:
        place = (0, slice(None), 0, 0) if self.record["channel_axis"] == 1 else (0, 0)
        return value.detach().numpy()[place]


def load(name: str) -> Trace:
    record = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return Trace(name, record, dict(arrays))


def train(trace: Trace, module: nn.Module, step: int, run: Callable[..., Tensor] | None = None) -> dict[str, Any]:
    """One step of a trace: every figure that the trace has of it. run: calls the module (default: plainly)."""
    x = trace.input(step).requires_grad_()
    module.zero_grad()
    out = (run or module)(x, *trace.mask())
    out.backward(trace.upstream(step))
    assert x.grad is not None
    found: dict[str, Any] = {
        "out_sum": float(out.detach().sum()),
        "out_row": trace.row(out),
        "gx_norm": float(x.grad.norm()),
        "gx_row": trace.row(x.grad),
    }
    found |= {f"g_{name}": parameter.grad for name, parameter in module.named_parameters()}
    found |= {f"b_{name}": buffer.clone() for name, buffer in module.named_buffers()}
    if trace.learns:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.05 * parameter.grad
        found |= {f"p_{name}": parameter.detach().clone() for name, parameter in module.named_parameters()}
    return found


def difference(found: Any, expected: np.ndarray) -> float:
    """Largest difference relative to the size of what is expected. No gradient (NaN) may come as a gradient of zero."""
    want = np.nan_to_num(np.asarray(expected, np.float64), nan=0.0)
    got = np.asarray(found, np.float64)
    assert got.shape == want.shape
    if not got.size:
        return 0.0
    off = float(np.max(np.abs(got - want)))
    return math.inf if math.isnan(off) else off / max(1.0, float(np.max(np.abs(want))))
