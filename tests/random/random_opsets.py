"""Random graphs in the operators of every opset from 7 to 24, in float32, for onnxruntime.

Beside tests/random_operators.py, which draws float64 chains of one opset for exact comparison: attributes that became
inputs, casts, resizes, activations with parameters, attention, TopK, If and Loop, functions, weights in every place
that a file can hold them. Shapes are followed here; what a step needs of its tensor it looks at first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.random.random_operators import Drawn

OLDEST, NEWEST = 7, 24
LARGEST = 2000  # elements

Shape = tuple[int, ...]
Array = NDArray[np.generic]


@dataclass
class Drawing:
    rng: np.random.Generator
    opset: int
    shapes: dict[str, Shape]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    asked: bool = False  # whether an If asks the input `k`
    count: int = 0

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def upto(self, high: int, low: int = 0) -> int:
        return int(self.rng.integers(low, high))

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def op(self, op_type: str, *inputs: str, shape: Shape, domain: str = "", **attributes: object) -> str:
        if np.prod(shape) > LARGEST or len(shape) > 5 or 0 in shape:
            raise Drawn
        output = self.name(op_type.lower())
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], domain=domain, **attributes))
        self.shapes[output] = shape
        return output

    # Constants, in every place that a file can hold them.

    def constant(self, array: object, *, plain: bool = False) -> str:
        value, name = np.asarray(array), self.name("c")
        place = 0 if plain else self.upto(8)
        if place == 1:
            self._node("Constant", [], name, value=numpy_helper.from_array(value))
        elif place == 2 and self.opset >= 12 and value.ndim == 1:
            key = "value_floats" if value.dtype.kind == "f" else "value_ints"
            self._node("Constant", [], name, **{key: value.tolist()})
        elif place == 3 and value.ndim >= 2:
            self.constants[f"{name}.t"] = np.ascontiguousarray(value.T)
            self._node("Transpose", [f"{name}.t"], name)
        elif place == 4 and value.dtype == np.float32:
            self.constants[f"{name}.d"] = value.astype(np.float16 if self.chance(0.3) else np.float64)
            self._node("Cast", [f"{name}.d"], name, to=TensorProto.FLOAT)
        elif place == 5 and value.ndim:
            self.constants[f"{name}.f"] = value.reshape(-1)
            self.constants[f"{name}.s"] = np.array(value.shape, np.int64)
            self._node("Reshape", [f"{name}.f", f"{name}.s"], name)
        else:
            self.constants[name] = value
        return name

    def _node(self, op_type: str, inputs: list[str], output: str, **attributes: object) -> None:
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))

    def floats(self, *shape: int, low: float = 0.5, high: float = 1.5, signed: bool = True) -> str:
        array = self.rng.uniform(low, high, shape)
        return self.constant((array * self.rng.choice([-1.0, 1.0], shape) if signed else array).astype(np.float32))

    def weight(self, fan: int, *shape: int) -> str:
        return self.constant((self.rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def axes(self, op_type: str, x: str, axes: list[int], since: int, shape: Shape, **attributes: object) -> str:
        """Axes as an attribute, and since some opset as an input."""
        if self.opset < since:
            return self.op(op_type, x, shape=shape, axes=axes, **attributes)
        return self.op(op_type, x, self.ints(*axes), shape=shape, **attributes)

    # Norms.

    def batch_norm(self, x: str) -> str:
        channels = self.channels(x)
        parameters = [self.floats(channels, signed=self.chance(0.3)), self.floats(channels), self.floats(channels)]
        attributes: dict[str, object] = {} if self.chance(0.5) else {"epsilon": 1e-3}
        if self.opset < 9 and self.chance(0.3):
            attributes["spatial"] = 1
        if self.opset >= 14 and self.chance(0.2):
            attributes["training_mode"] = 0
        inputs = [x, *parameters, self.floats(channels, signed=False)]
        if self.chance(0.12) and self.opset >= 10:
            return self.function(inputs, self.shapes[x])
        return self.op("BatchNormalization", *inputs, shape=self.shapes[x], **attributes)

    def function(self, inputs: list[str], shape: Shape) -> str:
        """The norm as a function of the model, its epsilon an attribute that is handed in."""
        imports = [helper.make_opsetid("", self.opset)]
        names = ["a", "b", "c", "d", "e"]
        node = helper.make_node("BatchNormalization", names, ["y"])
        attribute = helper.make_attribute("epsilon", 1.0)
        attribute.ClearField("f")
        attribute.ref_attr_name = "eps"
        node.attribute.append(attribute)
        body = [helper.make_node("Identity", ["z"], ["a"]), node]
        name = self.name("Norm")
        self.functions.append(helper.make_function("own", name, ["z", *names[1:]], ["y"], body, imports, ["eps"]))
        return self.op(name, *inputs, shape=shape, domain="own", eps=1e-3)

    def channels(self, x: str) -> int:
        if len(self.shapes[x]) < 2 or self.shapes[x][1] < 2:
            raise Drawn
        return self.shapes[x][1]

    def spelled(self, x: str) -> str:
        shape = self.shapes[x]
        if not shape:
            raise Drawn
        axis = self.upto(len(shape), low=min(1, len(shape) - 1))
        if shape[axis] == 1:
            raise Drawn
        along = (shape[axis], *(1,) * (len(shape) - 1 - axis))
        y = self.op("Mul" if self.chance(0.7) else "Div", x, self.floats(*along, signed=self.chance(0.4)), shape=shape)
        return self.op("Add" if self.chance(0.6) else "Sub", y, self.floats(*along), shape=shape)

    def scalar(self, x: str) -> str:
        return self.op("Mul" if self.chance(0.7) else "Add", x, self.constant(np.float32(0.7)), shape=self.shapes[x])

    # Weights.

    def linear(self, x: str) -> str:
        shape = self.shapes[x]
        if len(shape) == 2 and self.chance(0.6):
            return self.gemm(x)
        if len(shape) < 2:
            raise Drawn
        out = self.upto(6, low=2)
        y = self.op("MatMul", x, self.weight(shape[-1], shape[-1], out), shape=(*shape[:-1], out))
        return self.op("Add", y, self.floats(out), shape=self.shapes[y]) if self.chance(0.6) else y

    def gemm(self, x: str) -> str:
        rows, inner = self.shapes[x]
        out, turned = self.upto(6, low=2), self.upto(2)
        weight = self.weight(inner, *((out, inner) if turned else (inner, out)))
        bias = [self.floats(*[(out,), (1, out), (1,), ()][self.upto(4)])] if self.opset < 11 or self.chance(0.7) else []
        given = {"alpha": 0.5, "beta": 2.0} if self.chance(0.3) else {}
        return self.op("Gemm", x, weight, *bias, shape=(rows, out), transB=turned, **given)

    def convolution(self, x: str) -> str:
        shape, channels = self.shapes[x], self.channels(x)
        rank = len(shape) - 2
        if not 1 <= rank <= 2:
            raise Drawn
        groups = channels if self.chance(0.4) else 1
        out = groups * self.upto(3, low=1) if groups > 1 else self.upto(6, low=2)
        kernel = [self.upto(min(3, size) + 1, low=1) for size in shape[2:]]
        pads = [self.upto(2) if size > 1 else 0 for size in (*kernel, *kernel)]
        strides = [self.upto(3, low=1) for _ in kernel]
        sizes = [
            (n + a + b - k) // s + 1
            for n, a, b, k, s in zip(shape[2:], pads[:rank], pads[rank:], kernel, strides, strict=True)
        ]
        bias = [self.floats(out)] if self.chance(0.6) else []
        given: dict[str, object] = {"pads": pads, "strides": strides, "group": groups}
        if self.chance(0.2):
            given, sizes = {"auto_pad": "SAME_UPPER", "group": groups}, list(shape[2:])
        weight = self.weight(channels // groups * int(np.prod(kernel)), out, channels // groups, *kernel)
        return self.op("Conv", x, weight, *bias, shape=(shape[0], out, *sizes), **given)

    # Layout.

    def layout(self, x: str) -> str:
        shape = self.shapes[x]
        kind = self.upto(7)
        if kind == 0 and shape:
            perm = self.rng.permutation(len(shape)).tolist()
            return self.op("Transpose", x, shape=tuple(shape[k] for k in perm), perm=perm)
        if kind == 1 and 1 in shape:
            axis = shape.index(1)
            return self.axes("Squeeze", x, [axis], 13, (*shape[:axis], *shape[axis + 1 :]))
        if kind == 2:
            axis = self.upto(len(shape) + 1)
            return self.axes("Unsqueeze", x, [axis], 13, (*shape[:axis], 1, *shape[axis:]))
        if kind == 3 and len(shape) >= 2:
            axis = self.upto(len(shape), low=1)
            flat = (int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))
            return self.op("Flatten", x, shape=flat, axis=axis)
        if kind == 4 and len(shape) >= 2:
            return self.reshape(x)
        if kind == 5 and shape:
            return self.slice(x)
        return self.cut(x)

    def reshape(self, x: str) -> str:
        """To sizes that are read off the tensor itself, as older exporters write it, or stored."""
        shape = self.shapes[x]
        rest = int(np.prod(shape[1:]))
        if self.chance(0.5):
            return self.op("Reshape", x, self.ints(0, -1), shape=(shape[0], rest))
        sizes = self.op("Shape", x, shape=(len(shape),))
        first = self.op("Gather", sizes, self.constant(np.int64(0)), shape=())
        first = self.axes("Unsqueeze", first, [0], 13, (1,))
        target = self.op("Concat", first, self.ints(-1), shape=(2,), axis=0)
        for name in (sizes, first, target, *(n for n in list(self.shapes)[-4:] if "gather" in n)):
            self.shapes.pop(name, None)
        return self.op("Reshape", x, target, shape=(shape[0], rest))

    def slice(self, x: str) -> str:
        shape = self.shapes[x]
        axis = self.upto(len(shape))
        if shape[axis] < 2 or (axis == 0 and len(shape) > 1):
            raise Drawn
        after = (*shape[:axis], shape[axis] - 1, *shape[axis + 1 :])
        if self.opset < 10:
            return self.op("Slice", x, shape=after, axes=[axis], starts=[1], ends=[shape[axis]])
        return self.op("Slice", x, self.ints(1), self.ints(2**31), self.ints(axis), shape=after)

    def cut(self, x: str) -> str:
        """Split, and join the other way round."""
        shape = self.shapes[x]
        axis = self.upto(len(shape)) if shape else 0
        if not shape or shape[axis] < 2 or (axis == 0 and len(shape) > 1):
            raise Drawn
        sizes = [1, shape[axis] - 1]
        inputs, given = ([x], {"split": sizes}) if self.opset < 13 else ([x, self.ints(*sizes)], {})
        names = [self.name("part"), self.name("part")]
        self.nodes.append(helper.make_node("Split", inputs, names, axis=axis, **given))
        for name, size in zip(names, sizes, strict=True):
            self.shapes[name] = (*shape[:axis], size, *shape[axis + 1 :])
        return self.op("Concat", *names[::-1], shape=shape, axis=axis)


Step = Callable[[Drawing, str], str]


def drawing(seed: int, steps: dict[Step, float]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The graph of `seed`, and an input to try it on. steps: what it is made of, each with its share."""
    rng = np.random.default_rng(seed)
    shape = (2, *[(4,), (3, 4), (4, 4), (3, 5, 4), (4, 4, 4)][int(rng.integers(5))])
    drawn = Drawing(rng, int(rng.integers(OLDEST, NEWEST + 1)), {"x": shape})
    share = np.array(list(steps.values())) / sum(steps.values())
    x = "x"
    for _ in range(int(rng.integers(4, 14))):
        step = list(steps)[int(rng.choice(len(share), p=share))]
        before, known = len(drawn.nodes), dict(drawn.shapes)
        try:
            x = step(drawn, x)
        except Drawn:
            del drawn.nodes[before:]
            drawn.shapes = known
            continue
        if drawn.chance(0.12):
            x = list(drawn.shapes)[drawn.upto(len(drawn.shapes))]
    written = {name for node in drawn.nodes for name in node.output}
    drawn.shapes = {name: s for name, s in drawn.shapes.items() if name in written or name == "x"}
    x = x if x in written else next((n for n in reversed(drawn.shapes) if n in written), "")
    if not x:
        x = drawn.op("Identity", "x", shape=shape)
    if drawn.chance(0.7) and len(drawn.shapes[x]) >= 2 and np.prod(drawn.shapes[x][:-1]) <= LARGEST / 6:
        x = drawn.linear(x)
    more = [name for name in drawn.shapes if name not in ("x", x)]
    outputs = [x, *([more[drawn.upto(len(more))]] if more and drawn.chance(0.2) else [])]
    return _model(drawn, seed, shape, outputs), {"x": rng.normal(size=shape).astype(np.float32)} | (
        {"k": np.array(drawn.chance(0.5))} if drawn.asked else {}
    )


