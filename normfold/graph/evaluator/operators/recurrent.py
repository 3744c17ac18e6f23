"""Recurrent layers: RNN, GRU and LSTM, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from normfold.graph.evaluator.call import Call, Rows
from normfold.graph.evaluator.operators.matrix import shifted
from normfold.graph.evaluator.operators.quantised import dynamic_quantize
from normfold.graph.evaluator.values import Tensor

# Elements of the input's products that are made ahead (32 MB).
_AHEAD = 1 << 22

Activation = Callable[[Tensor], Tensor]
# From what the input contributes to all gates, and the state (hidden first), to the next state.
Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]

# The default of an alpha or beta over which the standard and onnxruntime (which takes 0) disagree.
_DISPUTED = math.nan

# Name -> function of x, alpha and beta, and their defaults (None where it takes none).
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor, float, float], Tensor], float | None, float | None]] = {
    "affine": (lambda x, alpha, beta: alpha * x + beta, _DISPUTED, 0.0),
    "elu": (lambda x, alpha, beta: F.elu(x, alpha), 1.0, None),
    "hardsigmoid": (lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1), 0.2, 0.5),
    "leakyrelu": (lambda x, alpha, beta: F.leaky_relu(x, alpha), 0.01, None),
    "relu": (lambda x, alpha, beta: torch.relu(x), None, None),
    "scaledtanh": (lambda x, alpha, beta: alpha * torch.tanh(beta * x), _DISPUTED, _DISPUTED),
    "sigmoid": (lambda x, alpha, beta: torch.sigmoid(x), None, None),
    "softplus": (lambda x, alpha, beta: torch.logaddexp(x, torch.zeros_like(x)), None, None),
    "softsign": (lambda x, alpha, beta: F.softsign(x), None, None),
    "tanh": (lambda x, alpha, beta: torch.tanh(x), None, None),
    "thresholdedrelu": (lambda x, alpha, beta: torch.where(x >= alpha, x, 0.0), _DISPUTED, None),
}


@dataclass(frozen=True, slots=True)
class _Layer:
    """One direction. weights: (gates * hidden, ...); bias: of the input and of the recurrence, None for none."""

    weight: Tensor
    recurrence: Tensor
    input_bias: Tensor
    recurrent_bias: Tensor
    activations: Sequence[Activation]
    reverse: bool


def rnn(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
) -> Any:
    """H = f(X W' + H R' + Wb + Rb)."""

    def step_of(layer: _Layer, _: int) -> Step:
        (f,) = layer.activations

        def step(given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (f(torch.addmm(given + layer.recurrent_bias, state[0], layer.recurrence.T)),)

        return step

    return _run(call, x, w, r, b, lengths, [initial], ["Tanh"], step_of)


def gru(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
) -> Any:
    """z, r = f(...); h = g(X Wh' + (r * H) Rh' + ...); H = (1 - z) * h + z * H.

    linear_before_reset: r is multiplied with H Rh' + Rbh instead of with H.
    """
    late = bool(call.integer("linear_before_reset", 0))

    def step_of(layer: _Layer, hidden: int) -> Step:
        f, g = layer.activations
        gates, last = layer.recurrence.tensor_split([2 * hidden])
        gates_bias, last_bias = layer.recurrent_bias.tensor_split([2 * hidden])

        def step(given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (h,) = state
            to_gates, to_last = given.tensor_split([2 * hidden], dim=1)
            update, reset = f(torch.addmm(to_gates + gates_bias, h, gates.T)).chunk(2, dim=1)
            if late:
                new = g(to_last + reset * torch.addmm(last_bias, h, last.T))
            else:
                new = g(torch.addmm(to_last + last_bias, reset * h, last.T))
            return (torch.lerp(new, h, update),)

        return step

    return _run(call, x, w, r, b, lengths, [initial], ["Sigmoid", "Tanh"], step_of)


def lstm(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    initial: Tensor | None = None,
    initial_cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> Any:
    """i, o, f = f(... + P * C); C = f * C + i * g(...); H = o * h(C). The gates lie in the order i, o, f, c.

    input_forget: f is 1 - i.
    """
    return _lstm(call, x, w, r, b, lengths, [initial, initial_cell], peepholes)


def _lstm(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    initial: Sequence[Tensor | None],
    peepholes: Tensor | None,
    read: Activation | None = None,
) -> Any:
    """read: what the product with the recurrent weights reads of the hidden state."""
    coupled = bool(call.integer("input_forget", 0))

    def step_of(layer: _Layer, hidden: int, direction: int = 0) -> Step:
        f, g, h = layer.activations
        holes = None if peepholes is None else peepholes[direction].chunk(3)

        def step(given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            previous, cell = state if read is None else (read(state[0]), state[1])
            total = torch.addmm(given + layer.recurrent_bias, previous, layer.recurrence.T)
            into, out, forget, new = total.chunk(4, dim=1)
            if holes is not None:
                into, forget = into + holes[0] * cell, forget + holes[2] * cell
            into = f(into)
            cell = (1 - into if coupled else f(forget)) * cell + into * g(new)
            if holes is not None:
                out = out + holes[1] * cell
            return f(out) * h(cell), cell

        return step

    return _run(call, x, w, r, b, lengths, initial, ["Sigmoid", "Tanh", "Tanh"], step_of)


def quantised_lstm(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    initial_cell: Tensor | None,
    peepholes: Tensor | None,
    *parameters: Tensor,
) -> Any:
    """An LSTM whose weights are (directions, inputs, gates * hidden) in eight bits, each with a scale and a zero point.

    What is multiplied with them is rounded to 255 steps of its range: the whole input, and every hidden state.
    """
    w_scale, w_zero, r_scale, r_zero = parameters
    weight, recurrence = _widened(w, w_scale, w_zero), _widened(r, r_scale, r_zero)

    def rounded(value: Tensor) -> Tensor:
        steps, scale, zero = dynamic_quantize(call, value)
        return shifted(steps, zero) * scale

    return _lstm(call, rounded(x), weight, recurrence, b, lengths, [initial, initial_cell], peepholes, rounded)


def _widened(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Weights of both directions as numbers, as an LSTM has them. One scale for a direction, or one for a column."""
    ways = weight.shape[0]
    numbers = (weight.double() - zero.double().reshape(ways, 1, -1)) * scale.reshape(ways, 1, -1)
    return numbers.transpose(1, 2)


