"""The original model in float64 on drawn inputs: what every figure of `verify` is measured against.

A torch module is copied, made double and run; code inside it that asks for float32 (attention that "upcasts", a norm
that does) gets float64 instead. What cannot be run so (sizes or dtypes baked into an exported program), and every ONNX
source, is run by onnx.reference on a copy of the graph whose float16, bfloat16 and float32 are all made float64.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normfold.cases import Array, Case, draw_cases
from normfold.errors import CheckpointError, GraphError, InputSpecError
from normfold.figures import MASK
from normfold.inputs import InputSpec, call_arguments
from normfold.runtime import check_memory

if TYPE_CHECKING:
    from torch import nn

Outputs = tuple[Array, ...]
Tick = Callable[[], None]


def nothing() -> None:
    """A tick when nobody watches."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Outputs in float64 (integers and booleans as they are): one tuple per case, in the order of the model's outputs.

    method: how they were computed, for the report. from_module: whether the torch module itself computed them.
    narrow: what the module computes in its own precision, None where there is no module.
    """

    cases: tuple[Case, ...]
    outputs: tuple[Outputs, ...]
    method: str
    from_module: bool
    narrow: tuple[Outputs, ...] | None = None

    def only(self, numbers: Sequence[int]) -> Truth:
        """The truth about these cases alone."""
        narrow = self.narrow
        return replace(
            self,
            cases=tuple(self.cases[number] for number in numbers),
            outputs=tuple(self.outputs[number] for number in numbers),
            narrow=None if narrow is None else tuple(narrow[number] for number in numbers),
        )

    def scale(self, index: int) -> float:
        """Root mean square of output `index` over all cases; 1 for an output that is zero everywhere."""
        values = [np.asarray(outputs[index], dtype=np.float64).ravel() for outputs in self.outputs]
        finite = np.concatenate([value[np.abs(value) < MASK] for value in values])
        rms = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
        return rms if rms > 0.0 else 1.0


def establish(
    module: nn.Module | None,
    graph_path: Path,
    specs: Sequence[InputSpec],
    *,
    seed: int = 0,
    cases: Sequence[Case] | None = None,
    tick: Tick = nothing,
) -> Truth:
    """The truth about a model: from `module` if it runs in float64, otherwise from the graph at `graph_path`.

    cases: the inputs; by default those that `draw_cases` draws from `seed`. tick: called after every run of the model.
    Raises InputSpecError when the module does not run at all, CheckpointError when the outputs hold NaN, GraphError
    when neither way leads anywhere, CannotJudgeError when memory runs out.
    """
    cases = draw_cases(specs, seed=seed) if cases is None else tuple(cases)
    if module is None:
        outputs = run_reference(graph_path, cases, tick=tick)
        return _checked(Truth(cases, outputs, "onnx.reference in float64", from_module=False))
    # First: a model that does not run in float32 either is to hear about its inputs, not about its dtypes.
    narrow = run_module(module, cases, tick=tick)
    try:
        outputs = _run_double(module, cases, tick=tick)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        check_memory(error, "the source in float64")
        method = f"onnx.reference in float64, for the module does not run in float64 ({_first_line(error)})"
        outputs = run_reference(graph_path, cases, tick=tick)
        return _checked(Truth(cases, outputs, method, from_module=False, narrow=narrow))
    return _checked(Truth(cases, outputs, "torch in float64", from_module=True, narrow=narrow))


def run_module(module: nn.Module, cases: Sequence[Case], *, tick: Tick = nothing) -> tuple[Outputs, ...]:
    """The module's outputs as they are, in its own precision. Raises InputSpecError naming the inputs it refuses."""
    found = []
    for case in cases:
        try:
            found.append(_call(module, case.feeds))
        except Exception as error:  # whatever a user's forward raises means the same: not these inputs
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in case.feeds.items())
            check_memory(error, f"the source on {shapes}")
            raise InputSpecError(
                f"the model itself does not run on {shapes}: {_first_line(error)}. Every size that an input "
                f'specification allows has to work: fix the axis (a number instead of a letter) or limit it ("L<=64")'
            ) from error
        tick()
    return tuple(found)


