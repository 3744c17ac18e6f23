"""Small models as onnxruntime's own optimiser leaves them, with the operators that it puts in.

The optimiser is asked for everything that does not depend on the machine (ORT_ENABLE_EXTENDED); its graph is written
to a file and is a case like any other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import F, N, U, V, text


def cases() -> Iterator[Case]:
    for case in sources():
        yield replace(case, name=f"{case.name}, optimised", model=optimised(case.model))


def optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that onnxruntime makes of a model."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def graph(
    body: str,
    inputs: str,
    outputs: str,
    note: str,
    *,
    opset: int = 17,
    weights: dict[str, Any] | None = None,
    **feeds: Any,
) -> Case:
    """A model in text form with random initializers of these shapes."""
    source = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    case = text(source, note=note, **feeds)
    rng = np.random.default_rng(len(note))
    for name, shape in (weights or {}).items():
        array = shape if isinstance(shape, np.ndarray) else (rng.standard_normal(shape) * 0.5).astype(np.float32)
        case.model.graph.initializer.append(numpy_helper.from_array(array, name))
    return case


GELU = """d = Div(h, root) e = Erf(d) one = Constant <value = float {1.0}> () p = Add(e, one) m = Mul(h, p)
          half = Constant <value = float {0.5}> () y = Mul(m, half)"""
ROOT = {"root": np.asarray(2**0.5, np.float32)}
LAYER_NORM = """mu = ReduceMean <axes = [-1]> (s) d = Sub(s, mu) two = Constant <value = float {2.0}> () q = Pow(d, two)
          v = ReduceMean <axes = [-1]> (q) eps = Constant <value = float {0.00001}> () ve = Add(v, eps) sd = Sqrt(ve)
          n = Div(d, sd) g = Mul(n, gamma) y = Add(g, beta)"""


def sources() -> Iterator[Case]:
    yield from activations()
    yield from norms()
    yield from convolutions()
    yield from attention()
    yield from quantised()


def activations() -> Iterator[Case]:
    x = {"x": F(2, 3, 8)}
    yield graph("h = Identity(x) " + GELU, "float[2,3,8] x", "float[2,3,8] y", "Gelu", weights=ROOT, **x)
    body = "l = MatMul(x, w) h = Add(l, b) " + GELU
    yield graph(body, "float[2,3,8] x", "float[2,3,6] y", "BiasGelu", weights={**ROOT, "w": (8, 6), "b": (6,)}, **x)
    yield graph(
        """three = Constant <value = float {3.0}> () c = Pow(x, three)
           k = Constant <value = float {0.044715}> () kc = Mul(c, k) a = Add(x, kc)
           r = Constant <value = float {0.7978845608}> () t = Mul(a, r) th = Tanh(t)
           one = Constant <value = float {1.0}> () p = Add(th, one) m = Mul(x, p)
           half = Constant <value = float {0.5}> () y = Mul(m, half)""",
        "float[2,3,8] x", "float[2,3,8] y", "FastGelu", **x,
    )  # fmt: skip
    body = "k = Constant <value = float {1.702}> () s = Mul(x, k) g = Sigmoid(s) y = Mul(x, g)"
    yield graph(body, "float[2,3,8] x", "float[2,3,8] y", "QuickGelu", **x)
    yield graph("s = Sigmoid(x) y = Mul(x, s)", "float[2,3,8] x", "float[2,3,8] y", "SiLU", **x)
    body = "g = Gemm <transB = 1> (x, w, b) y = Relu(g)"
    for name in ("Relu", "Tanh", "Sigmoid", "LeakyRelu <alpha = 0.2>"):
        given = body.replace("Relu(g)", f"{name}(g)")
        yield graph(
            given, "float[3,8] x", "float[3,6] y", f"FusedGemm {name}", weights={"w": (6, 8), "b": (6,)}, x=F(3, 8)
        )
    body = "t = Transpose <perm = [0, 2, 1]> (x) m = MatMul(t, w) s = Constant <value = float {0.25}> () y = Mul(m, s)"
    yield graph(body, "float[2,3,8] x", "float[2,8,6] y", "FusedMatMul", weights={"w": (3, 6)}, **x)
    body = "m = MatMul(x, w) y = Add(m, b)"
    yield graph(body, "float[3,8] x", "float[3,6] y", "MatMul and Add", weights={"w": (8, 6), "b": (6,)}, x=F(3, 8))


def norms() -> Iterator[Case]:
    affine = {"gamma": (8,), "beta": (8,)}
    x = {"x": F(2, 3, 8)}
    yield graph("s = Identity(x) " + LAYER_NORM, "float[2,3,8] x", "float[2,3,8] y", "LayerNorm", weights=affine, **x)
    for opset in (11, 13, 17):
        body = "s = Add(x, z) " + LAYER_NORM
        yield graph(
            body,
            "float[2,3,8] x, float[2,3,8] z",
            "float[2,3,8] y",
            f"SkipLayerNorm {opset}",
            opset=opset,
            weights=affine,
            z=F(2, 3, 8),
            **x,
        )
    body = "m = MatMul(x, w) a = Add(m, b) s = Add(a, z) y = LayerNormalization <epsilon = 0.00001> (s, gamma, beta)"
    given = {**affine, "w": (8, 8), "b": (8,)}
    yield graph(
        body,
        "float[2,3,8] x, float[2,3,8] z",
        "float[2,3,8] y",
        "SkipLayerNorm with a bias",
        weights=given,
        z=F(2, 3, 8),
        **x,
    )
    body = """two = Constant <value = float {2.0}> () q = Pow(x, two) v = ReduceMean <axes = [-1]> (q)
              e = Constant <value = float {0.00001}> () ve = Add(v, e) sd = Sqrt(ve) n = Div(x, sd) y = Mul(n, gamma)"""
    yield graph(body, "float[2,3,8] x", "float[2,3,8] y", "SimplifiedLayerNorm", weights={"gamma": (8,)}, **x)
    body = "s = Add(x, z) " + body.replace("(x, two)", "(s, two)").replace("Div(x", "Div(s")
    yield graph(
        body,
        "float[2,3,8] x, float[2,3,8] z",
        "float[2,3,8] y",
        "SkipSimplifiedLayerNorm",
        weights={"gamma": (8,)},
        z=F(2, 3, 8),
        **x,
    )


def convolutions() -> Iterator[Case]:
    x = {"x": F(1, 4, 8, 8)}
    weights = {"w": (6, 4, 3, 3), "b": (6,)}
    for name in ("Relu", "LeakyRelu <alpha = 0.2>", "Sigmoid", "Tanh", "HardSigmoid", "Clip <min = -0.5, max = 0.5>"):
        opset = 6 + 1 if name.startswith("Clip") else 17
        body = f"c = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = {name}(c)"
        yield graph(
            body, "float[1,4,8,8] x", "float[1,6,8,8] y", f"FusedConv {name}", opset=opset, weights=weights, **x
        )
    body = "c = Conv <pads = [1, 1, 1, 1]> (x, w, b) a = Add(c, z) y = Relu(a)"
    yield graph(
        body,
        "float[1,4,8,8] x, float[1,6,8,8] z",
        "float[1,6,8,8] y",
        "FusedConv with a sum",
        weights=weights,
        z=F(1, 6, 8, 8),
        **x,
    )
    stored = {**weights, "g": (6,), "h": (6,), "m": (6,), "v": np.linspace(0.5, 2, 6, dtype=np.float32)}
    body = "c = Conv(x, w, b) n = BatchNormalization(c, g, h, m, v) y = Relu(n)"
    yield graph(body, "float[1,4,8,8] x", "float[1,6,6,6] y", "Conv and BatchNorm", weights=stored, **x)
    body = 'p = Pad <mode = "constant"> (x, pads) y = Conv(p, w, b)'
    yield graph(
        body,
        "float[1,4,8,8] x",
        "float[1,6,8,8] y",
        "Pad and Conv",
        weights={**weights, "pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1])},
        **x,
    )


def attention() -> Iterator[Case]:
    """BERT's first layer as its exporters write it: the optimiser makes EmbedLayerNormalization and Attention of it."""
    shape = np.asarray([0, 0, 2, 4])
    flat = np.asarray([0, 0, 8])
    body = """
        q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, heads) q = Transpose <perm = [0, 2, 1, 3]> (q2)
        k0 = MatMul(x, wk) k1 = Add(k0, bk) k2 = Reshape(k1, heads) k = Transpose <perm = [0, 2, 3, 1]> (k2)
        v0 = MatMul(x, wv) v1 = Add(v0, bv) v2 = Reshape(v1, heads) v = Transpose <perm = [0, 2, 1, 3]> (v2)
        s0 = MatMul(q, k) s1 = Div(s0, root) s2 = Add(s1, mask) s = Softmax <axis = 3> (s2)
        o0 = MatMul(s, v) o1 = Transpose <perm = [0, 2, 1, 3]> (o0) o2 = Reshape(o1, flat)
        o3 = MatMul(o2, wo) o4 = Add(o3, bo) o = Add(o4, x) y = LayerNormalization(o, gamma, beta)"""
    masked = """
        m0 = Unsqueeze(m, axes1) m1 = Unsqueeze(m0, axes2) m2 = Cast <to = 1> (m1)
        one = Constant <value = float {1.0}> () m3 = Sub(one, m2)
        far = Constant <value = float {-10000.0}> () mask = Mul(m3, far) """
    weights: dict[str, Any] = {f"w{name}": (8, 8) for name in "qkvo"} | {f"b{name}": (8,) for name in "qkvo"}
    weights |= {"gamma": (8,), "beta": (8,), "heads": shape, "flat": flat, "root": np.asarray(2.0, np.float32)}
    weights |= {"axes1": np.asarray([1]), "axes2": np.asarray([2])}
    mask = V([1, 1, 1, 0, 0], [1, 1, 1, 1, 1], dtype=np.int64)
    first = "n = LayerNormalization(e, gamma, beta) x = Identity(n) "
    yield graph(
        masked + first + body,
        "float[2,5,8] e, int64[2,5] m",
        "float[2,5,8] y",
        "Attention",
        weights=weights,
        e=F(2, 5, 8),
        m=mask,
    )
    embedded = """words = Gather <axis = 0> (vocabulary, ids) places = Gather <axis = 0> (positions, numbers)
        kinds = Gather <axis = 0> (segments, types)
        e0 = Add(words, places) e = Add(e0, kinds) x = LayerNormalization(e, gamma, beta) """
    more = {
        **weights,
        "vocabulary": (11, 8),
        "positions": (7, 8),
        "segments": (2, 8),
        "numbers": np.arange(5)[None].repeat(2, 0),
    }
    inputs = "int64[2,5] ids, int64[2,5] types, int64[2,5] m"
    yield graph(
        masked + embedded + body,
        inputs,
        "float[2,5,8] y",
        "Embedding and Attention",
        weights=more,
        ids=N(0, 11, 2, 5),
        types=N(0, 2, 2, 5),
        m=mask,
    )


