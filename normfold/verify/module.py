"""A torch module in its own precision and in float64.

The module is copied, made double and run; code inside it that asks for float32 (attention that "upcasts", a norm that
does) gets float64 instead.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from normfold.errors import InputSpecError
from normfold.export.outputs import tensors_of
from normfold.graph.evaluator.limits import free_processors
from normfold.graph.float64 import Outputs
from normfold.inputs.cases import Array, Case
from normfold.inputs.spec import call_arguments
from normfold.system.clock import Tick, nothing
from normfold.system.failures import check_memory, raised
from normfold.system.spill import Rows


def run_module(module: nn.Module, cases: Sequence[Case], *, tick: Tick = nothing) -> Rows:
    """The module's outputs as they are, in its own precision. Raises InputSpecError naming the inputs it refuses."""
    found = Rows()
    for case in cases:
        try:
            found.append(_call(module, case.feeds))
        except Exception as error:  # whatever a user's forward raises means the same: not these inputs
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in case.feeds.items())
            check_memory(error, f"the source on {shapes}")
            raise InputSpecError(
                f"the model itself does not run on {shapes}: {raised(error)}. Every size that an input "
                f'specification allows has to work: fix the axis (a number instead of a letter) or limit it ("L<=64")'
            ) from error
        tick()
    return found


def run_double(module: nn.Module, cases: Sequence[Case], *, tick: Tick) -> Rows:
    """The module's outputs in float64. Raises whatever a module does that cannot be run so."""
    double, found = _double(module), Rows()
    with _float64_only(), free_processors():
        for case in cases:
            found.append(
                _call(
                    double,
                    {
                        name: value.astype(np.float64) if value.dtype.kind == "f" else value
                        for name, value in case.feeds.items()
                    },
                )
            )
            tick()
    return found


def _double(module: nn.Module) -> nn.Module:
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
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}
    args, kwargs = call_arguments(module.forward, tensors)
    with torch.no_grad():
        tensors_out = [tensor.detach().cpu() for tensor in tensors_of(module(*args, **kwargs))]
    return tuple((t.double() if t.is_floating_point() else t).numpy() for t in tensors_out)


@contextmanager
def _float64_only() -> Iterator[None]:
    """Every narrower float that code asks for by name becomes a float64, and so does torch's default dtype."""
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
