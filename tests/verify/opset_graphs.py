"""Small networks as ONNX files of any opset from 8 on, each written as that opset wants it.

What changed its schema on the way is drawn often: Softmax (flattened before 13), BatchNormalization, Dropout, Pad,
Clip, Slice, Squeeze, ReduceMean and ReduceSum, Upsample and Resize, and Gelu and LayerNormalization where they exist.
Statistics are never fresh, some scales are negative.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = (8, 11, 13, 17, 21, 24)
Array = np.ndarray


class Network:
    """Grows a graph of one value that flows; `shape` is its own, without the batch."""

    def __init__(self, opset: int, seed: int, *shape: int) -> None:
        self.opset, self.rng = opset, np.random.default_rng((opset, seed))
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.x, self.shape, self.taken = "x", shape, shape

    def weight(self, array: Array) -> str:
        array = np.asarray(array)
        kind = np.int64 if array.dtype.kind == "i" else np.float32
        self.weights.append(numpy_helper.from_array(array.astype(kind), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def ints(self, *values: int) -> str:
        return self.weight(np.array(values, dtype=np.int64))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        names = [name, *(f"{name}_{number}" for number in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return name

    def then(self, kind: str, *inputs: str, **attributes: object) -> None:
        self.x = self.op(kind, self.x, *inputs, **attributes)

    def pick(self, *choices: object) -> object:
        return choices[int(self.rng.integers(len(choices)))]

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        return self.rng.standard_normal(shape) * scale

    # What the schemas disagree about.

    def axes(self, kind: str, x: str, axes: list[int], *, since: int = 13, **attributes: object) -> str:
        """An operator whose axes have become an input."""
        if self.opset >= since:
            return self.op(kind, x, self.ints(*axes), **attributes)
        return self.op(kind, x, axes=axes, **attributes)

    def clip(self, low: float, high: float) -> None:
        if self.opset >= 11:
            self.then("Clip", self.weight(np.array(low)), self.weight(np.array(high)))
        else:
            self.then("Clip", min=low, max=high)

    def pad(self, pads: list[int]) -> None:
        if self.opset >= 11:
            self.then("Pad", self.ints(*pads))
        else:
            self.then("Pad", pads=pads)

    def double(self) -> None:
        scales = [1.0, 1.0] + [2.0] * (len(self.shape) - 1)
        if self.opset >= 11:
            regions = "" if self.opset >= 13 else self.weight(np.zeros(0))
            modes = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
            self.then("Resize", regions, self.weight(np.array(scales)), mode="nearest", **modes)
        elif self.opset == 10:
            self.then("Resize", self.weight(np.array(scales)), mode="nearest")
        elif self.opset == 9:
            self.then("Upsample", self.weight(np.array(scales)), mode="nearest")
        else:
            self.then("Upsample", scales=scales, mode="nearest")
        self.shape = (self.shape[0], *(2 * size for size in self.shape[1:]))

    def slice(self, start: int, stop: int, axis: int) -> str:
        if self.opset >= 10:
            return self.op("Slice", self.x, self.ints(start), self.ints(stop), self.ints(axis))
        return self.op("Slice", self.x, starts=[start], ends=[stop], axes=[axis])

    def dropout(self) -> None:
        self.then("Dropout", **({"ratio": 0.3} if self.opset < 12 else {}))

    # Layers.

    def norm(self, channels: int) -> None:
        scale = self.rng.uniform(0.4, 2.0, channels) * self.rng.choice([1.0, -1.0], channels, p=[0.85, 0.15])
        rows = (scale, self.normal(channels), self.normal(channels, scale=0.5), self.rng.uniform(0.3, 3.0, channels))
        self.then("BatchNormalization", *map(self.weight, rows), epsilon=float(self.pick(1e-5, 1e-3)))

    def activation(self) -> None:
        kinds = ["Relu", "LeakyRelu", "Sigmoid", "Clip", "Tanh", "HardSwish" if self.opset >= 14 else "Elu"]
        kind = str(self.pick(*kinds, *(["Gelu"] if self.opset >= 20 else [])))
        if kind == "Clip":
            self.clip(0.0, 6.0)
        else:
            self.then(kind)

    def conv(self, outputs: int, kernel: int, *, group: int = 1, pad: int = 0, **attributes: object) -> None:
        channels, rank = self.shape[0], len(self.shape) - 1
        inputs = channels // group
        weight = self.normal(outputs, inputs, *[kernel] * rank, scale=(2 / (inputs * kernel**rank)) ** 0.5)
        extra = [self.weight(self.normal(outputs, scale=0.3))] if self.rng.random() < 0.5 else []
        self.then("Conv", self.weight(weight), *extra, pads=[pad] * 2 * rank, group=group, **attributes)
        stride = attributes.get("strides", [1] * rank)[0]  # type: ignore[index]
        self.shape = (outputs, *((size + 2 * pad - kernel) // stride + 1 for size in self.shape[1:]))

    def linear(self, outputs: int, inputs: int) -> None:
        weight = self.weight(self.normal(inputs, outputs, scale=inputs**-0.5))
        bias = self.weight(self.normal(outputs, scale=0.3))
        if len(self.shape) == 1 and self.rng.random() < 0.5:
            self.then("Gemm", weight, bias)
        else:
            self.then("MatMul", weight)
            self.then("Add", bias)
        self.shape = (*self.shape[:-1], outputs)

    def head(self, classes: int = 6) -> None:
        """From maps to classes."""
        if self.rng.random() < 0.5:
            self.then("GlobalAveragePool")
        else:
            axes = list(range(2, len(self.shape) + 1))
            self.x = self.axes("ReduceMean", self.x, axes, since=18, keepdims=1)
        self.then("Flatten")
        self.shape = self.shape[:1]
        self.linear(classes, self.shape[0])

    def model(self) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", *self.taken])]
        outputs = [helper.make_tensor_value_info(self.x, TensorProto.FLOAT, [None] * (1 + len(self.shape)))]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8 if self.opset < 21 else 10
        return model


def convolutional(net: Network) -> None:
    """Strides, pooling, a residual branch, a classifier."""
    channels = int(net.pick(6, 8, 10))
    net.conv(channels, 3, pad=int(net.pick(0, 1)))
    net.norm(channels)
    net.activation()
    net.then("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.shape = (channels, *(size // 2 for size in net.shape[1:]))
    before = net.x
    net.conv(channels, 3, pad=1)
    net.norm(channels)
    net.then("Relu")
    net.x = net.op("Add", net.x, before)
    net.norm(channels)
    net.conv(channels + 2, 3, strides=[2, 2])
    net.norm(channels + 2)
    net.activation()
    net.head()
    if net.rng.random() < 0.5:
        net.then("Softmax", axis=1)


def mobile(net: Network) -> None:
    """Depthwise and grouped convolutions, an explicit Pad, a split of channels."""
    channels = int(net.pick(8, 12))
    net.conv(channels, 1)
    net.norm(channels)
    net.clip(0.0, 6.0)
    net.pad([0, 0, 1, 1, 0, 0, 1, 1])
    net.shape = (channels, *(size + 2 for size in net.shape[1:]))
    net.conv(channels, 3, group=channels)
    net.norm(channels)
    net.activation()
    net.conv(channels, 3, group=int(net.pick(2, 4)), pad=1)
    net.norm(channels)
    first, second = net.slice(0, channels // 2, 1), net.slice(channels // 2, channels, 1)
    net.x = net.op("Concat", second, first, axis=1)
    net.conv(channels, 1)
    net.norm(channels)
    net.head()


def decoder(net: Network) -> None:
    """Transposed convolution, upsampling, and maps as outputs, normalised over channels or over everything."""
    channels = int(net.pick(6, 8))
    net.conv(channels, 3, pad=1)
    net.norm(channels)
    net.activation()
    group = int(net.pick(1, 2))
    weight = net.normal(channels, channels // group, 2, 2, scale=channels**-0.5)
    net.then("ConvTranspose", net.weight(weight), strides=[2, 2], group=group)
    net.shape = (channels, *(2 * size for size in net.shape[1:]))
    net.norm(channels)
    net.then("Relu")
    net.double()
    net.norm(channels)
    net.conv(4, 3, pad=1)
    net.then(*(("Softmax",) if net.rng.random() < 0.5 else ("Sigmoid",)))


def perceptron(net: Network) -> None:
    """Rows of numbers; a Softmax over classes."""
    width = int(net.pick(8, 12, 16))
    net.linear(width, net.shape[0])
    net.norm(width)
    net.activation()
    net.dropout()
    net.linear(width, width)
    net.norm(width)
    net.then("Relu")
    net.linear(width, width)
    net.norm(width)
    net.linear(7, width)
    net.then(str(net.pick("Softmax", "LogSoftmax")), axis=1)


def attention(net: Network) -> None:
    """A block of attention and one of a perceptron, with batch norms before them and a LayerNorm behind."""
    width = net.shape[1]
    for _ in range(int(net.pick(1, 2))):
        before = net.x
        _tokens_norm(net, width)
        normed, parts = net.x, []
        for _ in range(3):
            net.x = normed
            net.linear(width, width)
            parts.append(net.x)
        net.x = net.op("MatMul", parts[0], net.op("Transpose", parts[1], perm=[0, 2, 1]))
        net.then("Mul", net.weight(np.array(width**-0.5)))
        net.then("Softmax", axis=2)
        net.then("MatMul", parts[2])
        net.linear(width, width)
        net.x = before = net.op("Add", net.x, before)
        _tokens_norm(net, width)
        net.linear(2 * width, width)
        net.then("Relu")
        net.linear(width, 2 * width)
        net.x = net.op("Add", net.x, before)
    _layer_norm(net, width)
    net.x = net.axes("ReduceSum", net.x, [1], keepdims=0)
    net.shape = (width,)
    net.linear(5, width)


def _tokens_norm(net: Network, width: int) -> None:
    net.then("Transpose", perm=[0, 2, 1])
    net.norm(width)
    net.then("Transpose", perm=[0, 2, 1])


def _layer_norm(net: Network, width: int) -> None:
    scale, shift = net.weight(net.rng.uniform(0.5, 2.0, width)), net.weight(net.normal(width))
    if net.opset >= 17:
        net.then("LayerNormalization", scale, shift, epsilon=1e-3)
        return
    mean = net.axes("ReduceMean", net.x, [2], since=18, keepdims=1)
    net.then("Sub", mean)
    square = net.op("Mul", net.x, net.x)
    variance = net.op("Add", net.axes("ReduceMean", square, [2], since=18, keepdims=1), net.weight(np.array(1e-3)))
    net.then("Div", net.op("Sqrt", variance))
    net.then("Mul", scale)
    net.then("Add", shift)


def recurrent(net: Network) -> None:
    """Convolutions over time, a recurrent layer, a norm behind it."""
    kind, gates = (("GRU", 3), ("LSTM", 4))[int(net.rng.integers(2))]
    channels, hidden = int(net.pick(6, 8)), int(net.pick(5, 7))
    net.conv(channels, 3, pad=1)
    net.norm(channels)
    net.then("Relu")
    net.then("Transpose", perm=[2, 0, 1])
    shapes = ((1, gates * hidden, channels), (1, gates * hidden, hidden), (1, 2 * gates * hidden))
    weights = [net.weight(net.normal(*shape, scale=0.4)) for shape in shapes]
    net.then(kind, *weights, hidden_size=hidden)
    net.x = net.axes("Squeeze", net.x, [1])
    net.then("Transpose", perm=[1, 2, 0])
    net.norm(hidden)
    net.then("Transpose", perm=[0, 2, 1])
    net.shape = (net.shape[1], hidden)
    net.linear(4, hidden)


KINDS: dict[str, tuple[Callable[[Network], None], tuple[int, ...]]] = {
    "convolutional": (convolutional, (3, 12, 10)),
    "mobile": (mobile, (3, 9, 8)),
    "decoder": (decoder, (3, 5, 6)),
    "perceptron": (perceptron, (9,)),
    "attention": (attention, (6, 8)),
    "recurrent": (recurrent, (5, 7)),
}


def network(opset: int, kind: str, seed: int) -> onnx.ModelProto:
    """A network of this kind at this opset; the same numbers give the same one."""
    grow, shape = KINDS[kind]
    net = Network(opset, seed, *shape)
    grow(net)
    return net.model()
