"""Channels that a norm multiplies by 0, made so that nothing has to be divided by it.

A BatchNormalization whose gamma is exactly 0 (every network with zero-initialised residual branches) writes beta
whatever it reads. Folded into the operator in front of it, such a channel asks for a scale of 1 / 0. Where that
operator is a Conv, a ConvTranspose or a Gemm whose output has no other reader, the same is computed by

    W' = m W,  b' = m b,  mean' = m mean,  gamma' = gamma + (1 - m),  with m = 1 where gamma is not 0, and 0 elsewhere:

the channel is 0 in front of the norm, (0 - 0) / std * 1 + beta behind it. Exact for every finite input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.graph.scopes import unused
from normfold.graph.types import BATCH_NORM, STANDARD, Model, Node, Value

_WEIGHT, _BIAS = 1, 2
_GAMMA, _MEAN = 1, 3


def silence(model: Model) -> None:
    """Rewrite the constants in front of every such norm, in place; those of `model` alone."""
    for node in list(model.graph):
        writer = _writer(model, node)
        if writer is None:
            continue
        gamma, mean = _content(model, node.inputs[_GAMMA]), _content(model, node.inputs[_MEAN])
        if gamma is None or mean is None or np.all(gamma) or gamma.shape != mean.shape:
            continue
        alive = gamma != 0
        changes = _silenced(model, writer, alive)
        if changes is None:
            continue
        for index, array in changes:
            _replace(model, writer, index, array)
        _replace(model, node, _GAMMA, np.where(alive, gamma, 1).astype(gamma.dtype))
        _replace(model, node, _MEAN, np.where(alive, mean, 0).astype(mean.dtype))


def _writer(model: Model, node: Node) -> Node | None:
    """The operator in front of a BatchNormalization, where its output has no other reader."""
    if node.op_type != BATCH_NORM or node.domain not in STANDARD or len(node.inputs) != 5:
        return None
    training, source = node.attributes.get("training_mode"), node.inputs[0]
    if source is None or len(source.uses()) != 1 or source in model.graph.outputs:
        return None
    if (training is not None and training.value) or any(value.name for value in node.outputs[1:]):
        return None
    writer = source.producer()
    return writer if writer is not None and writer.domain in STANDARD and writer.graph is model.graph else None


def _silenced(model: Model, writer: Node, alive: NDArray[np.bool_]) -> list[tuple[int, NDArray[Any]]] | None:
    """The constants of `writer` that write 0 into the dead channels; None where they cannot."""
    axis = _channel_axis(writer)
    weight = _content(model, writer.inputs[_WEIGHT]) if len(writer.inputs) > _WEIGHT else None
    if axis is None or weight is None or axis >= weight.ndim or weight.shape[axis] != alive.size:
        return None
    shape = [1] * weight.ndim
    shape[axis] = alive.size
    changes = [(_WEIGHT, np.where(alive.reshape(shape), weight, 0).astype(weight.dtype))]
    bias = writer.inputs[_BIAS] if len(writer.inputs) > _BIAS else None
    if bias is not None:
        content = _content(model, bias)
        if content is None or content.shape[-1:] != alive.shape or content.size != alive.size:
            return None
        changes.append((_BIAS, np.where(alive.reshape(content.shape), content, 0).astype(content.dtype)))
    return changes


def _channel_axis(writer: Node) -> int | None:
    """The axis of the weight that its output channels lie on."""
    if writer.op_type == "Conv":
        return 0
    if writer.op_type == "ConvTranspose":
        return 1 if _integer(writer, "group", 1) == 1 else None
    if writer.op_type == "Gemm":
        return 0 if _integer(writer, "transB", 0) else 1
    return None


def _integer(node: Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.value)


def _content(model: Model, value: Value | None) -> NDArray[Any] | None:
    """A stored tensor that no caller can override, of floats."""
    if value is None or not value.is_initializer() or value.const_value is None or value in model.graph.inputs:
        return None
    array = value.const_value.numpy()
    return array if array.dtype.kind == "f" else None


def _replace(model: Model, node: Node, index: int, array: NDArray[Any]) -> None:
    """Let an input of `node` be `array`: under its own name where it has no other reader, else under another."""
    value = node.inputs[index]
    assert value is not None and value.name is not None
    if len(value.uses()) == 1:
        value.const_value = ir.Tensor(array, name=value.name)
        return
    name = unused(f"{value.name}.silenced", set(model.graph.initializers))
    own = ir.Value(name=name, shape=value.shape, type=value.type, const_value=ir.Tensor(array, name=name))
    model.graph.register_initializer(own)
    node.replace_input_with(index, own)
