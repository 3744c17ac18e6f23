"""torch on the module itself: eager, compiled, or a CUDA graph of it."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from normfold.bench import memory, nvidia
from normfold.bench.runners.base import TF32, Call, Feeds, Runner

if TYPE_CHECKING:
    from normfold.bench.decode import Ids, Step
    from normfold.bench.job import Job


def open_model(job: Job, feeds: Feeds) -> Call:
    """A CUDA graph is recorded after three runs on a stream of its own, as torch asks for."""
    import torch

    from normfold.bench import decode
    from normfold.inputs.spec import call_arguments

    torch.set_num_threads(job.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = TF32
    sys.path[:0] = job.import_from
    with open(job.model, "rb") as file:
        module = pickle.load(file).to(job.device)
    tensors = {name: torch.from_numpy(array).to(job.device) for name, array in feeds.items()}
    args, kwargs = call_arguments(module.forward, tensors)
    if job.mode == "generate":
        return decode.generate(step(module, job.device), feeds)
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


def meter(device: str) -> memory.Meter:
    """On a GPU torch's own allocator."""
    return memory.Resident() if device == "cpu" else _Allocator()


def inspect(job: Job) -> tuple[Mapping[str, int], int]:
    """No operators; the bytes of the parameters and buffers, shared ones once."""
    with open(job.model, "rb") as file:
        module = pickle.load(file)
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return {}, sum(int(tensor.nbytes) for tensor in tensors.values())


def lacks(device: str, mode: str = "", dtype: str = "") -> str:
    """CUDA, which only some builds have."""
    import torch

    if dtype:
        return "a module has no int8 form here; ort, openvino and litert have" if dtype == "int8" else ""
    if device == "cpu" or mode:
        return ""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA; install a CUDA build (pytorch.org)"
    return "" if torch.cuda.is_available() else "torch finds no CUDA device"


def step(module: Callable[..., Any], device: str) -> Step:
    """One step of a decoder."""
    import numpy as np
    import torch

    from normfold.bench import decode

    def once(ids: Ids, keys: Any, values: Any) -> tuple[Ids, Any, Any]:
        held = [torch.from_numpy(each).to(device) if isinstance(each, np.ndarray) else each for each in (keys, values)]
        with torch.inference_mode():
            logits, after, others = module(torch.from_numpy(ids).to(device), *held)
        return decode.likeliest(logits.float().cpu().numpy()), after, others

    return once


class _Allocator:
    """torch's own allocator on the device: what tensors took, and what it holds for them."""

    def __init__(self) -> None:
        import torch

        self.cuda: Any = torch.cuda
        self.cuda.init()
        self.cuda.reset_peak_memory_stats()

    def now(self) -> int | None:
        return int(self.cuda.memory_allocated())

    def peak(self) -> int | None:
        return int(self.cuda.max_memory_allocated())

    def begin_anew(self) -> bool:
        self.cuda.reset_peak_memory_stats()
        return True

    def reserved(self) -> int | None:
        return int(self.cuda.max_memory_reserved())

    def state(self) -> dict[str, float]:
        return nvidia.state()


TORCH = Runner(
    name="torch",
    title="torch on the checkpoint",
    library="torch",
    packages=("torch",),
    modes={"cpu": ("eager", "compile"), "cuda": ("eager", "compile", "graph")},
    runs_modules=True,
    open=open_model,
    meter=meter,
    inspect=inspect,
    lacks=lacks,
)
