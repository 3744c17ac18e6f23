"""Weights need a module to live in: find its architecture, build it and load the weights strictly."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from normfold.checkpoint import recognise, unfilled
from normfold.checkpoint.contents import Contents
from normfold.checkpoint.prefixes import equal, part_of, strip_prefixes, under
from normfold.checkpoint.stated import Said, Statement, known
from normfold.checkpoint.unpickle import current_directory_importable
from normfold.errors import ArchitectureError, NormfoldError
from normfold.models import catalogue
from normfold.system.failures import raised
from normfold.system.text import first_few

_LISTED = 10
_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
_HOW = (
    "Give one with --model pkg.module:factory (your own code, imported from the current directory too; --model-args "
    "takes its arguments as JSON) or --arch NAME (`normfold models` lists the built-in ones), or save the checkpoint "
    "with normfold.save_checkpoint"
)


@dataclass(frozen=True, slots=True)
class Built:
    """A fresh module, what it was built from and with which arguments, its weights by its names, warning sentences."""

    module: nn.Module
    name: str
    args: dict[str, Any]
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def build(
    *,
    model: str | Callable[..., Any] | None,
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
        spec = model if isinstance(model, str) else f"{model.__module__}:{model.__qualname__}"
        return Built(_from_factory(model, spec, args), spec, args, state)
    from normfold import models

    plain = strip_prefixes(state, ())
    name = arch if arch is not None else found.arch if found.arch in models.names() else None
    if name is not None:
        catalogue.check_name(name)
    if name is not None and model_args is None and name == found.arch and found.arch_args:
        # Written together with the weights: nothing is left to derive.
        return Built(_create(name, found.arch_args, _shapes(plain)), name, dict(found.arch_args), plain)
    part, notes = under(plain, _prefix(name, plain, source))
    taken = _recognised(name, part, found, model_args or {}, source)
    module = _create(taken.name, taken.options, _shapes(part))
    return Built(module, taken.name, taken.options, part, tuple(filter(None, [taken.sentence, *notes])))


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _prefix(name: str | None, state: Mapping[str, torch.Tensor], source: str) -> str:
    """What stands in front of the names of the architecture `name`, or of any that is built in."""
    family = catalogue.family_of(name) if name is not None else None
    families = [family] if family is not None else catalogue.FAMILIES
    try:
        return part_of(_shapes(state), [family.key for family in families])
    except ArchitectureError as e:
        raise ArchitectureError(f"{source}: {e}.") from e


def _recognised(
    name: str | None, state: Mapping[str, torch.Tensor], found: Contents, given: Mapping[str, Any], source: str
) -> recognise.Recognised:
    """The architecture `name`, or the one that the weights show, with its options. Errors name the source."""
    shapes, said = _shapes(state), _with_tables(found.said, state)
    try:
        if name is not None:
            return recognise.options_of(name, shapes, said=said, given=given)
        return recognise.recognise(shapes, said=said, given=given)
    except recognise.ContradictionError as e:
        raise ArchitectureError(f"{source} contradicts itself, or the options given: {e}.") from e
    except recognise.UndecidedError as e:
        raise ArchitectureError(f"{source}: {e}.") from e
    except ArchitectureError as e:
        own = next((word for word, _ in found.said.names if known(word) is None), None)
        word = f" says its architecture is {own!r}, which is not built in, and" if own is not None else ""
        raise ArchitectureError(f"{source}{word} holds weights without a known architecture: {e}. {_HOW}.") from e


def _with_tables(said: Said, state: Mapping[str, torch.Tensor]) -> Said:
    """What the values of an encoder-decoder's tables of words say, where the file does not: which of them are one."""
    encoder, decoder, output = (state.get(name) for name in _TABLES)
    if encoder is None or any(statement.option == "shared" for statement in said.statements):
        return said
    decoder = encoder if decoder is None else decoder
    output = decoder if output is None else output
    tied = decoder.shape == output.shape and equal(decoder, output)
    shared = "none" if not tied else "all" if encoder.shape == decoder.shape and equal(encoder, decoder) else "decoder"
    return replace(
        said, statements=(*said.statements, Statement("shared", shared, "tables of words with equal values"))
    )


def _create(name: str, args: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """The architecture, or where it does not fit the weights one without values, for `load_weights` to say why."""
    from normfold import models

    try:
        other = unfilled.misfit(name, args, shapes)
        return models.create(name, **args) if other is None else other
    except NormfoldError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError) as e:
        raise ArchitectureError(f"architecture {name!r} cannot be built with {args}: {raised(e)}.") from e


