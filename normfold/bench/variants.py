"""The models that are compared: the LayerNorm baseline, the model as trained, and the folded one, each as a file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from normfold.bench.baseline import layer_norm_twin
from normfold.bench.runners import RUNNERS
from normfold.checkpoint.formats import format_of
from normfold.checkpoint.load import load as load_with
from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.options import LoadOptions
from normfold.checkpoint.source import Source
from normfold.errors import CannotJudgeError, NormfoldError, UsageError
from normfold.export.opset import newest_opset, opset_for
from normfold.export.parts import split
from normfold.export.targets import LOWEST_OPSET
from normfold.export.tasks import GRAPHS, Task
from normfold.export.to_onnx import export
from normfold.graph.float16 import to_half
from normfold.graph.operators import opset
from normfold.graph.write import save
from normfold.inputs.float16 import half_specs, single_specs
from normfold.inputs.spec import InputSpec
from normfold.models import catalogue
from normfold.norms.detect import find_norms, token_twin
from normfold.norms.kinds import KINDS
from normfold.pipeline.fold_graph import fold_graph
from normfold.pipeline.options import FoldOptions
from normfold.report.render import counted
from normfold.system.clock import Clock, Progress
from normfold.system.numbers import HALF
from normfold.verify.manifest import read_manifest
from normfold.verify.source import find_source, load_source

LAYERNORM, UNFOLDED, FOLDED = "layernorm", "unfolded", "folded"

AS_IT_IS = LoadOptions()


@dataclass(frozen=True, slots=True)
class Variant:
    """One model to measure. file: ONNX, or a pickled module. origin: where it came from, in words."""

    name: str
    file: Path
    origin: str


@dataclass(frozen=True, slots=True)
class Variants:
    """What there is to compare. inputs: the same for all. missing: why a variant is not there, by its name."""

    found: tuple[Variant, ...]
    inputs: tuple[InputSpec, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Found:
    """source, graph: unfolded, where they are known. opset: of what is exported. folded: the file, where one was given.
    half: it was converted to float16 when it was folded.
    """

    source: Source | None
    graph: ir.Model | None
    opset: int
    folded: Path | None
    half: bool = False


def collect(
    model: Path,
    folder: Path,
    *,
    against: Path | None = None,
    baseline: Path | None = None,
    load: LoadOptions = AS_IT_IS,
    task: Task = "forward",
    runtime: str = "ort",
    half: bool = False,
    data: Sequence[Path] = (),
    progress: Progress = lambda _: None,
) -> Variants:
    """Find or make the three variants of `model` and write them to `folder`.

    model: a folded ONNX file (its source is what the manifest names, or `against`), an unfolded one, or a checkpoint.
    baseline: the LayerNorm model, otherwise the twin of a known architecture, otherwise made from the unfolded graph.
    task: what of a checkpoint is measured; it has to write one graph. half: float16 weights and inputs. data: npz files
    of real inputs that show what float16 has to hold. Graphs that are exported here have the opset of the folded one
    that is given, otherwise one that suits the runtime. Raises a NormfoldError where there is nothing to compare.
    """
    if GRAPHS[task] != ("",):
        raise UsageError(f"--task {task}: bench measures one graph; give it one of the files that fold wrote")
    progress(f"reading {model.name}")
    runner = RUNNERS[runtime]
    found, inputs = _find(model, against, load, task, runner.target, progress)
    half = half or found.half
    if runner.runs_modules:
        if found.source is None or found.source.module is None:
            raise UsageError(
                f"{model}: {runner.name} runs a checkpoint; give that instead of the ONNX file, or name it with "
                "--against"
            )
        if baseline is not None:
            raise UsageError(f"--baseline names an ONNX graph, which {runner.name} does not run")
        return _modules(found.source, folder, half=half)
    made: list[Variant] = []
    missing: dict[str, str] = {}
    progress("making the LayerNorm baseline")
    try:
        made.append(_baseline(found, baseline, folder))
    except NormfoldError as error:
        if baseline is not None:
            raise
        missing[LAYERNORM] = str(error)
    if found.graph is not None and found.source is not None:
        made.append(
            Variant(UNFOLDED, _write(found.graph, folder / "unfolded.onnx"), f"exported from {found.source.path.name}")
        )
    else:
        missing[UNFOLDED] = f"{model} names no source that is here; name it with --against"
    made.append(_folded(found, folder, progress, half=half, data=data))
    if half:
        made = [replace(variant, file=_to_half(variant.file, folder)) for variant in made]
        inputs = half_specs(inputs)
    if len(made) < 2:
        raise CannotJudgeError(f"there is nothing to compare {model} with: {'; '.join(missing.values())}")
    return Variants(tuple(made), inputs, missing)


def _find(
    model: Path, against: Path | None, load: LoadOptions, task: Task, target: str, progress: Progress
) -> tuple[_Found, tuple[InputSpec, ...]]:
    """The source, its graph, and the folded file where `model` is one."""
    own = load_checkpoint(model, inputs=load.inputs) if format_of(model).is_graph else None
    manifest = None if own is None or own.graph is None else read_manifest(own.graph, model)
    if own is None or (manifest is None and against is None):
        if against is not None:
            raise UsageError(f"--against names the source of a folded .onnx file, and {model} is a checkpoint itself")
        source = split(load_with(model, load), task)[""]
        progress("exporting to ONNX")
        number, _ = opset_for(target, None)
        return _Found(source, export(source, opset=number, exactly=False), number, None), source.inputs
    assert own.graph is not None, "a folded file is a graph"
    place, number = against, min(max(opset(own.graph), LOWEST_OPSET), newest_opset())
    if place is None and manifest is not None:
        place = find_source(model, manifest)
    if place is None:
        return _Found(None, None, number, model), own.inputs
    progress(f"reading {place.name}")
    half = manifest is not None and manifest.dtype == HALF
    source = load_source(place, load, manifest, single_specs(own.inputs) if half else own.inputs)
    return _Found(source, export(source, opset=number, exactly=False), number, model, half), source.inputs


def _baseline(found: _Found, given: Path | None, folder: Path) -> Variant:
    if given is not None:
        return Variant(LAYERNORM, given, f"given: {given.name}")
    if found.source is None or found.graph is None:
        raise CannotJudgeError("without the source no LayerNorm baseline can be made; give one with --baseline")
    place = folder / "layernorm.onnx"
    twin = twin_module(found.source)
    if twin is not None:
        name, module = twin
        source = replace(found.source, module=module, graph=None, program=None, norms=find_norms(module))
        return Variant(
            LAYERNORM,
            _write(export(source, opset=found.opset, exactly=False), place),
            f"the architecture {name}, random weights",
        )
    made = layer_norm_twin(found.graph, kind=token_twin(found.source.module))
    return Variant(
        LAYERNORM, _write(made, place), "made of the unfolded graph: one norm per token where each norm stood"
    )


def twin_module(source: Source) -> tuple[str, nn.Module] | None:
    """The same built-in architecture with its norm per token: its name and a module with random weights."""
    found = next((size for name, size, _ in catalogue.entries() if name == source.arch), None)
    if found is None or source.arch is None:
        return None
    kind = next((kind.short for kind in KINDS if kind.per_token and kind.short in found.names), None)
    if kind is None:
        return None
    from normfold.models import create

    args = {key: value for key, value in source.arch_args.items() if key not in ("norm", "norm_args")}
    if found.names[kind] == source.arch:
        args["norm"] = kind
    torch.manual_seed(0)
    return found.names[kind], create(found.names[kind], **args).eval()


def _folded(found: _Found, folder: Path, progress: Progress, *, half: bool, data: Sequence[Path]) -> Variant:
    if found.folded is not None:
        return Variant(FOLDED, found.folded, f"given: {found.folded.name}")
    assert found.graph is not None and found.source is not None, "what was not folded is a source"
    progress("folding")
    options = FoldOptions(dtype=HALF if half else None, calibrate=tuple(data) if half else ())
    done = fold_graph(found.graph, found.source, options, Clock(lambda _: None))
    norms = [site for site in done.plan.sites if site.counts]
    if done.plan.is_empty:
        stored = [site for site in norms if not site.per_token]
        reason = "; ".join(site.reason for site in stored if site.reason) or "it has no norm with stored statistics"
        raise CannotJudgeError(f"nothing of {found.source.path} folds, so there is nothing to measure: {reason}")
    place = _write(done.model, folder / "folded.onnx")
    return Variant(FOLDED, place, f"folded here, {counted(norms, 'norm')}")


def _modules(source: Source, folder: Path, *, half: bool) -> Variants:
    """The variants as torch modules, pickled for the workers to read back."""
    assert source.module is not None
    twin, missing = twin_module(source), {}
    folded = fold_graph(export(source), source, FoldOptions(), Clock(lambda _: None)).module()
    made = [(UNFOLDED, source.module, f"the module of {source.path.name}"), (FOLDED, folded, "the same, folded here")]
    if twin is not None:
        made.insert(0, (LAYERNORM, twin[1], f"the architecture {twin[0]}, random weights"))
    else:
        missing[LAYERNORM] = f"{source.arch} is no built-in architecture with a LayerNorm twin"
    found = []
    for name, module, origin in made:
        place = folder / f"{name}.pickle"
        with place.open("wb") as file:
            pickle.dump(module.half() if half else module, file)
        found.append(Variant(name, place, origin))
    inputs = half_specs(source.inputs) if half else source.inputs
    return Variants(tuple(found), inputs, missing)


def _write(model: ir.Model, place: Path) -> Path:
    save(model, place)
    return place


def _to_half(file: Path, folder: Path) -> Path:
    """The graph in float16, inputs and outputs too; one that is float16 already stays as it is."""
    return _write(to_half(ir.load(file)), folder / f"half_{file.name}")
