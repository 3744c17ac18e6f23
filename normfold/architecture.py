"""Weights need a module to live in: find its architecture, build it and load the weights strictly."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from normfold.errors import ArchitectureError, NormfoldError

_LISTED = 10
_HOW = (
    "Give one with --model pkg.module:factory (your own code, imported from the current directory too; --model-args "
    "takes its arguments as JSON) or --arch NAME (built in: {names}), or save the checkpoint with "
    "normfold.save_checkpoint"
)


def build(
    *,
    model: str | None,
    model_args: Mapping[str, Any] | None,
    arch: str | None,
    found_arch: str | None,
    found_args: Mapping[str, Any],
    source: str,
) -> tuple[nn.Module, str, dict[str, Any]]:
    """The module for the weights of `source`, what it was built from and with which arguments.

    In this order: `model` ("pkg.module:factory"), `arch` (built-in registry), `found_arch` (the checkpoint's own word).
    Raises ArchitectureError when there is none or it cannot be built.
    """
    if model is not None:
        args = dict(model_args or {})
        return _from_factory(model, args), model, args
    name = arch if arch is not None else found_arch
    if name is None:
        raise ArchitectureError(f"{source} holds weights without an architecture. {_how()}.")
    args = dict(model_args if model_args is not None else found_args if name == found_arch else {})
    from normfold import models

    if name not in models.names():
        said = f"{source} says its architecture is {name!r}, which" if arch is None else f"{name!r}"
        raise ArchitectureError(f"{said} is not built in. {_how()}.")
    try:
        return models.create(name, **args), name, args
    except NormfoldError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError) as e:
        raise ArchitectureError(f"architecture {name!r} cannot be built with {args}: {_summary(e)}.") from e


def _how() -> str:
    from normfold import models

    return _HOW.format(names=", ".join(models.names()))


def _from_factory(spec: str, args: dict[str, Any]) -> nn.Module:
    """Import pkg.module:factory and call it; what the user's code raises becomes a sentence."""
    module_name, colon, path = spec.partition(":")
    if not colon or not module_name or not path:
        raise ArchitectureError(f"--model {spec!r}: expected pkg.module:factory, such as my_project.models:build_vit.")
    with _current_directory_importable():
        try:
            factory: Any = importlib.import_module(module_name)
        # The module is the user's program, and whatever it raises means that there is no architecture.
        except Exception as e:
            raise ArchitectureError(f"--model {spec}: {module_name} cannot be imported: {_summary(e)}.") from e
        for part in path.split("."):
            if not hasattr(factory, part):
                raise ArchitectureError(f"--model {spec}: {module_name} has no {path!r}.")
            factory = getattr(factory, part)
        if not callable(factory) or isinstance(factory, nn.Module):
            raise ArchitectureError(f"--model {spec}: {path} is a {type(factory).__name__}, not a function or a class.")
        try:
            built = factory(**args)
        except Exception as e:
            given = args or "no arguments"
            raise ArchitectureError(f"--model {spec}: calling it with {given} failed: {_summary(e)}.") from e
    if not isinstance(built, nn.Module):
        raise ArchitectureError(f"--model {spec}: it returned a {type(built).__name__}, not a torch.nn.Module.")
    return built


@contextlib.contextmanager
def _current_directory_importable() -> Iterator[None]:
    """The current directory comes first while the user's code is imported and called, and is gone again afterwards."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _summary(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}"


def load_weights(module: nn.Module, state: Mapping[str, torch.Tensor], *, source: str) -> tuple[str, ...]:
    """Load `state` into `module` strictly and return warning sentences.

    `module.` and `_orig_mod.` prefixes are stripped. Raises ArchitectureError listing missing and unexpected keys and
    shapes that differ. A missing name whose parameter is tied to a loaded one is not missing.
    """
    stripped = strip_prefixes(state, module.state_dict().keys())
    try:
        result = module.load_state_dict(stripped, strict=False)
    except (RuntimeError, TypeError, ValueError) as e:
        raise ArchitectureError(_misfit(module, stripped, source) or f"{source} does not fit: {_summary(e)}.") from e
    missing = _untied(module, result.missing_keys)
    if missing or result.unexpected_keys:
        raise ArchitectureError(_key_report(source, missing, result.unexpected_keys))
    return _dtype_warnings(stripped, module)


def strip_prefixes(state: Mapping[str, torch.Tensor], expected: Any) -> Mapping[str, torch.Tensor]:
    """Remove what DataParallel (`module.`, in front) and torch.compile (`_orig_mod.`, anywhere) add to names.

    expected: the names that the module wants; a module that has a child of such a name keeps it.
    """
    names = {name: name for name in state}
    if not any("_orig_mod" in name.split(".") for name in expected):
        names = {name: ".".join(part for part in new.split(".") if part != "_orig_mod") for name, new in names.items()}
    while names and all(new.startswith("module.") for new in names.values()):
        if any(new in expected for new in names.values()):
            break
        names = {name: new.removeprefix("module.") for name, new in names.items()}
    if all(name == new for name, new in names.items()):
        return state
    return {new: state[name] for name, new in names.items()}


def _untied(module: nn.Module, missing: Sequence[str]) -> list[str]:
    tensors = module.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    return [name for name in missing if id(tensors.get(name)) not in loaded]


def _key_report(source: str, missing: Sequence[str], unexpected: Sequence[str]) -> str:
    parts = [
        f"{len(names)} {what} ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''})"
        for names, what in ((missing, "missing from the checkpoint"), (unexpected, "unexpected in the checkpoint"))
        if names
    ]
    return (
        f"{source} does not fit the architecture: {'; '.join(parts)}. Weights that do not fit would be dropped or left "
        "random, so nothing is loaded; check the architecture and its arguments."
    )


def _misfit(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> str:
    """The report on shapes that differ, or an empty string."""
    wanted = module.state_dict()
    bad = [
        f"{name} is {list(state[name].shape)} in the checkpoint and {list(tensor.shape)} in the architecture"
        for name, tensor in wanted.items()
        if name in state and isinstance(tensor, torch.Tensor) and state[name].shape != tensor.shape
    ]
    if not bad:
        return ""
    more = f"; and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    return (
        f"{source} does not fit the architecture: {len(bad)} shapes differ ({'; '.join(bad[:_LISTED])}{more}). "
        "Check the architecture and its arguments."
    )


def _dtype_warnings(state: Mapping[str, torch.Tensor], module: nn.Module) -> tuple[str, ...]:
    wanted = module.state_dict()
    changed = {
        (str(tensor.dtype).removeprefix("torch."), str(wanted[name].dtype).removeprefix("torch."))
        for name, tensor in state.items()
        if name in wanted and tensor.is_floating_point() and tensor.dtype != wanted[name].dtype
    }
    return tuple(f"Some weights are stored as {old} and were loaded as {new}." for old, new in sorted(changed))
