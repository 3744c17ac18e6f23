"""The whole benchmark: variants made, timed in turns at every batch size, examined. Nothing is printed here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from normfold.bench import decode, machine
from normfold.bench.harness import (
    LAUNCHES,
    QUICK_LAUNCHES,
    QUICK_ROUNDS,
    ROUNDS,
    Recording,
    examine,
    prepare,
    record,
)
from normfold.bench.job import Failure, Job
from normfold.bench.result import Bench, Row
from normfold.bench.runners import RUNNERS
from normfold.bench.runners.base import Runner
from normfold.bench.variants import AS_IT_IS, Variants, collect
from normfold.checkpoint.options import LoadOptions
from normfold.errors import InputSpecError, UsageError
from normfold.export.tasks import Task
from normfold.inputs.cases import read_cases
from normfold.inputs.spec import InputSpec, common_axes, traced_sizes
from normfold.system.clock import Progress
from normfold.system.files import scratch
from normfold.system.numbers import HALF

SINGLE, INT8 = "float32", "int8"


def bench(
    model: Path,
    *,
    device: str = "cpu",
    batches: Sequence[int] = (1, 8, 32),
    dtype: str = "float32",
    runtime: str = "ort",
    modes: Sequence[str] = (),
    against: Path | None = None,
    baseline: Path | None = None,
    load: LoadOptions = AS_IT_IS,
    task: Task = "forward",
    rounds: int | None = None,
    launches: int | None = None,
    quick: bool = False,
    threads: int | None = None,
    data: Sequence[Path] = (),
    progress: Progress = lambda _: None,
) -> Bench:
    """Measure the LayerNorm baseline, the unfolded and the folded model against each other.

    model, against, baseline, load: see `variants.collect`. batches: sizes of the batch axis; other dynamic axes keep
    the size that the specification gives. modes: of the runtime, see `Runner`; default: all on cuda, the first on cpu.
    A decoder with a cache has `decode.MODES` instead. task: what of a checkpoint to measure (export/tasks.py). rounds,
    launches: see `harness.record`. quick: few of them where they are not given, and marked as such. threads: of the
    CPU; default: every processor there is. data: npz files of real inputs, on which int8 and float16 are calibrated;
    otherwise on drawn ones.
    Interrupted (KeyboardInterrupt) while it measures, it returns what there is, marked. Raises a NormfoldError before
    anything is measured; a variant that fails is marked in its row and the others go on.
    """
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    launches = launches or (QUICK_LAUNCHES if quick else LAUNCHES)
    runner = RUNNERS[runtime]
    _check(batches, modes, runner, device)
    machine.check_device(device, runner)
    _check_dtype(dtype, data, runner, device)
    threads = threads or machine.processors()
    with scratch() as folder:
        variants = collect(
            model,
            folder,
            against=against,
            baseline=baseline,
            load=load,
            task=task,
            runtime=runtime,
            half=dtype == HALF,
            data=data,
            progress=progress,
        )
        _check_inputs(dtype, data, variants.inputs)
        decoder = decode.is_decoder(spec.name for spec in variants.inputs)
        modes = _modes(modes, runner, device, dtype, decoder=decoder)
        axes = decode.sizes if decoder else axis_sizes
        sizes = [axes(variants.inputs, batch) for batch in batches]
        result = Bench(
            str(model),
            runtime,
            device,
            dtype,
            rounds,
            launches,
            machine.describe(device, threads),
            {variant.name: variant.origin for variant in variants.found},
            variants.missing,
            quick=quick,
        )
        rows = [Row(batch, mode, size) for batch, size in zip(batches, sizes, strict=True) for mode in modes]
        made = _Prepared(runner, folder, progress)
        try:
            for row in rows:
                result.rows.append(row)
                _measure(row, _jobs(row, variants, result, threads, data), made, result, progress, folder)
        except KeyboardInterrupt:
            result.interrupted = True
    return result


def _check(batches: Sequence[int], modes: Sequence[str], runner: Runner, device: str) -> None:
    if not batches or min(batches) < 1:
        raise UsageError("--batch takes sizes of at least 1, for example --batch 1,8,32")
    if device not in runner.modes:
        raise UsageError(f"--device {device}: {runner.name} runs on {', '.join(runner.modes)}")
    for mode in modes:
        if mode not in (*runner.modes[device], *decode.MODES):
            raise UsageError(f"--mode {mode}: {runner.name} on {device} has {', '.join(runner.modes[device])}")


def _check_dtype(dtype: str, data: Sequence[Path], runner: Runner, device: str) -> None:
    why = runner.lacks(device, dtype=dtype)
    if dtype not in runner.dtypes:
        reason = f"; {why}" if why else ""
        raise UsageError(f"--dtype {dtype}: {runner.name} takes {', '.join(runner.dtypes)}{reason}")
    if why:
        raise UsageError(f"--dtype {dtype}: {why}")
    if data and dtype == SINGLE:
        raise UsageError("--data is what int8 and float16 are calibrated on: it goes with --dtype")


def _check_inputs(dtype: str, data: Sequence[Path], inputs: Sequence[InputSpec]) -> None:
    """Now, and not in every process. What does not fit float16 was said when it was folded."""
    if dtype == INT8:
        if any(spec.dtype == HALF for spec in inputs):
            raise UsageError("--dtype int8: the model is in float16; quantise what it was folded from")
        if data:
            read_cases(data, inputs, count=1)


def _modes(asked: Sequence[str], runner: Runner, device: str, dtype: str, *, decoder: bool) -> Sequence[str]:
    """What to measure: a decoder's prompt and tokens, otherwise the modes of the runtime."""
    every = decode.MODES if decoder else runner.modes[device]
    lacking = {mode: why for mode in every if (why := runner.lacks(device, mode, dtype))}
    every = tuple(mode for mode in every if mode not in lacking)
    for mode in asked:
        if mode in lacking:
            raise UsageError(f"--mode {mode}: {lacking[mode]}")
        if mode not in every:
            raise UsageError(f"--mode {mode}: this model has {', '.join(every)}")
    return asked or (every if decoder or device == "cuda" else every[:1])