def quantised() -> Iterator[Case]:
    """Operators between DequantizeLinear and QuantizeLinear become integer ones."""
    scale, point = np.asarray(0.05, np.float32), np.asarray(120, np.uint8)
    there = {"s": scale, "p": point, "so": np.asarray(0.2, np.float32), "po": np.asarray(110, np.uint8)}
    weight = {
        "w": np.arange(-36, 36, dtype=np.int8).reshape(2, 4, 3, 3),
        "ws": np.asarray(0.02, np.float32),
        "wp": np.asarray(0, np.int8),
    }
    body = (
        "xd = DequantizeLinear(x, s, p) wd = DequantizeLinear(w, ws, wp) c = Conv(xd, wd) y = QuantizeLinear(c, so, po)"
    )
    yield graph(
        body,
        "uint8[1,4,6,6] x",
        "uint8[1,2,4,4] y",
        "QLinearConv",
        weights={**there, **weight},
        x=N(0, 255, 1, 4, 6, 6, dtype=np.uint8),
    )
    weight = {
        "w": np.arange(-10, 14, dtype=np.int8).reshape(6, 4),
        "ws": np.asarray(0.02, np.float32),
        "wp": np.asarray(0, np.int8),
    }
    body = """xd = DequantizeLinear(x, s, p) wd = DequantizeLinear(w, ws, wp) c = MatMul(xd, wd)
        y = QuantizeLinear(c, so, po)"""
    yield graph(
        body,
        "uint8[3,6] x",
        "uint8[3,4] y",
        "QLinearMatMul",
        weights={**there, **weight},
        x=N(0, 255, 3, 6, dtype=np.uint8),
    )
    for name in ("Add", "Mul"):
        body = f"""a = DequantizeLinear(x, s, p) b = DequantizeLinear(z, s, p) c = {name}(a, b)
            y = QuantizeLinear(c, so, po)"""
        both = {"x": N(0, 255, 3, 6, dtype=np.uint8), "z": N(0, 255, 3, 6, dtype=np.uint8)}
        yield graph(body, "uint8[3,6] x, uint8[3,6] z", "uint8[3,6] y", f"QLinear{name}", weights=there, **both)
    for name in (
        "Sigmoid",
        "LeakyRelu <alpha = 0.1>",
        "AveragePool <kernel_shape = [2, 2]>",
        "GlobalAveragePool",
        "Softmax",
    ):
        body = f"a = DequantizeLinear(x, s, p) c = {name}(a) y = QuantizeLinear(c, so, po)"
        yield graph(
            body,
            "uint8[1,4,6,6] x",
            "uint8[a,b,c,d] y",
            f"QLinear {name}",
            weights=there,
            x=N(0, 255, 1, 4, 6, 6, dtype=np.uint8),
        )
    dynamic = """q, qs, qp = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, qp, wp)
        f = Cast <to = 1> (i) s2 = Mul(qs, ws) y = Mul(f, s2)"""
    yield graph(dynamic, "float[3,6] x", "float[3,4] y", "DynamicQuantizeMatMul", weights=weight, x=U(-2, 3, 3, 6))
