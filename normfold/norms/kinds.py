"""The norms that normfold knows: one table, a row for each. How to add one: docs/extending/norm.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from normfold.norms.base import NormKind, Schedule, Shapes, Statistic, endings, is_class, own_names
from normfold.norms.closed_form import batchnorm, repbn, unified

if TYPE_CHECKING:
    from torch import nn

MEAN, VARIANCE = Statistic("running_mean", "mean", signed=True), Statistic("running_var", "variance")
# UN and MABN keep it under the name of BatchNorm's variance.
MEAN_SQUARE = Statistic("running_var", "mean_square")


def _is_prepbn(module: nn.Module) -> bool:
    return {"norm1", "norm2"} <= module._modules.keys() and "iter" in own_names(module)


def _steps_left(module: nn.Module) -> str | None:
    """The buffers as published: `warm` steps of warm-up, then `iter` counts down from `total_step` to 0."""
    steps, warm, total = (float(getattr(module, name, 0)) for name in ("iter", "warm", "total_step"))
    if not steps and not warm:
        return None
    done = f", {100 * (1 - steps / total):.0f} % done" if total else ""
    warmup = f", and {warm:g} warm-up steps before it" if warm else ""
    return f"{steps:g} of {total:g} steps left{done}{warmup}"


def _share_done(module: nn.Module) -> float:
    warm, steps, total = (float(getattr(module, name, 0)) for name in ("warm", "iter", "total_step"))
    return 0.0 if warm else 1.0 - steps / total if total else 1.0


def _prepbn_options(shapes: Shapes) -> Mapping[str, Any]:
    """Published detection code has no warm-up, and no entry for it."""
    return {} if "warm" in endings(shapes) else {"warm": None}


def _is_repbn(module: nn.Module) -> bool:
    inner = module._modules.get("bn")
    return "alpha" in own_names(module) and inner is not None and _is_batch_norm(inner)


def _is_batch_norm(module: nn.Module) -> bool:
    own = own_names(module)
    return is_class(module, "torch.nn.modules.batchnorm._BatchNorm") or {MEAN.name, VARIANCE.name} <= own


def _is_un(module: nn.Module) -> bool:
    own = own_names(module)
    return VARIANCE.name in own and bool(own & {"ema_gz", "skip_counter"}) and not _is_batch_norm(module)


def _is_mabn(module: nn.Module) -> bool:
    """It has UN's window and no mean of gradients."""
    own = own_names(module)
    return {VARIANCE.name, "buffer_x2"} <= own and not own & {"ema_gz", "skip_counter"} and not _is_batch_norm(module)


def _un_options(shapes: Shapes) -> Mapping[str, Any]:
    """The window: how many iterations the buffers hold."""
    windows = (shape[0] for name, shape in shapes.items() if name.endswith("buffer_x2") and len(shape) == 2)
    window = next(windows, None)
    return {} if window is None else {"window": window}


def _has_group_scaling(module: nn.Module) -> bool:
    """Published PowerNorm holds a GroupScaling1D module; a flag switches it off in the variants."""
    flag = getattr(module, "group_scaling", None)
    if isinstance(flag, int):
        return bool(flag)
    return any(re.search("group_?scal", type(child).__name__, re.IGNORECASE) for child in module.children())


def _is_token_norm(module: nn.Module, name: str) -> bool:
    """torch's own class, or a user's: that has nothing but a weight, like other layers, so its class name decides."""
    if is_class(module, f"torch.nn.modules.normalization.{name}"):
        return True
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 1 or module._modules or not own_names(module) <= {"weight", "bias"}:
        return False
    return name.lower() in type(module).__name__.lower().replace("_", "")


