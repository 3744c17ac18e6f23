"""A loaded checkpoint as an ONNX graph, through torch.export and torch.onnx.

1. torch.export captures the module in eval mode, each letter of the input specifications as a dynamic axis.
2. torch.onnx translates the program to the opset asked for; what it cannot reach it says, and so do we.
3. The graph is tidied: constants folded and what does nothing dropped, source paths out of its metadata, parameters
   and outputs under their own names.

Nothing is printed, and nothing of the module is changed.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree

from normfold.checkpoint.source import Source
from normfold.errors import ExportError, InputSpecError, InternalError
from normfold.export import tidy
from normfold.export.caches import without_caches
from normfold.export.opset import fastest_opset, newest_opset, silenced
from normfold.export.outputs import plain_outputs
from normfold.export.targets import LOWEST_OPSET
from normfold.export.untouched import untouched
from normfold.inputs.guards import hold_throughout, lowest
from normfold.inputs.spec import Axis, InputSpec, call_arguments, common_axes, draw, traced_sizes
from normfold.system.failures import raised

_LIBRARIES = tuple(str(Path(str(package.__file__)).parent) for package in (torch, onnx, ir))

# What torch.export says where an axis is not as free as it was declared.
_GUARD = re.compile(r"satisfy the generated guard (.+?)\.?$", re.MULTILINE)
# Sizes of an axis at which such a condition is looked at.
_LOOKED_AT = 4096


def export(source: Source, *, opset: int | None = None, exactly: bool | None = None) -> ir.Model:
    """The source as an ONNX graph (an ONNX source is returned as it is).

    opset: default `fastest_opset()`, or the newest below it that this model converts to. exactly: this opset
    and no other; so it is where one is given, unless this says otherwise.
    Nodes keep `namespace` and `pkg.torch.onnx.{name_scopes,class_hierarchy,fx_node}`; initializers have the names of
    the parameters, where they still are parameters. The same source gives the same graph.
    Raises ExportError saying what to do, and InputSpecError when the model does not run on its inputs.
    """
    if source.graph is not None:
        return source.graph
    if source.module is None:
        raise InternalError(f"{source.path}: a source has neither a module nor a graph")
    wanted = fastest_opset()[0] if opset is None else opset
    if not LOWEST_OPSET <= wanted <= newest_opset():
        raise ExportError(
            f"opset {wanted} is out of reach: the exporter and the onnxruntime installed here go from {LOWEST_OPSET} "
            f"to {newest_opset()}."
        )
    program = source.program if source.program is not None else _capture(source.module, source.inputs)
    names = [spec.name for spec in source.inputs]
    shapes = None
    if source.program is None:
        ordered = _arguments(source.module, source.inputs)
        names, shapes = list(_flat_names(ordered)), _dynamic_shapes(ordered, source.inputs)
    model = _translate(program, names, shapes, opset=wanted, exactly=opset is not None if exactly is None else exactly)
    tidy.strip_paths(model)
    tidy.name_weights(model, program.state_dict)
    tidy.name_outputs(model, program)
    return model


def _arguments(module: nn.Module, specs: Sequence[InputSpec]) -> dict[str, Any]:
    """The specifications bound to the parameters of `forward`, in its order."""
    args, kwargs = call_arguments(module.forward, {spec.name: spec for spec in specs})
    try:
        return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    except TypeError as e:
        named = ", ".join(map(str, specs))
        raise InputSpecError(f"the inputs {named} do not fit the model's forward{_signature(module)}: {e}.") from e


def _signature(module: nn.Module) -> str:
    return str(inspect.signature(module.forward))


def _flat_names(arguments: Mapping[str, Any]) -> Iterator[str]:
    for spec in pytree.tree_leaves(list(arguments.values())):
        yield spec.name


def _dynamic_shapes(arguments: Mapping[str, Any], specs: Sequence[InputSpec]) -> dict[str, Any]:
    """torch.export's description of the dynamic axes: the structure of the arguments with a Dim for each letter."""
    dims = {letter: _dim(letter, axis) for letter, axis in common_axes(specs).items()}

    def axes(spec: InputSpec) -> dict[int, Any]:
        # Of a sum torch.export finds out by itself what it is the sum of.
        return {
            axis: dims.get(dim, torch.export.Dim.AUTO) for axis, dim in enumerate(spec.dims) if isinstance(dim, str)
        }

    return {name: pytree.tree_map(axes, value) for name, value in arguments.items()}


