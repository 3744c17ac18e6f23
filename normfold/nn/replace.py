"""From LayerNorm and RMSNorm to norms with stored statistics, in any torch module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.nn.batchnorm import TokenBatchNorm
from normfold.nn.reading import channels_of, kind_of, read
from normfold.nn.repbn import LinearNorm, RepBN
from normfold.nn.un import UN1d
from normfold.norms.kinds import name_of

# Makes a norm from a number of channels.
_Build = Callable[..., nn.Module]
Target = Literal["prepbn", "un", "bn", "repbn"]
# Which norms to leave: patterns of dotted names (`head.*`), or what answers for a name and its module.
Leave = str | Iterable[str] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True, slots=True)
class Replaced:
    """A norm that was replaced. kind: LayerNorm or RMSNorm. to: the class that stands there now."""

    name: str
    kind: str
    to: str
    channels: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A norm that stayed, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Replacement:
    """What `replace_layernorm` did: every norm over channels that it met is in one of the two."""

    replaced: tuple[Replaced, ...]
    kept: tuple[Kept, ...]

    def __str__(self) -> str:
        lines = [f"{norm.name}: {norm.kind}({norm.channels}) is {norm.to} now" for norm in self.replaced]
        lines += [f"{norm.name}: {norm.kind} stays: {norm.reason}" for norm in self.kept]
        return "\n".join([f"{len(self.replaced)} norms replaced, {len(self.kept)} kept", *lines])


class ChannelsFirst(nn.Module):
    """A norm over the last axis, applied to axis 1 of (N, C, ...)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same shape."""
        y: Tensor = self.norm(x.movedim(1, -1))
        return y.movedim(-1, 1)


class ChannelsLast(nn.Module):
    """A norm over axis 1, applied to the last axis of (N, ..., C)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(N, ..., C) to the same shape."""
        y: Tensor = self.norm(x.movedim(-1, 1))
        return y.movedim(1, -1)


def replace_layernorm(model: nn.Module, to: Target, *, leave: Leave = (), **options: Any) -> Replacement:
    """Replace every LayerNorm and RMSNorm of `model`, in place, by a norm that folds once it is trained.

    to: "prepbn" (the old norm fades into a RepBN: LinearNorm), "repbn", "un" or "bn" (TokenBatchNorm).
    options: of the new norm. prepbn: step, warm, r0, accumulation and repbn's. repbn: eps, momentum, flatten, sync.
    un: UN1d's. bn: eps, momentum, sync.
    leave: names or patterns of norms to leave as they are (`head.norm`, `*.q_norm`), or a predicate of name and module.

    The old weight and bias are the starting point (RepBN starts with alpha 0), and stay trainable where they were. A
    norm is known by its type, or by its class name and by what it does to a probe: torch's, transformers' (a weight
    that is stored as its difference from 1 too), timm's (over axis 1 of a picture too), your own. What does something
    else, takes more than x, or spans several axes is kept, with the reason in the report.
    With "prepbn" and r0 = 1 the first training step computes what the model computed before. Every call of a norm moves
    its schedule, so one that a forward pass calls k times (layers that share their weights) needs warm=k for that, and
    a step k times as long. Evaluation does not: it is RepBN, whose statistics are fresh until it is trained or
    `recalibrate`d.
    Raises UsageError for an unknown target or option and for a name that is no norm of the model.
    """
    build = _builder(to, options)
    replaced: list[Replaced] = []
    kept: list[Kept] = []
    done: dict[int, tuple[nn.Module, str] | str] = {}
    found = list(_candidates(model, ""))
    wanted = _Wanted(leave, [name for name, _, _, _ in found])
    for name, parent, child, module in found:
        kind = kind_of(module)
        if wanted.stays(name, module):
            kept.append(Kept(name or "(the model itself)", kind, "it was to be left"))
            continue
        if id(module) not in done:
            like = _like(module, parent, model)
            done[id(module)] = _convert(module, build, like) if parent is not None else "it is the model itself"
        new = done[id(module)]
        if isinstance(new, str):
            kept.append(Kept(name or "(the model itself)", kind, new))
            continue
        norm, kind = new
        setattr(parent, child, norm)
        inner = norm.norm if isinstance(norm, ChannelsFirst) else norm
        replaced.append(Replaced(name, kind, type(inner).__name__, channels_of(module)))
    if replaced:
        _leave_fused_paths(model)
    return Replacement(tuple(replaced), tuple(kept))


class _Wanted:
    """Which of the norms are to be left."""

    def __init__(self, leave: Leave, names: list[str]) -> None:
        self._ask = leave if callable(leave) else None
        self._patterns = () if callable(leave) else (leave,) if isinstance(leave, str) else tuple(leave)
        for pattern in self._patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(
                    f"leave={pattern!r} is no norm of this model; its norms are {', '.join(names[:10]) or 'none'}"
                )

    def stays(self, name: str, module: nn.Module) -> bool:
        if self._ask is not None:
            return bool(self._ask(name, module))
        return any(fnmatchcase(name, pattern) for pattern in self._patterns)


def _candidates(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module | None, str, nn.Module]]:
    """Norms over channels with the module that holds each, a shared one at every place; none inside another norm."""
    if kind_of(module):
        yield name, None, "", module
        return
    for child, inner in module._modules.items():
        if inner is None:
            continue
        path = f"{name}.{child}" if name else child
        if kind_of(inner):
            yield path, module, child, inner
        elif name_of(inner) is None:
            yield from _candidates(inner, path)


def _like(*owners: nn.Module | None) -> Tensor | None:
    """A parameter that says device and type: the norm's, or where it has none its neighbour's."""
    parameters = (parameter for owner in owners if owner is not None for parameter in owner.parameters())
    return next((parameter for parameter in parameters if parameter.is_floating_point()), None)


def _convert(module: nn.Module, build: _Build, like: Tensor | None) -> tuple[nn.Module, str] | str:
    """The norm that takes the place of `module` and the kind of that, or why there is none."""
    reading = read(module)
    if isinstance(reading, str):
        return reading
    own = list(module.parameters())
    frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
    new = build(reading.weight.numel())
    with torch.no_grad():
        for part in new.modules():
            if isinstance(part, nn.BatchNorm1d | TokenBatchNorm | UN1d):
                part.weight.copy_(reading.weight)
                part.bias.copy_(reading.bias)
            elif isinstance(part, RepBN):
                part.alpha.zero_()
    new.requires_grad_(not frozen)
    if like is not None:
        new = new.to(like.device, like.dtype)
    if isinstance(new, LinearNorm):
        new.norm1 = ChannelsLast(module) if reading.axis == 1 else module
    new = ChannelsFirst(new) if reading.axis == 1 else new
    return new.train(module.training), reading.kind


def _builder(to: str, options: dict[str, Any]) -> _Build:
    """What makes the new norm from a number of channels. Raises UsageError."""

    def prepbn(
        dim: int, *, step: int = 300000, warm: int = 0, r0: float = 1.0, accumulation: int | None = None, **rest: Any
    ) -> nn.Module:
        return LinearNorm(dim, nn.Identity(), repbn(dim, **rest), None, warm, step, r0, accumulation)

    def repbn(
        dim: int, *, eps: float = 1e-5, momentum: float = 0.1, flatten: bool = False, sync: bool = False
    ) -> nn.Module:
        return RepBN(dim, eps=eps, momentum=momentum, flatten=flatten, sync=sync)

    targets: dict[str, _Build] = {"prepbn": prepbn, "repbn": repbn, "un": UN1d, "bn": TokenBatchNorm}
    if to not in targets:
        raise UsageError(f"replace_layernorm cannot make {to!r}; it makes {', '.join(targets)}")
    known = {name for call in (targets[to], repbn if to == "prepbn" else targets[to]) for name in _options(call)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(f"{to} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}")

    def build(dim: int) -> nn.Module:
        return targets[to](dim, **options)

    try:
        build(2)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return build


def _options(call: Callable[..., nn.Module]) -> list[str]:
    parameters = list(inspect.signature(call).parameters.values())[1:]
    return [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD]


def _leave_fused_paths(model: nn.Module) -> None:
    """Torch's encoder has a fused path that computes LayerNorm from norm1.weight, whatever norm1 is: switch it off."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = module.use_nested_tensor = False
