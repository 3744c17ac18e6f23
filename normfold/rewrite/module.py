"""The fold written back into the torch module that the graph was exported from.

The exporter leaves on every operator the path of the module that called it, and names weights after their parameters.
So each edit of the plan is found to be about one parameter of one module (a *slot*); norms become identities. What
cannot be placed is refused. How an architecture uses its parameters elsewhere no graph shows: a module is handed out
once `verify.emitted` has judged it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from normfold.analysis.edits import NewAdd, NewAttribute, NewConstant, NewMap
from normfold.analysis.plan import Plan
from normfold.analysis.refusal import Refuse
from normfold.analysis.rules import rule_of
from normfold.checkpoint.source import Source
from normfold.errors import NotExpressibleError, OutputError
from normfold.graph.affine import Array
from normfold.graph.operators import operators
from normfold.graph.scopes import scopes
from normfold.graph.types import Model, Node, Value
from normfold.graph.view import Graph
from normfold.system.failures import one_line
from normfold.system.files import writing

Slot = tuple[str, str]


class ChannelMap(nn.Module):
    """What is left of a norm that folded in part: y = scale * x + shift, each broadcast to x, or absent."""

    scale: torch.Tensor | None
    shift: torch.Tensor | None

    def __init__(self, scale: torch.Tensor | None, shift: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: of any shape that scale and shift broadcast to."""
        x = x if self.scale is None else x * self.scale
        return x if self.shift is None else x + self.shift


def folded_module(source: Source, graph: Model, plan: Plan) -> nn.Module:
    """A copy of `source.module`, in eval mode, folded as `plan` says. It has not been verified yet.

    graph: what `plan` was made from. Norms become `nn.Identity`, or a `ChannelMap` where only their scale folded; a
    Linear or Conv without a bias gets one where the fold needs it, and one whose bias would differ between positions
    becomes an `nn.Sequential` of itself and a `ChannelMap` with what is added. Raises NotExpressibleError where the
    parameters of the module cannot say what the graph says.
    """
    if source.module is None or source.program is not None:
        raise NotExpressibleError(f"{source.path} holds a graph, and no torch module that could be folded")
    draft = _Draft(source, graph)
    for edit in plan.edits:
        if isinstance(edit, NewConstant):
            draft.set_constant(edit)
        elif isinstance(edit, NewAdd):
            draft.give_bias(draft.node(edit.output), edit.add)
        else:
            draft.set_attribute(edit)
    for written in plan.maps:
        draft.write_map(written)
    draft.check_readers()
    return draft.build()


def save_module(module: nn.Module, draft: Path, *, name: Path) -> None:
    """Write `module` with torch.save; torch.load(..., weights_only=False) needs its classes.

    name: what the user calls `draft`. Raises NotExpressibleError, and OutputError of a full disk for example.
    """
    try:
        # torch's own writer says nothing of why it could not write.
        with writing(name), draft.open("wb") as file:
            torch.save(module, file)
    except OutputError:
        raise
    # Pickling runs code of the user's classes.
    except Exception as error:
        raise NotExpressibleError(f"{name}: the module cannot be pickled: {one_line(error)}") from error


@dataclass(slots=True)
class _New:
    """What a slot is to hold, and the reads of the graph, (node, input), that want it."""

    value: Array
    reads: set[tuple[Node, int]]