def _from_factory(model: str | Callable[..., Any], spec: str, args: dict[str, Any]) -> nn.Module:
    """Call a factory, imported where it is named pkg.module:factory; what it raises becomes a sentence."""
    with current_directory_importable():
        factory = _imported(model) if isinstance(model, str) else model
        try:
            built = factory(**args)
        # It is the user's program, and whatever it raises means that there is no architecture.
        except Exception as e:
            given = args or "no arguments"
            raise ArchitectureError(
                f"--model {spec}{_taken(factory)}: calling it with {given} failed: {raised(e)}."
            ) from e
    if not isinstance(built, nn.Module):
        raise ArchitectureError(f"--model {spec}: it returned a {type(built).__name__}, not a torch.nn.Module.")
    return built


def _taken(factory: Callable[..., Any]) -> str:
    """The arguments of a factory as it declares them, where it does."""
    try:
        return str(inspect.signature(factory))
    except (TypeError, ValueError):
        return ""


def _imported(spec: str) -> Callable[..., Any]:
    """What pkg.module:factory names. Raises ArchitectureError."""
    module_name, colon, path = spec.partition(":")
    if not colon or not module_name or not path:
        raise ArchitectureError(f"--model {spec!r}: expected pkg.module:factory, such as my_project.models:build_vit.")
    try:
        factory: Any = importlib.import_module(module_name)
    except Exception as e:
        raise ArchitectureError(f"--model {spec}: {module_name} cannot be imported: {raised(e)}.") from e
    for part in path.split("."):
        if not hasattr(factory, part):
            close = difflib.get_close_matches(part, dir(factory), n=1)
            likely = f"; did you mean {close[0]}?" if close else "."
            raise ArchitectureError(f"--model {spec}: {module_name} has no {path!r}{likely}")
        factory = getattr(factory, part)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ArchitectureError(f"--model {spec}: {path} is a {type(factory).__name__}, not a function or a class.")
    found: Callable[..., Any] = factory
    return found


def load_weights(
    module: nn.Module, state: Mapping[str, torch.Tensor], *, source: str, computed: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Load `state` into `module` strictly and return warning sentences.

    `module.` and `_orig_mod.` prefixes are stripped. Raises ArchitectureError listing missing and unexpected keys and
    shapes that differ, and names that the module ties and for which the file has different values. A missing name
    whose parameter is tied to a loaded one is not missing, nor is one with an ending in `computed`: building the module
    gave it its values.
    """
    own = module.state_dict()
    stripped = strip_prefixes(state, own.keys())
    if any(isinstance(value, torch.Tensor) and value.device.type == "meta" for value in own.values()):
        # Not built, for it does not fit.
        missing = unfilled.untied(module, [name for name in own if name not in stripped])
        unexpected = [name for name in stripped if name not in own]
        raise ArchitectureError(_misfit(module, stripped, source) or _key_report(source, missing, unexpected))
    try:
        result = module.load_state_dict(stripped, strict=False)
    except (RuntimeError, TypeError, ValueError) as e:
        raise ArchitectureError(_misfit(module, stripped, source) or f"{source} does not fit: {raised(e)}.") from e
    missing = unfilled.untied(module, [name for name in result.missing_keys if not name.endswith(computed)])
    if missing or result.unexpected_keys:
        raise ArchitectureError(_key_report(source, missing, result.unexpected_keys))
    _check_tied(module, stripped, source)
    return _dtype_warnings(stripped, module)


def _check_tied(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Names that share memory hold what was loaded last; that has to be what the file has under each of them."""
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    sharing: dict[int, list[str]] = {}
    for name, value in own.items():
        if name in state and value.layout == torch.strided and value.numel():
            sharing.setdefault(value.untyped_storage().data_ptr(), []).append(name)
    for names in sharing.values():
        if len(names) < 2:
            continue
        for name in names:
            if equal(own[name], state[name]):
                continue
            others = [other for other in names if other != name and _overlap(own[name], own[other])]
            if others:
                raise ArchitectureError(
                    f"{source} has different values under {name} and {others[-1]}, which are one tensor in the "
                    "architecture: only one of them could be loaded. Give an architecture that does not tie them "
                    "(--model, or --model-args), or save the checkpoint with equal values."
                )


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one storage may have elements in common: the spans that they reach over meet."""
    (start, end), (begin, finish) = (_span(tensor) for tensor in (one, other))
    return start < finish and begin < end


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    reach = sum((int(size) - 1) * int(step) for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    first = int(tensor.storage_offset()) * tensor.element_size()
    return first, first + (reach + 1) * tensor.element_size()


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
    return (
        f"{source} does not fit the architecture: {len(bad)} shapes differ ({first_few(bad, between='; ')}). "
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
