"""The onnxruntime that is installed: one build, without telemetry.

Its builds for a CPU, for CUDA and for others are packages of different names that lie in one folder: with two of them
installed, what runs is a mixture that no verdict is to rest on.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from normfold.errors import UsageError

# The packages that install the folder `onnxruntime`.
BUILDS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
)
FOR_CUDA = "for CUDA replace it: `pip uninstall -y onnxruntime`, then `pip install onnxruntime-gpu`"


def check_one_build() -> None:
    """Raise UsageError where two builds of onnxruntime are installed. Nothing is imported."""
    found = [name for name in BUILDS if _is_installed(name)]
    if len(found) > 1:
        raise UsageError(
            f"{' and '.join(found)} are installed, into one folder, and which parts of which run is chance. Keep one: "
            f"`pip uninstall -y {' '.join(found)}`, then `pip install {found[-1]}`"
        )


@cache
def onnxruntime() -> Any:
    """The module, imported when it is first asked for. Raises UsageError as `check_one_build` does."""
    check_one_build()
    import onnxruntime

    # Builds for Windows tell Microsoft of sessions unless they are told not to; others have nothing to switch off.
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _is_installed(name: str) -> bool:
    # Here, because it imports the mail parser, which takes longer than printing help.
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
