"""The onnxruntime that is installed: one build, without telemetry.

Its builds for a CPU, for CUDA and for others are packages of different names that lie in one folder: with two of them
installed, what runs is a mixture that no verdict is to rest on.
"""

from __future__ import annotations

import os
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
    without_telemetry()
    import onnxruntime

    # Where it was imported before, the variable came too late for it.
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def without_telemetry() -> None:
    """Call before onnxruntime is imported, by whomever: from 1.32 on, its builds for Linux, macOS and Windows report to
    Microsoft over HTTPS, and keep a name of the machine in the user's cache and a file `.ses` in the temporary
    directory. This process and those that it starts do not, unless the user has set the variable.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _is_installed(name: str) -> bool:
    # Here, because it imports the mail parser, which takes longer than printing help.
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