# In the order in which a module or a state dict is tried: PRepBN holds a RepBN, and RepBN a BatchNorm.
KINDS: tuple[NormKind, ...] = (
    NormKind(
        "PRepBN",
        "prepbn",
        is_module=_is_prepbn,
        is_state=lambda shapes: "total_step" in endings(shapes),
        closed_form=repbn,
        classes=("PRepBN", "LinearNorm"),
        inner="norm2",
        schedule=Schedule("norm1", "norm2", _steps_left, _share_done),
        options=_prepbn_options,
        defaults={"warm": 0},
    ),
    NormKind(
        "RepBN",
        "repbn",
        is_module=_is_repbn,
        is_state=lambda shapes: any(name.endswith("bn.running_var") for name in shapes) and "alpha" in endings(shapes),
        closed_form=repbn,
        classes=("RepBN",),
        operators=("BatchNormalization", "Add", "Mul"),
        inner="bn",
    ),
    NormKind(
        "PowerNorm",
        "powernorm",
        is_module=lambda module: "running_phi" in own_names(module),
        is_state=lambda shapes: "running_phi" in endings(shapes),
        closed_form=unified,
        classes=("PowerNorm", "MaskPowerNorm"),
        statistics=(Statistic("running_phi", "mean_square"),),
        keeps_statistic=_has_group_scaling,
    ),
    NormKind(
        "UN",
        "un",
        is_module=_is_un,
        is_state=lambda shapes: "ema_gz" in endings(shapes),
        closed_form=unified,
        words=("un1d", "un"),
        classes=("UN1d", "UN"),
        statistics=(MEAN_SQUARE,),
        options=_un_options,
        defaults={"window": 4},
    ),
    NormKind(
        "MABN",
        "mabn",
        is_module=_is_mabn,
        is_state=lambda shapes: "buffer_x2" in endings(shapes),
        closed_form=unified,
        classes=("MABN2d",),
        statistics=(MEAN_SQUARE,),
        axis=1,
    ),
    NormKind(
        "BatchNorm",
        "bn",
        is_module=_is_batch_norm,
        is_state=lambda shapes: VARIANCE.name in endings(shapes),
        closed_form=batchnorm,
        classes=("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
        operators=("BatchNormalization",),
        statistics=(MEAN, VARIANCE),
        axis=1,
    ),
    NormKind(
        "LayerNorm",
        "ln",
        is_module=lambda module: _is_token_norm(module, "LayerNorm"),
        is_state=lambda shapes: any("norm" in name and name.endswith(".bias") for name in shapes),
        words=("ln", "layernorm", "layer_norm"),
        classes=("LayerNorm",),
        operators=("LayerNormalization",),
        opset=17,
        centred=True,
    ),
    NormKind(
        "RMSNorm",
        "rms",
        is_module=lambda module: _is_token_norm(module, "RMSNorm"),
        is_state=lambda shapes: any("norm" in name for name in shapes),
        classes=("RMSNorm",),
        operators=("RMSNormalization",),
        opset=23,
    ),
)


def kind_of(module: nn.Module) -> NormKind | None:
    """The kind of norm that a module is, or None."""
    return next((kind for kind in KINDS if kind.is_module(module)), None)


def kind_in(shapes: Shapes) -> NormKind | None:
    """The kind of the norms in a state dict, or None where it holds none."""
    return next((kind for kind in KINDS if kind.is_state(shapes)), None)


def kind_of_class(name: str) -> NormKind | None:
    """The kind of the norms of a class, by its name without the package."""
    return next((kind for kind in KINDS if name in kind.classes), None)


def kind_of_operators(operators: set[str]) -> NormKind | None:
    """The kind that a graph spells in these operators, or None."""
    return next((kind for kind in KINDS if kind.operators and set(kind.operators) <= operators), None)


def kind_with_short(short: object) -> NormKind | None:
    """The kind of this short name, or None."""
    return next((kind for kind in KINDS if kind.short == short and kind.short), None)


def token_norm(*, centred: bool) -> NormKind:
    """LayerNorm, which subtracts the mean, or RMSNorm, which does not."""
    return next(kind for kind in KINDS if kind.per_token and kind.centred == centred)


def token_norm_of(operator: str) -> NormKind | None:
    """The norm per token that an operator is by itself, or None."""
    kind = kind_of_operators({operator})
    return kind if kind is not None and kind.per_token else None


def is_token_norm(name: str) -> bool:
    """Whether a norm of this name computes its statistics for every token, so that it stays in the graph."""
    return any(kind.per_token and kind.name == name for kind in KINDS)


def name_of(module: nn.Module) -> str | None:
    """The name of the kind of norm that a module is, or None."""
    kind = kind_of(module)
    return None if kind is None else kind.name