def _dim(letter: str, axis: Axis) -> Any:
    """A dynamic axis as torch.export has them; the sizes 0 and 1 are left to it."""
    bounds = {"max": None if axis.high is None else axis.high // axis.step}
    if axis.low > 1:
        bounds["min"] = axis.smallest // axis.step
    named = {name: bound for name, bound in bounds.items() if bound is not None}
    if axis.step == 1:
        return torch.export.Dim(letter, **named)
    return axis.step * torch.export.Dim(f"{letter}_", **named)


def _capture(module: nn.Module, specs: Sequence[InputSpec]) -> torch.export.ExportedProgram:
    """Trace the module at the traced sizes. Afterwards it is what it was, with its training flags and its caches."""
    shapes = _dynamic_shapes(_arguments(module, specs), specs)
    drawn = draw(specs, traced_sizes(specs), seed=0)
    args, kwargs = call_arguments(module.forward, {name: torch.from_numpy(array) for name, array in drawn.items()})
    try:
        return _traced(module, args, kwargs, shapes)
    # The model is the user's program and the tracer runs it: anything can come out.
    except Exception as e:
        _check_runs(module, args, kwargs, specs)
        found = _traced_without_caches(module, args, kwargs, shapes)
        if found is None and _only_unproven(str(e), specs):
            found = _traced_unproven(module, args, kwargs, shapes)
        if found is None:
            raise ExportError(_explain(e, specs)) from e
        return found


def _traced(
    module: nn.Module, args: Any, kwargs: Any, shapes: Any, *, deferred: bool = False
) -> torch.export.ExportedProgram:
    """deferred: what torch.export cannot prove of a size is left to whoever runs the program."""
    with silenced(), torch.no_grad(), untouched(module), plain_outputs(module):
        module.eval()
        return torch.export.export(
            module,
            args,
            kwargs,
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=deferred,
        )


def _traced_without_caches(
    module: nn.Module, args: Any, kwargs: Any, shapes: Any
) -> torch.export.ExportedProgram | None:
    """The program, where what the module kept of earlier calls was all that stood in the way."""
    try:
        with silenced(), untouched(module):
            module.eval()
            with without_caches(module, args, kwargs) as able:
                return _traced(module, args, kwargs, shapes) if able else None
    except Exception:  # the first failure is the one to report
        return None


def _traced_unproven(module: nn.Module, args: Any, kwargs: Any, shapes: Any) -> torch.export.ExportedProgram | None:
    """The program, where what torch.export cannot prove of its sizes was all that stood in the way."""
    try:
        return _traced(module, args, kwargs, shapes, deferred=True)
    except Exception:  # the first failure says what there is to say
        return None


def _check_runs(module: nn.Module, args: Any, kwargs: Any, specs: Sequence[InputSpec]) -> None:
    """A model that does not even run on its inputs has an input problem, not an export problem."""
    try:
        with silenced(), torch.no_grad(), untouched(module):
            module.eval()(*args, **kwargs)
    except Exception as e:
        shapes = ", ".join(str(spec) for spec in specs)
        raise InputSpecError(
            f"the model does not run on {shapes} (traced at {_sizes(specs)}): {raised(e)}{_where(e)}. Check the "
            "dimensions, or give a dynamic axis a size it accepts (L=16)."
        ) from e


def _sizes(specs: Sequence[InputSpec]) -> str:
    return ", ".join(f"{letter}={size}" for letter, size in traced_sizes(specs).items()) or "static sizes"


def _translate(
    program: torch.export.ExportedProgram,
    names: list[str],
    shapes: dict[str, Any] | None,
    *,
    opset: int,
    exactly: bool,
) -> ir.Model:
    """The program in ONNX at `opset`, or (not `exactly`) at the newest one below it that the conversion reaches.

    torch.onnx leaves a model that it cannot convert half done and says so in a log only: the opset is looked at.
    """
    for version in range(opset, LOWEST_OPSET - 1, -1):
        try:
            with silenced(), torch.no_grad():
                result = torch.onnx.export(
                    program,
                    dynamo=True,
                    opset_version=version,
                    input_names=names,
                    dynamic_shapes=shapes,
                    optimize=False,
                    verbose=False,
                )
                if result is not None:
                    tidy.simplify(result.model)
        # Operators without a translation, conversion rules that fail: no common class, one meaning.
        except Exception as e:
            raise ExportError(f"the model cannot be translated to ONNX opset {version}: {_deepest(e)}.") from e
        if result is None:
            raise InternalError("torch.onnx.export returned no program")
        if result.model.opset_imports.get("") == version:
            return result.model
        if exactly:
            break
    raise ExportError(f"the model cannot be converted to opset {opset}; try --opset {LOWEST_OPSET}.")


def _explain(error: Exception, specs: Sequence[InputSpec]) -> str:
    """One paragraph on why the capture failed."""
    text = str(error)
    if "Constraints violated" in text:
        return _explain_axes(text, specs)
    if "data-dependent" in text:
        return (
            f"the model's control flow or a shape depends on the values of its inputs, which no ONNX graph can follow: "
            f"{raised(error)}{_where(error)}. Replace the branch by torch.where or a fixed size."
        )
    return f"the model cannot be captured by torch.export: {raised(error)}{_where(error)}."


def _explain_axes(text: str, specs: Sequence[InputSpec]) -> str:
    """What torch.export says of an axis that is not as free as its letter: its suggestions, in our syntax."""
    fixes = text.partition("Suggested fixes:")[2].splitlines()
    found = {name.strip(): value.strip() for name, equals, value in (fix.partition("=") for fix in fixes) if equals}
    letters = traced_sizes(specs)
    remedies = [_remedy(letter, value, found, letters) for letter, value in found.items() if letter in letters]
    remedies += [] if remedies else _least_sizes(text, specs)
    violated = re.search(r"Constraints violated \(([^)]*)\)", text)
    said = "; ".join(remedies) or f"axis {violated[1] if violated else '?'} is not free: make it static"
    given = ", ".join(str(spec) for spec in specs)
    return (
        f"the model does not allow every size of the dynamic axes in {given}: {said}, or change the code that takes "
        "the size for a constant."
    )


def _remedy(letter: str, value: str, fixes: Mapping[str, str], letters: Collection[str]) -> str:
    """What to write for one suggested fix: a number, another axis, `Dim('L', min=3)`, `2*_L` with a fix for `_L`."""
    if value.isdigit():
        return f"the model fixes axis {letter} at {value}: make it static ({value} instead of {letter})"
    if value in letters:
        return f"axes {letter} and {value} must be equal: give both the letter {value}"
    multiple = re.fullmatch(r"(\d+)\*(_\w+)", value)
    step = int(multiple[1]) if multiple else 1
    range_ = fixes.get(multiple[2], "Dim()") if multiple else value
    bounds = {name: step * int(number) for name, number in re.findall(r"\b(min|max)=(\d+)", range_)}
    if not range_.startswith("Dim(") or (step == 1 and not bounds):
        return f"axis {letter} must be {value}, which normfold cannot express: make it static"
    low, high = bounds.get("min", 1), bounds.get("max")
    what = [f"a multiple of {step}"] if step > 1 else []
    what += [f"{low} or more"] if low > step else []
    what += [f"at most {high}"] if high is not None else []
    written = Axis(low if low > step else 1, high, step)
    return f"axis {letter} has to be {' and '.join(what)}: write {letter}{written}"


def _only_unproven(text: str, specs: Sequence[InputSpec]) -> bool:
    """Whether torch.export complains of conditions that hold at all sizes the axes may have, as far as one can look.

    It gives up on some that are plain, such as `1 % (1 + (T - 1) // 2) != 0` of a convolution with a stride.
    """
    guards = _GUARD.findall(text)
    sizes = {
        letter: range(axis.smallest, 1 + min(axis.high or _LOOKED_AT, axis.smallest + _LOOKED_AT), axis.step)
        for letter, axis in common_axes(specs).items()
    }
    return bool(guards) and hold_throughout(guards, {spec.name: spec.dims for spec in specs}, sizes)


def _least_sizes(text: str, specs: Sequence[InputSpec]) -> Iterator[str]:
    """Where an axis may have every size from one on (a convolution needs so many): how to say that."""
    guards = _GUARD.findall(text)
    sizes, dims = traced_sizes(specs), {spec.name: spec.dims for spec in specs}
    for letter, axis in common_axes(specs).items():
        if not any(re.search(rf"values of {re.escape(letter)} = ", line) for line in text.splitlines()):
            continue
        least = lowest(guards, dims, sizes, letter, step=axis.step, low=axis.smallest)
        if axis.smallest < least:
            yield f"axis {letter} has to be {least} or more: write {letter}>={least}"


def _deepest(error: BaseException) -> str:
    """The first line of the innermost cause and the operator it is about: torch.onnx wraps them in general advice."""
    operator = None
    while error.__cause__ is not None:
        operator = re.search(r"target=torch\.ops\.([\w.]+)", str(error)) or operator
        error = error.__cause__
    line = raised(error)
    return line if operator is None or operator[1] in line else f"{line} (in {operator[1]})"


def _where(error: BaseException) -> str:
    """` (file.py, line 12: x = ...)`: the innermost line of the user's code in the traceback, or nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, str(Path(__file__))))]
    if not own:
        return ""
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})"
