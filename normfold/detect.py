"""Which norms a torch model holds, and whether their stored statistics can be used.

Norms are recognised by the names of their parameters and buffers, as published, not by their class: a user's own copy
of a paper's code counts. Only the outermost norm is reported: PRepBN hides its RepBN, RepBN hides its BatchNorm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from normfold.errors import NormStateError

_ROOT = "(the model itself)"


@dataclass(frozen=True, slots=True)
class NormModule:
    """A norm of the model. kind: UN, MABN, RepBN, PRepBN, BatchNorm, PowerNorm, LayerNorm or RMSNorm.

    name: dotted path of the module. channels: length of its statistics or weight. group_scaling: PowerNorm only.
    """

    name: str
    kind: str
    channels: int
    group_scaling: bool = False


def find_norms(model: nn.Module) -> tuple[NormModule, ...]:
    """The outermost norms in the order of the modules; name is the path to each."""
    return tuple(norm for norm, _ in _walk(model, ""))


def _walk(module: nn.Module, name: str) -> Iterator[tuple[NormModule, nn.Module]]:
    kind = norm_kind(module)
    if kind is not None:
        scaled = kind == "PowerNorm" and _has_group_scaling(module)
        yield NormModule(name, kind, _channels(module, kind), scaled), module
        return
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name)


def norm_kind(module: nn.Module) -> str | None:
    """The kind of norm this module is, or None."""
    own = {name for name, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None}
    children = module._modules
    if {"norm1", "norm2"} <= children.keys() and "iter" in own:
        return "PRepBN"
    inner = children.get("bn")
    if "alpha" in own and inner is not None and norm_kind(inner) == "BatchNorm":
        return "RepBN"
    if "running_phi" in own:
        return "PowerNorm"
    if isinstance(module, nn.modules.batchnorm._BatchNorm) or {"running_mean", "running_var"} <= own:
        return "BatchNorm"
    if "running_var" in own and own & {"buffer_x2", "ema_gz", "skip_counter"}:
        # MABN has no mean of gradients, and its statistics have the shape of a picture's channels.
        return "UN" if own & {"ema_gz", "skip_counter"} else "MABN"
    return _token_norm_kind(module, own)


def _token_norm_kind(module: nn.Module, own: set[str]) -> str | None:
    """LayerNorm and RMSNorm. A user's own has nothing but a weight, like many other layers: its class name decides."""
    if isinstance(module, nn.LayerNorm):
        return "LayerNorm"
    if isinstance(module, nn.RMSNorm):
        return "RMSNorm"
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 1 or module._modules or not own <= {"weight", "bias"}:
        return None
    name = type(module).__name__.lower().replace("_", "")
    return "RMSNorm" if "rmsnorm" in name else "LayerNorm" if "layernorm" in name else None


def _channels(module: nn.Module, kind: str) -> int:
    if kind == "PRepBN":
        inner = module.get_submodule("norm2")
        inner_kind = norm_kind(inner)
        return 0 if inner_kind is None else _channels(inner, inner_kind)
    if kind == "RepBN":
        return _channels(module.get_submodule("bn"), "BatchNorm")
    for name in ("running_phi", "running_var", "weight"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, torch.Tensor):
            return tensor.numel()
    shape = getattr(module, "normalized_shape", None)
    return math.prod(shape) if shape is not None else int(getattr(module, "num_features", 0))


def _has_group_scaling(module: nn.Module) -> bool:
    """Published PowerNorm holds a GroupScaling1D module; a flag switches it off in the variants."""
    flag = getattr(module, "group_scaling", None)
    if isinstance(flag, int):
        return bool(flag)
    return any(re.search("group_?scal", type(child).__name__, re.IGNORECASE) for child in module.children())


def check_norms(model: nn.Module, *, source: str, allow_unfinished: bool = False) -> tuple[str, ...]:
    """Check that every norm's stored statistics can be used; return warning sentences.

    source: what to call the checkpoint in messages. allow_unfinished: use norm2 of a PRepBN whose schedule has not
    ended (its evaluation is norm2 whatever the schedule, but norm2 was not yet trained to stand alone).
    Raises NormStateError naming the layer: NaN, infinite or negative statistics, BatchNorm without running statistics,
    an unfinished PRepBN.
    """
    warnings: list[str] = []
    unfinished: list[str] = []
    for norm, module in _walk(model, ""):
        name = norm.name or _ROOT
        if norm.kind == "PRepBN":
            left = schedule_left(module)
            if left is not None:
                unfinished.append(f"{name} ({left})")
        _check_statistics(norm.kind, module, source=source, name=name)
    if unfinished:
        what = f"{unfinished[0]}{f' and {len(unfinished) - 1} more' if len(unfinished) > 1 else ''}"
        if not allow_unfinished:
            raise NormStateError(
                f"{source}: the PRepBN schedule has not ended in {what}: the network still leans on norm1, and folding "
                "would keep norm2 alone. Train to the end, or pass --allow-unfinished to proceed with norm2."
            )
        warnings.append(f"The PRepBN schedule has not ended in {what}; proceeding with norm2 alone, as asked.")
    return tuple(warnings)


def schedule_left(module: nn.Module) -> str | None:
    """How far an unfinished schedule is, or None when it has ended."""
    steps, warm, total = (_count(module, name) for name in ("iter", "warm", "total_step"))
    if not steps and not warm:
        return None
    done = f", {100 * (1 - steps / total):.0f} % done" if total else ""
    warmup = f", and {warm:g} warm-up steps before it" if warm else ""
    return f"{steps:g} of {total:g} steps left{done}{warmup}"


def _count(module: nn.Module, name: str) -> float:
    value = getattr(module, name, 0)
    return float(value.item() if isinstance(value, torch.Tensor) else value)


def _check_statistics(kind: str, module: nn.Module, *, source: str, name: str) -> None:
    """The statistics that evaluation reads. PRepBN's norm1 is not read, so its state is nobody's business."""
    root = module.get_submodule("norm2") if kind == "PRepBN" else module
    for path, part in root.named_modules(prefix="norm2" if kind == "PRepBN" else ""):
        where = f"{name}.{path}" if path else name
        is_batch_norm = isinstance(part, nn.modules.batchnorm._BatchNorm)
        if is_batch_norm and (part.running_var is None or part.running_mean is None):
            raise NormStateError(
                f"{source}: {where} ({type(part).__name__}) has no running_mean and running_var, so it normalises "
                "every batch by itself and has nothing to fold; was it built with track_running_stats=False?"
            )
        for buffer in ("running_var", "running_phi", "running_mean"):
            value = getattr(part, buffer, None)
            if isinstance(value, torch.Tensor):
                _check_values(value, source=source, where=f"{where}.{buffer}", signed=buffer == "running_mean")


def _check_values(value: torch.Tensor, *, source: str, where: str, signed: bool) -> None:
    bad = ~torch.isfinite(value)
    what = "not finite"
    if not bad.any() and not signed:
        bad, what = value < 0, "negative"
    count = int(bad.sum())
    if count:
        first = int(bad.flatten().nonzero()[0])
        raise NormStateError(
            f"{source}: {where} is {what} in {count} of {value.numel()} channels (channel {first}: "
            f"{float(value.flatten()[first]):g}); the checkpoint is damaged or its training diverged."
        )
