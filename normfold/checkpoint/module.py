"""The module for the weights of a file, in evaluation mode, with its inputs and its norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfold.checkpoint.build import Built, build, load_weights
from normfold.checkpoint.contents import Contents
from normfold.checkpoint.options import LoadOptions
from normfold.checkpoint.recognise import defaults
from normfold.checkpoint.source import Source
from normfold.errors import ArchitectureError, InputSpecError
from normfold.inputs.float16 import single_specs
from normfold.inputs.of_module import with_vocabulary
from normfold.inputs.spec import InputSpec, parse_specs
from normfold.models import catalogue
from normfold.norms.detect import check_norms, find_norms


def built(source: Source, contents: Contents, options: LoadOptions) -> Source:
    """A state dict in its architecture, or (trusted) a whole module."""
    if contents.module is not None and options.arch is None and options.model is None:
        made = Built(contents.module, f"pickled {type(contents.module).__name__}", {})
        warnings: tuple[str, ...] = ()
    else:
        state = (contents.state if contents.module is None else contents.module.state_dict()) or {}
        model, model_args = _own_code(source.path, contents, options)
        made = build(
            model=model,
            model_args=model_args,
            arch=options.arch,
            found=contents,
            state=state,
            source=str(source.path),
        )
        family = catalogue.family_of(made.name)
        computed = family.computed if family is not None else ()
        loaded = load_weights(made.module, made.state, source=str(source.path), computed=computed)
        warnings = (*made.warnings, *loaded)
    if contents.averaged is not None:
        key = contents.averaged
        warnings = (*warnings, f"The file holds averaged weights too, under {key!r}, which --ema takes instead.")
    found = _input_specs(source.path, options.inputs or contents.inputs or _own_inputs(made))
    module, specs, said = in_float32(made.module.cpu().eval(), found)
    warnings = (*warnings, *said)
    return replace(
        source,
        module=module,
        inputs=with_vocabulary(specs, module),
        arch=made.name,
        arch_args=made.args,
        warnings=warnings,
    )


def in_float32(
    module: nn.Module, specs: Sequence[InputSpec]
) -> tuple[nn.Module, tuple[InputSpec, ...], tuple[str, ...]]:
    """A module in half precision and what it takes, both in float32, and the sentence that says so."""
    if not any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in module.parameters()):
        return module, tuple(specs), ()
    return module.float(), single_specs(specs), ("The module is in half precision and was converted to float32.",)


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


def _own_inputs(made: Built) -> tuple[str, ...]:
    """The inputs of a built-in architecture in this size; none for the user's own."""
    if catalogue.family_of(made.name) is None:
        return ()
    return catalogue.inputs_of(made.name, {**defaults(made.name), **made.args})


def _input_specs(path: Path, texts: Sequence[str]) -> tuple[InputSpec, ...]:
    if not texts:
        raise InputSpecError(
            f"{path} does not say what its inputs are; give each with --input NAME:DTYPE[DIMENSIONS], for example "
            '--input "x:float32[B,3,224,224]" (letters are dynamic axes).'
        )
    return parse_specs(texts)


def checked(source: Source, options: LoadOptions) -> Source:
    """A source that has a module, with its norms. Raises NormStateError where their statistics cannot be used."""
    assert source.module is not None
    notes = check_norms(source.module, source=str(source.path), allow_unfinished=options.allow_unfinished)
    return replace(source, norms=find_norms(source.module), warnings=(*source.warnings, *notes))
