"""For every reason not to fold: a graph that has it, and a twin that differs in that alone and folds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.support.graphs import build, draw

Constant = NDArray[np.generic] | tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """text, constants: the graph that is refused. twin, twin_constants: what is different in the one that folds.

    status: of the refused site. run: whether the pair is also evaluated.
    """

    text: str
    constants: dict[str, Constant] = field(default_factory=dict)
    twin: tuple[str, str] = ("", "")
    twin_constants: dict[str, Constant] = field(default_factory=dict)
    status: str = "kept"
    run: bool = True

    def refused(self) -> onnx.ModelProto:
        """The graph that has the reason."""
        return build(self.text, **self.constants)

    def folding(self) -> onnx.ModelProto:
        """Its twin."""
        text = self.text.replace(*self.twin) if self.twin[0] else self.text
        return build(text, **{**self.constants, **self.twin_constants})


def graph(body: str, inputs: str = "double[B,4] x", output: str = "double y") -> str:
    return f"g ({inputs}) => ({output}) {{\n{body}\n}}"


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


SCALE = "h = Tanh(x)\nn = Mul(h, a)\n"
NORM = "h = Tanh(x)\nn0 = Mul(h, a)\nn = Add(n0, b)\n"
A: dict[str, Constant] = {"a": (4,), "b": (4,), "w": (4, 3), "c": (3,)}
POSITIVE: dict[str, Constant] = {**A, "a": draw("a", 4, positive=True)}
ROWS: dict[str, Constant] = {"a": (4, 1), "b": (4, 1), "w": (3, 4, 3), "v": (4, 4, 1), "c": (3,)}
READ = "y = Gemm(o, w, c)"

CASES = {
    "wall": Case(graph(f"{SCALE}o = Softmax(n)\n{READ}"), A, ("Softmax", "Identity")),
    "graph-output": Case(graph(SCALE + "y = Gemm(n, w, c)", output="double y, double n"), A, (", double n)", ")")),
    "graph-input": Case(
        graph(f"{SCALE}k = MatMul(x, v)\no = Add(n, x)\n{READ}"), {**A, "v": (4, 4)}, ("Add(n, x)", "Add(n, k)")
    ),
    "frame-conflict": Case(
        graph(f"{SCALE}r = Slice(n, i, j, k)\ns = Slice(n, l, m, k)\no = Add(r, s)\n{READ}"),
        {**A, "w": (3, 3), "i": ints(0), "j": ints(3), "k": ints(1), "l": ints(1), "m": ints(4)},
        twin_constants={"a": np.full(4, 1.5)},
    ),
    "scale-range": Case(
        graph(SCALE + "y = MatMul(n, w)"), {**A, "a": np.array([1.0, -1.0, 2.0, 1e-200])}, twin_constants={"a": (4,)}
    ),
    "narrow-add": Case(
        graph(NORM + "y = MatMul(n, w)\nz = MatMul(n, v)", output="double y, double z"),
        {**A, "w": (4, 9), "v": (4, 9)},
        ("MatMul(n, v)", "Gemm(n, v)"),
        {"w": (4, 3)},
        status="partial",
    ),
    "no-bias": Case(
        '<ir_version: 11, opset_import: ["" : 23]>\n'
        + graph(
            NORM + "k = RMSNormalization(x, g)\no = Concat<axis = 1>(n, k)\np = MatMul(o, w)\ny = Add(p, c)",
            "double[B,3,4] x",
        ),
        {**A, "g": (4,)},
        ("RMS", "Layer"),
        status="partial",
        run=False,
    ),
    "broadcast": Case(
        graph(f"{SCALE}k = MatMul(x, v)\no = Add(n, k)\n{READ}"), {**A, "v": (4, 1)}, twin_constants={"v": (4, 4)}
    ),
    "two-tensors": Case(
        graph(f"{SCALE}k = Transpose(h)\no = MatMul(n, k)\ny = Tanh(o)"),
        {**A, "k0": (4, 4)},
        ("MatMul(n, k)", "MatMul(n, k0)"),
    ),
    "not-contracted": Case(
        graph(f"{SCALE}y = Conv(n, w)", "double[B,4,4] x"), {**A, "w": (3, 4, 1)}, twin_constants={"a": (4, 1)}
    ),
    "zero-scale": Case(
        graph(f"{SCALE}k = MatMul(x, v)\no = Add(n, k)\n{READ}"),
        {**A, "v": (4, 4), "a": np.array([1.0, 0.0, -1.0, 2.0])},
        twin_constants={"a": (4,)},
    ),
    "negative-scale": Case(graph(f"{SCALE}o = Relu(n)\n{READ}"), A, twin_constants={"a": POSITIVE["a"]}),
    "shift-meets-activation": Case(
        graph(f"{NORM}o = Relu(n)\n{READ}"), POSITIVE, ("Relu", "Identity"), status="partial"
    ),
    "shift-meets-padding": Case(
        graph(NORM + "y = Conv<pads = [1, 1]>(n, w, c)", "double[B,4,5] x"),
        {**ROWS, "w": (4, 4, 3), "c": (4,)},
        ("<pads = [1, 1]>", ""),
        status="partial",
    ),
    "shared-weight": Case(
        graph("e = MatMul(x, w)\nh = Tanh(e)\nn = Mul(h, a)\ny = MatMul(n, w)", "double[B,1024] x"),
        {"a": (1024,), "w": draw("w", 1024) + draw("v", 1024, 1)},
        ("(n, w)", "(n, v)"),
        {"v": draw("v", 1024) + draw("w", 1024, 1)},
        run=False,
    ),
    "uneven-taps": Case(
        graph(NORM + "y = ConvTranspose<strides = [2]>(n, w, c)", "double[B,4,5] x"),
        {**ROWS, "w": (4, 3, 2)},
        ("strides = [2]", "strides = [1]"),
        {"w": (4, 3, 1)},
        status="partial",
    ),
    "one-bound": Case(
        graph(f"{SCALE}o = Clip(n, low)\n{READ}"),
        {**POSITIVE, "low": np.array(0.3)},
        twin_constants={"low": np.array(0.0)},
    ),
    "quantised": Case(
        graph(
            f"{SCALE}k = MatMul(n, w)\nq = {{0}}\ny = Mul(q, c)".replace("{0}", "DequantizeLinear(p, s)"),
            "double[B,4] x, uint8[B,3] p",
        ).replace("y = Mul(q, c)", "r = Cast<to = 11>(q)\ny = Add(k, r)"),
        {**A, "s": np.array(0.5, np.float32)},
        ("DequantizeLinear(p, s)", "Cast<to = 1>(p)"),
    ),
    "fill-value": Case(
        graph(f"{SCALE}o = Pad(n, p, v)\ny = Conv(o, w, c)", "double[B,4,5] x"),
        {**ROWS, "p": ints(0, 0, 1, 0, 0, 1), "v": np.array(3.0)},
        twin_constants={"v": np.array(0.0)},
    ),
    "dynamic-pad": Case(
        graph(f"{SCALE}o = Pad(n, p)\ny = Conv(o, w, c)", "double[B,4,5] x, int64[6] p", "double[B,3,K] y"),
        ROWS,
        (", int64[6] p)", ")"),
        {"p": ints(0, 0, 1, 0, 0, 1)},
        run=False,
    ),
    "dynamic-slice": Case(
        graph(f"{SCALE}o = Slice(n, i, j, k)\n{READ}", "double[B,4] x, int64[1] k", "double[C,3] y"),
        {**A, "i": ints(0), "j": ints(4)},
        (", int64[1] k)", ")"),
        {"k": ints(0)},
        run=False,
    ),
    "dynamic-axes": Case(
        graph(
            f"{SCALE}y = ReduceMean(n, k)\n".replace("y =", "o =") + "y = MatMul(o, w)",
            "double[B,5,4] x, int64[1] k",
            "double[C,D,3] y",
        ),
        A,
        (", int64[1] k)", ")"),
        {"k": ints(1)},
        run=False,
    ),
    "not-floating": Case(graph(f"{SCALE}p = Cast<to = 7>(n)\no = Cast<to = 11>(p)\n{READ}"), A, ("to = 7", "to = 11")),
    "training-mode": Case(
        graph(f"{SCALE}o = Dropout(n, r, t)\n{READ}"),
        {**A, "r": np.array(0.5), "t": np.array(True)},
        twin_constants={"t": np.array(False)},
        run=False,
    ),
    "reshaped-channels": Case(
        graph(f"{SCALE}o = Reshape(n, s)\ny = Tanh(o)", "double[B,L,4] x").replace("y = Tanh(o)", "y = MatMul(o, w)"),
        {**A, "s": ints(2, -1, 2), "w": (2, 3)},
        twin_constants={"s": ints(1, -1, 4), "w": (4, 3)},
    ),
    "channels-cut": Case(
        graph(f"{SCALE}o = ReverseSequence<batch_axis = 0, time_axis = 1>(n, i)\ny = MatMul(o, w)", "double[2,4,4] x"),
        {**A, "a": (4, 1), "i": ints(2, 3)},
        twin_constants={"a": (4,)},
    ),
    "across-channels": Case(
        graph(f"{SCALE}o = ReduceMean(n, k)\ny = MatMul(o, w)", "double[B,5,4] x"),
        {**A, "k": ints(2), "w": (1, 3)},
        twin_constants={"k": ints(1), "w": (4, 3)},
    ),
    "unknown-shape": Case(
        graph(f"{NORM}o = ReduceSum<keepdims = 0>(n, k)\ny = Gemm(o, w, c)", "double[B,L,4] x"),
        {**A, "k": ints(1)},
        ("double[B,L,4]", "double[B,3,4]"),
        status="partial",
    ),
    "statistic": Case(
        graph(f"{SCALE}y = LayerNormalization<epsilon = 0.0078125>(n, g)"),
        {**A, "g": (4,)},
        twin_constants={"a": np.full(4, 2.0)},
    ),
    "statistic-read": Case(
        graph(f"{SCALE}y, m = LayerNormalization(n, g)", output="double[B,4] y, float[B,1] m"),
        {**A, "a": np.full(4, 2.0), "g": (4,)},
        (", float[B,1] m)", ")"),
        run=False,
    ),
}

BATCH_NORM = "BatchNormalization(h, gamma, beta, mean, var)"
STATISTICS: dict[str, Constant] = {
    name: draw(name, 4, positive=name == "var") for name in ("gamma", "beta", "mean", "var")
}
CHOSEN = (
    f"If(k) <then_branch = t () => (double[B,4] o) {{ o = {BATCH_NORM} }}, "
    "else_branch = e () => (double[B,4] p) { p = Exp(h) }>"
)
CASES |= {
    "not-stored": Case(
        graph(f"h = Tanh(x)\nn = {BATCH_NORM}\ny = Gemm(n, w, c)", "double[B,4] x, double[4] mean"),
        {**A, **STATISTICS},
        (", double[4] mean", ""),
    ),
    "in-subgraph": Case(
        graph(f"h = Tanh(x)\nn = {CHOSEN}\ny = Gemm(n, w, c)", "double[B,4] x, bool k"),
        {**A, **STATISTICS},
        (CHOSEN, BATCH_NORM),
    ),
    "infinite-map": Case(
        graph(f"h = Tanh(x)\nn = {BATCH_NORM.replace('(', '<epsilon = 0.0>(')}\ny = Gemm(n, w, c)"),
        {**A, **STATISTICS, "var": np.array([1.0, 0.0, 2.0, 1.5])},
        twin_constants={"var": STATISTICS["var"]},
        run=False,
    ),
}
