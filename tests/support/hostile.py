"""Malformed ONNX files, and a process that folds them one after the other under a limit of memory and time.

    python -m tests.support.hostile FOLDER SEED COUNT

folds COUNT mutants, the first of seed SEED, in FOLDER and prints one line of JSON for each: the seed, what was done to
which model, and how it ended. The tests start it (and start it again behind a mutant that brings it down).
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

# Address space, most of it reserved by the libraries and never touched; and wall-clock time of one mutant.
MEMORY_BYTES = 8 << 30
SECONDS = 20

Mutation = Callable[[onnx.ModelProto, random.Random], str]

_ODD_NUMBERS = (-1, 0, 1, 2, 7, 99, 2**31 - 1, -(2**31), 2**40, -(2**63), 2**63 - 1, 10**9)
_ODD_NAMES = ("", "x", "y", "gamma", "\0", "a" * 300, "../x", "é", "n", "w1")


def seeds() -> dict[str, onnx.ModelProto]:
    """The models that are mutated: convolutions, attention-like layouts, a residual stream, a subgraph, a function."""
    return {name: _model(text) for name, text in _TEXTS.items()}


_TEXTS = {
    "conv": """g (float[B, 3, 9, 9] x) => (float[B, 5] y) {
        c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, k1, kb)
        n = BatchNormalization<epsilon = 1e-5>(c, gamma4, beta4, mean4, var4)
        r = Relu(n)
        p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
        d = Conv<kernel_shape = [3, 3], group = 2>(p, k2)
        m = BatchNormalization(d, gamma4, beta4, mean4, var4)
        q = GlobalAveragePool(m)
        f = Flatten<axis = 1>(q)
        y = Gemm<transB = 1, alpha = 0.5>(f, w5, b5)
    }""",
    "stream": """g (float[B, L, 4] x) => (float[B, L, 4] y) {
        t = Transpose<perm = [0, 2, 1]>(x)
        n0 = BatchNormalization(t, gamma4, beta4, mean4, var4)
        n = Transpose<perm = [0, 2, 1]>(n0)
        h0 = MatMul(n, w4)
        h1 = Add(h0, beta4)
        h = Sigmoid(h1)
        g0 = MatMul(h, w4)
        s = Add(x, g0)
        parts, other = Split<axis = -1, num_outputs = 2>(s)
        j = Concat<axis = -1>(other, parts)
        m0 = Mul(j, gamma4)
        m1 = Add(m0, beta4)
        m2 = LayerNormalization<axis = -1>(m1, gamma4, beta4)
        y = MatMul(m2, w4)
    }""",
    "heads": """g (float[B, 6, 4] x, int64[B, 6] ids) => (float[B, 6, 4] y) {
        e = Gather(table, ids)
        a = Add(x, e)
        n = Mul(a, gamma4)
        m = Add(n, beta4)
        q0 = MatMul(m, w4)
        q1 = Reshape<allowzero = 0>(q0, split)
        q = Transpose<perm = [0, 2, 1, 3]>(q1)
        k = Transpose<perm = [0, 2, 3, 1]>(q1)
        z = MatMul(q, k)
        p = Softmax<axis = -1>(z)
        o0 = MatMul(p, q)
        o1 = Transpose<perm = [0, 2, 1, 3]>(o0)
        o = Reshape(o1, join)
        u = Slice(o, starts, ends)
        y = Pad(u, pads)
    }""",
}


def _model(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "k1": rng.standard_normal((4, 3, 3, 3)), "kb": rng.standard_normal(4), "k2": rng.standard_normal((4, 2, 3, 3)),
        "w5": rng.standard_normal((5, 4)), "b5": rng.standard_normal(5), "w4": rng.standard_normal((4, 4)),
        "gamma4": rng.uniform(0.5, 2.0, 4), "beta4": rng.standard_normal(4), "mean4": rng.standard_normal(4),
        "var4": rng.uniform(0.5, 2.0, 4), "table": rng.standard_normal((7, 4)),
    }  # fmt: skip
    integers = {"split": [0, 0, 2, 2], "join": [0, 0, 4], "starts": [0, 0], "ends": [9, 5], "pads": [0, 0, 0, 0, 1, 0]}
    integers["pads"] = [0, 0, 0, 0, 1, 0]
    read = {name for node in model.graph.node for name in node.input}
    for name, value in constants.items():
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for name, numbers in integers.items():
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    return model


def mutate(seed: int) -> tuple[str, bytes]:
    """What was done, and the file."""
    rng = random.Random(seed)
    models = seeds()
    name = rng.choice(list(models))
    model, done = models[name], [name]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not (model.graph.node and model.graph.initializer):
            break
        mutation = rng.choice(_MUTATIONS)
        done.append(f"{mutation.__name__.strip('_')}: {mutation(model, rng)}")
    content = model.SerializeToString()
    if rng.random() < 0.2:
        done.append("bytes")
        content = _bytes(content, rng)
    return "; ".join(done), content


def _bytes(content: bytes, rng: random.Random) -> bytes:
    array = bytearray(content)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(array[: rng.randrange(len(array))])
    for _ in range(rng.choice([1, 2, 8])):
        place = rng.randrange(len(array))
        if kind == 1:
            array[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            array[place : place + rng.randrange(1, 40)] = b""
        else:
            array[place:place] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
    return bytes(array)


def _field(model: onnx.ModelProto, rng: random.Random) -> str:
    """Any field of any message: another number, another name, or gone."""
    messages = list(_messages(model))
    for _ in range(20):
        message = rng.choice(messages)
        fields = message.ListFields()
        if not fields:
            continue
        field, value = rng.choice(fields)
        if field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
            if not len(value):
                continue
            place = rng.randrange(len(value))
            action = rng.choice(["delete", "double", "swap", "change"])
            if action == "delete":
                del value[place]
            elif action == "double":
                value.extend([value[place]])
            elif action == "swap":
                items = list(value)
                rng.shuffle(items)
                del value[:]
                value.extend(items)
            elif isinstance(value[place], int):
                value[place] = _number(field, rng)
            return f"{message.DESCRIPTOR.name}.{field.name}[{place}] {action}"
        if isinstance(value, bool | int):
            setattr(message, field.name, _number(field, rng))
        elif isinstance(value, float):
            setattr(message, field.name, rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e30]))
        elif isinstance(value, str):
            setattr(message, field.name, rng.choice(_ODD_NAMES))
        elif isinstance(value, bytes):
            setattr(message, field.name, rng.choice([b"", value[:-1], value + b"1", value * 3]))
        else:
            message.ClearField(field.name)
        return f"{message.DESCRIPTOR.name}.{field.name}"
    return "nothing"


def _number(field: Any, rng: random.Random) -> int:
    number = rng.choice(_ODD_NUMBERS)
    if field.enum_type is not None:
        return rng.choice([value.number for value in field.enum_type.values])
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32):
        number = max(-(2**31), min(2**31 - 1, number))
    return abs(number) if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else number


def _messages(message: Message) -> Any:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if not isinstance(value, Message) else [value]:
                yield from _messages(part)


def _dimension(model: onnx.ModelProto, rng: random.Random) -> str:
    """A tensor claims another size, where it is declared or stored."""
    values = [*model.graph.input, *model.graph.output]
    if rng.random() < 0.5:
        names = [name for node in model.graph.node for name in node.output]
        dims = [rng.choice([1, 2, 4, 10**9, 2**40, -1, 0]) for _ in range(rng.randrange(5))]
        model.graph.value_info.append(helper.make_tensor_value_info(rng.choice(names), TensorProto.FLOAT, dims))
        return f"value_info {dims}"
    if rng.random() < 0.5:
        dims = rng.choice(values).type.tensor_type.shape.dim
        if len(dims):
            rng.choice(dims).dim_value = rng.choice(_ODD_NUMBERS)
        return "declared"
    tensor = rng.choice(model.graph.initializer)
    if tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_ODD_NUMBERS)
    return f"stored {tensor.name}"


def _content(model: onnx.ModelProto, rng: random.Random) -> str:
    """An initializer is replaced by one of another shape, type or content."""
    tensor = rng.choice(model.graph.initializer)
    shape = rng.choice([(), (0,), (1,), (4,), (4, 4), (5, 4), (2, 3, 4), tuple(tensor.dims)])
    dtype = rng.choice([np.float32, np.float64, np.float16, np.int64, np.int32, np.bool_, np.uint8])
    array = np.array(np.random.default_rng(rng.randrange(99)).standard_normal(shape) * rng.choice([0, 1, 3, 1e9]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), tensor.name))
    return f"{tensor.name} {shape} {np.dtype(dtype)}"


def _rewire(model: onnx.ModelProto, rng: random.Random) -> str:
    """An operand is another tensor, missing, or one too many."""
    node = rng.choice(model.graph.node)
    names = [name for other in model.graph.node for name in (*other.input, *other.output)] + ["", "nowhere"]
    if not node.input or rng.random() < 0.2:
        node.input.append(rng.choice(names))
    else:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    return node.op_type


def _operator(model: onnx.ModelProto, rng: random.Random) -> str:
    """An operator becomes another one, in another domain perhaps."""
    node = rng.choice(model.graph.node)
    others = [
        "Identity",
        "Expand",
        "Tile",
        "Resize",
        "If",
        "Loop",
        "Einsum",
        "ConstantOfShape",
        "Range",
        "Concat",
        "Cast",
    ]
    others += [
        "Reshape",
        "Gather",
        "Split",
        "Where",
        "ConvTranspose",
        "MatMul",
        "Shape",
        "Novel",
        "InstanceNormalization",
    ]
    node.op_type = rng.choice(others)
    if rng.random() < 0.2:
        node.domain = rng.choice(["com.microsoft", "elsewhere", "ai.onnx"])
    return node.op_type


def _attribute(model: onnx.ModelProto, rng: random.Random) -> str:
    """An attribute gets another value, another type, or appears where there was none."""
    node = rng.choice(model.graph.node)
    names = [attribute.name for attribute in node.attribute] or ["axis"]
    name = rng.choice([*names, "axis", "perm", "group", "auto_pad", "training_mode", "to", "value"])
    for place, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[place]
            break
    value = rng.choice([-1, 0, 3, 99, 10**9, [], [0, 0], [9, -9, 2], 1.5, "SAME_UPPER", "odd", [1.5], np.zeros(2)])
    value = numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
    node.attribute.append(
        helper.make_attribute(name, value, attr_type=onnx.AttributeProto.INTS if value == [] else None)
    )
    return f"{node.op_type}.{name}"


def _order(model: onnx.ModelProto, rng: random.Random) -> str:
    """Operators change places, come twice, or are gone."""
    nodes = list(model.graph.node)
    kind = rng.choice(["shuffle", "double", "drop"])
    if kind == "shuffle":
        rng.shuffle(nodes)
    elif kind == "double":
        nodes.insert(rng.randrange(len(nodes)), rng.choice(nodes))
    else:
        nodes.pop(rng.randrange(len(nodes)))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return kind


def _opset(model: onnx.ModelProto, rng: random.Random) -> str:
    if model.opset_import:
        model.opset_import[0].version = rng.choice([-1, 0, 1, 6, 7, 9, 13, 18, 22, 24, 999])
    model.ir_version = rng.choice([0, 1, 3, 4, 8, 10, 13, 999])
    return "versions"


def _external(model: onnx.ModelProto, rng: random.Random) -> str:
    tensor = rng.choice(model.graph.initializer)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    location = rng.choice(
        ["../secret", "/etc/passwd", "mutant.onnx", "", ".", "missing.bin", "sub/../../secret", "a\0b"]
    )
    for key, value in (("location", location), ("offset", rng.choice(["0", "-8", "x", str(2**62)])), ("length", "64")):
        if rng.random() < 0.8:
            tensor.external_data.add(key=key, value=value)
    return location


_MUTATIONS: tuple[Mutation, ...] = (
    _field, _field, _field, _dimension, _content, _rewire, _rewire, _operator, _attribute, _attribute, _order, _opset,
    _external,
)  # fmt: skip


class OutOfTimeError(Exception):
    """A mutant took longer than it may."""


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise OutOfTimeError


def attempt(source: Path, output: Path, *, verify: bool) -> tuple[str, str]:
    """Fold a file: "error" with its message, "folded", "different" (the verification failed), or "crash"."""
    from normfold.errors import NormfoldError, VerificationError
    from normfold.pipeline import run as pipeline

    try:
        pipeline.fold(source, output, verify=verify, force=True)
    except VerificationError as error:
        return "different", str(error)
    except NormfoldError as error:
        return ("crash", f"more than a paragraph: {error}") if "\n" in str(error).strip() else ("error", str(error))
    except OutOfTimeError:
        return "time", "".join(traceback.format_stack()[-3:])
    except BaseException:
        return "crash", traceback.format_exc()
    return ("folded", "") if _is_valid(output) or not _is_valid(source) else ("crash", "the output is not valid ONNX")


def _is_valid(path: Path) -> bool:
    try:
        onnx.checker.check_model(path)
    except Exception:  # its own classes share no base
        return False
    return True


def main() -> None:
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _out_of_time)
    warnings.simplefilter("ignore")
    for seed in range(first, first + count):
        print(json.dumps({"seed": seed}), flush=True)
        done, content = mutate(seed)
        source = folder / "mutant.onnx"
        source.write_bytes(content)
        start = time.monotonic()
        signal.alarm(SECONDS)
        ended, said = attempt(source, folder / "out.onnx", verify=seed % 2 == 0)
        signal.alarm(0)
        outputs = {"out.onnx", "out.onnx.data"} if ended == "folded" else set[str]()
        left = sorted(path.name for path in folder.iterdir() if path.name not in {"mutant.onnx", *outputs})
        for name in outputs:
            (folder / name).unlink(missing_ok=True)
        seconds = round(time.monotonic() - start, 2)
        print(
            json.dumps({"seed": seed, "done": done, "ended": ended, "said": said, "left": left, "s": seconds}),
            flush=True,
        )


if __name__ == "__main__":
    main()
