"""If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from normfold.graph.evaluator.call import Body, Call, Declared, Rows
from normfold.graph.evaluator.values import Tensor, Value, axis_in, empty, moved, size_of


def choose(call: Call, condition: Tensor) -> tuple[Value, ...]:
    """The outputs of one branch."""
    branches = call.body("else_branch"), call.body("then_branch")
    return branches[bool(condition.reshape(()))]()


def loop(call: Call, trips: Tensor | None, condition: Tensor | None, *carried: Value) -> tuple[Value, ...]:
    """The body as often as `trips` and the condition that it returns say; what it gives beyond the carried values is
    stacked up.
    """
    body = call.body("body")
    limit = None if trips is None else int(trips)
    goes_on = condition is None or bool(condition.reshape(()))
    stacks = Stacks(call, body.outputs[1 + len(carried) :])
    number = 0
    while goes_on and (limit is None or number < limit):
        call.meter.run(call.label)
        found = body(*_counted(body, number, goes_on), *carried)
        goes_on = bool(found[0].reshape(()))
        carried = found[1 : 1 + len(carried)]
        stacks.add(found[1 + len(carried) :])
        number += 1
    return (*carried, *stacks.made())


def _counted(body: Body, number: int, goes_on: bool) -> list[Tensor]:
    """What a body is told of its run: scalars, or vectors of one where it declares them so, as in onnxruntime."""
    told = torch.tensor(number, dtype=torch.int64), torch.tensor(goes_on)
    return [value.reshape([1] * len(declared.shape or ())) for value, declared in zip(told, body.inputs, strict=False)]


class Stacks:
    """What the runs of a body give, one behind the other."""

    def __init__(self, call: Call, declared: Sequence[Declared]) -> None:
        self._call = call
        self._declared = declared
        self._found: list[list[Value]] = [[] for _ in declared]
        self._elements = 0

    def add(self, found: Sequence[Value]) -> None:
        """What one run gave. Raises CannotJudgeError where the stacks would not fit into memory."""
        for stack, value in zip(self._found, found, strict=True):
            stack.append(value)
        self._elements += sum(map(size_of, found))
        self._call.reserve(self._elements)

    def made(self, axes: Sequence[int] = (), backwards: Sequence[int] = ()) -> tuple[Value, ...]:
        """The stacks as tensors, along new axes, from behind where asked."""
        made = []
        for number, stack in enumerate(self._found):
            axis = axes[number] if axes else 0
            if not stack:
                made.append(_nothing(self._declared[number], axis))
                continue
            axis = axis_in(axis, stack[0].ndim + 1)
            order = reversed(stack) if backwards and backwards[number] else stack
            made.append(moved(lambda *values, axis=axis: torch.stack(values, axis), *order))
            stack.clear()
        return tuple(made)


def _nothing(declared: Declared, axis: int) -> Value:
    """No values of a declared type and shape; sizes that are not numbers are 0, as in onnxruntime."""
    sizes = [size if isinstance(size, int) else 0 for size in declared.shape or ()]
    sizes.insert(axis_in(axis, len(sizes) + 1), 0)
    return empty(sizes, declared.dtype)


def scan(call: Call, *inputs: Value) -> tuple[Value, ...]:
    """The body once for every slice of the scanned inputs, with the state that it hands on."""
    count, body = call.integer("num_scan_inputs", 0), call.body("body")
    states, scanned = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    axes = call.integers("scan_input_axes") or [0] * count
    backwards = call.integers("scan_input_directions") or [0] * count
    out_axes = call.integers("scan_output_axes") or []
    out_backwards = call.integers("scan_output_directions") or []
    places = [axis_in(axis, value.ndim) for axis, value in zip(axes, scanned, strict=True)]
    lengths = {value.shape[place] for value, place in zip(scanned, places, strict=True)}
    if len(lengths) != 1:
        raise ValueError(f"the scanned inputs have {sorted(lengths)} slices")
    columns = [_from_behind(_slices(v, p), b) for v, p, b in zip(scanned, places, backwards, strict=True)]
    last, stacks = _scanned(call, body, states, columns)
    return (*last, *stacks.made(out_axes, out_backwards))


def _scanned(
    call: Call, body: Body, states: Sequence[Value], columns: Sequence[Sequence[Value]]
) -> tuple[Sequence[Value], Stacks]:
    stacks = Stacks(call, body.outputs[len(states) :])
    for row in zip(*columns, strict=True):
        call.meter.run(call.label)
        found = body(*states, *row)
        states = found[: len(states)]
        stacks.add(found[len(states) :])
    return states, stacks


def _slices(value: Value, axis: int) -> Sequence[Value]:
    if isinstance(value, Tensor):
        return value.unbind(axis)
    return [value.take(place, axis) for place in range(value.shape[axis])]


def _from_behind(items: Sequence[Value], backwards: int) -> Sequence[Value]:
    return list(reversed(items)) if backwards else items


def scan_8(call: Call, lengths: Tensor | None, *inputs: Value) -> tuple[Value, ...]:
    """Opset 8: the first axis is the batch, the second is scanned, as far as `lengths` says for each of the batch;
    what is behind that is 0.
    """
    count, body = call.integer("num_scan_inputs", 0), call.body("body")
    states, scanned = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    backwards = call.integers("directions") or [0] * count
    batch, longest = scanned[0].shape[:2]
    rows: list[tuple[Value, ...]] = []
    for number in range(batch):
        length = longest if lengths is None else int(lengths[number])
        columns = [
            _from_behind(_slices(value[number, :length], 0), back)
            for value, back in zip(scanned, backwards, strict=True)
        ]
        last, stacks = _scanned(call, body, [state[number] for state in states], columns)
        rows.append((*last, *(_extended(stack, longest) for stack in stacks.made())))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _extended(stack: Tensor, length: int) -> Tensor:
    return torch.cat([stack, stack.new_zeros(length - len(stack), *stack.shape[1:])])


_VERSIONS = (16, 19, 21, 23, 24, 25)
ROWS: Rows = {
    "If": {(1, 11, 13, *_VERSIONS): choose},
    "Loop": {(1, 11, 13, *_VERSIONS): loop},
    "Scan": {(8,): scan_8, (9, 11, *_VERSIONS): scan},
}