def _run(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    initial: Sequence[Tensor | None],
    default: Sequence[str],
    step_of: Callable[..., Step],
) -> Any:
    """All directions. Outputs: Y (steps, directions, batch, hidden), the last states (directions, batch, hidden)."""
    by_batch = bool(call.integer("layout", 0))
    if by_batch:
        x = x.transpose(0, 1)
        initial = [None if state is None else state.transpose(0, 1) for state in initial]
    steps, batch, hidden = x.shape[0], x.shape[1], r.shape[2]
    if call.integer("hidden_size", hidden) != hidden:
        raise ValueError(f"hidden_size is not the recurrence's {hidden}")
    directions = _directions(call, w, r, b, default)
    zero = x.new_zeros((batch, hidden))
    call.reserve(steps, len(directions), batch, hidden)
    y = x.new_zeros((steps, len(directions), batch, hidden)) if call.wants(0) else None
    if lengths is not None and bool((lengths == steps).all()):
        lengths = None
    last: list[tuple[Tensor, ...]] = []
    for number, layer in enumerate(directions):
        state = tuple(zero if given is None else given[number] for given in initial)
        step = step_of(layer, hidden, number) if len(initial) == 2 else step_of(layer, hidden)
        last.append(_along(x, layer, step, state, lengths, None if y is None else y[:, number]))
    states = [torch.stack(state) for state in zip(*last, strict=True)]
    if lengths is not None:
        # Where there was no step at all, onnxruntime gives zero, not the initial state.
        states = [torch.where((lengths > 0)[:, None], state, 0.0) for state in states]
    if by_batch:
        y = None if y is None else y.permute(2, 0, 1, 3)
        states = [state.transpose(0, 1) for state in states]
    return (y, *states)


