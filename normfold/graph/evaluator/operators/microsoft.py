"""What onnxruntime's optimiser and exporters to it write, in its own domain: fused layers and quantised products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.convolution import convolved
from normfold.graph.evaluator.operators.creation import number_range
from normfold.graph.evaluator.operators.indexing import gather_nd
from normfold.graph.evaluator.operators.layout import trilu
from normfold.graph.evaluator.operators.matrix import gemm, matmul, shifted, to_int32
from normfold.graph.evaluator.operators.normalize import by_root_mean_square, normalized, scaled
from normfold.graph.evaluator.operators.padding import pad
from normfold.graph.evaluator.operators.quantised import dynamic_quantize
from normfold.graph.evaluator.operators.sampling import grid_sample
from normfold.graph.evaluator.values import Tensor


def gelu(_: Call, x: Tensor) -> Tensor:
    """x * Phi(x)."""
    return F.gelu(x)


def bias_gelu(_: Call, x: Tensor, bias: Tensor) -> Tensor:
    """Gelu of x + bias."""
    return F.gelu(x + bias)


def fast_gelu(_: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu by tanh, of x + bias."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def quick_gelu(call: Call, x: Tensor) -> Tensor:
    """x * sigmoid(alpha * x)."""
    return x * torch.sigmoid(call.number("alpha", 1.702) * x)


def skip_layer_norm(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> Any:
    """LayerNormalization of x + skip + bias. Outputs: Y, mean, 1 / deviation, and the sum."""
    total = x + skip if bias is None else x + skip + bias
    y, mean, inverse = normalized(total, -1, call.number("epsilon", 1e-12))
    return scaled(y, scale, shift), mean, inverse, total


def skip_rms_norm(call: Call, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    """RMS normalization of x + skip + bias. Outputs: Y, nothing, 1 / RMS, and the sum."""
    total = x + skip if bias is None else x + skip + bias
    y, inverse = by_root_mean_square(total, -1, call.number("epsilon", 1e-12))
    return scaled(y, scale, None), None, inverse, total


def embed_layer_norm(
    call: Call,
    tokens: Tensor,
    segments: Tensor | None,
    words: Tensor,
    places: Tensor,
    segment_table: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> Any:
    """LayerNormalization of the sum of three embeddings. Outputs: Y, how many tokens the mask keeps, and the sum."""
    if call.integer("mask_index_type", 1) not in (0, 1):
        raise call.refuse("a mask_index_type of its own")
    total = words[tokens.long()] + (places[: tokens.shape[1]] if positions is None else places[positions.long()])
    if segment_table is not None and segments is not None:
        total += segment_table[segments.long()]
    kept = torch.zeros(tokens.shape[0], dtype=torch.int32)
    if mask is not None:
        kept = mask.sum(dim=1).to(torch.int32)
    y, _, _ = normalized(total, -1, call.number("epsilon", 1e-12))
    return scaled(y, scale, shift), kept, total


def _activated(call: Call, y: Tensor, name: str, numbers: Sequence[float]) -> Tensor:
    """An activation that was fused into the operator before it, with its parameters in order."""
    match name, list(numbers):
        case "" | "Identity", _:
            return y
        case "Relu", _:
            return y.relu_()
        case "Tanh", _:
            return y.tanh_()
        case "Sigmoid", _:
            return y.sigmoid_()
        case "Softplus", _:
            return torch.logaddexp(y, torch.zeros_like(y))
        case "Softsign", _:
            return F.softsign(y)
        case "LeakyRelu", [alpha, *_]:
            return F.leaky_relu(y, alpha)
        case "Elu", [alpha, *_]:
            return F.elu(y, alpha)
        case "ThresholdedRelu", [alpha, *_]:
            return torch.where(y > alpha, y, 0.0)
        case "Clip", [least, most]:
            return y.clamp_(least, most)
        case "HardSigmoid", [alpha, beta]:
            return (alpha * y + beta).clamp_(0, 1)
    raise call.refuse(f"a fused activation {name!r} with {len(numbers)} parameters")


def fused_conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None) -> Tensor:
    """A convolution, to which Z is added, and an activation."""
    y = convolved(call, x, w)
    if b is not None:
        y += b.reshape(-1, *[1] * (y.dim() - 2))
    if z is not None:
        y += z
    return _activated(call, y, call.text("activation", ""), call.numbers("activation_params") or [])


def fused_gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm and an activation."""
    names = [f"activation_{name}" for name in ("alpha", "beta", "gamma")]
    numbers = [call.number(name, 0.0) for name in names if call.has(name)]
    return _activated(call, gemm(call, a, b, c), call.text("activation", ""), numbers)


