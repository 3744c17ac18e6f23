"""The steps of tests/random_opsets.py beyond norms, weights and layout."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.random.random_operators import Drawn
from tests.random.random_opsets import Drawing, Step


def activation(d: Drawing, x: str) -> str:
    """Those that pass a scale, those that pass nothing, and those with parameters."""
    shape = d.shapes[x]
    kind = d.upto(9)
    if kind == 0:
        slopes = [(), (1,)] + ([(shape[1], *(1,) * (len(shape) - 2))] if len(shape) >= 2 else []) + [shape]
        return d.op("PRelu", x, d.floats(*slopes[d.upto(len(slopes))]), shape=shape)
    if kind == 1:
        return clip(d, x)
    if kind == 2:
        return d.op("LeakyRelu", x, shape=shape, **({"alpha": 0.2} if d.chance(0.5) else {}))
    if kind == 3:
        inputs = [x, d.constant(np.float32(0.4))] if d.opset >= 12 and d.chance(0.5) else [x]
        return d.op("Dropout", *inputs, shape=shape)
    plain = ["Relu", "Relu", "Abs", "Tanh", "Sigmoid", "Elu", "Softplus", "Identity", "Neg"]
    plain += ["Erf", "Sign"] if d.opset >= 9 else []
    plain += ["ThresholdedRelu", "Shrink"] if d.opset >= 10 else []
    plain += ["Celu"] if d.opset >= 12 else []
    plain += ["HardSwish"] if d.opset >= 14 else []
    plain += ["Gelu"] if d.opset >= 20 else []
    return d.op(plain[d.upto(len(plain))], x, shape=shape)


def clip(d: Drawing, x: str) -> str:
    low, high = float(d.rng.choice([0.0, -0.5])), 6.0 if d.chance(0.5) else None
    if d.opset < 11:
        return d.op("Clip", x, shape=d.shapes[x], min=low, **({} if high is None else {"max": high}))
    bounds = [d.constant(np.float32(low))] + ([] if high is None else [d.constant(np.float32(high))])
    return d.op("Clip", x, *bounds, shape=d.shapes[x])


def cast(d: Drawing, x: str) -> str:
    """There and back, between floats or over integers."""
    shape = d.shapes[x]
    kinds = [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL]
    there = d.op("Cast", x, shape=shape, to=kinds[d.upto(len(kinds))])
    # What is not float32 is read by this step alone.
    d.shapes.pop(there)
    return d.op("Cast", there, shape=shape, to=TensorProto.FLOAT)


def resize(d: Drawing, x: str) -> str:
    shape = d.shapes[x]
    if len(shape) != 4:
        raise Drawn
    after = (*shape[:2], 2 * shape[2], 2 * shape[3])
    factors = np.array([1, 1, 2, 2], np.float32)
    mode = "nearest" if d.opset < 10 or d.chance(0.5) else "linear"
    if d.opset < 9:
        return d.op("Upsample", x, shape=after, mode=mode, scales=factors.tolist())
    if d.opset < 11:
        return d.op("Upsample" if d.opset < 10 else "Resize", x, d.constant(factors), shape=after, mode=mode)
    way = str(d.rng.choice(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]))
    # Up to opset 12 what is left out is an empty tensor.
    nothing = "" if d.opset >= 13 else d.constant(np.zeros(0, np.float32), plain=True)
    inputs = [x, nothing, d.constant(factors)] if d.chance(0.5) else [x, nothing, nothing, d.ints(*after)]
    return d.op("Resize", *inputs, shape=after, mode=mode, coordinate_transformation_mode=way)


def pool(d: Drawing, x: str) -> str:
    shape = d.shapes[x]
    if not 3 <= len(shape) <= 4 or min(shape[2:]) < 2:
        raise Drawn
    kind = d.upto(4)
    if kind == 0:
        return d.op(["GlobalAveragePool", "GlobalMaxPool"][d.upto(2)], x, shape=(*shape[:2], *(1,) * len(shape[2:])))
    name = ["MaxPool", "AveragePool", "LpPool"][kind - 1]
    given: dict[str, object] = {"kernel_shape": [2] * len(shape[2:])}
    sizes = tuple(size - 1 for size in shape[2:])
    if d.chance(0.4) and name != "LpPool":
        given["pads"] = [1] * len(shape[2:]) + [0] * len(shape[2:])
        sizes = shape[2:]
        if name == "AveragePool" and d.chance(0.5):
            given["count_include_pad"] = 1
    return d.op(name, x, shape=(*shape[:2], *sizes), **given)


def pad(d: Drawing, x: str) -> str:
    shape = d.shapes[x]
    if len(shape) < 3:
        raise Drawn
    amounts = [0, 0, *(d.upto(2) for _ in shape[2:])]
    after = tuple(size + 2 * amount for size, amount in zip(shape, amounts, strict=True))
    mode = "reflect" if min(shape[2:]) > 2 and d.chance(0.3) else "constant"
    if d.opset < 11:
        return d.op("Pad", x, shape=after, pads=amounts * 2, mode=mode)
    value = [d.constant(np.float32(0.0 if d.chance(0.6) else 1.5))] if mode == "constant" and d.chance(0.5) else []
    return d.op("Pad", x, d.ints(*amounts, *amounts), *value, shape=after, mode=mode)


def reduce(d: Drawing, x: str) -> str:
    shape = d.shapes[x]
    if len(shape) < 2:
        raise Drawn
    name = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceL1"][d.upto(6)]
    axis, keep = d.upto(len(shape), low=1), d.upto(2)
    after = (*shape[:axis], *((1,) if keep else ()), *shape[axis + 1 :])
    return d.axes(name, x, [axis], 13 if name == "ReduceSum" else 18, after, keepdims=keep)


def top(d: Drawing, x: str) -> str:
    """The largest two of an axis, or where they are."""
    shape = d.shapes[x]
    if not shape or shape[-1] < 2:
        raise Drawn
    inputs, given = ([x], {"k": 2}) if d.opset < 10 else ([x, d.ints(2)], {})
    values, places = d.name("top"), d.name("places")
    d.nodes.append(helper.make_node("TopK", inputs, [values, places], axis=len(shape) - 1, **given))
    d.shapes[values] = (*shape[:-1], 2)
    if d.chance(0.5):
        return values
    return d.op("Cast", places, shape=(*shape[:-1], 2), to=TensorProto.FLOAT)


def attention(d: Drawing, x: str) -> str:
    shape = d.shapes[x]
    if len(shape) != 3:
        raise Drawn
    width = shape[2]
    projected = [d.op("MatMul", x, d.weight(width, width, 4), shape=(*shape[:2], 4)) for _ in range(3)]
    if d.chance(0.5):
        projected[2] = d.spelled(projected[2])
    if d.opset >= 23:
        return d.op("Attention", *projected, shape=(*shape[:2], 4), q_num_heads=2, kv_num_heads=2)
    turned = d.op("Transpose", projected[1], shape=(shape[0], 4, shape[1]), perm=[0, 2, 1])
    square = (shape[0], shape[1], shape[1])
    scores = d.op("Softmax", d.op("MatMul", projected[0], turned, shape=square), shape=square, axis=2)
    return d.op("MatMul", scores, projected[2], shape=(*shape[:2], 4))


def token_norm(d: Drawing, x: str) -> str:
    shape = d.shapes[x]
    if d.opset >= 23 and shape and d.chance(0.4):
        return d.op("RMSNormalization", x, d.floats(shape[-1]), shape=shape, axis=-1)
    if d.opset >= 17 and shape and shape[-1] > 1 and d.chance(0.6):
        return d.op("LayerNormalization", x, d.floats(shape[-1]), d.floats(shape[-1]), shape=shape, axis=-1)
    channels = d.channels(x)
    if len(shape) < 3 or np.prod(shape[2:]) < 2:
        raise Drawn
    if d.opset >= 21 and channels % 2 == 0 and d.chance(0.5):
        return d.op("GroupNormalization", x, d.floats(channels), d.floats(channels), shape=shape, num_groups=2)
    return d.op("InstanceNormalization", x, d.floats(channels), d.floats(channels), shape=shape)


def join(d: Drawing, x: str) -> str:
    same = [name for name, shape in d.shapes.items() if shape == d.shapes[x]]
    names = ["Add", "Sub", "Mul", "Max", "Min"] if d.opset >= 8 else ["Add", "Sub", "Mul"]
    other = same[d.upto(len(same))]
    if other == x:
        # Less itself it is 0: whatever folds into that is a matter of taste.
        return d.op("Add", x, x, shape=d.shapes[x])
    if d.opset >= 9 and d.chance(0.15):
        chosen = d.constant(d.rng.random(d.shapes[x]) < 0.5)
        return d.op("Where", chosen, x, other, shape=d.shapes[x])
    return d.op(names[d.upto(len(names))], x, other, shape=d.shapes[x])


def branch(d: Drawing, x: str) -> str:
    """An If whose branches read the tensor, and norm it or not."""
    d.asked = True
    shape = d.shapes[x]
    graphs = []
    for number in range(2):
        inner = Drawing(d.rng, d.opset, {x: shape}, count=10_000 * (d.count + 1) + 1000 * number)
        y = x
        for step in (Drawing.batch_norm, Drawing.spelled, activation)[: d.upto(4)]:
            try:
                y = step(inner, y)
            except Drawn:
                continue
        y = inner.op("Identity", y, shape=shape)
        d.constants.update(inner.constants)
        d.functions += inner.functions
        info = helper.make_tensor_value_info(y, TensorProto.FLOAT, None if d.chance(0.3) else list(shape))
        graphs.append(helper.make_graph(inner.nodes, f"branch{d.count}_{number}", [], [info]))
    return d.op("If", "k", shape=shape, then_branch=graphs[0], else_branch=graphs[1])


def loop(d: Drawing, x: str) -> str:
    """A Loop that adds to its state what the enclosing graph has."""
    if d.opset < 11:
        raise Drawn
    shape = d.shapes[x]
    names = {key: d.name(key) for key in ("turn", "go", "state", "on", "next", "half", "sum")}
    info = helper.make_tensor_value_info
    d.constants[names["half"]] = np.array(0.5, np.float32)
    body = helper.make_graph(
        [
            helper.make_node("Identity", [names["go"]], [names["on"]]),
            helper.make_node("Mul", [names["state"], names["half"]], [names["sum"]]),
            helper.make_node("Add", [names["sum"], x], [names["next"]]),
        ],
        f"body{d.count}",
        [
            info(names["turn"], TensorProto.INT64, []),
            info(names["go"], TensorProto.BOOL, []),
            info(names["state"], TensorProto.FLOAT, None),
        ],
        [info(names["on"], TensorProto.BOOL, []), info(names["next"], TensorProto.FLOAT, None)],
    )
    trips = d.constant(np.array(2, np.int64), plain=True)
    same = [name for name, found in d.shapes.items() if found == shape]
    return d.op("Loop", trips, "", same[d.upto(len(same))], shape=shape, body=body)


def wall(d: Drawing, x: str) -> str:
    shape = d.shapes[x]
    if not shape:
        raise Drawn
    return d.op("Softmax" if d.chance(0.5) else "LogSoftmax", x, shape=shape, axis=len(shape) - 1)


STEPS: dict[Step, float] = {
    Drawing.batch_norm: 16, Drawing.spelled: 12, Drawing.scalar: 5, Drawing.linear: 12, Drawing.convolution: 10,
    Drawing.layout: 14, activation: 12, cast: 4, resize: 3, pool: 5, pad: 4, reduce: 3, top: 3, attention: 3,
    token_norm: 4, join: 7, branch: 1.5, loop: 2, wall: 2,
}  # fmt: skip
