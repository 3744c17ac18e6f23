"""The record of a norm: everything that normfold knows of it. The table of them is `kinds.KINDS`.

No torch here: the analysis reads these records too. The functions of a record that look at a module are called with
one, so torch is there by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from normfold.graph.affine import Frame

if TYPE_CHECKING:
    from torch import nn

# The names in a state dict, each with the shape of its tensor.
Shapes = Mapping[str, tuple[int, ...]]


# What a statistic is of the tokens that a norm reads; the variance is the biased one.
Moment = Literal["mean", "variance", "mean_square"]


@dataclass(frozen=True, slots=True)
class Statistic:
    """A buffer that evaluation reads.

    of: what it holds of the tokens, as `recalibrate` computes it; None: something that it cannot compute. signed:
    whether it may be negative, as a mean may and a variance may not.
    """

    name: str
    of: Moment | None = None
    signed: bool = False

    @property
    def fresh(self) -> float:
        """Its entries in a new module: 0 for a mean, 1 for a variance or a mean square."""
        return 0.0 if self.signed else 1.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """For a norm that another one fades into during training, of which evaluation reads the later one alone.

    before, after: the names of the two modules in it. left: how far an unfinished schedule is, in words; None when it
    has ended. done: the share of it that is done, 0 to 1.
    """

    before: str
    after: str
    left: Callable[[nn.Module], str | None]
    done: Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True)
class NormKind:
    """One norm.

    name: as published; reports have it. short: as built-in architectures are called and configured ("un"), empty where
    none is. words: what configurations of others call it, in lower case.
    closed_form: its map in evaluation (closed_form.py); None: it computes a statistic for every token, which stays in
    the graph whatever becomes of its weight and bias.
    is_module: whether a module is one, by the names of its parameters, buffers and children: a user's own copy of a
    paper's code counts. is_state: whether a state dict holds such norms, by the endings of its names.
    classes: class names that exporters write into graphs, for graphs that come without their checkpoint.
    operators: how a graph spells it where there is neither; one operator alone, or all of these in one map.
    statistics: its own buffers. inner: the module inside it that has its statistics; empty: itself.
    axis: on which the channels lie in what a module takes, as published: -1 or 1.
    keeps_statistic: whether this module computes a statistic for every token beside those it stores.
    schedule: see `Schedule`. options: what a state dict shows of its options; defaults: of these.
    opset: the first with the operator of a norm per token. centred: whether that subtracts the mean, and adds a bias.
    """

    name: str
    short: str
    is_module: Callable[[nn.Module], bool]
    is_state: Callable[[Shapes], bool]
    closed_form: Callable[..., Frame] | None = None
    words: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    inner: str = ""
    axis: int = -1
    keeps_statistic: Callable[[nn.Module], bool] = lambda module: False
    schedule: Schedule | None = None
    options: Callable[[Shapes], Mapping[str, Any]] = lambda shapes: {}
    defaults: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 0
    centred: bool = False

    @property
    def per_token(self) -> bool:
        """Whether all of its statistics are computed for every token: LayerNorm, RMSNorm."""
        return self.closed_form is None


def own_names(module: nn.Module) -> set[str]:
    """The names of a module's own parameters and buffers, those of its children left out."""
    members = (*module._parameters.items(), *module._buffers.items())
    return {name for name, tensor in members if tensor is not None}


def endings(shapes: Shapes) -> set[str]:
    """The last parts of the names in a state dict."""
    return {name.rpartition(".")[2] for name in shapes}


def is_class(module: nn.Module, name: str) -> bool:
    """Whether a module is of torch's class of this name, such as "torch.nn.modules.batchnorm._BatchNorm"."""
    return any(f"{cls.__module__}.{cls.__qualname__}" == name for cls in type(module).__mro__)


@dataclass(frozen=True, slots=True)
class NormModule:
    """A norm of the model. kind: the name of its `NormKind`.

    name: dotted path of the module. channels: length of its statistics or weight. keeps_statistic: it computes a
    statistic for every token as well, which stays in the graph (PowerNorm with group scaling).
    """

    name: str
    kind: str
    channels: int
    keeps_statistic: bool = False
