"""The source of a model: the file that its manifest names, loaded as it was then, and what both take as inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from normfold.checkpoint.formats import format_of, sha256_of
from normfold.checkpoint.load import load
from normfold.checkpoint.options import LoadOptions
from normfold.checkpoint.source import Source
from normfold.errors import CannotJudgeError, CheckpointError, InputSpecError
from normfold.export.parts import split
from normfold.inputs.float16 import half_specs
from normfold.inputs.spec import InputSpec, with_letters
from normfold.system.numbers import HALF
from normfold.system.plain import irregular
from normfold.verify.manifest import Manifest


def find_source(model: Path, manifest: Manifest) -> Path | None:
    """The source that the manifest names, in the model's own folder or below it; None if it is not there.

    The manifest is not trusted: a path that climbs out of the folder, by itself or
    through a link, is not followed. Raises CheckpointError when the file that is there is another one by its SHA-256,
    which is not said: it may be any file.
    """
    folder = model.parent
    for relative in (manifest.path, manifest.name):
        if not relative or "\0" in relative or not _stays_inside(folder, relative):
            continue
        place = folder / relative
        if irregular(place) is not None or place.resolve() == model.resolve():  # called like its source
            continue
        if sha256_of(place) != manifest.sha256:
            raise CheckpointError(
                f"{place} is not the file that {model} was made from, by its SHA-256. Fold it again, or compare with "
                f"this file all the same: --against {place}"
            )
        return place
    return None


def _stays_inside(folder: Path, relative: str) -> bool:
    plain = PurePosixPath(relative.replace("\\", "/"))
    if plain.is_absolute() or ".." in plain.parts or not plain.parts:
        return False
    try:
        return (folder / relative).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


def load_source(place: Path, options: LoadOptions, manifest: Manifest | None, inputs: Sequence[InputSpec]) -> Source:
    """The source at `place`, loaded as `options` say and, where they say nothing, as the manifest of this file does.

    inputs: what the model takes, for a source that does not say what it takes itself. Raises what `load_checkpoint`
    does, and CannotJudgeError for a manifest that names code to run.
    """
    format = format_of(place)
    if manifest is not None and sha256_of(place) == manifest.sha256:
        options = _as_folded(place, options, manifest)
    try:
        source = load(place, options)
    except InputSpecError:
        if options.inputs or format.is_whole:
            raise
        source = load(place, replace(options, inputs=tuple(str(spec) for spec in inputs)))
    # Of a source that came out as several graphs, the part that this one was made from.
    return source if manifest is None or source.module is None else split(source, manifest.task)[manifest.graph]


def _as_folded(place: Path, options: LoadOptions, manifest: Manifest) -> LoadOptions:
    options = replace(
        options,
        inputs=options.inputs or manifest.inputs,
        ema=options.ema or manifest.ema,
        allow_unfinished=options.allow_unfinished or manifest.allow_unfinished,
    )
    if manifest.arch is None or options.arch is not None or options.model is not None or options.trust:
        return options
    if ":" in manifest.arch:
        # An untrusted model must not choose the code that runs here.
        raise CannotJudgeError(
            f"{place} was built by {manifest.arch}, as the manifest says. That is code of yours, which a "
            f"manifest does not start: say so with --model {manifest.arch}"
            + (f" --model-args '{json.dumps(manifest.arch_args)}'" if manifest.arch_args else "")
        )
    return replace(options, arch=manifest.arch, model_args=options.model_args or manifest.arch_args)


def common_inputs(source: Source, model: Source, *, half: bool = False) -> tuple[InputSpec, ...]:
    """What the source takes, axes fixed where the model takes one size. Raises InputSpecError on contradictions.

    half: the model was converted to float16, and takes that where the source takes float32.
    """
    ours, theirs = ({spec.name: spec for spec in side.inputs} for side in (model, source))
    if half:
        converted = {name: wide.dtype for name, wide in theirs.items() if half_specs([wide])[0].dtype == HALF}
        ours = {
            name: replace(spec, dtype=converted[name]) if name in converted and spec.dtype == HALF else spec
            for name, spec in ours.items()
        }
    fixed: dict[str, int] = {}
    fits = ours.keys() == theirs.keys()
    for name, spec in theirs.items() if fits else ():
        dims = ours[name].dims
        fits &= spec.dtype == ours[name].dtype and len(dims) == len(spec.dims)
        for dim, own in zip(spec.dims, dims, strict=False):
            if isinstance(own, int):
                size = dim if isinstance(dim, int) else fixed.setdefault(dim, own)
                fits &= size == own <= spec.limits.get(str(dim), own)
    if not fits:
        raise InputSpecError(
            f"the inputs differ, so nothing can be compared: {model.path} takes {', '.join(map(str, ours.values()))}, "
            f"and {source.path} takes {', '.join(map(str, theirs.values()))}"
        )
    return tuple(_fixed(spec, ours[name].high, fixed) for name, spec in theirs.items())


def _fixed(spec: InputSpec, high: int | None, fixed: Mapping[str, int]) -> InputSpec:
    return replace(
        spec,
        dims=tuple(fixed.get(str(dim), with_letters(dim, fixed)) for dim in spec.dims),
        sizes={letter: size for letter, size in spec.sizes.items() if letter not in fixed},
        limits={letter: size for letter, size in spec.limits.items() if letter not in fixed},
        high=min((bound for bound in (spec.high, high) if bound is not None), default=None),
    )
