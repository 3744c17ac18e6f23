"""The share of a LayerNorm network's time that its norms take, by the profile of the runtime itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from normfold.bench import variants
from normfold.bench.harness import prepare
from normfold.bench.job import Job
from normfold.bench.run import axis_sizes
from normfold.bench.runners import RUNNERS
from normfold.bench.runners.base import Feeds
from normfold.bench.runners.openvino import settings
from normfold.inputs.spec import draw

RUNS = 30
# What the runtimes call a norm per token: onnxruntime's operators, OpenVINO's layers. Its weight and bias are a part of
# the former; in the latter they are products and sums of their own and are not counted.
NORMS = {
    "ort": (
        "LayerNormalization",
        "SkipLayerNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "RMSNormalization",
    ),
    "openvino": ("MVN", "RMS"),
}


def share_of_norms(model: Path, folder: Path, runtime: str, dtype: str, threads: int) -> float | None:
    """Of the LayerNorm twin of a checkpoint, at batch 1; None where the runtime has no profile by operator.

    folder: an empty place for the files.
    """
    if runtime not in NORMS:
        return None
    made = variants.collect(model, folder, runtime=runtime, half=dtype == "float16")
    twin = next((variant for variant in made.found if variant.name == variants.LAYERNORM), None)
    if twin is None:
        return None
    sizes = axis_sizes(made.inputs, 1)
    prepared, specs = str(folder / "prepared.onnx"), tuple(map(str, made.inputs))
    job = Job(str(twin.file), specs, sizes, runtime=runtime, dtype=dtype, threads=threads, scratch=prepared)
    if dtype in RUNNERS[runtime].prepare:
        if prepare(job) is not None:
            return None
        job = replace(job, model=prepared)
    feeds = draw(made.inputs, sizes, seed=0)
    spent = {"ort": _onnxruntime, "openvino": _openvino}[runtime](job, feeds, folder)
    return sum(spent[name] for name in NORMS[runtime]) / sum(spent.values())


def _onnxruntime(job: Job, feeds: Feeds, folder: Path) -> Counter[str]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = job.threads
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])
    for _ in range(RUNS):
        session.run(None, dict(feeds))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return by_operator(events)


def by_operator(events: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Microseconds in the kernels of each operator, of onnxruntime's profile."""
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return spent


def _openvino(job: Job, feeds: Feeds, folder: Path) -> Counter[str]:
    import openvino

    asked = {**settings(job), "PERF_COUNT": True}
    request = openvino.Core().compile_model(job.model, "CPU", asked).create_infer_request()
    spent: Counter[str] = Counter()
    for _ in range(RUNS):
        request.infer(dict(feeds))
        for layer in request.get_profiling_info():
            spent[layer.node_type] += layer.real_time.total_seconds()
    return spent