def _run_double(module: nn.Module, cases: Sequence[Case], *, tick: Tick) -> tuple[Outputs, ...]:
    double, found = _double(module), []
    with _float64_only():
        for case in cases:
            found.append(_call(double, {name: _widen(value) for name, value in case.feeds.items()}))
            tick()
    return tuple(found)


def _double(module: nn.Module) -> nn.Module:
    import torch

    with warnings.catch_warnings():
        # Copying an exported program warns about torch's own pytree classes.
        warnings.simplefilter("ignore", FutureWarning)
        double = copy.deepcopy(module)
    for layer in double.modules():
        if isinstance(layer, torch.nn.RMSNorm) and layer.eps is None:
            # Left to itself the norm takes the epsilon of the dtype that it runs in: another function in float64.
            weight = layer.weight
            layer.eps = torch.finfo(torch.float32 if weight is None else weight.dtype).eps
    return double.double()


def _call(module: nn.Module, feeds: Mapping[str, Array]) -> Outputs:
    import torch
    from torch.utils import _pytree

    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}
    args, kwargs = call_arguments(module.forward, tensors)
    with torch.no_grad():
        leaves = _pytree.tree_leaves(module(*args, **kwargs))
    tensors_out = [leaf.detach().cpu() for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return tuple((t.double() if t.is_floating_point() else t).numpy() for t in tensors_out)


@contextmanager
def _float64_only() -> Iterator[None]:
    """Every narrower float that code asks for by name becomes a float64, and so does torch's default dtype."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    narrow = (torch.float32, torch.float16, torch.bfloat16)
    # Exported programs assert the dtypes that they were traced with.
    asserted = torch.ops.aten._assert_tensor_metadata.default

    class Float64Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if func is asserted:
                return None
            wide = [torch.float64 if isinstance(a, torch.dtype) and a in narrow else a for a in args]
            named = {
                key: torch.float64 if isinstance(value, torch.dtype) and value in narrow else value
                for key, value in (kwargs or {}).items()
            }
            return func(*wide, **named)

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64Mode():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)


def run_reference(path: Path, cases: Sequence[Case], *, tick: Tick = nothing) -> tuple[Outputs, ...]:
    """Outputs of the graph at `path`, every float in it made float64, by onnx.reference. Raises GraphError."""
    from normfold.reference import check_fits, reference_session

    check_fits(path)
    try:
        session = reference_session(path)
        names = session.input_names
        found = []
        for case in cases:
            with np.errstate(all="ignore"):
                values = session.run(None, {name: _widen(value) for name, value in case.fed_to(names).items()})
            found.append(tuple(np.asarray(value) for value in values))
            tick()
        return tuple(found)
    except Exception as error:  # the reference raises whatever numpy does
        check_memory(error, f"{path} in float64")
        raise GraphError(
            f"{path}: onnx.reference cannot run this graph in float64, so there is nothing to verify against: "
            f"{_first_line(error)}. `fold --no-verify` writes its result without a check"
        ) from error


def reference_tensors(path: Path, cases: Iterable[Case]) -> Iterator[dict[str, Array]]:
    """Every tensor of the graph at `path` in float64, by name, case by case. Raises GraphError."""
    from normfold.reference import reference_session

    try:
        session = reference_session(path)
        for case in cases:
            feeds = {name: _widen(value) for name, value in case.fed_to(session.input_names).items()}
            with np.errstate(all="ignore"):
                found = session.run(None, feeds, intermediate=True)
            yield {name: np.asarray(value) for name, value in dict(found).items()}
    except Exception as error:  # the reference raises whatever numpy does
        check_memory(error, f"{path} in float64")
        raise GraphError(f"{path}: onnx.reference cannot run this graph: {_first_line(error)}") from error


def _widen(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def _checked(truth: Truth) -> Truth:
    for case, outputs in zip(truth.cases, truth.outputs, strict=True):
        for index, value in enumerate(outputs):
            if value.dtype.kind == "f" and np.isnan(value).any():
                raise CheckpointError(
                    f"the source itself yields NaN: output {index} at {case}, computed by {truth.method}. "
                    "Nothing can be verified against that: are the weights finite, and does the model take "
                    "normally distributed inputs?"
                )
    return truth


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
