"""Where a model came from: the manifest in its metadata, the source that it names, and what both take as inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from normfold.checkpoint.archive import format_of, sha256_of
from normfold.checkpoint.load import Source, load_checkpoint
from normfold.errors import CannotJudgeError, CheckpointError, GraphError, InputSpecError, NormfoldError
from normfold.export.parts import split
from normfold.export.tasks import GRAPHS, Task
from normfold.graph.float16 import HALF, half_specs
from normfold.inputs.spec import InputSpec, parse_specs
from normfold.system.plain import irregular, parse_json
from normfold.system.text import one_line
from normfold.verify.fingerprint import Sketch

if TYPE_CHECKING:
    import onnx_ir as ir

MANIFEST_KEY = "normfold"


@dataclass(frozen=True, slots=True)
class Load:
    """How to load a source: the options of `load_checkpoint`."""

    arch: str | None = None
    model: str | None = None
    model_args: Mapping[str, Any] | None = None
    inputs: tuple[str, ...] = ()
    ema: bool = False
    trust: bool = False
    allow_unfinished: bool = False

    def __call__(self, path: Path) -> Source:
        """The source at `path`."""
        return load_checkpoint(
            path,
            arch=self.arch,
            model=self.model,
            model_args=self.model_args,
            inputs=self.inputs,
            ema=self.ema,
            trust=self.trust,
            allow_unfinished=self.allow_unfinished,
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `fold` wrote into the model (docs/report.md).

    path: the source relative to the model's folder, None where it has no relative path. arch, arch_args, inputs, ema,
    allow_unfinished: how the source was loaded. task, graph: what was exported of it (tasks.py). dtype: what that was
    converted to, None where it kept its types. center: whether its LayerNorms were to become RMSNorms. sites: the norms
    that were folded, in part or whole. sketch: the recorded outputs, None where the fold was not verified.
    """

    version: str
    name: str
    path: str | None
    sha256: str
    arch: str | None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    ema: bool = False
    allow_unfinished: bool = False
    task: Task = "forward"
    graph: str = ""
    dtype: str | None = None
    center: bool = False
    sites: tuple[str, ...] = ()
    sketch: Sketch | None = None

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        """What the model takes; `inputs` is what its source takes."""
        specs = parse_specs(self.inputs)
        return half_specs(specs) if self.dtype == HALF else specs


def read_manifest(model: ir.Model, path: Path) -> Manifest | None:
    """The manifest of the model at `path`, None if it has none. Raises GraphError for one that cannot be read."""
    text = model.metadata_props.get(MANIFEST_KEY)
    if text is None:
        return None
    try:
        content = parse_json(text)
        source, load = content["source"], content.get("load", {})
        task, graph = content.get("task", "forward"), content.get("graph") or ""
        if graph not in GRAPHS[task]:
            raise ValueError(f"task {task} has no graph {graph!r}")
        return Manifest(
            version=_text(content["version"]),
            name=_text(source["name"]),
            path=None if source.get("path") is None else _text(source["path"]),
            sha256=_text(source["sha256"]),
            arch=None if content["arch"] is None else _text(content["arch"]),
            arch_args=dict(content["arch_args"]),
            inputs=tuple(map(_text, content["inputs"])),
            ema=bool(load.get("ema", False)),
            allow_unfinished=bool(load.get("allow_unfinished", False)),
            task=task,
            graph=graph,
            dtype=None if content.get("dtype") is None else _text(content["dtype"]),
            center=bool(content.get("center", False)),
            sites=tuple(_text(site["name"]) for site in content["sites"] if site["status"] != "kept"),
            sketch=Sketch.from_json(content["outputs"]) if content.get("outputs") else None,
        )
    # Whatever its parts are taken for and are not.
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, NormfoldError) as error:
        raise GraphError(
            f"{path}: its manifest (`{MANIFEST_KEY}` in the metadata) is not one that normfold writes "
            f"({one_line(error)}); name the source with --against"
        ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a string belongs")
    return value


def find_source(model: Path, manifest: Manifest) -> Path | None:
    """The source that the manifest names, in the model's own folder or below it; None if it is not there.

    A manifest from a stranger reads no other file of this disk: a path that climbs out of the folder, by itself or
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


def load_source(place: Path, load: Load, manifest: Manifest | None, inputs: Sequence[InputSpec]) -> Source:
    """The source at `place`, loaded as `load` says and, where that says nothing, as the manifest of this file does.

    inputs: what the model takes, for a source that does not say what it takes itself. Raises what `load_checkpoint`
    does, and CannotJudgeError for a manifest that names code to run.
    """
    kind = format_of(place)
    if manifest is not None and sha256_of(place) == manifest.sha256:
        load = _as_folded(place, load, manifest)
    try:
        source = load(place)
    except InputSpecError:
        if load.inputs or kind in ("onnx", "pt2"):
            raise
        source = replace(load, inputs=tuple(str(spec) for spec in inputs))(place)
    # Of a source that came out as several graphs, the part that this one was made from.
    return source if manifest is None or source.module is None else split(source, manifest.task)[manifest.graph]


def _as_folded(place: Path, load: Load, manifest: Manifest) -> Load:
    load = replace(
        load,
        inputs=load.inputs or manifest.inputs,
        ema=load.ema or manifest.ema,
        allow_unfinished=load.allow_unfinished or manifest.allow_unfinished,
    )
    if manifest.arch is None or load.arch is not None or load.model is not None or load.trust:
        return load
    if ":" in manifest.arch:
        # A model from a stranger must not choose the code that runs here.
        raise CannotJudgeError(
            f"{place} was built by {manifest.arch}, as the manifest says. That is code of yours, which a "
            f"manifest does not start: say so with --model {manifest.arch}"
            + (f" --model-args '{json.dumps(manifest.arch_args)}'" if manifest.arch_args else "")
        )
    return replace(load, arch=manifest.arch, model_args=load.model_args or manifest.arch_args)


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
        dims=tuple(fixed.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.dims),
        sizes={letter: size for letter, size in spec.sizes.items() if letter not in fixed},
        limits={letter: size for letter, size in spec.limits.items() if letter not in fixed},
        high=min((bound for bound in (spec.high, high) if bound is not None), default=None),
    )
