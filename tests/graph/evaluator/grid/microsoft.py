"""com.microsoft: what exporters and onnxruntime's own optimiser write."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.pointwise import SPECIAL
from tests.graph.evaluator.grid.rows import MICROSOFT, F, N, U, V, const, row


def ms(op: str, *inputs: Any, **forms: Any) -> Case:
    """A row of the com.microsoft domain."""
    return row(op, *inputs, domain=MICROSOFT, **forms)


def cases() -> Iterator[Case]:
    yield from activations()
    yield from norms()
    yield from products()
    yield from convolutions()
    yield from attention()
    yield from grouped_query()
    yield from embeddings()
    yield from others()


def activations() -> Iterator[Case]:
    for op in ("Gelu", "FastGelu", "QuickGelu"):
        yield ms(op, F(2, 3, 4))
        yield ms(op, U(-9, 9, 32))
        yield ms(op, SPECIAL[3:])
    yield ms("FastGelu", F(2, 3, 4), F(4))
    for alpha in (1.0, 0.5, -1.702):
        yield ms("QuickGelu", F(2, 3, 4), alpha=alpha)
    yield ms("BiasGelu", F(2, 3, 4), F(4))
    yield ms("ScaledSiLU", F(2, 3, 4), alpha=0.7)


def norms() -> Iterator[Case]:
    for shape, epsilon in product(((2, 3, 8), (6, 8)), (None, 1e-5, 0.1)):
        x, gamma, beta, bias = F(*shape), F(8), F(8), F(8)
        for extra in ((), (beta,), (beta, bias), (None, bias)):
            yield ms("SkipLayerNormalization", x, F(*shape), gamma, *extra, epsilon=epsilon)
        yield ms("SkipSimplifiedLayerNormalization", x, F(*shape), gamma, epsilon=epsilon)
        yield ms("SkipSimplifiedLayerNormalization", x, F(*shape), gamma, bias, epsilon=epsilon, outputs="y,,,sum")
        yield ms("SkipLayerNormalization", x, F(*shape), gamma, beta, bias, epsilon=epsilon, outputs="y,,,sum")
    for skip in ((1, 3, 8), (3, 8)):
        yield ms("SkipLayerNormalization", F(2, 3, 8), F(*skip), F(8), F(8))
        yield ms("SkipSimplifiedLayerNormalization", F(2, 3, 8), F(*skip), F(8))
    for axis, outputs in product((None, -1, 2), (1, 2)):
        yield row("SimplifiedLayerNormalization", F(2, 3, 8), F(8), axis=axis, outputs=outputs, epsilon=1e-3)
    yield row("SimplifiedLayerNormalization", F(2, 3, 8), F(3, 8), axis=1, stash_type=1)
    yield ms("GatedRMSNorm", F(2, 3, 8), F(8), F(2, 3, 8))
    yield ms("GatedAdd", F(2, 3, 8), F(2, 3, 8), F(2, 3, 1))


def products() -> Iterator[Case]:
    for a, b, alpha in product((None, 1), (None, 1), (None, 0.3)):
        left, right = F(2, *((4, 3) if a else (3, 4))), F(2, *((5, 4) if b else (4, 5)))
        yield ms("FusedMatMul", left, right, transA=a, transB=b, alpha=alpha)
        yield ms("TransposeMatMul", left, right, transA=a, transB=b, alpha=alpha)
    yield ms("FusedMatMul", F(3, 4), F(5, 4), transB=1, alpha=-2.0)
    yield ms("FusedMatMul", F(2, 2, 3, 4), F(4, 5))
    yield ms("FusedMatMul", F(2, 3, 4), F(4, 2, 5), transBatchB=1)
    yield ms("FusedMatMul", F(2, 3, 4), F(5, 2, 4), transBatchB=1, transB=1)
    for a, b, left in product((0, 1), (0, 1), (0, 1)):
        # transBatch moves the first axis in front of the last: (3, 2, 4) is a batch of 2 matrices of 3 x 4.
        shape = (3, 2, 4) if left else (2, 3, 4)
        shape = (4, 2, 3) if left and a else (2, 4, 3) if a else shape
        other = (2, 5, 4) if b else (2, 4, 5)
        yield ms("FusedMatMul", F(*shape), F(*other), transA=a, transB=b, transBatchA=left)
    names = (
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "Tanh",
        "HardSigmoid",
        "Elu",
        "Softplus",
        "Softsign",
        "Selu",
        "ThresholdedRelu",
    )
    for name in names:
        forms: dict[str, Any] = {"activation": name, "transB": 1, "alpha": 0.5, "beta": 2.0}
        if name in ("LeakyRelu", "Elu", "HardSigmoid", "Selu", "ThresholdedRelu"):
            forms["activation_alpha"] = 0.3
        if name in ("HardSigmoid",):
            forms["activation_beta"] = 0.4
        if name in ("Selu",):
            forms["activation_gamma"] = 1.2
        yield ms("FusedGemm", F(3, 4), F(5, 4), F(5), **forms)
    yield ms("FusedGemm", F(4, 3), F(4, 5), activation="Relu", transA=1)
    for bits, symmetric in product((4, 8), (False, True)):
        width, size = 32, 16
        packed = N(0, 256, 6, width // size, size * bits // 8, dtype=np.uint8)
        points = None if symmetric else const(N(0, 256, 6 * (width // size) * bits // 8, dtype=np.uint8))
        forms = {"K": width, "N": 6, "bits": bits, "block_size": size}
        yield ms("MatMulNBits", F(3, width), const(packed), const(U(0.01, 0.1, 12)), points, **forms)
    packed = const(N(0, 256, 6, 2, 8, dtype=np.uint8))
    forms = {"K": 32, "N": 6, "bits": 4, "block_size": 16, "accuracy_level": 1}
    yield ms("MatMulNBits", F(3, 32), packed, const(U(0.01, 0.1, 12)), None, None, const(F(6)), **forms)
    groups = const(np.asarray([0, 1] * 16, np.int32))
    yield ms("MatMulNBits", F(3, 32), packed, const(U(0.01, 0.1, 12)), None, groups, **forms)
    for left, right in product((np.uint8, np.int8), (np.uint8, np.int8)):
        a, b = N(0, 90, 3, 4, dtype=left), N(0, 90, 4, 5, dtype=right)
        scales = [U(0.01, 0.1), U(0.01, 0.1)]
        points = [np.asarray(2, left), np.asarray(3, right)]
        yield ms("MatMulIntegerToFloat", a, b, *scales)
        yield ms("MatMulIntegerToFloat", a, b, *scales, *points, F(5))
        yield ms("MatMulIntegerToFloat", a, const(b), scales[0], U(0.01, 0.1, 5), points[0], N(0, 9, 5, dtype=right))
    for dtype in (np.uint8, np.int8):
        b, point = const(N(0, 90, 4, 5, dtype=dtype)), np.asarray(3, dtype)
        yield ms("DynamicQuantizeMatMul", F(3, 4), b, const(V(0.05).reshape(())), const(point))
        yield ms("DynamicQuantizeMatMul", F(3, 4), b, const(U(0.01, 0.1, 5)), None, const(F(5)))
    yield ms("MatMulInteger16", N(-900, 900, 3, 4, dtype=np.int16), N(-900, 900, 4, 5, dtype=np.int16))


def convolutions() -> Iterator[Case]:
    for name, parameters in (
        ("Relu", None),
        ("Tanh", None),
        ("Sigmoid", None),
        ("LeakyRelu", [0.3]),
        ("Clip", [-0.5, 0.8]),
        ("HardSigmoid", [0.3, 0.4]),
    ):
        forms = {"activation": name, "activation_params": parameters, "pads": [1, 0, 1, 2], "strides": [2, 1]}
        yield ms("FusedConv", F(1, 4, 7, 6), F(6, 2, 3, 3), F(6), group=2, kernel_shape=[3, 3], **forms)
        yield ms("FusedConv", F(1, 4, 7, 6), F(6, 4, 3, 3), activation=name, activation_params=parameters)
    yield ms("FusedConv", F(1, 4, 7, 6), F(6, 4, 3, 3), F(6), F(1, 6, 5, 4), activation="Relu")
    yield ms("FusedConv", F(1, 4, 7, 6), F(6, 4, 3, 3), F(6), F(1, 6, 5, 4))
    yield ms("FusedConv", F(1, 2, 8), F(3, 2, 3), strides=[2], auto_pad="SAME_UPPER", activation="Relu")
    for ceil, auto in product((None, 1), ("NOTSET", "SAME_UPPER")):
        x = N(0, 99, 1, 7, 6, 3, dtype=np.uint8)
        yield ms("NhwcMaxPool", x, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=ceil, auto_pad=auto)
    yield ms("NhwcMaxPool", N(0, 99, 1, 7, 6, 3, dtype=np.int8), kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1)
    yield ms("NhwcMaxPool", x, kernel_shape=[3, 2], pads=[1, 0, 1, 1], dilations=[2, 1])


def attention() -> Iterator[Case]:
    x, w, b = F(2, 4, 16), F(16, 48), F(48)
    past = F(2, 2, 2, 3, 8)
    masks = {
        "-": None,
        "lengths": V(3, 4, dtype=np.int32),
        "ends and starts": V(3, 4, 0, 1, dtype=np.int32),
        "keys": V([1, 1, 0, 1], [1, 1, 1, 1], dtype=np.int32),
        "pairs": V(*np.tri(4)[None].repeat(2, 0).tolist(), dtype=np.int32),
    }
    for (name, mask), one_way in product(masks.items(), (None, 1)):
        yield ms("Attention", x, w, b, mask, num_heads=2, unidirectional=one_way, note=f"mask {name}")
    yield ms("Attention", x, w, None, num_heads=4)
    yield ms("Attention", x, w, b, num_heads=2, scale=0.2, outputs=2)
    yield ms("Attention", x, w, b, None, past, num_heads=2, outputs=2, unidirectional=1)
    yield ms("Attention", x, w, b, None, None, F(2, 2, 4, 4), num_heads=2)
    yield ms("Attention", x, w, b, masks["keys"], None, F(1, 1, 4, 4), num_heads=2, mask_filter_value=-100.0)
    yield ms("Attention", x, F(16, 40), F(40), num_heads=2, qkv_hidden_sizes=[12, 12, 16])
    three = [F(2, 4, 16), F(2, 6, 16), F(2, 6, 24)]
    for bias, one_way in product((None, F(56)), (None, 1)):
        yield ms("MultiHeadAttention", *three, bias, num_heads=2, unidirectional=one_way)
    for mask in (V(4, 6, dtype=np.int32), V([1, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 1], dtype=np.int32)):
        yield ms("MultiHeadAttention", *three, None, mask, num_heads=2)
    pairs = V(*(np.arange(48).reshape(2, 4, 6) % 5 != 2).tolist(), dtype=np.int32)
    yield ms("MultiHeadAttention", *three, None, pairs, num_heads=2)
    for added in ((2, 2, 4, 6), (1, 2, 4, 6), (1, 1, 4, 6), (2, 1, 4, 6)):
        yield ms("MultiHeadAttention", *three, None, None, F(*added), num_heads=2, scale=0.4)
    yield ms("MultiHeadAttention", F(2, 4, 16), F(2, 2, 6, 8), F(2, 2, 6, 8), num_heads=2)
    yield ms("MultiHeadAttention", F(2, 4, 16), F(2, 2, 6, 8), F(2, 2, 6, 8), F(48), num_heads=2)
    keys = V([1, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 1], dtype=np.int32)
    yield ms("MultiHeadAttention", *three, None, keys, num_heads=2, mask_filter_value=-1.5)
    yield ms("Attention", x, w, b, masks["keys"], num_heads=2, mask_filter_value=-1.5)
    old = [F(2, 2, 3, 8), F(2, 2, 3, 8)]
    same = [F(2, 4, 16), F(2, 4, 16), F(2, 4, 16)]
    for one_way, bias in product((None, 1), (None, F(48))):
        yield ms("MultiHeadAttention", *same, bias, None, None, *old, num_heads=2, unidirectional=one_way, outputs=3)
    yield ms("MultiHeadAttention", *same, None, None, F(1, 2, 4, 7), *old, num_heads=2, outputs="y,k,v")
    yield ms("MultiHeadAttention", *same, num_heads=2, outputs="y,k,v")
    yield ms("MultiHeadAttention", F(2, 4, 2, 3, 8), None, None, num_heads=2)
    yield ms("MultiHeadAttention", F(2, 4, 16), F(2, 6, 2, 2, 8), None, num_heads=2)


def grouped_query() -> Iterator[Case]:
    total = const(np.asarray(5, np.int32))
    full = V(4, 4, dtype=np.int32)
    q, k, v = F(2, 5, 32), F(2, 5, 16), F(2, 5, 16)
    heads = {"num_heads": 4, "kv_num_heads": 2, "outputs": 3}
    cache = [F(2, 2, 0, 8), F(2, 2, 0, 8)]
    tables = [U(-1, 1, 16, 8), U(-1, 1, 16, 8)]
    for forms in ({}, {"scale": 0.2}, {"local_window_size": 2}, {"softcap": 1.5}, {"smooth_softmax": 1}):
        yield ms("GroupQueryAttention", q, k, v, None, None, full, total, **heads, **forms)
        yield ms("GroupQueryAttention", q, k, v, *cache, full, total, **heads, **forms)
    for interleaved in (0, 1):
        forms = {"do_rotary": 1, "rotary_interleaved": interleaved}
        wide = [F(2, 5, 64), F(2, 5, 32), F(2, 5, 32)]
        yield ms("GroupQueryAttention", *wide, None, None, full, total, *tables, **heads, **forms)
        yield ms("GroupQueryAttention", F(2, 5, 128), None, None, None, None, full, total, *tables, **heads, **forms)
        one = [F(2, 1, 64), F(2, 1, 32), F(2, 1, 32), F(2, 2, 4, 16), F(2, 2, 4, 16)]
        yield ms("GroupQueryAttention", *one, full, total, *tables, **heads, **forms)
    yield ms("GroupQueryAttention", F(2, 5, 64), None, None, None, None, full, total, **heads)
    one = [F(2, 1, 32), F(2, 1, 16), F(2, 1, 16), F(2, 2, 4, 8), F(2, 2, 4, 8)]
    for forms in ({}, {"local_window_size": 3}, {"softcap": 2.0}):
        yield ms("GroupQueryAttention", *one, full, total, **heads, **forms)
    yield ms("GroupQueryAttention", *one, V(2, 4, dtype=np.int32), total, **heads)
    yield ms("GroupQueryAttention", q, k, v, None, None, V(2, 4, dtype=np.int32), total, **heads)
    yield ms("GroupQueryAttention", q, k, v, None, None, full, total, None, None, None, F(2, 4, 5, 5), **heads)
    yield ms("GroupQueryAttention", q, k, v, None, None, full, total, None, None, None, F(1, 1, 5, 5), **heads)
    yield ms("GroupQueryAttention", q, k, v, None, None, full, total, None, None, None, None, F(4), **heads)


def embeddings() -> Iterator[Case]:
    for interleaved, dim in product((None, 1), (None, 4)):
        half = (dim or 8) // 2
        tables = [U(-1, 1, 10, half), U(-1, 1, 10, half)]
        forms = {"interleaved": interleaved, "rotary_embedding_dim": dim}
        heads = {"num_heads": 4} if dim else {}
        if not dim:
            yield ms("RotaryEmbedding", F(2, 3, 32), N(0, 10, 2, 3), *tables, **forms)
            yield ms("RotaryEmbedding", F(2, 3, 32), V(4, dtype=np.int64), *tables, **forms)
        else:
            yield ms("RotaryEmbedding", F(2, 3, 32), N(0, 10, 2, 3), *tables, **heads, **forms)
        yield ms("RotaryEmbedding", F(2, 4, 3, 8), N(0, 10, 2, 3), *tables, **heads, **forms)
        yield ms("RotaryEmbedding", F(2, 4, 3, 8), V(2, dtype=np.int64), *tables, **heads, **forms)
    packed = N(0, 10, 2, 3)
    yield ms("RotaryEmbedding", F(2, 3, 32), packed, U(-1, 1, 10, 4), U(-1, 1, 10, 4), num_heads=4, scale=1.0)
    ids, kinds = N(0, 9, 2, 4, dtype=np.int32), N(0, 2, 2, 4, dtype=np.int32)
    tables = [const(F(9, 8)), const(F(6, 8)), const(F(2, 8))]
    norm = [const(F(8)), const(F(8))]
    yield ms("EmbedLayerNormalization", ids, kinds, *tables, *norm, outputs=2)
    yield ms("EmbedLayerNormalization", ids, None, tables[0], tables[1], None, *norm, outputs=2, epsilon=1e-3)
    mask = V([1, 1, 1, 0], [1, 0, 0, 0], dtype=np.int32)
    yield ms("EmbedLayerNormalization", ids, kinds, *tables, *norm, mask, outputs=3, mask_index_type=1)
    places = N(0, 6, 2, 4, dtype=np.int32)
    yield ms("EmbedLayerNormalization", ids, kinds, *tables, *norm, None, places, outputs="y,,sum")


def others() -> Iterator[Case]:
    for dtype in (np.uint8, np.int8):
        a, b, point = N(0, 99, 2, 3, 4, dtype=dtype), N(0, 99, 4, dtype=dtype), const(np.asarray(3, dtype))
        scale, wide = const(V(0.1).reshape(())), const(V(0.4).reshape(()))
        yield ms("QLinearAdd", a, scale, point, b, wide, point, wide, point)
        yield ms("QLinearMul", a, scale, point, b, wide, point, wide, point)
        yield ms("QLinearLeakyRelu", a, scale, point, wide, point, alpha=0.2)
        yield ms("QLinearSigmoid", a, scale, point, const(V(0.01).reshape(())), point)
        yield ms(
            "QLinearSoftmax",
            a,
            scale,
            point,
            const(V(1 / 256).reshape(())),
            const(np.asarray(0, dtype)),
            axis=-1,
            opset=13,
        )
        yield ms("QLinearConcat", wide, point, a, scale, point, a, wide, point, axis=1)
        yield ms("QLinearWhere", V([[True], [False], [True]], dtype=bool), a, scale, point, b, wide, point, wide, point)
        image = N(0, 99, 1, 2, 6, 6, dtype=dtype)
        yield ms("QLinearGlobalAveragePool", image, scale, point, wide, point)
        for count in (0, 1):
            forms = {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1], "count_include_pad": count}
            yield ms("QLinearAveragePool", image, scale, point, wide, point, **forms)
            yield ms("QLinearAveragePool", image, scale, point, wide, point, ceil_mode=1, **forms)
        last = N(0, 99, 1, 6, 5, 2, dtype=dtype)
        yield ms("QLinearAveragePool", last, scale, point, wide, point, kernel_shape=[2, 2], channels_last=1)
        same = {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]}
        yield ms("QLinearAveragePool", image, scale, point, wide, point, **same)
        yield ms("QLinearGlobalAveragePool", last, scale, point, wide, point, channels_last=1)
        least, tiny = const(np.asarray(0, dtype)), const(V(1 / 256).reshape(()))
        for axis, opset in product((0, 1, 2), (12, 13)):
            yield ms("QLinearSoftmax", a, scale, point, tiny, least, axis=axis, opset=opset)
        left, right = N(0, 90, 3, 4, dtype=dtype), const(N(0, 90, 4, 5, dtype=dtype))
        extra = const(N(-99, 99, 5, dtype=np.int32))
        yield ms("QGemm", left, scale, point, right, scale, point, extra, wide, point)
        yield ms("QGemm", left, scale, point, right, scale, point, extra, alpha=0.5)
        for side in (0, 1):
            turned = {"transA": side, "transB": 1 - side}
            shapes = ((4, 3), (4, 5)) if side else ((3, 4), (5, 4))
            operands = [N(0, 90, *shapes[0], dtype=dtype), scale, point, const(N(0, 90, *shapes[1], dtype=dtype))]
            yield ms("QGemm", *operands, scale, point, extra, wide, point, **turned)
        each = const(U(0.05, 0.3, 3)), const(N(0, 9, 3, dtype=dtype))
        yield ms("QuantizeLinear", U(-5, 9, 3, 2, 4), *each, axis=0)
        yield ms("DequantizeLinear", N(0, 99, 3, 2, dtype=dtype), *each, axis=0)
        yield ms("QuantizeLinear", V(0.25, 0.75, -1.25, 9.0), const(V(0.5).reshape(())), point)
        yield ms("DequantizeLinear", a, scale, point)
    for k, upper in product((None, 1, -1), (0, 1)):
        yield ms("Trilu", F(3, 4), None if k is None else const(np.asarray(k, np.int64)), upper=upper)
    yield ms("Pad", F(2, 3), [0, 1, 2, 0], const(V(1.5)))
    yield ms("Pad", F(2, 3), [0, 1, 1, 0], mode="reflect")
    yield ms("Range", V(1.0), V(5.0), V(1.5))
    yield ms("Range", np.asarray(1, np.int64), np.asarray(4, np.int64))
    yield ms("ExpandDims", F(2, 3), const(np.asarray(1, np.int32)))
    yield ms("Inverse", F(2, 3, 3))
    yield ms("Unique", V(2, 1, 2, 3, 1), outputs=3)
    yield ms("GatherND", F(2, 3, 4), N(0, 2, 5, 2))
    yield ms("CDist", F(3, 4), F(5, 4), metric="euclidean")
    yield ms("CDist", F(3, 4), F(5, 4), metric="sqeuclidean")
    for mode, padding in product(("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")):
        for align in (0, 1):
            forms = {"mode": mode, "padding_mode": padding, "align_corners": align}
            yield ms("GridSample", F(1, 2, 4, 4), U(-1.3, 1.3, 1, 3, 3, 2), **forms)
