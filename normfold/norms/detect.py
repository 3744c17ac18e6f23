"""Which norms a torch model holds, and whether their stored statistics can be used.

Norms are recognised by the names of their parameters and buffers, as published, not by their class: a user's own copy
of a paper's code counts (kinds.py). Only the outermost norm is reported: PRepBN hides its RepBN, RepBN its BatchNorm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from normfold.errors import NormStateError
from normfold.norms.base import NormKind, NormModule
from normfold.norms.kinds import KINDS, kind_of, token_norm

_ROOT = "(the model itself)"
# What may not be negative first: of several faults in a module, that is the one to report.
_STATISTICS = {each.name: each for kind in KINDS for each in sorted(kind.statistics, key=lambda each: each.signed)}


def find_norms(model: nn.Module) -> tuple[NormModule, ...]:
    """The outermost norms in the order of the modules; name is the path to each."""
    return tuple(
        NormModule(name, kind.name, _channels(module, kind), kind.keeps_statistic(module))
        for name, kind, module in _walk(model)
    )


def token_twin(model: nn.Module | None) -> NormKind:
    """The norm per token that the model's norms replaced: what they faded from, where they say, otherwise LayerNorm."""
    norms = [] if model is None else list(_walk(model))
    before = [
        kind_of(module.get_submodule(kind.schedule.before)) for _, kind, module in norms if kind.schedule is not None
    ]
    rms = token_norm(centred=False)
    return rms if before and all(kind is rms for kind in before) else token_norm(centred=True)


def _walk(module: nn.Module, name: str = "") -> Iterator[tuple[str, NormKind, nn.Module]]:
    """The outermost norms: the path to each, its kind, and the module."""
    kind = kind_of(module)
    if kind is not None:
        yield name, kind, module
        return
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name)


def _channels(module: nn.Module, kind: NormKind) -> int:
    if kind.inner:
        inner = module.get_submodule(kind.inner)
        inner_kind = kind_of(inner)
        return 0 if inner_kind is None else _channels(inner, inner_kind)
    for name in (*(statistic.name for statistic in kind.statistics), "weight"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, torch.Tensor):
            return tensor.numel()
    shape = getattr(module, "normalized_shape", None)
    return math.prod(shape) if shape is not None else int(getattr(module, "num_features", 0))


def check_norms(model: nn.Module, *, source: str, allow_unfinished: bool = False) -> tuple[str, ...]:
    """Check that every norm's stored statistics can be used; return warning sentences.

    source: what to call the checkpoint in messages. allow_unfinished: use norm2 of a PRepBN whose schedule has not
    ended (its evaluation is norm2 whatever the schedule, but norm2 was not yet trained to stand alone).
    Raises NormStateError naming the layer: NaN, infinite or negative statistics, BatchNorm without running statistics,
    an unfinished PRepBN.
    """
    unfinished: dict[str, list[str]] = {}
    for path, kind, module in _walk(model):
        name = path or _ROOT
        left = None if kind.schedule is None else kind.schedule.left(module)
        if left is not None:
            unfinished.setdefault(kind.name, []).append(f"{name} ({left})")
        _check_statistics(kind, module, source=source, name=name)
    return tuple(
        _unfinished(kind, unfinished[kind.name], source=source, allowed=allow_unfinished)
        for kind in KINDS
        if kind.name in unfinished
    )


def _unfinished(kind: NormKind, found: list[str], *, source: str, allowed: bool) -> str:
    """The warning of norms whose schedule has not ended. Raises NormStateError where they are not allowed."""
    assert kind.schedule is not None
    what = f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}"
    before, after = kind.schedule.before, kind.schedule.after
    if not allowed:
        raise NormStateError(
            f"{source}: the {kind.name} schedule has not ended in {what}: the network still leans on {before}, and "
            f"folding would keep {after} alone. Train to the end, or pass --allow-unfinished to proceed with {after}."
        )
    return f"The {kind.name} schedule has not ended in {what}; proceeding with {after} alone, as asked."


def _check_statistics(kind: NormKind, module: nn.Module, *, source: str, name: str) -> None:
    """The statistics that evaluation reads. PRepBN's norm1 is not read, so its state does not matter."""
    for path, part in module.get_submodule(kind.inner).named_modules(prefix=kind.inner):
        where = f"{name}.{path}" if path else name
        part_kind = kind_of(part)
        missing = [] if part_kind is None else [each.name for each in part_kind.statistics]
        if any(getattr(part, each, None) is None for each in missing):
            raise NormStateError(
                f"{source}: {where} ({type(part).__name__}) has no {' and '.join(missing)}, so it normalises "
                "every batch by itself and has nothing to fold; was it built with track_running_stats=False?"
            )
        for buffer, statistic in _STATISTICS.items():
            value = getattr(part, buffer, None)
            if isinstance(value, torch.Tensor):
                _check_values(value, source=source, where=f"{where}.{buffer}", signed=statistic.signed)


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
