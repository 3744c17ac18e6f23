"""Checkpoint in, evaluation-mode source out: the file, its weights in their architecture, its inputs and its norms.

An ONNX file is read without torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from normfold.checkpoint.contents import Contents
from normfold.checkpoint.formats import format_of
from normfold.checkpoint.options import LoadOptions
from normfold.checkpoint.source import Source
from normfold.errors import UsageError
from normfold.inputs.of_graph import matching
from normfold.inputs.spec import parse_specs

_log = logging.getLogger(__name__)


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
        Path(path),
        LoadOptions(
            arch,
            model,
            model_args,
            tuple(inputs),
            ema=ema,
            trust=trust,
            allow_unfinished=allow_unfinished,
            trust_code=trust_code,
        ),
    )


def load(path: Path, options: LoadOptions) -> Source:
    """`load_checkpoint`, its options as one value."""
    source = _load(path, options)
    arch = f"{source.arch} {dict(source.arch_args)}" if source.arch is not None else "its own"
    _log.info("%s: format %s, architecture %s", path.name, source.format, arch)
    _log.info("inputs: %s; norm modules: %d", ", ".join(map(str, source.inputs)), len(source.norms))
    return source


def _load(path: Path, options: LoadOptions) -> Source:
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
    if format.is_whole:
        source = _with_inputs(source, contents, options)
    else:
        from normfold.checkpoint.module import built

        source = built(source, contents, options)
    source = replace(source, sha256=format.digest(path))
    if source.module is None:
        return source
    from normfold.checkpoint.module import checked

    return checked(source, options)


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