def axis_sizes(inputs: Sequence[InputSpec], batch: int) -> dict[str, int]:
    """The sizes of all dynamic axes at this batch size: the first axis of the first input is the batch.

    Raises InputSpecError where that axis is fixed at another size, or goes no further.
    """
    first = inputs[0].dims[0] if inputs and inputs[0].dims else None
    if not isinstance(first, str):
        if first not in (None, batch):
            raise InputSpecError(
                f"--batch {batch}: the model takes {inputs[0]}, whose batch is fixed; use --batch {first}"
            )
        return traced_sizes(inputs)
    axis = common_axes(inputs)[first]
    if not axis.allows(batch):
        limit = f"a batch of {axis.high} at most" if axis.high is not None and batch > axis.high else "no such batch"
        raise InputSpecError(f"--batch {batch}: the model takes {inputs[0]}, {limit}")
    return traced_sizes(inputs) | {first: batch}


def _jobs(row: Row, variants: Variants, result: Bench, threads: int, data: Sequence[Path]) -> dict[str, Job]:
    return {
        variant.name: Job(
            model=str(variant.file),
            inputs=tuple(str(spec) for spec in variants.inputs),
            sizes=row.sizes,
            runtime=result.runtime,
            device=result.device,
            mode=row.mode,
            dtype=result.dtype,
            data=tuple(map(str, data)),
            threads=threads,
            import_from=(os.getcwd(), *filter(None, sys.path)),
        )
        for variant in variants.found
    }


class _Prepared:
    """The files that a runtime takes instead of the variants, each made once; the same files where it takes those."""

    def __init__(self, runner: Runner, folder: Path, progress: Progress) -> None:
        self.runner, self.folder, self.progress = runner, folder, progress
        self.made: dict[tuple[str, ...], Job | Failure] = {}

    def of(self, variant: str, job: Job) -> Job | Failure:
        """The job with its file, or why there is none."""
        if job.dtype not in self.runner.prepare:
            return job
        sizes = tuple(map(str, job.sizes.values())) if self.runner.fixed_sizes else ()
        key = (variant, job.mode, *sizes)
        if key not in self.made:
            self.progress(f"making {variant} ready for {self.runner.name} in {job.dtype}")
            place = str(self.folder / f"{'_'.join(key)}.prepared")
            self.made[key] = prepare(replace(job, scratch=place)) or replace(job, model=place)
        found = self.made[key]
        return found if isinstance(found, Failure) else replace(job, model=found.model)


def _measure(row: Row, jobs: dict[str, Job], made: _Prepared, result: Bench, progress: Progress, folder: Path) -> None:
    where = f"batch {row.batch}, {row.mode}"
    found = {name: made.of(name, job) for name, job in jobs.items()}
    row.recordings.update({name: Recording(failure=why) for name, why in found.items() if isinstance(why, Failure)})
    jobs = {name: job for name, job in found.items() if isinstance(job, Job)}
    record(
        jobs,
        row.recordings,
        rounds=result.rounds,
        launches=result.launches,
        tick=lambda text: progress(f"{where}: {text}"),
    )
    for name, job in jobs.items():
        if row.recordings[name].failure is None:
            progress(f"{where}: memory and operators of {name}")
            row.probes[name] = examine(replace(job, scratch=str(folder / f"optimised_{name}.onnx")))
