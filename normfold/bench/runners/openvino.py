"""OpenVINO on the CPU, tuned for the latency of one request."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from normfold.bench import memory
from normfold.bench.runners.base import Call, Feeds, Runner, fed_to, not_installed
from normfold.bench.runners.qdq import quantise

if TYPE_CHECKING:
    from normfold.bench.job import Job

# What its processors call half precision, where they compute in it and do not widen it to float32 first.
_HALF = "FP16"
# The precision of all that is not quantised, so that "float32" is not bfloat16 on processors that have that.
_PRECISION = {"float32": "f32", "float16": "f16", "int8": "f32"}
# What its graphs hold besides what they do.
_CONSTANT, _NO_WORK = "Const", ("Input", "Output")


def open_model(job: Job, feeds: Feeds) -> Call:
    """One request, whose inputs stay where they are."""
    compiled = _compiled(job)
    request = compiled.create_infer_request()
    fed = fed_to([port.get_any_name() for port in compiled.inputs], feeds)
    for name, array in fed.items():
        request.set_tensor(name, _openvino().Tensor(array, shared_memory=True))

    def call(held: object = fed) -> None:
        # A request reads the memory of its inputs and does not keep it.
        request.infer()

    return call


def inspect(job: Job) -> tuple[Mapping[str, int], int]:
    """Of the graph that the plugin runs: what it calls the type of each layer."""
    counts: Counter[str] = Counter()
    weights = 0
    for node in _compiled(job).get_runtime_model().get_ordered_ops():
        kind = str(node.get_rt_info()["layerType"].value)
        if kind == _CONSTANT:
            port = node.output(0)
            weights += math.prod(port.get_shape()) * port.get_element_type().bitwidth // 8
        elif kind not in _NO_WORK:
            counts[kind] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))), weights


def lacks(device: str, mode: str = "", dtype: str = "") -> str:
    """The library; half precision, which few processors compute in; a cache that stays in place."""
    missing = not_installed("openvino", "openvino")
    if missing:
        return missing
    if mode == "generate":
        return "ort and torch keep the cache of a decoder in place, openvino does not here"
    if dtype == "float16" and _HALF not in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "on this processor OpenVINO computes float16 in float32, and the figure would be that of float32"
    return ""


def _openvino() -> Any:
    import openvino

    return openvino


def settings(job: Job) -> dict[str, Any]:
    """What OpenVINO is asked for."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": _PRECISION[job.dtype],
    }


def _compiled(job: Job) -> Any:
    return _openvino().Core().compile_model(job.model, "CPU", settings(job))


OPENVINO = Runner(
    name="openvino",
    title="OpenVINO",
    library="openvino",
    packages=("openvino",),
    modes={"cpu": ("plain",)},
    dtypes=("float32", "float16", "int8"),
    target="openvino",
    prepare={"int8": quantise},
    open=open_model,
    meter=lambda device: memory.Resident(),
    inspect=inspect,
    lacks=lacks,
)