def _along(
    x: Tensor, layer: _Layer, step: Step, state: tuple[Tensor, ...], lengths: Tensor | None, y: Tensor | None
) -> tuple[Tensor, ...]:
    """One direction over all steps. Where a sequence has ended, the state stays and the output is zero."""
    order = torch.arange(x.shape[0])[:, None].expand(x.shape[:2])
    if layer.reverse:
        ends = torch.full((x.shape[1],), x.shape[0]) if lengths is None else lengths.long()
        order = torch.where(order < ends, ends - 1 - order, order)
    sequences = torch.arange(x.shape[1])
    block = max(_AHEAD // max(x.shape[1] * layer.weight.shape[0], 1), 1)
    for first in range(0, x.shape[0], block):
        places = order[first : first + block]
        ahead = F.linear(x[places, sequences], layer.weight, layer.input_bias)
        for number, (place, given) in enumerate(zip(places, ahead, strict=True), start=first):
            running = None if lengths is None else (number < lengths)[:, None]
            # A step behind the end of its sequence, a state is zero to those that read the whole batch at once.
            near = state if lengths is None else (torch.where((number <= lengths)[:, None], state[0], 0.0), *state[1:])
            new = step(given, near)
            if running is not None:
                new = tuple(torch.where(running, after, before) for after, before in zip(new, state, strict=True))
            state = new
            if y is not None:
                y[place, sequences] = state[0] if running is None else torch.where(running, state[0], 0.0)
    return state


def _directions(call: Call, w: Tensor, r: Tensor, b: Tensor | None, default: Sequence[str]) -> list[_Layer]:
    name = call.text("direction", "forward").lower()
    if name not in ("forward", "reverse", "bidirectional"):
        raise call.refuse(f"direction {name!r}")
    reverse = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[name]
    functions = _activations(call, call.texts("activations") or list(default) * len(reverse), len(default))
    if len(functions) != len(default) * len(reverse):
        raise ValueError(f"{len(functions)} activations for {len(reverse)} directions")
    found = []
    for number, backwards in enumerate(reverse):
        bias = r.new_zeros(2 * r.shape[1]) if b is None else b[number]
        of_input, of_recurrence = bias.chunk(2)
        own = functions[number * len(default) : (number + 1) * len(default)]
        found.append(_Layer(w[number], r[number], of_input, of_recurrence, own, backwards))
    return found


def _activations(call: Call, names: Sequence[str], each: int) -> list[Activation]:
    """The functions by name; alphas and betas go, in order, to those that take one. What they are given is clipped,
    except for the cell of an LSTM: the last of three.
    """
    alphas, betas = iter(call.numbers("activation_alpha") or []), iter(call.numbers("activation_beta") or [])
    clip = call.number("clip", 0.0) if call.has("clip") else None
    found = []
    for number, name in enumerate(names):
        if name.lower() not in _ACTIVATIONS:
            raise call.refuse(f"activation {name!r}")
        function, alpha, beta = _ACTIVATIONS[name.lower()]
        alpha = 0.0 if alpha is None else float(np.float32(next(alphas, alpha)))
        beta = 0.0 if beta is None else next(betas, beta)
        if math.isnan(alpha) or math.isnan(beta):
            raise call.refuse(f"activation {name} without its alpha or beta")
        found.append(_bound(function, alpha, float(np.float32(beta)), None if number % each == 2 else clip))
    return found


def _bound(
    function: Callable[[Tensor, float, float], Tensor], alpha: float, beta: float, clip: float | None
) -> Activation:
    if clip is None:
        return lambda x: function(x, alpha, beta)
    return lambda x: function(x.clamp(-clip, clip), alpha, beta)


ROWS: Rows = {
    "GRU": {(7, 14, 22): gru},
    "LSTM": {(7, 14, 22): lstm},
    "RNN": {(7, 14, 22): rnn},
}
MICROSOFT_ROWS: Rows = {"DynamicQuantizeLSTM": {(1,): quantised_lstm}}
