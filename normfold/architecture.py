"""Weights need a module to live in: find its architecture, build it and load the weights strictly."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normfold import catalogue, recognise
from normfold.archive import Contents
from normfold.errors import ArchitectureError, NormfoldError

_LISTED = 10
_HOW = (
    "Give one with --model pkg.module:factory (your own code, imported from the current directory too; --model-args "
    "takes its arguments as JSON) or --arch NAME (`normfold models` lists the built-in ones), or save the checkpoint "
    "with normfold.save_checkpoint"
)


@dataclass(frozen=True, slots=True)
class Built:
    """A fresh module, what it was built from and with which arguments, and warning sentences."""

    module: nn.Module
    name: str
    args: dict[str, Any]
    warnings: tuple[str, ...] = ()


def build(
    *,
    model: str | None,
    model_args: Mapping[str, Any] | None,
    arch: str | None,
    found: Contents,
    state: Mapping[str, torch.Tensor],
    source: str,
) -> Built:
    """The module for the weights `state` of `source`.

    In this order: `model` ("pkg.module:factory"), `arch` (built-in registry), the checkpoint's own word where it is the
    name of a built-in architecture, and what the names and shapes of the weights are recognised as.
    Raises ArchitectureError when there is none or it cannot be built.
    """
    if model is not None:
        args = dict(model_args or {})
        return Built(_from_factory(model, args), model, args)
    from normfold import models

    shapes = {name: tuple(tensor.shape) for name, tensor in strip_prefixes(state, ()).items()}
    name = arch if arch is not None else found.arch if found.arch in models.names() else None
    if name is None:
        recognised = _recognise(shapes, found, source)
        args = {**recognised.options, **(model_args or {})}
        return Built(_create(recognised.name, args), recognised.name, args, (recognised.sentence,))
    if name not in models.names():
        raise ArchitectureError(f"--arch {name!r} is not built in{_closest(name)}. {_HOW}.")
    args = dict(model_args if model_args is not None else found.arch_args if name == found.arch else {})
    shown = recognise.options_shown(name, shapes) if not args else {}
    listed = ", ".join(f"{option} = {value}" for option, value in shown.items())
    warnings = (f"From the shapes of the weights: {name} with {listed}.",) if shown else ()
    return Built(_create(name, args | shown), name, args | shown, warnings)


def _recognise(shapes: Mapping[str, tuple[int, ...]], found: Contents, source: str) -> recognise.Recognised:
    said = recognise.Said(found.names, found.options)
    try:
        return recognise.recognise(shapes, said=said)
    except ArchitectureError as e:
        word = f" says its architecture is {found.names[0]!r}, which is not built in, and" if found.names else ""
        raise ArchitectureError(f"{source}{word} holds weights without a known architecture: {e}. {_HOW}.") from e


def _create(name: str, args: Mapping[str, Any]) -> nn.Module:
    from normfold import models

    try:
        return models.create(name, **args)
    except NormfoldError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError) as e:
        raise ArchitectureError(f"architecture {name!r} cannot be built with {args}: {_summary(e)}.") from e


def _closest(name: str) -> str:
    close = catalogue.closest(name)
    return f" (close: {', '.join(close)})" if close else ""


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


def load_weights(
    module: nn.Module, state: Mapping[str, torch.Tensor], *, source: str, computed: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Load `state` into `module` strictly and return warning sentences.

    `module.` and `_orig_mod.` prefixes are stripped. Raises ArchitectureError listing missing and unexpected keys and
    shapes that differ. A missing name whose parameter is tied to a loaded one is not missing, nor is one with an ending
    in `computed`: building the module gave it its values.
    """
    stripped = strip_prefixes(state, module.state_dict().keys())
    try:
        result = module.load_state_dict(stripped, strict=False)
    except (RuntimeError, TypeError, ValueError) as e:
        raise ArchitectureError(_misfit(module, stripped, source) or f"{source} does not fit: {_summary(e)}.") from e
    missing = recognise.untied(module, [name for name in result.missing_keys if not name.endswith(computed)])
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
