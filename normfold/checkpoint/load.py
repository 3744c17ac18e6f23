"""Checkpoint in, evaluation-mode source out: the file, its weights in their architecture, its inputs and its norms."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from normfold.checkpoint.build import Built, build, load_weights
from normfold.checkpoint.contents import Contents
from normfold.checkpoint.formats import format_of
from normfold.checkpoint.options import LoadOptions
from normfold.checkpoint.recognise import defaults
from normfold.checkpoint.source import Source
from normfold.errors import ArchitectureError, InputSpecError, UsageError
from normfold.inputs.of_model import matching, with_vocabulary
from normfold.inputs.spec import InputSpec, parse_specs
from normfold.models import catalogue
from normfold.norms.detect import check_norms, find_norms


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    model: str | Callable[..., Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
    ema: bool = False,
    trust: bool = False,
    allow_unfinished: bool = False,
    trust_code: bool = False,
) -> Source:
    """Load a checkpoint without running anything in it.

    path: a file, or a folder of the Hugging Face hub. The rest: see `LoadOptions`.
    Raises CheckpointError, ArchitectureError, NormStateError, InputSpecError or GraphError; nothing is ever written.
    """
    return load(
        Path(path), LoadOptions(arch, model, model_args, tuple(inputs), ema, trust, allow_unfinished, trust_code)
    )


def load(path: Path, options: LoadOptions) -> Source:
    """`load_checkpoint`, its options as one value."""
    format = format_of(path)
    _check_options(path, options, whole=format.is_whole)
    contents = format.read(path, trust=options.trust, ema=options.ema)
    stored = format if format.weights is None else format.weights(path)
    source = Source(
        path=path,
        sha256="",
        format=stored.name,
        module=contents.module,
        graph=contents.graph,
        inputs=(),
        trusted=options.trust and stored.holds_code,
        program=contents.program,
    )
    source = _with_inputs(source, contents, options) if format.is_whole else _built(source, contents, options)
    source = replace(source, sha256=format.digest(path))
    if source.module is None:
        return source
    notes = check_norms(source.module, source=str(path), allow_unfinished=options.allow_unfinished)
    return replace(source, norms=find_norms(source.module), warnings=(*source.warnings, *notes))


def _check_options(path: Path, options: LoadOptions, *, whole: bool) -> None:
    """whole: the file holds its own architecture."""
    if whole and (options.ema or any(value is not None for value in (options.arch, options.model, options.model_args))):
        raise UsageError(f"{path} holds its own architecture and weights; --arch, --model and --ema do not apply.")
    if options.arch is not None and options.model is not None:
        raise UsageError("--arch and --model both give an architecture; give one of them.")


def _with_inputs(source: Source, contents: Contents, options: LoadOptions) -> Source:
    """A graph or a program, with what the user says of its inputs."""
    given, found = options.inputs, contents.takes
    return replace(source, inputs=matching(parse_specs(given), found, source.path) if given else found)


def _built(source: Source, contents: Contents, options: LoadOptions) -> Source:
    """A state dict in its architecture, or (trusted) a whole module."""
    if contents.module is not None and options.arch is None and options.model is None:
        built = Built(contents.module, f"pickled {type(contents.module).__name__}", {})
        warnings: tuple[str, ...] = ()
    else:
        state = (contents.state if contents.module is None else contents.module.state_dict()) or {}
        model, model_args = _own_code(source.path, contents, options)
        built = build(
            model=model,
            model_args=model_args,
            arch=options.arch,
            found=contents,
            state=state,
            source=str(source.path),
        )
        family = catalogue.family_of(built.name)
        computed = family.computed if family is not None else ()
        loaded = load_weights(built.module, built.state, source=str(source.path), computed=computed)
        warnings = (*built.warnings, *loaded)
    if contents.averaged is not None:
        key = contents.averaged
        warnings = (*warnings, f"The file holds averaged weights too, under {key!r}, which --ema takes instead.")
    module = built.module.cpu().eval()
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in module.parameters()):
        module = module.float()
        warnings = (*warnings, "The module is in half precision and was converted to float32.")
    specs = _input_specs(source.path, options.inputs or contents.inputs or _own_inputs(built))
    return replace(
        source,
        module=module,
        inputs=with_vocabulary(specs, module),
        arch=built.name,
        arch_args=built.args,
        warnings=warnings,
    )


def _own_code(
    path: Path, contents: Contents, options: LoadOptions
) -> tuple[str | Callable[..., Any] | None, Mapping[str, Any] | None]:
    """The own code that builds the module, and its arguments: the one given, or, trusted, the one that is named."""
    if contents.factory is None or options.model is not None or options.arch is not None:
        return options.model, options.model_args
    if not options.trust_code:
        raise ArchitectureError(
            f"{path} was saved for {contents.factory}, which is code that normfold does not import because a file says "
            f"so. If it is yours, name it yourself with --model {contents.factory}, or pass --trust-code to import "
            "whatever the file names."
        )
    given = contents.arch_args if options.model_args is None else options.model_args
    return contents.factory, given


def _own_inputs(built: Built) -> tuple[str, ...]:
    """The inputs of a built-in architecture in this size; none for the user's own."""
    if catalogue.family_of(built.name) is None:
        return ()
    return catalogue.inputs_of(built.name, {**defaults(built.name), **built.args})


def _input_specs(path: Path, texts: Sequence[str]) -> tuple[InputSpec, ...]:
    if not texts:
        raise InputSpecError(
            f"{path} does not say what its inputs are; give each with --input NAME:DTYPE[DIMENSIONS], for example "
            '--input "x:float32[B,3,224,224]" (letters are dynamic axes).'
        )
    return parse_specs(texts)
