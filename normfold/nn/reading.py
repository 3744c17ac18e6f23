"""What a norm of unknown code computes, found by running it on a probe."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normfold.norms.kinds import is_token_norm, name_of

# A probe and a reading of it differ by the rounding of float32 and by eps, which is small beside the probe's variance.
_TOLERANCE = 1e-3
_PROBE_SIZE = 10.0
_SHIFTS = ("bias", "beta", "shift", "b")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a module computes: weight * normalised(x) + bias over `axis` (-1 or 1), weight and bias (C,)."""

    kind: str
    weight: Tensor
    bias: Tensor
    axis: int


def kind_of(module: nn.Module) -> str:
    """LayerNorm or RMSNorm, by type or by name, or the class of what calls itself a norm; empty for anything else."""
    kind = name_of(module)
    if kind is not None and is_token_norm(kind):
        return kind
    if kind is not None or module._modules or module._buffers:
        return ""
    return type(module).__name__ if "norm" in type(module).__name__.lower() else ""


def channels_of(module: nn.Module) -> int:
    """The length of the axis that a norm goes over, 0 where it does not say."""
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple | list | torch.Size):
        return int(shape[-1])
    return next((parameter.numel() for parameter in module.parameters() if parameter.ndim == 1), 0)


def read(module: nn.Module) -> Reading | str:
    """What a norm computes, from what it does to a probe; or why that cannot be said."""
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple | list | torch.Size) and len(shape) != 1:
        return f"it normalises over {len(shape)} axes together, which no norm per channel does"
    more = list(inspect.signature(module.forward).parameters)[1:]
    if more:
        return f"its forward takes more than x ({', '.join(more)})"
    channels = channels_of(module)
    if channels < 2:
        return "it has no weight that says how many channels it has" if channels == 0 else "it has one channel"
    twin = _twin(module)
    if isinstance(twin, str):
        return twin
    named = sorted(twin.named_parameters(), key=lambda item: item[0] in _SHIFTS)
    vectors = [parameter.detach() for _, parameter in named]
    if len(vectors) > 2 or any(vector.shape != (channels,) for vector in vectors):
        return "it has parameters that are no weight and bias per channel"
    generator = torch.Generator().manual_seed(0)
    probe = 1.0 + _PROBE_SIZE * torch.randn(2, 3, channels, generator=generator)
    problem = ""
    for axis in (-1, 1):
        x = probe if axis == -1 else probe.transpose(1, 2)[..., None]
        try:
            with torch.no_grad():
                y = twin(x)
        # Unknown code may raise anything.
        except Exception as error:
            problem = problem or f"it could not be run on a probe of shape {tuple(x.shape)} ({type(error).__name__})"
            continue
        if not isinstance(y, Tensor) or y.shape != x.shape:
            continue
        y = y if axis == -1 else y[..., 0].transpose(1, 2)
        reading = _recognise(probe, y.float(), vectors, axis)
        if reading is not None:
            return reading
        problem = "it computes something else than LayerNorm or RMSNorm"
    return problem or "it computes something else than LayerNorm or RMSNorm"


def _twin(module: nn.Module) -> nn.Module | str:
    """A copy on the CPU in float32 and evaluation."""
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        return "its weights are not loaded (meta device)"
    try:
        return copy.deepcopy(module).cpu().float().eval()
    # Unknown code may raise anything.
    except Exception as error:
        return f"it could not be copied for a probe ({type(error).__name__})"


def _recognise(x: Tensor, y: Tensor, vectors: list[Tensor], axis: int) -> Reading | None:
    """Which norm with these parameters makes y of x, (2, 3, C) each."""
    one, nothing = torch.ones(x.shape[-1]), torch.zeros(x.shape[-1])
    weights = [vectors[0], 1.0 + vectors[0]] if vectors else [one]
    bias = vectors[1] if len(vectors) > 1 else nothing
    centred = x - x.mean(-1, keepdim=True)
    for kind, z in (("LayerNorm", centred), ("RMSNorm", x)):
        z = z / z.square().mean(-1, keepdim=True).sqrt()
        for weight in weights:
            expected = weight * z + bias
            if float((y - expected).abs().max()) <= _TOLERANCE * float(expected.abs().max()):
                return Reading(kind, weight, bias, axis)
    return None
