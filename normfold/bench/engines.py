"""The runtimes: a model opened, its inputs in place, and one call that returns when the device is done.

Each is imported when it is opened, so that a process holds one runtime and no more.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normfold.bench import decode
from normfold.bench.job import Job

# TF32 multiplies with 10 bits of mantissa: with it, "float32" would name two things.
TF32 = False

Call = Callable[[], None]
Feeds = Mapping[str, np.ndarray[Any, Any]]


def import_runtime(job: Job) -> None:
    """Import what `open_engine` needs, so that its memory can be told from the model's."""
    if job.runtime == "torch":
        import torch  # noqa: F401
    else:
        import onnxruntime  # noqa: F401


def open_engine(job: Job, feeds: Feeds) -> Call:
    """The model of `job` with `feeds` on its device: a function that runs it once and waits for the end."""
    opened = _open_torch(job, feeds) if job.runtime == "torch" else _open_ort(job, feeds)
    if not job.delay:
        return opened

    def delayed() -> None:
        opened()
        time.sleep(job.delay)

    return delayed


def ort_session(job: Job) -> Any:
    """A session with every optimisation on, and nothing but the provider that was asked for."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = job.threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads that spin after a call would take the processor from the variant whose turn it is.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if job.optimised:
        options.optimized_model_filepath = job.optimised
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{Path(job.optimised).name}.data"
        )
    if job.device == "cuda":
        # TensorRT has no option for it in onnxruntime, and reads this when its libraries are loaded.
        os.environ["NVIDIA_TF32_OVERRIDE"] = str(int(TF32))
        ort.preload_dlls()
    wanted = ort_providers(job)
    session = ort.InferenceSession(job.model, options, providers=wanted)
    found = session.get_providers()[0]
    if found != wanted[0][0]:
        raise RuntimeError(f"onnxruntime fell back to {found}: the libraries of {wanted[0][0]} did not load")
    return session


def ort_providers(job: Job) -> list[tuple[str, dict[str, str]]]:
    """The provider that was asked for; behind TensorRT, CUDA for the operators that TensorRT does not take."""
    if job.device == "cpu":
        return [("CPUExecutionProvider", {})]
    settings = {"use_tf32": str(int(TF32)), "arena_extend_strategy": "kSameAsRequested"}
    cuda = ("CUDAExecutionProvider", settings | {"enable_cuda_graph": str(int(job.mode == "graph"))})
    return [("TensorrtExecutionProvider", {}), cuda] if job.mode == "tensorrt" else [cuda]


def _open_ort(job: Job, feeds: Feeds) -> Call:
    session = ort_session(job)
    names = [entry.name for entry in session.get_inputs()]
    if job.mode == "generate":
        return decode.generate(decode.ort_step(session, job.device), feeds)
    fed = dict(feeds) if set(names) <= set(feeds) else dict(zip(names, feeds.values(), strict=True))
    if job.device == "cpu":
        fed = {name: fed[name] for name in names}
        return lambda: session.run(None, fed)
    return bound(session, {name: fed[name] for name in names}, job.device)


def bound(session: Any, feeds: Feeds, device: str) -> Call:
    """A call whose inputs and outputs stay on the device, at addresses that a CUDA graph can rely on."""
    import onnxruntime as ort

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


def _open_torch(job: Job, feeds: Feeds) -> Call:
    import torch

    from normfold.inputs.spec import call_arguments

    torch.set_num_threads(job.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = TF32
    sys.path[:0] = job.import_from
    with open(job.model, "rb") as file:
        module = pickle.load(file).to(job.device)
    tensors = {name: torch.from_numpy(array).to(job.device) for name, array in feeds.items()}
    args, kwargs = call_arguments(module.forward, tensors)
    if job.mode == "generate":
        return decode.generate(decode.torch_step(module, job.device), feeds)
    run = torch.compile(module) if job.mode == "compile" else module

    def call() -> None:
        with torch.inference_mode():
            run(*args, **kwargs)
        if job.device == "cuda":
            torch.cuda.synchronize()

    if job.mode != "graph":
        return call
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        module(*args, **kwargs)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


def operators(job: Job) -> tuple[dict[str, int], int]:
    """The operators of the graph that onnxruntime runs, most frequent first, and the bytes of its constants."""
    import onnx

    ort_session(job)
    model = onnx.load(job.optimised, load_external_data=False)
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    weights = sum(_bytes(tensor) for tensor in model.graph.initializer)
    for left in (job.optimised, f"{job.optimised}.data"):
        if os.path.exists(left):
            os.unlink(left)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))), weights


def _bytes(tensor: Any) -> int:
    import onnx

    count = int(np.prod(tensor.dims, dtype=np.int64))
    return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def module_bytes(job: Job) -> int:
    """Bytes of a module's parameters and buffers, shared ones once."""
    with open(job.model, "rb") as file:
        module = pickle.load(file)
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(int(tensor.nbytes) for tensor in tensors.values())
