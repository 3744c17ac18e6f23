"""Random networks with stored-statistics norms, as ONNX: the material of the property tests.

Every network is drawn from a seed: pre-norm and post-norm blocks, branches, channel splits and concats, transposes,
convolutions with and without padding, shared weights, class tokens; norms in all the spellings that exporters
write; scales that are negative, zero, huge or tiny. Shapes are often square (N == L == C), where a wrong axis would
go unnoticed by shape checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

OPSET = 20


@dataclass
class Builder:
    """Grows an ONNX graph of float64 tensors; tensor shapes are followed in numpy, with the batch named B."""

    rng: np.random.Generator
    batch: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)
    norms: int = 0
    count: int = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def constant(self, array: NDArray[np.generic], stem: str = "c") -> str:
        name = self.name(stem)
        self.initializers[name] = array
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64), "i")

    def op(self, op_type: str, *inputs: str, shape: tuple[int, ...], **attributes: object) -> str:
        return self.ops(op_type, *inputs, shapes=[shape], **attributes)[0]

    def ops(self, op_type: str, *inputs: str, shapes: list[tuple[int, ...]], **attributes: object) -> list[str]:
        outputs = [self.name(op_type.lower()) for _ in shapes]
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, name=self.name("n"), **attributes))
        self.shapes.update(zip(outputs, shapes, strict=True))
        return outputs

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *choices: object) -> object:
        return choices[int(self.rng.integers(len(choices)))]

    # Norms, in the spellings that exporters write. x: (N, L, C).

    def coefficients(self, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        scale = self.rng.uniform(0.3, 2.0, channels) * self.rng.choice([1.0, -1.0], channels, p=[0.8, 0.2])
        if self.chance(0.1):
            scale[self.rng.integers(channels)] = 0.0
        if self.chance(0.1):
            scale *= 10.0 ** self.rng.integers(-3, 4)
        return scale, self.rng.normal(0.0, 1.0, channels)

    def norm(self, x: str) -> str:
        self.norms += 1
        spelling = self.pick(self.plain, self.batch_norm, self.unified, self.repbn, self.repbn_flat)
        return spelling(x)  # type: ignore[operator,no-any-return]

    def plain(self, x: str) -> str:
        scale, shift = self.coefficients(self.shapes[x][-1])
        y = self.op("Mul", *self.either(x, self.constant(scale)), shape=self.shapes[x])
        return self.op("Add", *self.either(y, self.constant(shift)), shape=self.shapes[x])

    def either(self, first: str, second: str) -> tuple[str, str]:
        return (second, first) if self.chance(0.5) else (first, second)

    def statistics(self, channels: int) -> list[str]:
        gamma, beta = self.coefficients(channels)
        mean, var = self.rng.normal(0.0, 0.5, channels), self.rng.uniform(0.3, 3.0, channels)
        return [self.constant(array) for array in (gamma, beta, mean, var)]

    def swap(self, x: str) -> str:
        n, a, b = self.shapes[x]
        return self.op("Transpose", x, shape=(n, b, a), perm=[0, 2, 1])

    def batch_norm(self, x: str) -> str:
        y = self.swap(x)
        y = self.op("BatchNormalization", y, *self.statistics(self.shapes[y][1]), shape=self.shapes[y], epsilon=1e-5)
        return self.swap(y)

    def unified(self, x: str) -> str:
        n, length, channels = self.shapes[x]
        scale, shift = self.coefficients(channels)
        y = self.op("Unsqueeze", self.swap(x), self.ints(-1), shape=(n, channels, length, 1))
        root = self.constant(np.sqrt(self.rng.uniform(0.3, 3.0, (1, channels, 1, 1))))
        y = self.op("Div", y, root, shape=self.shapes[y])
        y = self.op("Mul", *self.either(y, self.constant(scale.reshape(1, -1, 1, 1))), shape=self.shapes[y])
        y = self.op("Add", *self.either(y, self.constant(shift.reshape(1, -1, 1, 1))), shape=self.shapes[y])
        y = self.op("Reshape", y, self.ints(0, channels, length), shape=(n, channels, length))
        return self.swap(y)

    def repbn(self, x: str) -> str:
        y = self.swap(x)
        z = self.op("BatchNormalization", y, *self.statistics(self.shapes[y][1]), shape=self.shapes[y], epsilon=1e-3)
        w = self.op("Mul", *self.either(y, self.constant(self.rng.uniform(0.05, 0.3, 1))), shape=self.shapes[y])
        return self.swap(self.op("Add", *self.either(z, w), shape=self.shapes[y]))

    def repbn_flat(self, x: str) -> str:
        n, length, channels = self.shapes[x]
        y = self.op("Reshape", x, self.ints(-1, channels), shape=(n * length, channels))
        z = self.op("BatchNormalization", y, *self.statistics(channels), shape=self.shapes[y], epsilon=1e-5)
        w = self.op("Mul", *self.either(y, self.constant(self.rng.uniform(0.05, 0.3, 1))), shape=self.shapes[y])
        y = self.op("Add", *self.either(z, w), shape=self.shapes[y])
        return self.op("Reshape", y, self.ints(-1, length, channels), shape=(n, length, channels))

    # Layers. x: (N, L, C).

    def linear(self, x: str, out: int, *, bias: bool | None = None) -> str:
        *lead, channels = self.shapes[x]
        matching = [w for w in self.weights if self.initializers[w].shape == (channels, out)]
        if matching and self.chance(0.15):
            weight = matching[0]
        else:
            weight = self.constant(self.rng.normal(0.0, 0.7 / np.sqrt(channels), (channels, out)), "w")
            self.weights.append(weight)
        y = self.op("MatMul", x, weight, shape=(*lead, out))
        if bias if bias is not None else self.chance(0.7):
            y = self.op("Add", *self.either(y, self.constant(self.rng.normal(0.0, 0.3, out), "b")), shape=(*lead, out))
        return y

    def act(self, x: str) -> str:
        return self.op(str(self.pick("Relu", "Tanh", "Gelu")), x, shape=self.shapes[x])

    def mlp(self, x: str) -> str:
        channels = self.shapes[x][-1]
        return self.linear(self.act(self.linear(x, 2 * channels)), channels)

    def heads(self, x: str) -> str:
        """Two attention heads over the tokens, with the products of two tensors that stop a flood."""
        n, length, channels = self.shapes[x]
        half = channels // 2

        def split(y: str) -> str:
            y = self.op("Reshape", y, self.ints(0, 0, 2, half), shape=(n, length, 2, half))
            return self.op("Transpose", y, shape=(n, 2, length, half), perm=[0, 2, 1, 3])

        q, k, v = (split(self.linear(x, channels)) for _ in range(3))
        k = self.op("Transpose", k, shape=(n, 2, half, length), perm=[0, 1, 3, 2])
        scaled = self.op("Mul", q, self.constant(np.array(half**-0.5)), shape=self.shapes[q])
        weights = self.op(
            "Softmax", self.op("MatMul", scaled, k, shape=(n, 2, length, length)), shape=(n, 2, length, length), axis=-1
        )
        y = self.op("MatMul", weights, v, shape=(n, 2, length, half))
        y = self.op("Transpose", y, shape=(n, length, 2, half), perm=[0, 2, 1, 3])
        y = self.op("Reshape", y, self.ints(0, 0, channels), shape=(n, length, channels))
        return self.linear(y, channels)

    def convolution(self, x: str) -> str:
        """A Conv along the tokens, depthwise or dense, with or without zero padding."""
        n, length, channels = self.shapes[x]
        y = self.swap(x)
        groups = int(self.pick(1, 2, channels))  # type: ignore[call-overload]
        kernel = int(self.pick(1, 3))  # type: ignore[call-overload]
        weight = self.constant(self.rng.normal(0.0, 0.5, (channels, channels // groups, kernel)), "k")
        inputs = [y, weight] + ([self.constant(self.rng.normal(0.0, 0.3, channels), "b")] if self.chance(0.5) else [])
        attributes = {"group": groups, "kernel_shape": [kernel], "pads": [kernel // 2] * 2}
        return self.swap(self.op("Conv", *inputs, shape=(n, channels, length), **attributes))

    def join(self, x: str) -> str:
        """Split the channels, treat the parts differently, concatenate them again."""
        n, length, channels = self.shapes[x]
        sizes = [channels // 2, channels - channels // 2]
        parts = self.ops("Split", x, self.ints(*sizes), shapes=[(n, length, size) for size in sizes], axis=2)
        parts = [self.linear(part, self.shapes[part][2]) if self.chance(0.6) else part for part in parts]
        parts = [self.norm(part) if self.chance(0.3) else part for part in parts]
        if self.chance(0.3):
            parts.append(parts[0])
        return self.linear(
            self.op("Concat", *parts, shape=(n, length, sum(self.shapes[p][2] for p in parts)), axis=-1), channels
        )

    def function(self, x: str) -> str:
        return self.pick(self.mlp, self.heads, self.convolution, self.join, self.mlp)(x)  # type: ignore[operator,no-any-return]

    def add(self, x: str, y: str) -> str:
        return self.op("Add", *self.either(x, y), shape=self.shapes[x])

    def block(self, x: str) -> str:
        kind = self.pick("pre", "post", "pre", "post", "plain", "double", "relu")
        if kind == "pre":
            return self.add(x, self.function(self.norm(x)))
        if kind == "post":
            return self.norm(self.add(x, self.function(x)))
        if kind == "double":
            return self.add(self.function(self.norm(x)), self.norm(x))
        if kind == "relu":
            return self.linear(
                self.op("Relu", self.norm(self.linear(x, self.shapes[x][-1])), shape=self.shapes[x]), self.shapes[x][-1]
            )
        return self.function(self.norm(x))

    def class_token(self, x: str) -> str:
        n, length, channels = self.shapes[x]
        token = self.constant(self.rng.normal(0.0, 0.5, (1, 1, channels)), "token")
        size = self.op(
            "Concat", self.op("Shape", x, shape=(1,), start=0, end=1), self.ints(1, channels), shape=(3,), axis=0
        )
        token = self.op("Expand", token, size, shape=(n, 1, channels))
        y = self.op("Concat", token, x, shape=(n, length + 1, channels), axis=1)
        position = self.constant(self.rng.normal(0.0, 0.2, (1, length + 1, channels)), "position")
        return self.op("Add", y, position, shape=self.shapes[y])

    def head(self, x: str) -> str:
        n, _, channels = self.shapes[x]
        choice = self.pick("mean", "first", "tokens", "slice")
        if choice == "tokens":
            return x if self.chance(0.3) else self.linear(x, 3)
        if choice == "mean":
            y = self.op("ReduceMean", x, self.ints(1), shape=(n, channels), keepdims=0)
        elif choice == "first":
            y = self.op("Gather", x, self.constant(np.array(0, dtype=np.int64)), shape=(n, channels), axis=1)
        else:
            y = self.op("Slice", x, self.ints(0), self.ints(1), self.ints(1), shape=(n, 1, channels))
            y = self.op("Reshape", y, self.ints(0, channels), shape=(n, channels))
        weight = self.constant(self.rng.normal(0.0, 0.5, (4, channels)), "w")
        bias = [self.constant(self.rng.normal(0.0, 0.5, 4), "b")] if self.chance(0.7) else []
        return self.op("Gemm", y, weight, *bias, shape=(n, 4), transB=1, alpha=1.5, beta=0.5)


@dataclass(frozen=True)
class Network:
    model: onnx.ModelProto
    feeds: dict[str, NDArray[np.float64]]
    norms: int


def network(seed: int) -> Network:
    """The network of `seed`, in float64, with an input to try it on."""
    rng = np.random.default_rng(seed)
    square = rng.random() < 0.4
    channels = int(rng.choice([4, 6, 8]))
    batch, length = (channels, channels) if square else (int(rng.integers(1, 4)), int(rng.integers(2, 6)))
    builder = Builder(rng, batch)
    builder.shapes["x"] = (batch, length, channels)
    x = builder.linear("x", channels) if builder.chance(0.8) else "x"
    if builder.chance(0.3):
        x = builder.class_token(x)
    for _ in range(int(rng.integers(1, 5))):
        x = builder.block(x)
    if builder.chance(0.5):
        x = builder.norm(x)
    y = builder.head(x)
    graph = helper.make_graph(
        builder.nodes,
        f"random_{seed}",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["B", length, channels])],
        [helper.make_tensor_value_info(y, TensorProto.DOUBLE, ["B", *builder.shapes[y][1:]])],
        [onnx.numpy_helper.from_array(array, name) for name, array in builder.initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return Network(model, {"x": rng.normal(0.0, 1.0, (batch, length, channels))}, builder.norms)