def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """alpha * A B, each turned by its last two axes, or (transBatch) with the first axis behind the batch."""
    sides = []
    for x, name in ((a, "A"), (b, "B")):
        if call.integer(f"transBatch{name}", 0):
            x = x.movedim(0, -2)
        sides.append(x.transpose(-1, -2) if call.integer(f"trans{name}", 0) and x.dim() > 1 else x)
    return matmul(call, *sides) * call.number("alpha", 1.0)


def matmul_n_bits(
    call: Call,
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    order: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A B' where B (N, K) lies in blocks of a few bits, with a scale and a zero point for every block.

    accuracy_level allows onnxruntime to round A; here it is not rounded.
    """
    call.integer("accuracy_level", 0)
    bits, size = call.integer("bits", 4), call.integer("block_size", 32)
    rows, inner = call.integer("N", 0), call.integer("K", 0)
    if order is not None or call.integer("weight_prepacked", 0) or 8 % bits:
        raise call.refuse("an order of its own, or bits that do not fill bytes")
    blocks = -(-inner // size)
    steps = _unpacked(b.reshape(rows, blocks, -1), bits)[..., :size].double()
    if zeros is None:
        steps -= 1 << (bits - 1)
    elif zeros.dtype == torch.uint8:
        steps -= _unpacked(zeros.reshape(rows, -1), bits)[:, :blocks, None].double()
    else:
        steps -= zeros.reshape(rows, blocks, 1)
    weight = (steps * scales.reshape(rows, blocks, 1)).flatten(1)[:, :inner]
    y = matmul(call, a, weight.T)
    return y if bias is None else y + bias


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """The numbers in bytes, the lowest bits first."""
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).flatten(-2)


def dynamic_quantize_matmul(
    call: Call, a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """A is quantised by its range, multiplied with the quantised B, and the product scaled back."""
    quantised, a_scale, a_zero = dynamic_quantize(call, a)
    return matmul_integer_to_float(call, quantised, b, a_scale, b_scale, a_zero, b_zero, bias)


def matmul_integer_to_float(
    call: Call,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A product of quantised matrices as floats."""
    total = to_int32(matmul(call, shifted(a, a_zero), shifted(b, b_zero)))
    y = total.double() * (a_scale * b_scale)
    return y if bias is None else y + bias


def expand_dims(_: Call, x: Tensor, axis: Tensor) -> Tensor:
    """One more axis of size 1."""
    return x.unsqueeze(int(axis.reshape(-1)[0]))


def inverse(_: Call, x: Tensor) -> Tensor:
    """Inverses of square matrices."""
    found: Tensor = torch.linalg.inv(x)
    return found


def range_by_one(call: Call, start: Tensor, limit: Tensor, delta: Tensor | None = None) -> Tensor:
    """Range, with a step of 1 unless there is another."""
    return number_range(call, start, limit, torch.ones_like(start) if delta is None else delta)


# The last ones were operators here before they were the standard's.
ROWS: Rows = {
    "BiasGelu": {(1,): bias_gelu},
    "DynamicQuantizeMatMul": {(1,): dynamic_quantize_matmul},
    "EmbedLayerNormalization": {(1,): embed_layer_norm},
    "FastGelu": {(1,): fast_gelu},
    "FusedConv": {(1,): fused_conv},
    "FusedGemm": {(1,): fused_gemm},
    "FusedMatMul": {(1,): fused_matmul},
    "Gelu": {(1,): gelu},
    "MatMulIntegerToFloat": {(1,): matmul_integer_to_float},
    "MatMulNBits": {(1,): matmul_n_bits},
    "QuickGelu": {(1,): quick_gelu},
    "SkipLayerNormalization": {(1,): skip_layer_norm},
    "SkipSimplifiedLayerNormalization": {(1,): skip_rms_norm},
    "TransposeMatMul": {(1,): fused_matmul},
    "ExpandDims": {(1,): expand_dims},
    "GatherND": {(1,): gather_nd},
    "GridSample": {(1,): grid_sample},
    "Inverse": {(1,): inverse},
    "Pad": {(1,): pad},
    "Range": {(1,): range_by_one},
    "Trilu": {(1,): trilu},
}
