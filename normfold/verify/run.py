"""`normfold verify`: a model, what it is to compute, and the verdict. Nothing is printed here.

The judge knows nothing of folding: it loads the source, exports it anew where it is no graph yet, and holds the model
against it (judge.py). With no source at hand it holds the model against the outputs recorded in it (fingerprint.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from normfold._version import __version__
from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.options import LoadOptions
from normfold.checkpoint.source import Source
from normfold.errors import CannotJudgeError, UsageError
from normfold.graph.float64 import check_bounded, parameter_count
from normfold.graph.operators import opset
from normfold.graph.write import save
from normfold.inputs.cases import SCALES, Case, draw_cases, read_cases
from normfold.inputs.float16 import half_specs, single_specs
from normfold.inputs.spec import InputSpec, axis_sizes
from normfold.system.clock import Clock
from normfold.system.files import scratch
from normfold.system.numbers import HALF
from normfold.verify.judge import FEW, FOLD_EDGE, OPTIMISED, PLAIN, Edge, Tolerance
from normfold.verify.localise import localise
from normfold.verify.manifest import Manifest, read_manifest
from normfold.verify.measure import moved_runs
from normfold.verify.runtime import UNOPTIMISED, Runtime, check_model, levels, open_session, version
from normfold.verify.sizes import fitting
from normfold.verify.source import common_inputs, find_source, load_source
from normfold.verify.truth import establish
from normfold.verify.verdict import Verdict
from normfold.verify.yardstick import Yardstick
from normfold.verify.yardstick_float16 import lay

SAMPLES = 32
_MOST_SAMPLES = 100_000

CONVERTED = "The model is float16 and its source is not: it is held to the error of the source converted to float16."

# What is being done, how many steps of it are done, and how many there are (0: not known).
StepProgress = Callable[[str, int, int], None]


def judge(
    model: Path,
    *,
    against: Path | None = None,
    load: LoadOptions | None = None,
    inputs: Sequence[Path] = (),
    samples: int = SAMPLES,
    seed: int = 0,
    providers: Sequence[str] = ("cpu",),
    tolerance: Tolerance | None = None,
    progress: StepProgress | None = None,
    began: float | None = None,
) -> Verdict:
    """Judge whether the ONNX file `model` computes what its source computes.

    against: a checkpoint, an exported program or an ONNX file; by default the source that the manifest in `model`
    names. load: how to load it. inputs: npz files of real inputs, judged first. samples: how many in all. seed: of the
    inputs that are drawn. providers: of onnxruntime, each with every optimisation level. tolerance: a bound of the
    user's own, on top. progress: told what is being done. began: see `Clock`.
    Raises a NormfoldError with exit code 2 when there can be no verdict; a verdict that fails is returned.
    """
    if samples < 1:
        raise UsageError(f"--samples {samples}: a verdict needs at least one sample")
    if samples > _MOST_SAMPLES:
        raise UsageError(f"--samples {samples}: {_MOST_SAMPLES:,} can be judged at once")
    if seed < 0:
        raise UsageError(f"--seed {seed}: a seed is 0 or more")
    check_model(model)
    stages = _Stages(progress or (lambda *_: None), began)
    with stages.stage("load", f"reading {model.name}"):
        candidate = load_checkpoint(model)
        # Said now, and not after minutes of work on the source.
        outputs = {output.name: str(output.type) for output in open_session(model, PLAIN).get_outputs()}
        manifest = None if candidate.graph is None else read_manifest(candidate.graph, model)
        place = against if against is not None else _named_source(model, manifest)
    ways = [Runtime(provider, level) for provider in providers for level in levels()]
    ways += [Runtime(provider) for provider in providers if provider != PLAIN.provider]
    asked = _Asked(tuple(inputs), samples, seed, tolerance, tuple(ways))
    if place is None:
        assert manifest is not None, "without a manifest there is no verdict"
        return _against_record(model, candidate, manifest, asked, stages)
    return _against_source(model, candidate, outputs, manifest, place, load or LoadOptions(), asked, stages)


@dataclass(frozen=True, slots=True)
class _Asked:
    """How to judge."""

    inputs: tuple[Path, ...]
    samples: int
    seed: int
    tolerance: Tolerance | None
    runtimes: tuple[Runtime, ...]


class _Stages:
    """Tells `progress` what is being done and how far it is, and keeps how long it took."""

    def __init__(self, progress: StepProgress, began: float | None) -> None:
        self.progress = progress
        self.clock = Clock(lambda sentence: progress(sentence, 0, self.total), began=began)
        self.sentence, self.done, self.total = "", 0, 0

    @contextmanager
    def stage(self, name: str, sentence: str, total: int = 0) -> Iterator[None]:
        """Time what runs inside; total: how many ticks to expect of it, 0 if that is not known."""
        self.sentence, self.done, self.total = sentence, 0, total
        with self.clock.stage(name, sentence):
            yield

    def tick(self) -> None:
        self.done += 1
        # What only a failure makes necessary was not foreseen.
        self.total = max(self.done, self.total)
        self.progress(self.sentence, self.done, self.total)


def _named_source(model: Path, manifest: Manifest | None) -> Path | None:
    """The source that the manifest names, None where only the recorded outputs are there. Raises CannotJudgeError."""
    if manifest is None:
        raise UsageError(
            f"{model} has no manifest that names its source (normfold did not fold it): say what to compare it with, "
            "--against SOURCE"
        )
    place = find_source(model, manifest)
    if place is None and manifest.sketch is None:
        raise CannotJudgeError(
            f"{model} was made from {manifest.path or manifest.name}, which is not in its folder, and holds no "
            "recorded outputs (it was folded with --no-verify): say where the source is, --against SOURCE"
        )
    return place


def _against_record(model: Path, candidate: Source, manifest: Manifest, asked: _Asked, stages: _Stages) -> Verdict:
    if asked.inputs or asked.tolerance is not None:
        raise UsageError(
            f"--data, --rtol and --atol need the source of {model} ({manifest.path or manifest.name}), which is not "
            "in its folder: say where it is, --against SOURCE"
        )
    sketch = manifest.sketch
    assert sketch is not None
    with stages.stage("verify", "comparing with the recorded outputs", (1 + len(asked.runtimes)) * len(sketch.cases)):
        edges = [sketch.compare(model, manifest.specs, PLAIN, stages.tick)]
        if edges[0].passed:
            edges += [sketch.compare(model, manifest.specs, way, stages.tick) for way in asked.runtimes]
    note = (
        f"The source, {manifest.path or manifest.name}, is not in the model's folder: the model was held against the "
        "outputs recorded in it alone. Name the source to judge more: --against SOURCE."
    )
    return Verdict(
        normfold=__version__,
        onnxruntime=version(),
        model=str(model),
        sha256=candidate.sha256,
        source=None,
        method="recorded outputs",
        cases=tuple(str(case) for case in sketch.draw(manifest.specs)),
        edges=tuple(edges),
        notes=(note,),
        seconds=dict(stages.clock.seconds),
    )


def _against_source(
    model: Path,
    candidate: Source,
    outputs: Mapping[str, str],
    manifest: Manifest | None,
    place: Path,
    load: LoadOptions,
    asked: _Asked,
    stages: _Stages,
) -> Verdict:
    with stages.stage("load", f"reading {place.name}"):
        # A source that does not say what it takes is a checkpoint, and runs in float32.
        source = load_source(place, load, manifest, single_specs(candidate.inputs))
        half = _is_converted(source, outputs, manifest)
        specs = common_inputs(source, candidate, half=half)
        parameters = 0 if candidate.graph is None else parameter_count(candidate.graph)
        if source.module is None:
            specs = fitting(specs, place, parameters=parameters)
        cases = _cases(specs, asked, half=half, parameters=parameters)
        if candidate.graph is not None:
            check_bounded(candidate.graph, model, cases)
    with scratch() as folder:
        original = place if source.module is None else _exported(source, candidate, manifest, folder, stages)
        with stages.stage("truth", "running the source in float64", len(cases) * (1 if source.module is None else 3)):
            truth = establish(source.module, original, specs, cases=cases, thorough=True, tick=stages.tick)
        runs = 2 * len(cases) + sum(moved_runs(truth)) + sum(_runs(cases, way) for way in asked.runtimes)
        with stages.stage("verify", "comparing", runs):
            converted = folder / "original.float16.onnx" if half else None
            powers = None if manifest is None else manifest.powers
            yardstick, edges = lay(
                truth, original, specs, half=converted, powers=powers, tolerance=asked.tolerance, tick=stages.tick
            )
            yardstick = _renamed(list(outputs), yardstick, manifest, from_module=source.module is not None)
            if all(edge.passed for edge in edges):
                edges += tuple(yardstick.compare(model, asked.runtimes))
        fault = None
        # A bound of the user's own says nothing of where a fault lies: without one there may be none.
        wrong = next((edge for edge in edges if edge.name == FOLD_EDGE and edge.outputs and _is_wrong(edge)), None)
        if wrong is not None:
            options = ["--dtype", HALF] if half else []
            options += ["--center"] if manifest is not None and manifest.center else []
            with stages.stage("localise", "looking for the fault"):
                sites = () if manifest is None else manifest.folded
                fault = localise(yardstick, model, wrong, sites, folder, original, options)
    return Verdict(
        normfold=__version__,
        onnxruntime=version(),
        model=str(model),
        sha256=candidate.sha256,
        source=str(place),
        method=truth.method,
        cases=tuple(str(case) for case in cases),
        edges=edges,
        fault=fault,
        unexercised=truth.unexercised,
        notes=(*source.warnings, *([CONVERTED] if half else [])),
        seconds=dict(stages.clock.seconds),
    )


def _exported(source: Source, candidate: Source, manifest: Manifest | None, folder: Path, stages: _Stages) -> Path:
    """The graph of a source that is a module, in `folder`."""
    with stages.stage("export", "exporting the source"):
        # Here, because two graphs are compared without an exporter.
        from normfold.export.to_onnx import export

        # Powers of two name tensors, and another opset has others.
        named = candidate.graph if manifest is not None and manifest.powers is not None else None
        graph = export(source, opset=None if named is None else opset(named), exactly=False)
        return save(graph, folder / "original.onnx")[0]


def _is_converted(source: Source, outputs: Mapping[str, str], manifest: Manifest | None) -> bool:
    """Whether the model was made float16 out of a float32 source: its manifest says so, or its outputs do."""
    if manifest is not None:
        return manifest.dtype == HALF
    theirs = [] if source.graph is None else [str(value.type) for value in source.graph.graph.outputs]
    return "tensor(float16)" in outputs.values() and not any("FLOAT16" in kind for kind in theirs)


def _is_wrong(edge: Edge) -> bool:
    return not all(replace(output, atol=None).passed for output in edge.outputs)


def _runs(cases: Sequence[Case], runtime: Runtime) -> int:
    return len(cases) if runtime.level in (UNOPTIMISED, OPTIMISED.level) else min(FEW, len(cases))


def _renamed(names: Sequence[str], yardstick: Yardstick, manifest: Manifest | None, *, from_module: bool) -> Yardstick:
    """The outputs of an exported module have names that its exporter made up: another tool's are taken in their order.

    Everything else is matched by name, and a name that is not there is a failure.
    """
    unknown = not set(names) & set(yardstick.outputs)
    if from_module and manifest is None and unknown and len(names) == len(yardstick.outputs):
        return replace(yardstick, renamed=tuple(names))
    return yardstick


def _cases(specs: Sequence[InputSpec], asked: _Asked, *, half: bool, parameters: int) -> tuple[Case, ...]:
    """Real inputs first, then drawn ones up to the number asked for, at every size of a dynamic axis in any case.

    half: of numbers that float16 has.
    """
    real = read_cases(asked.inputs, specs, count=asked.samples)
    sizes = min(asked.samples, len(axis_sizes(specs, parameters=parameters)) + len(SCALES))
    count = max(asked.samples - len(real), sizes)
    drawn = draw_cases(specs, seed=asked.seed, count=count, parameters=parameters)
    cases = (*real, *drawn)
    return tuple(case.typed(half_specs(specs)).typed(specs) for case in cases) if half else cases
