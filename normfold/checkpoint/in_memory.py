"""Models that are in memory already: a torch module, an exported program, an ONNX model of onnx or onnx-ir.

What comes in is left as it was: a module is copied, so that its mode, its device and its caches stay its own.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import onnx
import onnx_ir as ir
import torch
from torch import nn

from normfold.checkpoint.formats.pt2 import check_captured_in_eval
from normfold.checkpoint.module import checked, in_float32
from normfold.checkpoint.options import LoadOptions
from normfold.checkpoint.source import Source
from normfold.errors import CheckpointError, InputSpecError, UsageError
from normfold.graph.read import graph_of
from normfold.inputs.of_graph import graph_inputs, matching
from normfold.inputs.of_module import program_inputs, with_vocabulary
from normfold.inputs.spec import DTYPES, InputSpec, call_arguments, parse_specs
from normfold.system.failures import raised

Model = nn.Module | torch.export.ExportedProgram | onnx.ModelProto | ir.Model
Examples = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]
# The dynamic axes of an input: names by axis, as torch.onnx has them, or the names of the axes from the first on.
Dynamic = Mapping[str, Mapping[int, str] | Sequence[str | int | None]]

_CALL = 'normfold.fold(module, "out.onnx", example_inputs=(x,), dynamic={"x": {0: "batch"}})'


def is_model(source: object) -> TypeGuard[Model]:
    """Whether `source` is a model in memory, and not the path of a file."""
    return isinstance(source, Model)


def source_of(
    model: Model, options: LoadOptions, *, examples: Examples | None = None, dynamic: Dynamic | None = None
) -> Source:
    """`model` as a source in evaluation mode.

    options: `inputs` and `allow_unfinished` apply; a model has its architecture and its weights. examples: what the
    module takes, for its input specifications, unless `options.inputs` has them. dynamic: which axes of the examples
    may have other sizes; all others are fixed.
    Raises UsageError, InputSpecError, GraphError and NormStateError.
    """
    if options.ema or options.trust or any(x is not None for x in (options.arch, options.model, options.model_args)):
        raise UsageError("arch, model, model_args, ema and trust are for files; a model in memory is what it is")
    name = f"{type(model).__name__} (in memory)"
    if isinstance(model, nn.Module):
        return _of_module(model, name, options, examples, dynamic)
    if examples is not None or dynamic is not None:
        raise UsageError(
            f"example_inputs and dynamic are for a torch.nn.Module; a {type(model).__name__} says what it takes"
        )
    if isinstance(model, torch.export.ExportedProgram):
        check_captured_in_eval(model, Path(name))
        specs = _specified(program_inputs(model), options, Path(name))
        source = Source(Path(name), _digest(model.state_dict), "pt2", model.module(), None, specs, program=model)
        return checked(replace(source, in_memory=True), options)
    proto = _proto(model)
    graph = graph_of(proto, Path(name))
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    specs = _specified(graph_inputs(graph, Path(name)), options, Path(name))
    return Source(Path(name), digest, "onnx", None, graph, specs, in_memory=True)


def _of_module(
    model: nn.Module, name: str, options: LoadOptions, examples: Examples | None, dynamic: Dynamic | None
) -> Source:
    try:
        module = copy.deepcopy(model).cpu().eval()
    # Whatever the user's own code raises when it is copied.
    except Exception as error:
        raise CheckpointError(
            f"{name} cannot be copied, and it is not to be changed ({raised(error)}); detach what it keeps of earlier "
            "calls, or save its state dict and give the file with model=factory"
        ) from error
    found = parse_specs(options.inputs) if options.inputs else _of_examples(module, examples, dynamic)
    module, specs, warnings = in_float32(module, found)
    source = Source(
        path=Path(name),
        sha256=_digest(module.state_dict()),
        format="module",
        module=module,
        graph=None,
        inputs=with_vocabulary(specs, module),
        arch=f"{type(model).__module__}.{type(model).__qualname__}",
        warnings=warnings,
        in_memory=True,
    )
    return checked(source, options)


def _specified(found: tuple[InputSpec, ...], options: LoadOptions, path: Path) -> tuple[InputSpec, ...]:
    return matching(parse_specs(options.inputs), found, path) if options.inputs else found


def _of_examples(module: nn.Module, examples: Examples | None, dynamic: Dynamic | None) -> tuple[InputSpec, ...]:
    """The specifications of examples, by the names of `forward`'s parameters."""
    if examples is None:
        raise InputSpecError(
            f"a {type(module).__name__} does not say what it takes: give example inputs, as in {_CALL}, or "
            'inputs=["x:float32[batch,3,224,224]"]'
        )
    named = _named(module, examples)
    unknown = set(dynamic or {}) - set(named)
    if unknown:
        raise InputSpecError(
            f"dynamic names {', '.join(sorted(map(str, unknown)))}; the inputs are {', '.join(named)}, as in {_CALL}"
        )
    return parse_specs(str(_spec(name, tensor, (dynamic or {}).get(name, {}))) for name, tensor in named.items())


def _named(module: nn.Module, examples: Examples) -> dict[str, torch.Tensor]:
    if isinstance(examples, Mapping):
        named: dict[str, Any] = dict(examples)
    else:
        given = (examples,) if isinstance(examples, torch.Tensor) else tuple(examples)
        # The names under which `forward` takes positional arguments, in its order.
        names = _parameters(module, len(given))
        named = dict(zip(names, given, strict=True))
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise InputSpecError(f"example input {name} is a {kind}, not a torch.Tensor; as in {_CALL}")
    call_arguments(module.forward, named)
    return named


def _parameters(module: nn.Module, count: int) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        names += [f"x{number}" for number in range(len(names), count)]
    if len(names) < count:
        raise InputSpecError(
            f"{count} example inputs are given, and forward of {type(module).__name__} takes {len(names)} "
            f"({', '.join(names) or 'none'})"
        )
    return names[:count]


def _spec(name: str, tensor: torch.Tensor, axes: Mapping[int, str] | Sequence[str | int | None]) -> InputSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype in ("float16", "bfloat16"):
        dtype = "float32"
    if dtype not in DTYPES:
        raise InputSpecError(f"example input {name} is {dtype}; choose from {', '.join(DTYPES)}")
    by_axis: Mapping[Any, Any] = axes if isinstance(axes, Mapping) else dict(enumerate(axes))
    dims: list[int | str] = list(tensor.shape)
    for axis, letter in by_axis.items():
        if not isinstance(axis, int) or not -tensor.ndim <= axis < tensor.ndim:
            raise InputSpecError(f"dynamic: {name} has {tensor.ndim} axes, and no axis {axis}; as in {_CALL}")
        if isinstance(letter, str):
            if not letter.isidentifier() or not letter.isascii():
                raise InputSpecError(f"dynamic: {letter!r} cannot name an axis of {name}; take letters, as in {_CALL}")
            dims[axis] = letter
    return InputSpec(name, dtype, tuple(dims))


def _proto(model: onnx.ModelProto | ir.Model) -> onnx.ModelProto:
    """A message of its own, with all weights inside."""
    if isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        return proto
    # Serialising reads external weights, and changes nothing of the model.
    return ir.to_proto(ir.external_data.load_to_model(model.clone()))


def _digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of the weights: their names, types, shapes and contents."""
    found = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if isinstance(value, torch.Tensor):
            found.update(f"{name}:{value.dtype}{list(value.shape)};".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
