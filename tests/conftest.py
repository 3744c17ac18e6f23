"""What holds for every test.

Tests in several processes share the cores: one thread of torch each. The shapes of a graph are inferred in this
process, and not in a copy of it, which would take half of the time; tests whose files may bring a process down are
marked `hostile`, and run as users do. torch makes its table of translations anew for every export, which is half of the
time of a small one: here once for every opset. No width of a terminal is taken over from whoever runs the tests.
"""

import copy
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# Tests import onnxruntime themselves.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _translations_are_made_once() -> Iterator[None]:
    if "torch" not in sys.modules:
        yield
        return
    from torch.onnx._internal.exporter import _registration

    made = functools.cache(_registration.ONNXRegistry.from_torchlib)

    def fresh(*args: Any, **kwargs: Any) -> Any:
        registry = copy.copy(made(*args, **kwargs))
        registry.functions = {target: list(found) for target, found in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(fresh))
        yield


@pytest.fixture(autouse=True)
def _no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _shapes_are_inferred_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("hostile") is None:
        monkeypatch.setattr("normfold.graph.inference.isolated", _here)


def _here(function: Callable[..., bytes], *args: Any) -> bytes:
    """What `subprocess_copy.isolated` does, without a copy."""
    try:
        return function(*args)
    except MemoryError:
        raise
    except Exception as error:
        raise RuntimeError(str(error)) from error
