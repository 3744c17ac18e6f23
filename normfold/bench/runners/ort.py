"""onnxruntime, with every optimisation on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.bench import memory
from normfold.bench.runners.base import TF32, Call, Feeds, Runner, fed_to
from normfold.bench.runners.qdq import quantise
from normfold.system.ort import FOR_CUDA, onnxruntime

if TYPE_CHECKING:
    from normfold.bench.decode import Ids, Step
    from normfold.bench.job import Job


def open_model(job: Job, feeds: Feeds) -> Call:
    """On a GPU what goes in and comes out stays there."""
    session = open_session(job)
    if job.mode == "generate":
        from normfold.bench import decode

        return decode.generate(step(session, job.device), feeds)
    fed = fed_to([entry.name for entry in session.get_inputs()], feeds)
    if job.device == "cpu":
        return lambda: session.run(None, fed)
    return bound(session, fed, job.device)


def meter(device: str) -> memory.Meter:
    """On a GPU what its driver counts: the runtime itself does not tell, and its arena never shrinks."""
    if device == "cpu":
        return memory.Resident()
    _make_context()
    return memory.Driver()


def inspect(job: Job) -> tuple[Mapping[str, int], int]:
    """From the optimised graph as onnxruntime writes it."""
    import onnx

    open_session(job)
    model = onnx.load(job.scratch, load_external_data=False)
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    weights = sum(_bytes(tensor) for tensor in model.graph.initializer)
    for left in (job.scratch, f"{job.scratch}.data"):
        if os.path.exists(left):
            os.unlink(left)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))), weights


def lacks(device: str, mode: str = "", dtype: str = "") -> str:
    """The provider, which only some builds have."""
    ort = onnxruntime()

    found = ort.get_available_providers()
    if dtype == "int8" and device != "cpu":
        return "int8 is measured on the CPU"
    if mode == "tensorrt" and "TensorrtExecutionProvider" not in found:
        return "this onnxruntime has no TensorrtExecutionProvider"
    # Whether the device is there at all is a question of its own.
    if mode or dtype or device == "cpu" or "CUDAExecutionProvider" in found:
        return ""
    return f"this onnxruntime ({ort.__version__}) has no CUDAExecutionProvider; {FOR_CUDA}"


def open_session(job: Job) -> Any:
    """A session with every optimisation on, and nothing but the provider that was asked for."""
    ort = onnxruntime()

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = job.threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads that spin after a call would take the processor from the variant whose turn it is.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if job.scratch:
        options.optimized_model_filepath = job.scratch
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{Path(job.scratch).name}.data"
        )
    if job.device == "cuda":
        # TensorRT has no option for it in onnxruntime, and reads this when its libraries are loaded.
        os.environ["NVIDIA_TF32_OVERRIDE"] = str(int(TF32))
        ort.preload_dlls()
    wanted = providers(job)
    session = ort.InferenceSession(job.model, options, providers=wanted)
    found = session.get_providers()[0]
    if found != wanted[0][0]:
        raise RuntimeError(f"onnxruntime fell back to {found}: the libraries of {wanted[0][0]} did not load")
    return session


def providers(job: Job) -> list[tuple[str, dict[str, str]]]:
    """The provider that was asked for; behind TensorRT, CUDA for the operators that TensorRT does not take."""
    if job.device == "cpu":
        return [("CPUExecutionProvider", {})]
    settings = {"use_tf32": str(int(TF32)), "arena_extend_strategy": "kSameAsRequested"}
    cuda = ("CUDAExecutionProvider", settings | {"enable_cuda_graph": str(int(job.mode == "graph"))})
    return [("TensorrtExecutionProvider", {}), cuda] if job.mode == "tensorrt" else [cuda]


def bound(session: Any, feeds: Feeds, device: str) -> Call:
    """A call whose inputs and outputs stay on the device, at addresses that a CUDA graph can rely on."""
    ort = onnxruntime()

    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
    # The first run, on bound inputs, finds the shapes of the outputs; from then on they stay where they are.
    for entry in session.get_outputs():
        binding.bind_output(entry.name, device, 0)
    session.run_with_iobinding(binding)
    for entry, value in zip(session.get_outputs(), binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(entry.name, value)
    binding.synchronize_inputs()

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def step(session: Any, device: str) -> Step:
    """One step of a decoder; the cache stays on the device and is not copied."""
    import numpy as np

    ort = onnxruntime()

    from normfold.bench import decode

    outputs = [entry.name for entry in session.get_outputs()]

    def once(ids: Ids, keys: Any, values: Any) -> tuple[Ids, Any, Any]:
        binding = session.io_binding()
        for name, value in ((decode.IDS, ids), (decode.KEYS, keys), (decode.VALUES, values)):
            held = ort.OrtValue.ortvalue_from_numpy(value, device) if isinstance(value, np.ndarray) else value
            binding.bind_ortvalue_input(name, held)
        for name in outputs:
            binding.bind_output(name, device)
        session.run_with_iobinding(binding)
        logits, after, others = binding.get_outputs()[:3]
        return decode.likeliest(logits.numpy()), after, others

    return once


def _make_context() -> None:
    """The CUDA context and its libraries, which are there whatever the model is."""
    ort = onnxruntime()

    ort.preload_dlls()
    ort.OrtValue.ortvalue_from_shape_and_type([1], "float32", "cuda", 0)


def _bytes(tensor: Any) -> int:
    import numpy as np
    import onnx

    count = int(np.prod(tensor.dims, dtype=np.int64))
    return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


ORT = Runner(
    name="ort",
    title="onnxruntime",
    library="onnxruntime",
    packages=("onnxruntime", "onnxruntime-gpu"),
    modes={"cpu": ("plain",), "cuda": ("plain", "graph", "tensorrt")},
    glosses={"graph": "CUDA graph"},
    dtypes=("float32", "float16", "int8"),
    prepare={"int8": quantise},
    open=open_model,
    meter=meter,
    inspect=inspect,
    lacks=lacks,
)