def _model(drawn: Drawing, seed: int, shape: Shape, outputs: list[str]) -> onnx.ModelProto:
    read = {name for node in drawn.nodes for name in node.input} | {
        name for node in drawn.nodes for a in node.attribute for inner in a.g.node for name in inner.input
    }
    stored = {name: array for name, array in drawn.constants.items() if name in read}
    info = helper.make_tensor_value_info
    named = ["B", *shape[1:]] if drawn.chance(0.5) else list(shape)
    inputs = [info("x", TensorProto.FLOAT, named)] + ([info("k", TensorProto.BOOL, [])] if drawn.asked else [])
    old = drawn.opset < 9
    if old or drawn.chance(0.05):
        # Before IR 4 every initializer is an input as well; after it, one that can be overridden.
        every = list(stored) if old else list(stored)[:2]
        inputs += [info(n, helper.np_dtype_to_tensor_dtype(stored[n].dtype), stored[n].shape) for n in every]
    graph = helper.make_graph(
        drawn.nodes,
        f"drawing_{seed}",
        inputs,
        [info(name, TensorProto.FLOAT, [f"{name}.{k}" for k, _ in enumerate(drawn.shapes[name])]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    imports = [helper.make_opsetid("", drawn.opset)] + ([helper.make_opsetid("own", 1)] if drawn.functions else [])
    version = 10 if drawn.functions or drawn.opset > 15 else 3 if old else 7
    return helper.make_model(graph, opset_imports=imports, ir_version=version, functions=drawn.functions)
