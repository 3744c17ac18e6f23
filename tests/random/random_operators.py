"""Random chains of every listed operator, with small and often equal dimensions: what no exporter would write.

Unlike tests/random_graphs.py these are no networks. Their tensors are read half way, concatenated with themselves,
reshaped across the channels, normed along any axis; a fold that is wrong anywhere shows here first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.support.graphs import ConvTranspose

OPSET = 20
LARGEST = 400  # elements


class Drawn(Exception):
    """The step that was drawn does not fit the tensor; another one is taken."""


@dataclass
class Chain:
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    norms: int = 0

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def upto(self, high: int, low: int = 0) -> int:
        return int(self.rng.integers(low, high))

    def pick(self, *choices: str) -> str:
        return choices[self.upto(len(choices))]

    def constant(self, array: object) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def normal(self, *shape: int) -> str:
        return self.constant(self.rng.normal(size=shape))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        """Append an operator; its output's shape is found by running it."""
        output = f"{op_type.lower()}_{len(self.nodes)}"
        node = helper.make_node(op_type, list(inputs), [output], **attributes)
        feeds = {n: self.constants.get(n, np.ones(self.shapes.get(n, ()))) for n in dict.fromkeys(inputs)}
        try:
            result = ReferenceEvaluator(node, opsets={"": OPSET}, new_ops=[ConvTranspose]).run(None, feeds)[0]
        except (ValueError, IndexError) as error:  # a pooling window that holds padding alone, an axis of over 64
            raise Drawn from error
        if result.size > LARGEST or not 0 < result.ndim <= 5 or result.size == 0:
            raise Drawn
        self.nodes.append(node)
        self.shapes[output] = result.shape
        return output

    def norm(self, x: str) -> str:
        shape = self.shapes[x]
        axis = self.upto(len(shape), low=min(1, len(shape) - 1))
        if shape[axis] == 1:
            raise Drawn
        self.norms += 1
        size, tail = shape[axis], (1,) * (len(shape) - 1 - axis)
        if len(shape) >= 2 and self.chance(0.2):
            gamma, beta, mean = (self.normal(shape[1]) for _ in range(3))
            var = self.constant(self.rng.uniform(0.3, 2.0, shape[1]))
            return self.op("BatchNormalization", x, gamma, beta, mean, var)
        scale = self.rng.uniform(0.4, 1.6, size)
        if self.chance(0.4):
            scale *= self.rng.choice([1.0, -1.0], size)
        if self.chance(0.15):
            scale[:] = scale[0]
        operator = self.pick("Mul", "Mul", "Div")
        if operator == "Mul" and self.chance(0.1):
            scale[self.upto(size)] = 0.0
        y = self.op(operator, x, self.constant(scale.reshape(size, *tail)))
        if self.chance(0.7):
            y = self.op(self.pick("Add", "Sub"), y, self.normal(size, *tail))
        if self.chance(0.25):
            y = self.op(self.pick("Add", "Sub"), y, self.op("Mul", x, self.normal(1)))
        return y

    def linear(self, x: str) -> str:
        shape = self.shapes[x]
        if len(shape) < 2:
            raise Drawn
        kind = self.upto(5)
        if kind == 0:
            return self.op("MatMul", self.normal(4 if self.chance(0.5) else shape[-2], shape[-2]), x)
        if kind == 1 and len(shape) >= 3:
            return self.convolution(x)
        if kind == 2 and len(shape) == 2:
            transposed = self.upto(2)
            weight = self.normal(3, shape[1]) if transposed else self.normal(shape[1], 3)
            bias = [self.normal(*[(3,), (1, 3), (1,), ()][self.upto(4)])] if self.chance(0.7) else []
            alpha, beta = (float(self.rng.choice([0.0, 0.5, 1.0, 2.0])) for _ in range(2))
            return self.op("Gemm", x, weight, *bias, transB=transposed, alpha=alpha or 1.0, beta=beta)
        if kind == 3 and len(shape) >= 3:
            return self.op("MatMul", x, self.normal(shape[-3] if self.chance(0.7) else 1, shape[-1], 4))
        y = self.op("MatMul", x, self.normal(shape[-1], 4 if self.chance(0.6) else 3))
        return self.op("Add", y, self.normal(self.shapes[y][-1])) if self.chance(0.6) else y

    def convolution(self, x: str) -> str:
        shape = self.shapes[x]
        groups = shape[1] if self.chance(0.5) else 1
        outputs = groups * self.upto(3, low=1) if groups > 1 else 4
        kernel = [self.upto(min(3, size) + 1, low=1) for size in shape[2:]]
        pads = [self.upto(2) * self.upto(2) for _ in range(2 * len(kernel))]
        bias = [self.normal(outputs)] if self.chance(0.6) else []
        weight = self.normal(outputs, shape[1] // groups, *kernel)
        return self.op("Conv", x, weight, *bias, group=groups, pads=pads, kernel_shape=kernel)

    def reshape(self, x: str) -> str:
        rest, target = int(np.prod(self.shapes[x])), []
        for _ in range(self.upto(4, low=1)):
            divisors = [size for size in (1, 2, 3, 4, 6, 8) if rest % size == 0]
            target.append(divisors[self.upto(len(divisors))])
            rest //= target[-1]
        target.insert(self.upto(len(target) + 1), rest)
        if self.chance(0.4):
            target[self.upto(len(target))] = -1
        return self.op("Reshape", x, self.ints(*target))

    def slice(self, x: str) -> str:
        axis = self.upto(len(self.shapes[x]))
        size = self.shapes[x][axis]
        if size == 1:
            raise Drawn
        if self.chance(0.5):
            return self.op("Slice", x, self.ints(1), self.ints(size), self.ints(axis))
        return self.op("Slice", x, self.ints(-1), self.ints(-size - 1), self.ints(axis), self.ints(-1))

    def concat(self, x: str) -> str:
        shape = self.shapes[x]
        axis = self.upto(len(shape))
        fitting = [
            name
            for name, other in self.shapes.items()
            if len(other) == len(shape) and all(other[k] == size for k, size in enumerate(shape) if k != axis)
        ]
        parts = [x, *(fitting[self.upto(len(fitting))] for _ in range(self.upto(3, low=1)))]
        if self.chance(0.3):
            parts.append(self.normal(*shape[:axis], 2, *shape[axis + 1 :]))
        self.rng.shuffle(parts)
        return self.op("Concat", *parts, axis=axis - len(shape) if self.chance(0.5) else axis)

    def pad(self, x: str) -> str:
        rank = len(self.shapes[x])
        amounts, axis = [0] * (2 * rank), self.upto(rank)
        amounts[axis], amounts[axis + rank] = 1, self.upto(2)
        return self.op("Pad", x, self.ints(*amounts), mode=self.pick("constant", "edge"))

    def expand(self, x: str) -> str:
        target = [3 if size == 1 and self.chance(0.5) else size for size in self.shapes[x]]
        return self.op("Expand", x, self.ints(*([2] if self.chance(0.3) else []), *target))

    def layout(self, x: str) -> str:
        rank = len(self.shapes[x])
        steps: list[Callable[[], str]] = [
            lambda: self.op("Transpose", x, perm=[int(axis) for axis in self.rng.permutation(rank)]),
            lambda: self.reshape(x),
            lambda: self.reshape(x),
            lambda: self.op("Flatten", x, axis=self.upto(rank + 1)),
            lambda: self.op("Unsqueeze", x, self.ints(self.upto(rank + 1))),
            lambda: self.slice(x),
            lambda: self.concat(x),
            lambda: self.op("Gather", x, self.constant([0, -1] if self.chance(0.6) else 0), axis=self.upto(rank)),
            lambda: self.pad(x),
            lambda: self.expand(x),
            lambda: self.op("ReduceMean", x, self.ints(self.upto(rank, low=-rank)), keepdims=self.upto(2)),
        ]
        return steps[self.upto(len(steps))]()

    def other(self, x: str) -> str:
        shape = self.shapes[x]
        kind = self.upto(4)
        if kind == 0:
            return self.op(self.pick("Relu", "LeakyRelu"), x)
        if kind == 1 and len(shape) > 2:
            kernel = [min(2, size) for size in shape[2:]]
            pads = [0] * len(kernel) + [int(size > 1) for size in shape[2:]]
            return self.op(self.pick("MaxPool", "AveragePool"), x, kernel_shape=kernel, pads=pads)
        if kind == 2 and shape[-1:] > (1,):
            bias = [self.normal(shape[-1])] if self.chance(0.5) else []
            return self.op("LayerNormalization", x, self.normal(shape[-1]), *bias, epsilon=2.0**-7)
        return self.op("Tanh", x)

    def product(self, x: str) -> str:
        """A contraction or a product with a computed tensor, or an Einsum with a weight."""
        shape = self.shapes[x]
        kind = self.upto(4)
        if kind == 0 and len(shape) >= 2:
            gate = self.op("Exp", self.op("Tanh", x))
            return self.op(self.pick("Mul", "Div"), x, gate)
        if kind == 1 and len(shape) >= 2:
            probabilities = self.op("Softmax", self.normal(*shape[:-2], 4, shape[-2]))
            mixed = self.op("Add", probabilities, self.op("ReduceMean", self.op("Tanh", x), keepdims=1))
            return self.op("MatMul", mixed, x)
        if kind == 2 and 2 <= len(shape) <= 4:
            axes, out = "abcd"[: len(shape)], self.upto(len(shape))
            equation = f"{axes},{axes[out]}e->{axes.replace(axes[out], '')}e"
            return self.op("Einsum", x, self.normal(shape[out], 4), equation=equation)
        y = self.op("Tanh", x)
        return self.op("Mul", *((x, y) if self.chance(0.5) else (y, x)))

    def tie(self, x: str) -> str:
        kind = self.upto(5)
        other = self.op("Tanh", x) if self.chance(0.3) else x
        if kind == 0:
            constant = self.normal(*[1, self.shapes[x][-1]][: self.upto(3)][-1:])
            return self.op(self.pick("Max", "Min"), *((x, constant) if self.chance(0.5) else (constant, x)))
        if kind == 1:
            condition = self.constant(self.rng.random(self.shapes[x]) < 0.5)
            return self.op("Where", condition, x, self.normal() if self.chance(0.5) else other)
        if kind == 2:
            return self.op("Clip", x, self.constant(0.0 if self.chance(0.5) else -0.5))
        if kind == 3:
            return self.op(self.pick("Sum", "Mean"), x, other, x)
        return self.op(self.pick("Max", "Min"), x, other)

    def more(self, x: str) -> str:
        shape = self.shapes[x]
        kind = self.upto(6)
        if kind == 0 and shape:
            name = self.pick("ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")
            return self.op(name, x, self.ints(self.upto(len(shape))), keepdims=self.upto(2))
        if kind == 1:
            return self.op("Tile", x, self.ints(*(1 + self.upto(2) for _ in shape)))
        if kind == 2 and len(shape) >= 3:
            taps, groups = [1 + self.upto(2) for _ in shape[2:]], shape[1] if self.chance(0.4) else 1
            attributes = {"strides": [1 + self.upto(2) for _ in taps], "group": groups}
            return self.op("ConvTranspose", x, self.normal(shape[1], 2, *taps), **attributes)
        if kind == 3 and len(shape) >= 3 and shape[1] > 1:
            weights = self.normal(shape[1]), self.normal(shape[1])
            return self.op("InstanceNormalization", x, *weights, epsilon=2.0**-7)
        if kind == 4 and len(shape) == 4:
            name = self.pick("DepthToSpace", "SpaceToDepth")
            if (name == "DepthToSpace" and shape[1] % 4) or (name == "SpaceToDepth" and (shape[2] % 2 or shape[3] % 2)):
                raise Drawn
            return self.op(name, x, blocksize=2)
        return self.op("Abs", x)

    def moved(self, x: str) -> str:
        """Elements in another order, or some of them."""
        shape = self.shapes[x]
        axis = self.upto(len(shape))
        kind = self.upto(4)
        if kind == 0:
            return self.op("CumSum", x, self.constant(axis), exclusive=self.upto(2), reverse=self.upto(2))
        if kind == 1 and len(shape) >= 2:
            lengths = self.ints(*(1 + self.upto(shape[1]) for _ in range(shape[0])))
            return self.op("ReverseSequence", x, lengths, batch_axis=0, time_axis=1)
        if kind == 2:
            return self.op("GatherElements", x, self.constant(self.rng.integers(0, shape[axis], shape)), axis=axis)
        picked = self.rng.permutation(shape[axis]) if self.chance(0.6) else self.rng.integers(0, shape[axis], (2, 2))
        return self.op("Gather", x, self.constant(picked), axis=axis)

    def weighed(self, x: str) -> str:
        """Weights in other places than most have them, and slopes."""
        shape = self.shapes[x]
        kind = self.upto(5)
        if kind == 0:
            slopes = self.rng.uniform(0.2, 2.0, shape[-1]) * self.rng.choice([1.0, 1.0, -1.0], shape[-1])
            return self.op("PRelu", x, self.constant(slopes))
        if kind == 1 and len(shape) >= 2:
            return self.op("MatMul", x, self.normal(shape[-1]))
        if kind == 2 and len(shape) == 2:
            turned, over = self.upto(2), self.upto(2)
            inner = shape[1] if over else shape[0]
            bias = [self.normal(*[(3, 1), (1,), ()][self.upto(3)])] if self.chance(0.5) else []
            weight = self.normal(*((inner, 3) if turned else (3, inner)))
            return self.op("Gemm", weight, x, *bias, transA=turned, transB=over, alpha=0.5, beta=2.0)
        if kind == 3:
            equation = self.pick("...k,kn->...n", "...k,kn->n...", "...k,kn")
            return self.op("Einsum", x, self.normal(shape[-1], 4), equation=equation)
        wide = self.normal(*((2, *shape[1:]) if shape[0] == 1 else shape[-1:]))
        other = [self.op("Tanh", x)] if self.chance(0.3) else [x] if self.chance(0.5) else []
        return self.op(self.pick("Sum", "Mean"), x, *other, wide)

    def join(self, x: str) -> str:
        names = list(self.shapes)
        y = names[self.upto(len(names))]
        try:
            np.broadcast_shapes(self.shapes[x], self.shapes[y])
        except ValueError as error:
            raise Drawn from error
        return self.op(self.pick("Add", "Sub"), *((x, y) if self.chance(0.5) else (y, x)))

    def grow(self, steps: int) -> str:
        x = "x"
        kinds: Sequence[Callable[[str], str]] = (
            *(self.norm, self.linear, self.layout, self.join, self.other),
            *(self.product, self.tie, self.more, self.moved, self.weighed),
        )
        for _ in range(steps):
            kind = kinds[
                int(self.rng.choice(len(kinds), p=[0.28, 0.16, 0.16, 0.08, 0.06, 0.06, 0.05, 0.05, 0.05, 0.05]))
            ]
            try:
                x = kind(x)
            except Drawn:
                continue
            if self.chance(0.15):
                x = list(self.shapes)[self.upto(len(self.shapes))]
        return x


def free(shape: tuple[int, ...], name: str) -> list[str]:
    """Dimensions that say nothing but their number."""
    return [f"{name}.{axis}" for axis, _ in enumerate(shape)]


def chain(seed: int) -> tuple[onnx.ModelProto, dict[str, NDArray[np.float64]]]:
    """The graph of `seed`, in float64, with an input to try it on."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(2, 5)), *[(4, 4), (4, 4, 4), (2, 4)][int(rng.integers(3))])
    drawn = Chain(rng, shapes={"x": shape})
    last = drawn.grow(int(rng.integers(4, 14)))
    names = [name for name in drawn.shapes if name != "x"]
    outputs = dict.fromkeys([last, *(names[drawn.upto(len(names))] for _ in range(1) if names and drawn.chance(0.2))])
    outputs.pop("x", None)
    if not outputs:
        outputs[drawn.op("Identity", "x")] = None
    named = ["B", *shape[1:]] if drawn.chance(0.5) else list(shape)
    graph = helper.make_graph(
        drawn.nodes,
        f"chain_{seed}",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, named)],
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, free(drawn.shapes[name], name)) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in drawn.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return model, {"x": rng.normal(size=shape)}
