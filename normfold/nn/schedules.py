"""How far the schedules of a model's norms are, and what comes after them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from normfold.norms.kinds import kind_of


@dataclass(frozen=True, slots=True)
class NormProgress:
    """How far one norm's schedule is. done: 0 to 1. left: what is left of it, empty at the end."""

    name: str
    kind: str
    done: float
    left: str

    @property
    def finished(self) -> bool:
        """Whether nothing is left."""
        return not self.left


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the norms of a model are that have a schedule or a warm-up."""

    norms: tuple[NormProgress, ...]

    @property
    def finished(self) -> bool:
        """Whether all are at their end."""
        return all(norm.finished for norm in self.norms)

    @property
    def done(self) -> float:
        """0 to 1, of the one that is least far; 1 without any."""
        return min((norm.done for norm in self.norms), default=1.0)

    def __str__(self) -> str:
        lines = [f"{norm.name}: {norm.kind}, {100 * norm.done:.0f} %, {norm.left or 'finished'}" for norm in self.norms]
        return "\n".join([f"{100 * self.done:.0f} % done", *lines])


def progress(model: nn.Module) -> Progress:
    """How far every PRepBN is in its fade, and every UN, PowerNorm and MABN in its warm-up. Waits for the device."""
    found = (_progress_of(name, module) for name, module in _norms(model, "", set()))
    return Progress(tuple(norm for norm in found if norm is not None))


def _progress_of(name: str, module: nn.Module) -> NormProgress | None:
    kind = kind_of(module)
    if kind is None:
        return None
    if kind.schedule is not None:
        return NormProgress(name, kind.name, kind.schedule.done(module), kind.schedule.left(module) or "")
    warmup, iters = getattr(module, "warmup_iters", None), getattr(module, "iters", None)
    if not isinstance(warmup, int) or not isinstance(iters, Tensor):
        return None
    count = int(iters.sum())
    left = f"{warmup - count} of {warmup} warm-up steps left" if count < warmup else ""
    return NormProgress(name, kind.name, min(1.0, count / warmup) if warmup else 1.0, left)


@dataclass(frozen=True, slots=True)
class Finish:
    """What `finish` did. finished: names of the norms that are plain RepBN now. left: the others, and why."""

    finished: tuple[str, ...]
    left: tuple[tuple[str, str], ...]


def finish(model: nn.Module) -> Finish:
    """Put RepBN in the place of every PRepBN whose schedule has ended, in place: norm1 and the counters go.

    The model computes what it computed in evaluation, and in training too. Its state dict loses `norm1.*` and `norm2.`;
    it loads into the model that `replace_layernorm(..., to="repbn")` makes, and folds without --allow-unfinished.
    """
    finished: list[str] = []
    left: list[tuple[str, str]] = []
    done: dict[int, nn.Module] = {}
    for name, module in list(_norms(model, "", None)):
        kind = kind_of(module)
        schedule = None if kind is None else kind.schedule
        if schedule is None:
            continue
        why = schedule.left(module) or ("" if name else f"it is the model itself; take its {schedule.after}")
        if why:
            left.append((name or "(the model itself)", why))
            continue
        owner, _, child = name.rpartition(".")
        new = done.setdefault(id(module), module.get_submodule(schedule.after))
        setattr(model.get_submodule(owner), child, new)
        finished.append(name)
    return Finish(tuple(finished), tuple(left))


def _norms(module: nn.Module, name: str, seen: set[int] | None) -> Iterator[tuple[str, nn.Module]]:
    """Every outermost norm with its name; a shared one once with `seen`, at every place without."""
    if kind_of(module) is not None:
        if seen is None or id(module) not in seen:
            yield name, module
        if seen is not None:
            seen.add(id(module))
        return
    for child, inner in module._modules.items():
        if inner is not None:
            yield from _norms(inner, f"{name}.{child}" if name else child, seen)
