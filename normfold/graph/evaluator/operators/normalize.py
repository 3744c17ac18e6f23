"""Normalisation: by stored statistics, and by those of the input."""

from __future__ import annotations

from typing import Any

import torch

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.values import Tensor

# In the ONNX function that defines MeanVarianceNormalization.
_TINY = 1e-9


def batch_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Any:
    """(x - mean) / sqrt(var + epsilon) * scale + bias by stored statistics; axis 1 has the channels.

    Before opset 14 further outputs say that it is trained; onnxruntime obeys them too.
    """
    if any(call.wants(output) for output in range(1, 5)):
        return _trained(call, x, scale, bias, mean, var)
    call.number("momentum", 0.9)
    return _by_channel(call, x, scale, bias, mean, var)


def batch_norm_7(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Any:
    """As above; with spatial=0 every position has statistics of its own."""
    if call.integer("spatial", 1):
        return batch_norm(call, x, scale, bias, mean, var)
    call.number("momentum", 0.9)
    if call.wants(1):
        raise call.refuse("training with spatial=0")
    return (x - mean) / torch.sqrt(var + call.number("epsilon", 1e-5)) * scale + bias


def batch_norm_14(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Any:
    """As above; it is an attribute that says whether it is trained."""
    if call.integer("training_mode", 0):
        return _trained(call, x, scale, bias, mean, var)[:3]
    call.number("momentum", 0.9)
    return _by_channel(call, x, scale, bias, mean, var)


def _trained(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """By the statistics of the input. Outputs: Y, the running ones, and those of the input (mean, 1 / deviation)."""
    momentum = call.number("momentum", 0.9)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    of_input = x.mean(dim=axes)
    spread = x.var(dim=axes, correction=0) if x.numel() else of_input  # NaN, of which torch warns
    y = _by_channel(call, x, scale, bias, of_input, spread)
    inverse = torch.rsqrt(spread + call.number("epsilon", 1e-5))
    return y, torch.lerp(of_input, mean, momentum), torch.lerp(spread, var, momentum), of_input, inverse


def _by_channel(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    epsilon = call.number("epsilon", 1e-5)
    shaped = x.unsqueeze(1) if x.dim() == 1 else x
    return torch.batch_norm(shaped, scale, bias, mean, var, False, 0.0, epsilon, False).reshape(x.shape)


def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Every channel of every sample has the mean 0 and the variance 1 before it is scaled."""
    return torch.group_norm(x, x.shape[1], scale, bias, call.number("epsilon", 1e-5), False)


def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Statistics of groups of channels; a scale for every channel. What stash_type says of precision is float64."""
    call.integer("stash_type", 1)
    return torch.group_norm(x, call.integer("num_groups", 1), scale, bias, call.number("epsilon", 1e-5), False)


def group_norm_18(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """As above, with a scale for every group."""
    each = x.shape[1] // call.integer("num_groups", 1)
    return group_norm(call, x, scale.repeat_interleave(each), bias.repeat_interleave(each))


def layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The axes from `axis` on have mean 0 and variance 1 before they are scaled. Outputs: Y, mean, 1 / deviation."""
    call.integer("stash_type", 1)
    y, mean, inverse = normalized(x, call.integer("axis", -1), call.number("epsilon", 1e-5))
    return scaled(y, scale, bias), mean, inverse


def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """x / sqrt(mean(x**2) + epsilon) * scale over the axes from `axis` on."""
    call.integer("stash_type", 1)
    y, _ = by_root_mean_square(x, call.integer("axis", -1), call.number("epsilon", 1e-5))
    return scaled(y, scale, None)


def simplified_layer_norm(call: Call, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """onnxruntime's RMS normalization, which it keeps in the standard domain; its second output is 1 / RMS."""
    call.integer("stash_type", 1)
    y, inverse = by_root_mean_square(x, call.integer("axis", -1), call.number("epsilon", 1e-5))
    return scaled(y, scale, None), inverse


def normalized(x: Tensor, axis: int, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean 0 and variance 1 over the axes from `axis` on; the mean, and 1 / sqrt(variance + epsilon)."""
    y, mean, inverse = torch.native_layer_norm(x, x.shape[axis:], None, None, epsilon)
    return y, mean, inverse


def by_root_mean_square(x: Tensor, axis: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x**2) + epsilon) over the axes from `axis` on; and what x was multiplied with."""
    axes = list(range(axis % x.dim(), x.dim()))
    inverse = torch.rsqrt(x.square().mean(dim=axes, keepdim=True) + epsilon)
    return x * inverse, inverse


def scaled(y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """y * scale + bias, in place."""
    y *= scale
    return y if bias is None else y.add_(bias)


def mean_variance_norm(call: Call, x: Tensor) -> Tensor:
    """(x - mean) / (deviation + 1e-9) over the axes. onnxruntime leaves the 1e-9 away, and subtracts squares."""
    axes = call.integers("axes", [0, 2, 3])
    centred = x - x.mean(dim=axes, keepdim=True)
    return centred / (centred.square().mean(dim=axes, keepdim=True).sqrt_() + _TINY)


def mean_variance_norm_1(call: Call, x: Tensor) -> Tensor:
    """onnxruntime's own, before the standard had it: over batch and space, or over all."""
    axes = [0, 1, 2, 3] if call.integer("across_channels", 0) else [0, 2, 3]
    centred = x - x.mean(dim=axes, keepdim=True)
    if not call.integer("normalize_variance", 1):
        return centred
    return centred / centred.square().mean(dim=axes, keepdim=True).sqrt_()


def local_response_norm(call: Call, x: Tensor) -> Tensor:
    """x / (bias + alpha / size * sum of the squares of `size` neighbouring channels) ** beta."""
    size, alpha = call.integer("size", 1), call.number("alpha", 1e-4)
    channels, before = x.shape[1], (size - 1) // 2
    squares, sums = x.square(), torch.zeros_like(x)
    for offset in range(-before, size - before):
        reached = max(channels - abs(offset), 0)
        first = max(offset, 0)
        sums.narrow(1, first - offset if reached else 0, reached).add_(
            squares.narrow(1, first if reached else 0, reached)
        )
    return x / (call.number("bias", 1.0) + alpha / size * sums).pow_(call.number("beta", 0.75))


def lp_norm(call: Call, x: Tensor) -> Tensor:
    """x divided by its norm along an axis; zero where that is zero."""
    order = call.integer("p", 2)
    if order not in (1, 2):
        raise call.refuse(f"p={order}")
    norm = torch.linalg.vector_norm(x, ord=order, dim=call.integer("axis", -1), keepdim=True)
    return torch.where(norm == 0, 0.0, x / norm)


ROWS: Rows = {
    "BatchNormalization": {(7,): batch_norm_7, (9,): batch_norm, (14, 15): batch_norm_14},
    "GroupNormalization": {(18,): group_norm_18, (21,): group_norm},
    "InstanceNormalization": {(6, 22): instance_norm},
    "LRN": {(1, 13): local_response_norm},
    # 1: onnxruntime knows it before opset 17 as well.
    "LayerNormalization": {(1, 17): layer_norm},
    "LpNormalization": {(1, 22): lp_norm},
    "MeanVarianceNormalization": {(1,): mean_variance_norm_1, (9, 13): mean_variance_norm},
    "RMSNormalization": {(23,): rms_norm},
    "SimplifiedLayerNormalization": {(1,): simplified_layer_norm},
}
