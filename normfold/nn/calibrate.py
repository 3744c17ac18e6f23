"""Exact statistics for a trained model: those of all given batches, in evaluation mode, instead of running means."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normfold.errors import BatchError, UsageError
from normfold.nn.batchnorm import TokenBatchNorm
from normfold.nn.powernorm import MaskPowerNorm
from normfold.nn.recall import across_ranks
from normfold.nn.repbn import LinearNorm, RepBN
from normfold.nn.un import UN1d
from normfold.norms.base import NormKind
from normfold.norms.kinds import kind_of

# What is passed to the model: one input, several, or several by name.
Batch = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """What `recalibrate` did. tokens: of each norm, what its statistics were taken from; unseen: norms never called.

    layerwise: whether one norm was done after the other.
    """

    tokens: dict[str, int]
    unseen: tuple[str, ...]
    layerwise: bool


class Moments:
    """Count, mean and sum of squared deviations of tokens (P, C), in float64, batch by batch (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = torch.zeros(())
        self.spread = torch.zeros(())

    def add(self, tokens: Tensor) -> None:
        """Take in tokens (P, C)."""
        if not len(tokens):
            return
        work = tokens.detach().double()
        count, mean = float(len(work)), work.mean(0)
        spread = (work - mean).square().sum(0)
        if self.count:
            total, step = self.count + count, mean - self.mean
            self.mean = self.mean + step * (count / total)
            self.spread = self.spread + spread + step.square() * (self.count * count / total)
            self.count = total
        else:
            self.count, self.mean, self.spread = count, mean, spread

    def over_ranks(self, like: Tensor) -> None:
        """Those of all ranks; like: a statistic, for its shape and device where this rank has seen nothing."""
        if not self.count:
            self.mean = self.spread = like.detach().double().flatten() * 0.0
        own = self.mean.new_full((1,), self.count)
        count, total = across_ranks(own, self.mean * self.count)
        mean = total / count.clamp_min(1.0)
        (self.spread,) = across_ranks(self.spread + self.count * (self.mean - mean).square())
        self.count, self.mean = float(count), mean

    @property
    def variance(self) -> Tensor:
        """Of all tokens, biased: what normalises exactly these."""
        return self.spread / max(self.count, 1.0)

    @property
    def mean_square(self) -> Tensor:
        """E[x^2]."""
        return self.variance + self.mean.square()


@dataclass(frozen=True, slots=True)
class Site:
    """Where one norm's input is seen. module: what is called with it; tokens: that call's arguments to (P, C).

    holder: the module with the statistics, a norm of this kind.
    """

    name: str
    module: nn.Module
    holder: nn.Module
    kind: NormKind
    tokens: Callable[[tuple[Any, ...], dict[str, Any]], Tensor]

    @property
    def fresh(self) -> bool:
        """Whether its statistics are those of a new module."""
        found = ((getattr(self.holder, each.name, None), each.fresh) for each in self.kind.statistics)
        return all(bool((buffer == value).all()) for buffer, value in found if isinstance(buffer, Tensor))

    def write(self, moments: Moments) -> None:
        """Put the statistics of all tokens into the norm. Raises BatchError."""
        if not bool(torch.isfinite(moments.mean_square).all()):
            raise BatchError(f"{self.name}: the batches make NaN or infinite values in front of it; nothing changed")
        for buffer, value in self.values(moments):
            buffer.copy_(value.reshape(buffer.shape).to(buffer.dtype))

    def values(self, moments: Moments) -> Iterator[tuple[Tensor, Tensor]]:
        """Every stored statistic, and what it is by these moments."""
        for statistic in self.kind.statistics:
            buffer = getattr(self.holder, statistic.name, None)
            if not isinstance(buffer, Tensor):
                continue
            if statistic.of is None:
                raise UsageError(f"{self.name}: recalibrate cannot compute the {statistic.name} of {self.kind.name}")
            value: Tensor = getattr(moments, statistic.of)
            yield buffer, value


def recalibrate(model: nn.Module, batches: Iterable[Batch], *, layerwise: bool | None = None) -> Recalibrated:
    """Give every norm with stored statistics those of all `batches`, in evaluation mode: exact, not running means.

    The mean and the (biased) variance of BatchNorm, RepBN and PRepBN, E[x^2] of UN, PowerNorm (behind its group
    scaling) and MABN, over all tokens of all batches, of all ranks of torch.distributed if there are several; in
    float64, streaming. Padding is left out where the model passes a mask to one of this package's norms.
    batches: what the model is called with: a tensor, a sequence of arguments, or a mapping of keyword arguments.
    layerwise: True: one norm after the other in the order of their first calls, each from what the norms before it,
    already done, let through; a pass over the batches for every norm. False: one pass, all from the old statistics,
    which have to mean something. None: layerwise where the statistics of any norm are fresh, as after a swap.
    Every module keeps its mode; parameters and counters do not change.
    Raises UsageError without norms or batches, BatchError (nothing changed) for NaN.
    """
    require_batches(batches)
    sites = list(_sites(model))
    if not sites:
        raise UsageError("recalibrate: the model has no norm with stored statistics")
    if layerwise is None:
        layerwise = bool(_over_ranks([float(any(site.fresh for site in sites))], sites)[0])
    if layerwise and not isinstance(batches, Sequence):
        batches = list(batches)
    before = [[buffer.clone() for buffer, _ in site.values(Moments())] for site in sites]
    tokens: dict[str, int] = {}
    try:
        with evaluating(model):
            if layerwise:
                for site in _in_order(observe(model, batches, sites).order, sites):
                    tokens |= _take(observe(model, batches, [site]), [site])
            else:
                tokens = _take(observe(model, batches, sites), sites)
    except BaseException:
        for site, old in zip(sites, before, strict=True):
            for (buffer, _), value in zip(site.values(Moments()), old, strict=True):
                buffer.copy_(value)
        raise
    unseen = tuple(name for name, count in tokens.items() if not count)
    return Recalibrated({name: count for name, count in tokens.items() if count}, unseen, layerwise)


def _in_order(order: Mapping[str, int], sites: Sequence[Site]) -> list[Site]:
    """By first calls, the same on every rank: one that has seen less must not meet the others at another norm."""
    places = _over_ranks([float(order.get(site.name, len(sites))) for site in sites], sites)
    return [site for _, site in sorted(zip(places, sites, strict=True), key=lambda item: item[0])]


def _over_ranks(numbers: Sequence[float], sites: Sequence[Site]) -> list[float]:
    """Sums over all ranks, taken where the statistics are."""
    device = next(buffer for buffer, _ in sites[0].values(Moments())).device
    (sums,) = across_ranks(torch.tensor(numbers, dtype=torch.float32, device=device))
    found: list[float] = sums.tolist()
    return found


def _take(seen: Seen, sites: Iterable[Site]) -> dict[str, int]:
    """Put what was seen into the norms; from how many tokens each."""
    tokens = {}
    for site in sites:
        moments = seen.moments[site.name]
        moments.over_ranks(next(buffer for buffer, _ in site.values(moments)))
        if moments.count:
            site.write(moments)
        tokens[site.name] = int(moments.count)
    return tokens


@dataclass(slots=True)
class Seen:
    """What one pass over the batches saw. order: of each site's first call."""

    moments: dict[str, Moments]
    order: dict[str, int]


def observe(model: nn.Module, batches: Iterable[Batch], sites: Sequence[Site]) -> Seen:
    """One pass over the batches. Raises UsageError where no rank has any."""
    seen = Seen({site.name: Moments() for site in sites}, {})

    def watch(site: Site) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.order.setdefault(site.name, len(seen.order))
            seen.moments[site.name].add(site.tokens(args, kwargs))

        return hook

    with watched([(site.module, watch(site)) for site in sites]):
        if not _over_ranks([float(run(model, batches))], sites)[0]:
            raise UsageError("there are no batches to take statistics from")
    return seen


@contextmanager
def watched(hooks: Iterable[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    """Call each hook with what its module is called with."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def require_batches(batches: Iterable[Batch]) -> None:
    """Raise UsageError for one batch: its rows are no batches."""
    if isinstance(batches, Tensor | Mapping | str):
        raise UsageError(f"the batches are one {type(batches).__name__}; give a list of batches, such as [x]")


def run(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Call the model with every batch; how many there were. Raises UsageError for what is no batch."""
    require_batches(batches)
    number = 0
    for batch in batches:
        number += 1
        args, kwargs = _call(model, batch)
        model(*args, **kwargs)
    return number


def _call(model: nn.Module, batch: Batch) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments of one call. Raises UsageError for what the model does not take."""
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    if isinstance(batch, Tensor):
        args = (batch,)
    elif isinstance(batch, Mapping):
        kwargs = batch
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        args = batch
    else:
        raise UsageError(
            f"a batch is a tensor, a sequence of arguments or a mapping of them, not {type(batch).__name__}"
        )
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except ValueError:
        # TorchScript has no signature.
        pass
    except TypeError as error:
        raise UsageError(
            f"a batch is what the model is called with, and {type(model).__name__} does not take this one: {error}. "
            "Leave labels out: (x for x, _ in loader)"
        ) from error
    return args, kwargs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, without gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _sites(module: nn.Module, name: str = "", seen: set[int] | None = None) -> Iterator[Site]:
    """Every norm with stored statistics, once however often it is shared."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    kind = kind_of(module)
    if kind is None:
        for child, inner in module._modules.items():
            if inner is not None:
                yield from _sites(inner, f"{name}.{child}" if name else child, seen)
    elif not kind.per_token:
        site = _site(name or "(the model itself)", module)
        if site is not None and any(True for _ in site.values(Moments())):
            yield site


def _site(name: str, module: nn.Module) -> Site | None:
    """Where the norm `module` is seen; None where what it holds is no norm with statistics."""
    holder, kind = module, kind_of(module)
    while kind is not None and kind.inner:
        holder = holder.get_submodule(kind.inner)
        kind = kind_of(holder)
    if kind is None:
        return None
    if isinstance(module, LinearNorm | RepBN | TokenBatchNorm):
        return Site(name, module, holder, kind, _rows(real=True))
    if isinstance(module, MaskPowerNorm):
        return Site(name, module, holder, kind, _scaled_rows(module))
    # A copy of the published PowerNorm: its statistics are those of what its group scaling makes.
    children = holder.children() if kind.keeps_statistic(holder) else ()
    scaling = next((child for child in children if any("group" in key for key in vars(child))), None)
    rows = _rows(axis=channel_axis(holder), padding=isinstance(module, UN1d), after=scaling)
    return Site(name, holder, holder, kind, rows)


def channel_axis(module: nn.Module) -> int:
    """The axis of the channels in what a norm takes: -1 or 1."""
    kind = kind_of(module)
    return -1 if kind is None or isinstance(module, TokenBatchNorm) else kind.axis


def _rows(
    *, axis: int = -1, real: bool = False, padding: bool = False, after: nn.Module | None = None
) -> Callable[[tuple[Any, ...], dict[str, Any]], Tensor]:
    """Tokens (P, C) from a call with x, channels on `axis`. real, padding: what a mask behind x means by True."""

    def rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        x, mask = _arguments(args, kwargs)
        x = x if after is None else after(x)
        x = x.movedim(axis, -1) if x.dim() > 1 else x[None]
        tokens = x.reshape(-1, x.shape[-1])
        if mask is None or not (real or padding):
            return tokens
        keep = mask.bool() if real else ~mask.bool()
        return tokens[keep.reshape(-1)]

    return rows


def _scaled_rows(norm: MaskPowerNorm) -> Callable[[tuple[Any, ...], dict[str, Any]], Tensor]:
    def rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        x, mask = _arguments(args, kwargs)
        x = norm.gp(x)
        padding = norm._padding(x, mask)
        tokens: Tensor = x.flatten(0, -2) if padding is None else x[~padding]
        return tokens

    return rows


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """The first argument of a call, and its mask if there is one."""
    named = dict(kwargs)
    mask = args[1] if len(args) > 1 else named.pop("pad_mask", None)
    x = args[0] if args else next(iter(named.values()))
    return x, mask if isinstance(mask, Tensor) else None