class _Draft:
    """Where everything goes, before a module is touched."""

    def __init__(self, source: Source, graph: Model) -> None:
        assert source.module is not None
        self.module = source.module
        self.norms = {norm.name for norm in source.norms}
        # Buffers that are not saved hold numbers as well as others do.
        self.state = dict(source.module.named_buffers()) | dict(source.module.state_dict(keep_vars=True))
        self.modules = dict(source.module.named_modules(remove_duplicate=False))
        self.graph = graph
        self.producer = {str(value.name): node for node in graph.graph for value in node.outputs}
        self.view = Graph(graph, operators(graph))
        self.ops = {str(value.name): op for op in self.view.ops for value in op.outputs}
        self.new: dict[Slot, _New] = {}
        self.replaced: dict[str, nn.Module] = {}
        self.behind: dict[str, Array] = {}
        self.attributes: dict[Slot, float] = {}

    def node(self, output: str) -> Node:
        return self.producer[output]

    def set_constant(self, edit: NewConstant) -> None:
        node = self.node(edit.output)
        if edit.source is None:
            assert edit.add is not None, "a new constant is what it adds"
            self.give_bias(node, edit.add)
            return
        name, transposed = self._parameter(edit.source)
        stored = _numpy(self.state[name])
        array = edit.content(stored.T if transposed else stored)
        self._put(self._slot(node, name), array.T if transposed else array, (node, edit.input))

    def give_bias(self, node: Node, add: Array) -> None:
        path, owner = self._owner(node)
        if isinstance(owner, nn.modules.conv._ConvNd) and max(add.shape[2:], default=1) > 1:
            self._put_behind(path, add)
            return
        size = 0
        if isinstance(owner, nn.Linear):
            size = owner.out_features
        elif isinstance(owner, nn.modules.conv._ConvNd):
            size = owner.out_channels
        if not size or getattr(owner, "bias", None) is not None:
            raise NotExpressibleError(f"{path or node.name}: a {type(owner).__name__} has no place for the new bias")
        self._put((path, "bias"), np.broadcast_to(add.reshape(-1), (size,)), None)

    def set_attribute(self, edit: NewAttribute) -> None:
        path, owner = self._owner(self.node(edit.output))
        if edit.name != "epsilon" or not isinstance(getattr(owner, "eps", None), float):
            raise NotExpressibleError(f"{path}: its {edit.name} changes, and a {type(owner).__name__} has no eps")
        if self.attributes.setdefault((path, "eps"), edit.value) != edit.value:
            raise NotExpressibleError(f"{path} is called at two places, which need different eps")

    def write_map(self, written: NewMap) -> None:
        """An affine map is a norm, or a parameter added to or multiplied with one tensor, or not of the module."""
        node = self.node(written.output)
        if self._write_norm(written):
            return
        constants = [(i, v) for i, v in enumerate(node.inputs) if v is not None and v.is_initializer()]
        leftover = written.shift if node.op_type == "Add" else written.scale if node.op_type == "Mul" else None
        other = written.scale if node.op_type == "Add" else written.shift
        reads_input = any(value is not None and value.name == written.input for value in node.inputs)
        if node.op_type not in ("Add", "Mul") or len(constants) != 1 or other is not None or not reads_input:
            if written.scale is None and written.shift is None:
                return  # nothing of it was a parameter
            where = _where(node)
            raise NotExpressibleError(f"{where}: a scale or shift is left there that no parameter of the module holds")
        index, constant = constants[0]
        if (path := self._nothing_else(node)) is not None:
            value = None if leftover is None else torch.from_numpy(leftover.copy())
            left = ChannelMap(*((value, None) if node.op_type == "Mul" else (None, value)))
            self.replaced[path] = nn.Identity() if value is None else left
            return
        name, transposed = self._parameter(str(constant.name))
        if leftover is None:  # all of it went elsewhere
            leftover = np.full(self.state[name].shape, 0.0 if node.op_type == "Add" else 1.0)
        self._put(self._slot(node, name), leftover.T if transposed else leftover, (node, index))

    def _nothing_else(self, node: Node) -> str | None:
        """The module that is this operator alone, with a number of its code, which no parameter holds."""
        path, owner = self._owner(node)
        within = [other for other in self.graph.graph if path in scopes(other) and other.op_type != "Constant"]
        return path if within == [node] and not any(owner.parameters()) else None

    def _write_norm(self, written: NewMap) -> bool:
        """What is left of a norm, in its place; False where no norm is in the map.

        The map may end behind layout operators that follow the norm; what is left goes back through them.
        """
        coefficients = {"scale": written.scale, "shift": written.shift}
        name = written.output
        while (norm := self._norm_of(self.producer[name])) is None:
            op = self.ops[name]
            rule = rule_of(op.type)
            if name == written.input or not rule.rearranges or op.inputs[0] is None:
                return False
            axis_map = rule.axis_map(self.view, op)
            if isinstance(axis_map, Refuse):
                return False
            for which, array in coefficients.items():
                carried = None if array is None else axis_map.backward(array)
                if isinstance(carried, Refuse):
                    raise NotExpressibleError(f"{_where(self.producer[name])}: {carried.reason}")
                coefficients[which] = carried
            name = str(op.inputs[0].name)
            if name not in self.producer:
                return False
        tensors = [None if array is None else torch.from_numpy(array.copy()) for array in coefficients.values()]
        left: nn.Module = nn.Identity() if tensors == [None, None] else ChannelMap(*tensors)
        before = self.replaced.setdefault(norm, left)
        if before is not left and not _same(before, left):
            raise NotExpressibleError(f"{norm} is called at two places, which keep different parts of it")
        return True

    def _norm_of(self, node: Node) -> str | None:
        return next((path for path in scopes(node) if path in self.norms), None)

    def _parameter(self, name: str) -> tuple[str, bool]:
        """The parameter that an initializer holds, and whether it holds the transpose."""
        if name in self.state:
            return name, False
        if name.endswith(".T") and name.removesuffix(".T") in self.state:
            return name.removesuffix(".T"), True
        # A weight that is read as it is elsewhere is transposed in the graph.
        turned = self.producer.get(name)
        held = None if turned is None or turned.op_type != "Transpose" else turned.inputs[0]
        if held is not None and str(held.name) in self.state and self.state[str(held.name)].ndim == 2:
            return str(held.name), True
        raise NotExpressibleError(
            f"{name}: the fold changes a number of the module's code, which is no parameter; only ONNX can hold it"
        )

    def _owner(self, node: Node) -> tuple[str, nn.Module]:
        path = next((path for path in reversed(scopes(node)) if path in self.modules), "")
        return path, self.modules[path]

    def _slot(self, node: Node, name: str) -> Slot:
        """The parameter as the module that reads it holds it: one tensor can be tied under several names."""
        path, owner = self._owner(node)
        home, _, leaf = name.rpartition(".")
        held = owner._parameters.get(leaf, owner._buffers.get(leaf))
        if held is not None and path != home and torch.equal(held, self.state[name]):
            return path, leaf
        return home, leaf

    def _put(self, slot: Slot, value: Array, read: tuple[Node, int] | None) -> None:
        held = self.state.get(_dotted(slot))
        if held is not None and held.numel() != value.size:
            if slot[1] == "bias" and isinstance(self.modules[slot[0]], nn.Linear):
                self._put_behind(slot[0], value - _numpy(held))
                return
            raise NotExpressibleError(
                f"{_dotted(slot)} is {list(held.shape)} and would have to be {list(value.shape)}: the fold gives every "
                "position a value of its own there"
            )
        reads = set() if read is None else {read}
        if slot not in self.new:
            self.new[slot] = _New(value, reads)
            return
        if not np.array_equal(self.new[slot].value.reshape(-1), value.reshape(-1)):
            raise NotExpressibleError(f"{_dotted(slot)} is read at two places that need different values")
        self.new[slot].reads |= reads

    def _put_behind(self, path: str, add: Array) -> None:
        """A bias for each position, as an addition of its own behind the layer."""
        if not np.array_equal(self.behind.setdefault(path, add), add):
            raise NotExpressibleError(f"{path} is called at two places, which need different biases")

    def check_readers(self) -> None:
        """A parameter that some operator still reads as it was cannot change."""
        for value in self.graph.graph.initializers.values():
            for node, index in value.uses():
                slot = self._reads(node, value)
                if slot is None or slot not in self.new or self._wanted(node, index) <= self.new[slot].reads:
                    continue
                if self._owner(node)[0] in self.replaced or any(path in self.replaced for path in scopes(node)):
                    continue
                raise NotExpressibleError(f"{_dotted(slot)} is also read, as it was, by {_where(node)}")

    def _wanted(self, node: Node, index: int) -> set[tuple[Node, int]]:
        """The reads that a read stands for: those of its transpose, where it is turned before it is used."""
        return set(node.outputs[0].uses()) if node.op_type == "Transpose" else {(node, index)}

    def _reads(self, node: Node, value: Value) -> Slot | None:
        try:
            return self._slot(node, self._parameter(str(value.name))[0])
        except NotExpressibleError:
            return None

    def build(self) -> nn.Module:
        """A copy of the module with everything in its place."""
        result = copy.deepcopy(self.module)
        for (path, leaf), new in self.new.items():
            owner = _of_its_own(result, path)
            before = getattr(owner, leaf, None)
            like = before if isinstance(before, torch.Tensor) else next(owner.parameters())
            tensor = torch.from_numpy(np.array(new.value)).to(like.dtype)
            tensor = tensor.reshape(before.shape) if isinstance(before, torch.Tensor) else tensor
            if leaf in owner._buffers:
                owner._buffers[leaf] = tensor
            else:
                setattr(owner, leaf, nn.Parameter(tensor, requires_grad=like.requires_grad))
        for (path, leaf), value in self.attributes.items():
            setattr(result.get_submodule(path), leaf, value)
        for path, add in self.behind.items():
            layer = result.get_submodule(path)
            dtype = next(layer.parameters()).dtype
            shift = ChannelMap(None, torch.from_numpy(add.copy()).to(dtype))
            result.set_submodule(path, nn.Sequential(layer, shift))
        for path, left in self.replaced.items():
            dtype = next((tensor.dtype for tensor in self.modules[path].parameters()), torch.float32)
            result.set_submodule(path, left.to(dtype))
        return result.eval()


def _of_its_own(module: nn.Module, path: str) -> nn.Module:
    """The module at `path`, a copy of it where it is also at another: that one keeps what it has."""
    owner = module.get_submodule(path)
    if sum(part is owner for _, part in module.named_modules(remove_duplicate=False)) > 1:
        owner = copy.deepcopy(owner)
        module.set_submodule(path, owner)
    return owner


def _dotted(slot: Slot) -> str:
    return ".".join(filter(None, slot))


def _numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def _where(node: Node) -> str:
    return f"{next((path for path in reversed(scopes(node)) if path), '') or 'the model'} ({node.op_type})"


def _same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = dict(first.named_buffers()), dict(second.named_buffers())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
