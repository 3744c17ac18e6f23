"""Every call of the GPU study to CUDA, and the same questions put to the CPU for a rehearsal.

Whatever is timed runs on the current stream of a device that is idle when the first event is recorded, as the papers'
own scripts do it; so a call that waits for Python is as slow here as it was there.
"""

from __future__ import annotations

import json
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from normfold.bench import machine, nvidia

Call = Callable[[], object]

# The tests put a recorder here.
cuda: Any = torch.cuda

# Before a capture: cuBLAS and cuDNN make their handles and choose their kernels in the first calls.
WARM_UPS = 3


class Cuda:
    """The first CUDA device."""

    place = "cuda"

    def __init__(self) -> None:
        self.events: tuple[Any, Any] | None = None
        self.side: Any = None

    def missing(self) -> str | None:
        """Why nothing can be measured; None where it can."""
        if torch.version.cuda is None:
            return f"this torch ({torch.__version__}) is built without CUDA"
        return None if cuda.is_available() else "torch finds no CUDA device"

    def describe(self) -> dict[str, Any]:
        """The device and the versions, as plain data."""
        properties = cuda.get_device_properties(0)
        return {
            **machine.describe("cuda", torch.get_num_threads()),
            "gpu": cuda.get_device_name(0),
            "gpu_memory": properties.total_memory,
            "capability": list(cuda.get_device_capability(0)),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def state(self) -> dict[str, float]:
        """Clocks and temperature now."""
        return nvidia.state()

    def settle(self, *, tf32: bool, dtype: torch.dtype) -> None:
        """Choose whether float32 products may use TF32, and have the libraries take their workspaces, once for all."""
        # The older of torch's two ways to say it: the newer one breaks torch.compile in some releases.
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        with torch.inference_mode():
            x = torch.ones(64, 64, dtype=dtype, device=self.place)
            _ = F.linear(x, x, x[0]) @ x
            _ = torch.bmm(x[None], x[None])
        self.wait()

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        cuda.synchronize()

    def milliseconds(self, call: Call) -> float:
        """How long one call takes on an idle device, between two events; the device is idle again afterwards."""
        if self.events is None:
            self.events = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        start, end = self.events
        start.record()
        call()
        end.record()
        cuda.synchronize()
        return float(start.elapsed_time(end))

    def compile(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call under torch.compile."""
        return torch.compile(_with_own_code(call))

    def capture(self, calls: Sequence[Call]) -> list[Call]:
        """Each call as a CUDA graph, in this order; they share one pool and have to be replayed in this order.

        All of them are run before, on the stream that they are captured on.
        """
        if self.side is None:
            self.side = cuda.Stream()
        self.side.wait_stream(cuda.current_stream())
        with cuda.stream(self.side):
            for _ in range(WARM_UPS if len(calls) == 1 else 1):
                for call in calls:
                    call()
        cuda.current_stream().wait_stream(self.side)
        cuda.synchronize()
        replays: list[Call] = []
        pool = None
        for call in calls:
            graph = cuda.CUDAGraph()
            with cuda.graph(graph, pool=pool, stream=self.side, capture_error_mode="thread_local"):
                call()
            pool = graph.pool()
            replays.append(graph.replay)
        cuda.synchronize()
        return replays

    def release(self) -> None:
        """Give what the allocator holds for nobody back to the device."""
        cuda.empty_cache()

    def held(self) -> tuple[int | None, int | None]:
        """Bytes of tensors now, and bytes that the allocator has reserved."""
        return cuda.memory_allocated(), cuda.memory_reserved()

    def peaks(self, call: Call) -> tuple[int | None, int | None]:
        """The largest of both while the call runs."""
        cuda.reset_peak_memory_stats()
        call()
        cuda.synchronize()
        return cuda.max_memory_allocated(), cuda.max_memory_reserved()

    def trace(self, call: Call) -> list[dict[str, Any]]:
        """What torch.profiler saw of one call, as the events of its Chrome trace."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        return _traced(call, activities, cuda.synchronize)

    def usable(self) -> bool:
        """Whether the device still answers: after some errors a process can use it no more."""
        try:
            torch.ones(1, device=self.place).sum().item()
            cuda.synchronize()
        except RuntimeError:
            return False
        return True


class Cpu:
    """The processor, to rehearse on: a graph is the call itself, nothing is compiled, memory is not measured."""

    place = "cpu"

    def __init__(self) -> None:
        # A rehearsal shares the machine with other work, and threads that wait for each other would crawl there.
        torch.set_num_threads(1)

    def missing(self) -> str | None:
        return None

    def describe(self) -> dict[str, Any]:
        return machine.describe("cpu", torch.get_num_threads())

    def state(self) -> dict[str, float]:
        return {}

    def settle(self, *, tf32: bool, dtype: torch.dtype) -> None: ...

    def wait(self) -> None: ...

    def milliseconds(self, call: Call) -> float:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3

    def compile(self, call: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(_with_own_code(call), backend="eager")

    def capture(self, calls: Sequence[Call]) -> list[Call]:
        return list(calls)

    def release(self) -> None: ...

    def held(self) -> tuple[int | None, int | None]:
        return None, None

    def peaks(self, call: Call) -> tuple[int | None, int | None]:
        call()
        return None, None

    def trace(self, call: Call) -> list[dict[str, Any]]:
        return _traced(call, [torch.profiler.ProfilerActivity.CPU], self.wait)

    def usable(self) -> bool:
        return True


Device = Cuda | Cpu


def device(name: str) -> Device:
    """The device called `name`: cuda or cpu."""
    return Cuda() if name == "cuda" else Cpu()


def _with_own_code(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` with a code object that no other call has.

    torch.compile keeps what it compiled by code object, and looks through all of it in every call: variants that share
    theirs would pay for each other.
    """

    def own(*args: Any) -> Any:
        return call(*args)

    return types.FunctionType(own.__code__.replace(), own.__globals__, "own", None, own.__closure__)


def _traced(call: Call, activities: list[Any], wait: Callable[[], None]) -> list[dict[str, Any]]:
    with torch.profiler.profile(activities=activities) as profiler:
        call()
        wait()
    with tempfile.TemporaryDirectory(prefix="normfold-") as folder:
        place = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(place))
        events: list[dict[str, Any]] = json.loads(place.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    return events
