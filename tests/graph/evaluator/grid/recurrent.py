"""LSTM, GRU and RNN: directions, lengths, states, peepholes, clip, activations, layout."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import MICROSOFT, F, N, U, V, const, row

TIME, BATCH, WIDTH, HIDDEN = 5, 3, 4, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DIRECTIONS = (None, "forward", "reverse", "bidirectional")
LENGTHS = V(5, 2, 3, dtype=np.int32)
SHORT = V(3, 1, 2, dtype=np.int32)
ACTIVATIONS = (
    ("Relu", {}),
    ("Tanh", {}),
    ("Sigmoid", {}),
    ("Affine", {"activation_alpha": 0.7, "activation_beta": 0.1}),
    ("LeakyRelu", {"activation_alpha": 0.3}),
    ("ThresholdedRelu", {"activation_alpha": 0.2}),
    ("ScaledTanh", {"activation_alpha": 1.5, "activation_beta": 0.6}),
    ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}),
    ("Elu", {"activation_alpha": 0.8}),
    ("Softsign", {}),
    ("Softplus", {}),
)


def cases() -> Iterator[Case]:
    for op in GATES:
        yield from plain(op)
        yield from activated(op)
    yield from lstm()
    yield from gru()
    yield from quantised()


def operands(op: str, direction: str | None, *, x: tuple[int, ...] = (TIME, BATCH, WIDTH)) -> list[object]:
    """X, W, R and B."""
    ways, gates = 2 if direction == "bidirectional" else 1, GATES[op]
    return [
        F(*x),
        U(-0.8, 0.8, ways, gates * HIDDEN, WIDTH),
        U(-0.8, 0.8, ways, gates * HIDDEN, HIDDEN),
        U(-0.5, 0.5, ways, 2 * gates * HIDDEN),
    ]


def plain(op: str) -> Iterator[Case]:
    outputs = 3 if op == "LSTM" else 2
    for direction, lengths, state in product(DIRECTIONS, (None, LENGTHS, SHORT), (False, True)):
        ways = 2 if direction == "bidirectional" else 1
        states = [F(ways, BATCH, HIDDEN)] * (outputs - 1) if state else []
        forms = {"direction": direction, "hidden_size": HIDDEN, "outputs": outputs}
        yield row(op, *operands(op, direction), lengths, *states, **forms)
    for direction in ("forward", "bidirectional"):
        ways = 2 if direction == "bidirectional" else 1
        x, w, r, b = operands(op, direction)
        yield row(op, x, w, r, direction=direction, hidden_size=HIDDEN, outputs="y")
        yield row(op, x, w, r, b, direction=direction, hidden_size=HIDDEN, outputs=",h")
        yield row(op, x, const(w), const(r), const(b), direction=direction, outputs=outputs, hidden_size=HIDDEN)
        batched = operands(op, direction, x=(BATCH, TIME, WIDTH))
        yield row(op, *batched, direction=direction, hidden_size=HIDDEN, layout=1, outputs=outputs)
        for clip in (0.4, 2.0):
            yield row(op, x, w, r, b, direction=direction, hidden_size=HIDDEN, clip=clip, outputs=outputs)
    yield row(op, *operands(op, None, x=(1, 1, WIDTH)), hidden_size=HIDDEN, outputs=outputs)
    yield row(op, *operands(op, None), V(0, 2, 5, dtype=np.int32), hidden_size=HIDDEN, outputs=outputs)
    yield row(op, *operands(op, None), hidden_size=HIDDEN, outputs="y,h", note="without the last")


def activated(op: str) -> Iterator[Case]:
    count = {"RNN": 1, "GRU": 2, "LSTM": 3}[op]
    for name, parameters in ACTIVATIONS:
        forms = {key: [value] * count for key, value in parameters.items()}
        yield row(op, *operands(op, None), hidden_size=HIDDEN, activations=[name] * count, outputs=2, **forms)
    mixed = ["Tanh", "Relu", "Sigmoid"][:count] + ["Softsign", "Tanh", "Tanh"][:count]
    two = operands(op, "bidirectional")
    yield row(op, *two, hidden_size=HIDDEN, direction="bidirectional", activations=mixed, outputs=2)
    mixed = ["LeakyRelu", "Tanh", "Elu"][:count]
    alphas = [0.1, 0.9][: 1 if count < 3 else 2]
    yield row(op, *operands(op, None), hidden_size=HIDDEN, activations=mixed, activation_alpha=alphas, outputs=2)
    lower = [name.lower() for name in ["Sigmoid", "Tanh", "Tanh"][:count]]
    yield row(op, *operands(op, None), hidden_size=HIDDEN, activations=lower, outputs=2)


def lstm() -> Iterator[Case]:
    for direction, lengths, forget in product(("forward", "reverse", "bidirectional"), (None, LENGTHS), (None, 1)):
        ways = 2 if direction == "bidirectional" else 1
        states = [F(ways, BATCH, HIDDEN), F(ways, BATCH, HIDDEN)]
        forms = {"direction": direction, "hidden_size": HIDDEN, "input_forget": forget}
        yield row(
            "LSTM", *operands("LSTM", direction), lengths, *states, U(-1, 1, ways, 3 * HIDDEN), outputs=3, **forms
        )
        yield row(
            "LSTM", *operands("LSTM", direction), lengths, None, None, U(-1, 1, ways, 3 * HIDDEN), outputs=3, **forms
        )
    yield row("LSTM", *operands("LSTM", None), None, None, F(1, BATCH, HIDDEN), hidden_size=HIDDEN, outputs=3)
    peepholes = U(-1, 1, 1, 3 * HIDDEN)
    yield row("LSTM", *operands("LSTM", None), None, None, None, peepholes, hidden_size=HIDDEN, clip=0.5, outputs=3)


def gru() -> Iterator[Case]:
    for direction, lengths, linear in product(("forward", "reverse", "bidirectional"), (None, LENGTHS), (0, 1)):
        forms = {"direction": direction, "hidden_size": HIDDEN, "linear_before_reset": linear}
        yield row("GRU", *operands("GRU", direction), lengths, outputs=2, **forms)
        yield row("GRU", *operands("GRU", direction)[:3], None, lengths, outputs=2, **forms)
        yield row("GRU", *operands("GRU", direction), lengths, outputs=2, clip=0.3, **forms)


def quantised() -> Iterator[Case]:
    """Weights in eight bits, transposed; scales by direction or by column."""
    for direction, dtype, columns in product(DIRECTIONS, (np.uint8, np.int8), (False, True)):
        ways, wide = 2 if direction == "bidirectional" else 1, 4 * HIDDEN
        low, high = (0, 256) if dtype == np.uint8 else (-128, 128)
        weights = [const(N(low, high, ways, inputs, wide, dtype=dtype)) for inputs in (WIDTH, HIDDEN)]
        shape = (ways, wide) if columns else (ways,)
        # onnxruntime takes zero points by column of nothing but zeros.
        points = const(np.zeros(shape, dtype) if columns else np.full(shape, 7, dtype))
        scales = [const(U(0.004, 0.01, *shape)), points, const(U(0.004, 0.01, *shape)), points]
        bias, forms = const(U(-0.5, 0.5, ways, 2 * wide)), {"direction": direction, "hidden_size": HIDDEN, "outputs": 3}
        states = [F(ways, BATCH, HIDDEN)] * 2
        for extra in ([None] * 4, [LENGTHS, *states, None], [None, *states, U(-1, 1, ways, 3 * HIDDEN)]):
            given = [F(TIME, BATCH, WIDTH), *weights, bias, *extra, *scales]
            yield row("DynamicQuantizeLSTM", *given, domain=MICROSOFT, **forms)
